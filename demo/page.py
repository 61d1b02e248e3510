# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The page of the demonstration: cases, training curves, and both arms in one table."""

import csv
import html
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from matplotlib.figure import Figure
from mlflow import MlflowClient

from scripts.core.files import write_whole
from scripts.core.record import RESEARCH_USE
from scripts.core.scoring import ATTENTION, in_words
from scripts.ct.outputs.picture import png


class Arm(NamedTuple):
    folder: str  # also the name of its run in MLflow
    name: str
    color: str


class Task(NamedTuple):
    folder: str
    title: str
    picture: str
    instances: str
    arms: tuple[Arm, Arm]


TASKS = (
    Task(
        "ct",
        "Head CT: which scans bleed, and which slices",
        "slices.png",
        "slices",
        (
            Arm("attention", "attention MIL (α = 0)", "#7f7f7f"),
            Arm("smooth", "smooth attention: LS1, α = 0.5", "#1f4e79"),
        ),
    ),
    Task(
        "wsi",
        "Whole slides: which slides hold tumour, and where",
        "map.png",
        "patches",
        (
            Arm("attention", "attention MIL (no smoothing)", "#7f7f7f"),
            Arm("smooth", "SmAP: smooth attention, α trained", "#1f4e79"),
        ),
    ),
)
FIGURES = (
    ("bag_auroc", "AUROC of the {bag}s"),
    ("bag_accuracy", "accuracy of the {bag}s"),
    ("instance_auroc_gated", "AUROC of the {instances}, gated"),
    ("instance_auroc_ungated", "AUROC of the {instances}, ungated"),
    ("instance_auroc_attention", "by attention"),
    ("instance_auroc_evidence", "by evidence"),
    ("instance_auroc_instance", "by own logit"),
    ("lesion_froc_gated", "FROC of the lesions, gated"),  # of slides
)
FROC_NOTE = "FROC: the share of lesions found, averaged over 1/4, 1/2, 1, 2, 4 and 8 false alarms per slide."
CURVES = (
    ("train_loss", "training loss, each arm its own"),
    ("val_loss", "validation cross-entropy"),
    ("val_bag_auroc", "validation AUROC"),
)

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 1180px; margin: 2em auto; padding: 0 1em }
h1 { margin-bottom: 0 } h2 { border-bottom: 2px solid #1f4e79; padding-bottom: .2em; margin-top: 2em }
table { border-collapse: collapse } th, td { padding: .35em 1em; border-bottom: 1px solid #ddd; text-align: left }
td + td { font-variant-numeric: tabular-nums } figure { margin: 1em 0 } img { max-width: 100%; border: 1px solid #eee }
figcaption, .note { color: #555; font-size: 14px } .warning { background: #fff4e0; padding: .5em 1em }
"""


def write_page(home: Path) -> Path:
    """`index.html` from what the commands of the demonstration have written."""
    sections = "\n".join(_section(home, task) for task in TASKS)
    page = home / "index.html"
    write_whole(
        page,
        f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Smooth MIL: demonstration</title><style>{STYLE}</style></head><body>
<h1>Smooth MIL bundles: the demonstration</h1>
<p>Two networks that learned from <b>one label per image</b>, and still answer <b>where</b>.</p>
<p class="warning">Synthetic images, made by this repository. Networks trained on them know nothing of patients:
{RESEARCH_USE}.</p>
{sections}
</body></html>
""",
    )
    return page


def _section(home: Path, task: Task) -> str:
    work = home / task.folder
    write_whole(work / "curves.png", _curves(work, task))
    cases = "\n".join(_case(home, task, *each) for each in _chosen_cases(work / "inference" / "summary.csv"))
    return f"""<h2>{task.title}</h2>
{_table(work, task)}
<h3>Cases of the test set, read by the smooth variant</h3>
{cases}
<h3>Training</h3>
<figure><img src="{task.folder}/curves.png" alt="training curves"></figure>"""


def _case(home: Path, task: Task, what: str, row: dict[str, Any]) -> str:
    folder = Path(task.folder) / "inference" / row["bag_id"]
    caption, page = html.escape(what), folder / "map.html"
    link = f' · <a href="{quote(page.as_posix())}">to zoom into</a>' if (home / page).exists() else ""
    picture = quote((folder / task.picture).as_posix())
    return f'<figure><img src="{picture}" alt="{caption}"><figcaption>{caption}{link}</figcaption></figure>'


def _table(work: Path, task: Task) -> str:
    results = {arm: json.loads((work / arm.folder / "metrics.json").read_text()) for arm in task.arms}
    first = next(iter(results.values()))
    bag = "scan" if task.folder == "ct" else "slide"
    shown = [(key, title) for key, title in FIGURES if key in first]
    by = [in_words(each.get("score_name", ATTENTION), each.get("score_smoothing", 0.0)) for each in results.values()]
    if len(set(by)) > 1:  # plain attention has no neighbours to smooth along
        by = [f"{score} ({html.escape(arm.name)})" for score, arm in zip(by, results, strict=True)]
    scores = ", ".join(dict.fromkeys(by))
    head = "".join(f"<th>{title.format(bag=bag, instances=task.instances)}</th>" for _, title in shown)
    rows = "".join(
        f"<tr><td>{html.escape(arm.name)}</td>"
        + "".join(f"<td>{_figure(result[key])}</td>" for key, _ in shown)
        + "</tr>"
        for arm, result in results.items()
    )
    return f"""<table><tr><th></th>{head}</tr>{rows}</table>
<p class="note">{first["bags"]} test {bag}s, {first["positive_bags"]} positive;
95 % intervals over the {bag}s. Both arms: same data, same seed.
The {task.instances} are ranked and flagged by their {scores}; gated:
those of {bag}s called negative get the lowest score. By attention, evidence and own logit: the AUROC of the
{task.instances} by each of these scores as it is, not smoothed and ungated, whichever flags.
{FROC_NOTE if "lesion_froc_gated" in first else ""}</p>"""


def _figure(value: dict[str, float | None]) -> str:
    if value["value"] is None:
        return "not defined"
    interval = "" if value["low"] is None else f" [{value['low']:.3f}, {value['high']:.3f}]"
    return f"<b>{value['value']:.3f}</b>{interval}"


def _chosen_cases(summary: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The clearest and the faintest positive found, a negative, and the worst mistake of each kind if there is one."""
    with summary.open() as file:
        rows = sorted(csv.DictReader(file), key=lambda row: float(row["probability"]))
    kinds = {
        (truth, call): [row for row in rows if (row["label"], row["positive"]) == (truth, call)]
        for truth in "01"
        for call in "01"
    }
    found, missed, alarms, cleared = kinds["1", "1"], kinds["1", "0"], kinds["0", "1"], kinds["0", "0"]
    yield from (("positive, found: the clearest", row) for row in found[-1:])
    yield from (("positive, found: the faintest", row) for row in found[:-1][:1])
    yield from (("negative, called negative", row) for row in cleared[:1])
    yield from (("a mistake: positive, missed", row) for row in missed[:1])
    yield from (("a mistake: negative, called positive", row) for row in alarms[-1:])


def _curves(work: Path, task: Task) -> bytes:
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    histories = {arm: history(work / arm.folder / "mlruns.db", arm.folder) for arm in task.arms}
    for axes, (metric, title) in zip(figure.subplots(1, len(CURVES)), CURVES, strict=True):
        for arm, curves in histories.items():
            axes.plot(*zip(*curves[metric], strict=True), color=arm.color, marker=".", label=arm.name)
        axes.set(title=title, xlabel="epoch")
    axes.legend(fontsize=8, loc="lower right")
    return png(figure)


def history(database: Path, run_name: str) -> dict[str, list[tuple[int, float]]]:
    """(epoch, value) of each curve, from the latest run of this name."""
    client = MlflowClient(tracking_uri=f"sqlite:///{database}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    run = client.search_runs(experiments, f"attributes.run_name = '{run_name}'")[0].info.run_id
    return {
        metric: sorted((point.step, point.value) for point in client.get_metric_history(run, metric))
        for metric, _ in CURVES
    }
