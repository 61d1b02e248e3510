# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""report.html: the results of a cohort on one page that needs no other file, with report.json and model_card.md."""

import html
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from scripts.core.errors import InputError
from scripts.core.files import plain, sha256_of, write_whole
from scripts.core.record import RESEARCH_USE
from scripts.core.scoring import in_words
from scripts.outputs import charts
from scripts.outputs.card import model_card
from scripts.outputs.report_json import report_content, training_record

logger = logging.getLogger(__name__)

CSS = """
:root { color-scheme: light } * { box-sizing: border-box }
body { font: 16px/1.5 "Helvetica Neue", Arial, "Liberation Sans", sans-serif; color: #1a1a1a; background: #fff;
  max-width: 62rem; margin: 2rem auto; padding: 0 1rem; counter-reset: figure table }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 } h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem;
  border-bottom: 1px solid #999; padding-bottom: .2rem }
.subtitle, .missing, caption, figcaption { color: #555 } .missing { font-style: italic }
.research { border-left: 4px solid #D55E00; padding: .3rem .8rem; font-weight: bold }
.wide { overflow-x: auto; margin: 1rem 0 } table { min-width: min(100%, 34rem) }
table { border-collapse: collapse; border-bottom: 2px solid #333;
  font-size: .9rem } caption { text-align: left; padding-bottom: .4rem }
thead th { border-top: 2px solid #333; border-bottom: 1px solid #333; vertical-align: bottom }
th, td { padding: .25rem .8rem .25rem 0; text-align: left; vertical-align: top; font-weight: normal }
td + td { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
th + th { text-align: right } .facts { border: 0 } .facts td + td { text-align: left; white-space: normal;
  overflow-wrap: anywhere } .facts td:first-child { white-space: nowrap }
.group td { font-weight: bold; padding-top: .7rem }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: 1.5rem }
figure { margin: 0; break-inside: avoid; max-width: 30rem } svg { width: 100%; height: auto; display: block }
svg text { font-family: "Helvetica Neue", Arial, "Liberation Sans", sans-serif !important }
caption, figcaption { font-size: .85rem }
figcaption::before { counter-increment: figure; content: "Figure " counter(figure) ". "; font-weight: bold }
caption::before { counter-increment: table; content: "Table " counter(table) ". "; font-weight: bold }
"""
GROUPS = {  # the first word of a figure's name → what it is of
    "bag": "Bags: positive or not",
    "class": "Classes",
    "coarse": "Coarse classes",
    "instance": "Instances",
    "lesion": "Lesions",
    "attention": "Attention",
    "dirichlet": "Smoothness",
    "faithfulness": "Faithfulness",
}
SPELLED = {"auroc": "AUROC", "froc": "FROC", "f1": "F1", "brier": "Brier"}
WHY_MISSING = {  # part of report.json → why it may be missing
    "figures": "there is no metrics.json, as there was no label when the tables were written.",
    "confusion": "no bag has a label.",
    "curves": "a curve wants labelled bags of both kinds.",
    "calibration": "no bag has a label, or every class is a finding.",
    "instances": "there is no instances.csv, or no instance in it.",
    "attention_on_truth": "no positive bag has instances that are known to be positive and others known not to be.",
    "training": "no record of a training with curves lies beside the weights.",
    "cases": "there is no bag.",
}


class WriteReport:
    """Ignite handler that writes the report of a cohort, behind the CohortReport that writes its tables.

    Args:
        output_dir: folder of the results.
        bundle_root: folder of the bundle.
        ckpt_path: file of the weights.
    """

    def __init__(self, output_dir: str, bundle_root: str, ckpt_path: str) -> None:
        self.output_dir, self.bundle_root, self.ckpt_path = Path(output_dir), Path(bundle_root), Path(ckpt_path)

    def attach(self, engine: Engine) -> None:
        """Register the handler with an evaluator."""
        given = self.output_dir, self.bundle_root, self.ckpt_path
        engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: write_report(*given))


def write_report(folder: Path, bundle_root: Path | None = None, ckpt_path: Path | None = None) -> Path:
    """Write report.html, report.json and model_card.md from the tables in a folder, and return the first.

    What is not given, of the bundle or of the weights, is taken from an earlier report in the folder.
    """
    logger.info("making the report of %s", folder)
    content = report_content(folder)
    try:
        earlier = json.loads((folder / "report.json").read_text())
        known = {name: earlier.get(name) for name in ("bundle", "weights_sha256", "training")}
    except (OSError, ValueError, AttributeError):
        known = {}  # none, or damaged
    try:
        if bundle_root is not None:
            metadata = json.loads((bundle_root / "configs" / "metadata.json").read_text())
            known["bundle"] = {key: value for key, value in metadata.items() if key != "changelog"}
        if ckpt_path is not None:
            known |= {"weights_sha256": sha256_of(ckpt_path), "training": plain(training_record(ckpt_path))}
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read ({error.strerror}): check the path") from error
    content = {**dict.fromkeys(("bundle", "weights_sha256", "training")), **known, **content}
    write_whole(folder / "report.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    write_whole(folder / "model_card.md", model_card(content))
    write_whole(folder / "report.html", html_page(content))
    return folder / "report.html"


def html_page(content: Mapping[str, Any]) -> str:
    """Return the page of the content of report.json."""
    bundle = content["bundle"] or {}
    title = " ".join(["Report", *(["of", bundle["name"], bundle["version"]] if bundle else ["of a cohort"])])
    sections = (
        ("Figures", "figures", _figure_section),
        ("Calls", "confusion", _call_section),
        ("Receiver operating characteristic, precision and recall", "curves", _curve_section),
        ("Calibration", "calibration", _calibration_section),
        ("Attention and scores of instances", "instances", _instance_section),
        ("Attention against the truth", "attention_on_truth", _attention_section),
        ("Training", "training", _training_section),
        ("Cases worth looking at", "cases", _case_section),
    )
    body = "\n".join(_page_section(content, *each) for each in sections)
    references = "".join(f"<li>{html.escape(str(each))}</li>" for each in bundle.get("references", []))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title><style>{CSS}</style></head><body>
<h1>{html.escape(title)}</h1>
<p class="subtitle">{html.escape(str(bundle.get("task", "")))}</p>
<p class="research">{RESEARCH_USE.capitalize()}.</p>
{_facts(content)}
{body}
{f"<section><h2>References</h2><ul>{references}</ul></section>" if references else ""}
<p class="subtitle">Every number on this page is in report.json beside it, figures also in metrics.json.</p>
</body></html>
"""


def _page_section(content: Mapping[str, Any], heading: str, part: str, make: Callable[[Mapping[str, Any]], str]) -> str:
    shown = make(content) if content[part] else ""
    shown = shown or f'<p class="missing">Left out: {WHY_MISSING[part]}</p>'
    return f"<section><h2>{heading}</h2>\n{shown}</section>"


def _facts(content: Mapping[str, Any]) -> str:
    cohort, threshold, over_folds = content["cohort"], content["threshold"], content["over_folds"]
    between = ["none"] if threshold is None else [_number(each) for each in dict.fromkeys(threshold)]
    facts = {
        "Weights": f"sha256 {content['weights_sha256'] or 'not known'}",
        "Tables written": content["tables_written"],
        "Bags": ", ".join(f"{count:,} {status}" for status, count in cohort["bags"].items()) or "0",
        "With a label": f"{cohort['labelled']:,}, {cohort['positive']:,} of them positive",
        "Called positive": _number(cohort["called_positive"]),
        "Instances": _number(cohort["instances"]) if cohort["instances"] else "not in the tables",
        "Threshold": " to ".join(between) + (f"; {content['threshold_origin']}" if content["threshold_origin"] else ""),
        "Score that flags": _score_in_words(content),
        **({"Cross-validation": "{folds} folds, repeats: {repeats}".format(**over_folds)} if over_folds else {}),
    }
    rows = "".join(f"<tr><td>{html.escape(key)}</td><td>{html.escape(str(of))}</td></tr>" for key, of in facts.items())
    return f'<table class="facts">{rows}</table>'


def _score_in_words(content: Mapping[str, Any]) -> str:
    score = content["score"]
    return "none" if score is None else " or ".join(in_words(name, score["smoothing"]) for name in score["names"])


def _figure_section(content: Mapping[str, Any]) -> str:
    figures = content["figures"]
    spread = ["mean", "sd"] if content["over_folds"] else []
    rows: list[Sequence[str]] = []
    groups = dict.fromkeys([*GROUPS, *(name.partition("_")[0] for name in figures)])
    for group in groups:
        own = {name: figure for name, figure in figures.items() if name.partition("_")[0] == group}
        rows += [[GROUPS.get(group, group)]] if own else []
        for name, figure in own.items():
            interval = f"{_number(figure.get('low'))} to {_number(figure.get('high'))}"
            cells = [_number(figure["value"]), interval if figure.get("low") is not None else "–"]
            rows.append([_words(name.partition("_")[2]), *cells, *(_number(figure.get(key)) for key in spread)])
    caption = (
        "Figures with 95 % intervals over bags, the number of bags being what an interval depends on: Wilson's for "
        "proportions of bags, Zou and Donner's for means of them, DeLong's (or Newcombe's) for the AUROC of bags, else "
        f"percentiles of 1000 draws of bags. Instances are ranked and flagged by their {_score_in_words(content)}; "
        "gated: those of bags called negative score lowest. AUROC attention, evidence, instance: of each such "
        "score, whichever flags, ungated. –: not defined on these bags; of an interval also: the same in every draw, "
        "which tells nothing of its width."
    )
    if spread:
        caption += (
            " Mean and standard deviation (sd) are of the folds of a cross-validation. What compares scores "
            "of instances in different bags has these alone: the network of each fold has a scale of its own."
        )
    return _table(caption, ["", "value", "95 % interval", *spread], rows)


def _call_section(content: Mapping[str, Any]) -> str:
    confusion = content["confusion"]
    rows = [[name, *map(_number, counts)] for name, counts in zip(confusion["names"], confusion["bags"], strict=True)]
    return _table("Bags by their label (rows) and what they are called (columns).", ["", *confusion["names"]], rows)


def _curve_section(content: Mapping[str, Any]) -> str:
    curves = content["curves"]
    called_at = None
    if list(curves) == ["positive"]:
        (right, alarm), (missed, found) = content["confusion"]["bags"]
        called_at = alarm / (right + alarm), found / (found + missed)
    of = "each class against the rest" if called_at is None else "of bags"
    band = "bands hold 95 % of 1000 draws of bags, at each place by itself"
    return _charts(
        (charts.svg(charts.roc, curves, called_at), f"Receiver operating characteristic, {of}; {band}."),
        (charts.svg(charts.precision_recall, curves), f"Precision and recall, {of}; dotted: the share of positives."),
    )


def _calibration_section(content: Mapping[str, Any]) -> str:
    calibration = content["calibration"]
    named = {"before scaling": calibration["before"], "as given": calibration["after"]}
    known = {name: of for name, of in named.items() if of}
    errors = "; ".join(f"{name} {_number(of['calibration_error'])}" for name, of in known.items())
    columns = {"bags": "bags", "mean_probability": "mean probability", "share_positive": "positive"}
    rows = [
        [f"{k / 10:g} to {k / 10 + 0.1:g}", *(_number(of["bins"][k][key]) for of in known.values() for key in columns)]
        for k in range(10)
    ]
    chart = charts.svg(charts.reliability, calibration, rows=(3, 1))
    caption = f"Reliability with Wilson's intervals, and the bags in each bin. Calibration error: {errors}."
    head = ["probability", *(f"{column}, {name}" for name in known for column in columns.values())]
    table = _table("The same in numbers. Before scaling: the sigmoid or softmax of the logits alone.", head, rows)
    return _charts((chart, caption)) + table


def _instance_section(content: Mapping[str, Any]) -> str:
    attention, score = (content["instances"][key] for key in ("attention_times_average", "score"))
    title, name = "attention, as a multiple of the bag's average", _score_in_words(content)
    unknown = " Truth is not known for any: all are drawn as one kind." if set(score["counts"]) == {"unknown"} else ""
    return _charts(
        (charts.svg(charts.histogram, attention, title, True), f"Attention; dotted: the average.{unknown}"),
        (charts.svg(charts.histogram, score, name, False), f"Score of instances: {name}.{unknown}"),
    )


def _attention_section(content: Mapping[str, Any]) -> str:
    bags = content["attention_on_truth"]
    return _charts(
        (charts.svg(charts.shares, bags), "Share of each bag's attention on its positive instances."),
        (charts.svg(charts.aurocs, bags), f"AUROC within each bag of the {_score_in_words(content)}; dotted: chance."),
    )


def _training_section(content: Mapping[str, Any]) -> str:
    training = content["training"]
    drawn = []
    for title, part in (
        ("loss", "loss"),
        ("AUROC", "auroc"),
        ("learning rate", "learning_rate"),
        ("strength of smoothing α", "alpha"),
        ("spread of attention × N", "attention_spread"),
    ):
        lines = {name: points for name, points in training["curves"].items() if part in name}
        if lines:
            chart = charts.svg(charts.epochs, title, lines, training["kept"])
            drawn.append((chart, f"By epoch: {title}; dotted: the epoch that was kept."))
    return _charts(*drawn) if drawn else ""


def _case_section(content: Mapping[str, Any]) -> str:
    cases = content["cases"]
    parts = []
    for key, caption in (
        ("confident_mistakes", "The most confident mistakes."),
        ("least_certain", "The least certain calls: nearest to the threshold, or to a second class."),
    ):
        columns = ("label", "called", "probability", "confidence", "margin")
        rows = [[case["bag_id"], *(_number(case[column]) for column in columns)] for case in cases[key]]
        explained = f"{caption} Confidence: probability of what was called; margin: distance from another call."
        parts.append(_table(explained, ["bag", *columns], rows) if rows else _none(caption))
    rows = [[bag["bag_id"], *(_number(bag[key]) for key in list(bag)[1:])] for bag in cases["attention_elsewhere"]]
    caption = "Positive bags whose attention lies elsewhere: their positive instances get less than an even share."
    head = ["bag", "instances", "positive ones", "share of instances", "share of attention", "AUROC within"]
    parts.append(_table(caption, head, rows) if rows else _none(caption))
    return "\n".join(parts)


def _words(name: str) -> str:
    words = [SPELLED.get(word, word) for word in name.split("_")]
    return " ".join([words[0][:1].upper() + words[0][1:], *words[1:]])


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 1000 else f"{value:,.0f}"  # counts of pairs
    if isinstance(value, int):
        return f"{value:,}"
    return "–" if value in (None, "") else str(value)


def _table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A row of a single cell is the heading of those below it."""
    heads = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in head)
    lines = []
    for row in rows:
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
        lines.append(f"<tr>{cells}</tr>" if len(row) > 1 else f'<tr class="group">{cells}</tr>')
    body = "\n".join(lines)
    return (
        f'<div class="wide"><table><caption>{html.escape(caption)}</caption>\n'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def _charts(*drawn: tuple[str, str]) -> str:
    figures = "\n".join(
        f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>" for svg, caption in drawn
    )
    return f'<div class="charts">{figures}</div>'


def _none(caption: str) -> str:
    return f"<p>{html.escape(caption)} None.</p>"
