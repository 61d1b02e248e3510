# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Files of a cohort: summary.csv, instances.csv and metrics.json; and which of its bags an earlier run finished."""

import csv
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist
from ignite.engine import Engine, Events
from torch import nn

from scripts.core.errors import InputError
from scripts.core.files import plain, whole_file, write_whole
from scripts.core.record import BagResult, ModelCard, PatchCoordinates
from scripts.core.scoring import in_words
from scripts.engine.evaluator import EMPTY, FAILED
from scripts.engine.operating_point import caveat
from scripts.engine.provenance import settings_of
from scripts.metrics.faithfulness import faithfulness_columns
from scripts.metrics.figures import Interval
from scripts.metrics.summary import cohort_metrics
from scripts.outputs.result_json import from_json, instance_rows

logger = logging.getLogger(__name__)

# metrics named in the log; all are in metrics.json
LOGGED = ("class_accuracy", "bag_auroc", "bag_accuracy", "instance_auroc_gated", "instance_auroc_ungated")


class Recipe:
    """A short text that changes with the architecture of a network, with its weights, and with each part of a recipe.

    It is made when it is first asked for: whoever reads a config to answer a viewer needs none.

    Args:
        network: whose weights do not count.
        model: which weights, and of which version.
        parts: what else counts.
    """

    def __init__(self, network: nn.Module, model: ModelCard, **parts: object) -> None:
        self.network = network
        self.model = model
        self.parts = parts

    def __str__(self) -> str:
        return self._text

    @cached_property
    def _text(self) -> str:
        of_modules = [
            (name, type(module).__name__, settings_of(module)) for name, module in self.network.named_modules()
        ]
        what = (of_modules, self.model.read()[1:], sorted(self.parts.items()))
        return hashlib.sha256(repr(what).encode()).hexdigest()[:16]


def input_of(bag: Mapping[str, Any]) -> str:
    """Return a short text that changes with the files of a bag and with its labels."""
    # the stamp is of further files that the reader of slides knows of
    entry: dict[str, Any] = {key: bag.get(key) for key in ("image", "label", "instance_label", "annotation", "stamp")}
    paths = (path for given in entry.values() for path in (given if isinstance(given, list) else [given]))
    files = [path for path in paths if isinstance(path, str) and os.path.isfile(path)]
    entry["files"] = [(status.st_size, status.st_mtime_ns) for status in map(os.stat, files)]
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()[:16]


class ResultsFolder:
    """The bags of a run, divided into those that an earlier run finished and those that are left to do.

    A bag is finished if its result.json is whole, and has the recipe of this run and the same input.

    Args:
        output_dir: folder of the results.
        bags: the bags of the run; each of several processes takes its share of them.
        recipe: that of the run.
        skip_finished: False leaves all bags to do.
    """

    def __init__(
        self, output_dir: str, bags: Sequence[dict[str, Any]], recipe: Recipe | str, skip_finished: bool = True
    ) -> None:
        self.output_dir = Path(output_dir)
        self.bags = bags[dist.get_rank() :: dist.get_world_size()] if dist.is_initialized() else bags
        self.recipe = str(recipe)
        self.skip_finished = skip_finished

    @cached_property
    def finished(self) -> dict[str, BagResult]:
        """Results of an earlier run, by bag_id."""
        found = ((bag, self._read(bag)) for bag in self.bags if self.skip_finished)
        return {bag["bag_id"]: result for bag, result in found if result is not None}

    def unfinished(self) -> list[dict[str, Any]]:
        """Return the other bags, each with the `input` that its result will keep."""
        return [{**bag, "input": input_of(bag)} for bag in self.bags if bag["bag_id"] not in self.finished]

    def _read(self, bag: Mapping[str, Any]) -> BagResult | None:
        try:
            folder = self.output_dir / bag["bag_id"]
            content = json.loads((folder / "result.json").read_text())
            same = content["recipe"] == str(self.recipe) and content["input"] == input_of(bag)
            return from_json(content, folder) if same else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None  # missing or damaged


class Outcomes(NamedTuple):
    """What became of each bag, by bag_id: an uneven cohort may give a bag to two processes."""

    read: dict[str, BagResult]
    finished: dict[str, BagResult]  # by an earlier run
    failures: dict[str, str]
    empty: dict[str, str]

    @property
    def results(self) -> list[BagResult]:
        """Of all bags that have one, by bag_id."""
        return [result for _, result in sorted({**self.finished, **self.read}.items())]


class CohortReport:
    """Ignite handler that gathers the results of all bags and ranks, and writes the files of the cohort.

    `summary.csv` has a row per bag, `instances.csv` a row per instance and, if labels are known, `metrics.json` each
    metric with its interval.

    Args:
        output_dir: folder of the results.
        folder: results of an earlier run, which belong in the tables too.
        instance_table: write instances.csv; a cohort of slides has millions of rows.
    """

    def __init__(self, output_dir: str, folder: ResultsFolder | None = None, instance_table: bool = True) -> None:
        self.output_dir = Path(output_dir)
        self.folder = folder
        self.instance_table = instance_table
        self.own = self.of_all = Outcomes({}, {}, {}, {})

    def attach(self, engine: Engine) -> None:
        """Register the handler with an evaluator."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.forget)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.report)
        engine.add_event_handler(Events.COMPLETED, self.refuse)  # once other handlers have read the tables

    def forget(self) -> None:
        """Drop what an earlier epoch collected."""
        self.own = Outcomes({}, {} if self.folder is None else self.folder.finished, {}, {})

    def collect(self, engine: Engine) -> None:
        """Keep the outcome of each bag of a batch."""
        bags: Any = engine.state.output  # a list of decollated bags
        self.own.read.update({bag["bag_result"].bag_id: bag["bag_result"] for bag in bags if "bag_result" in bag})
        self.own.failures.update({bag["bag_id"]: bag[FAILED] for bag in bags if FAILED in bag})
        self.own.empty.update({bag["bag_id"]: bag[EMPTY] for bag in bags if EMPTY in bag})

    def report(self, engine: Engine) -> None:
        """Write the files of the cohort, on the first rank."""
        self.of_all = _of_all_ranks(self.own)
        if not dist.is_initialized() or dist.get_rank() == 0:
            metrics = cohort_metrics(self.of_all.results)
            engine.state.metrics.update({name: figure.value for name, figure in metrics.items()})
            write_cohort(self.output_dir, self.of_all, metrics, self.instance_table)
            logger.info(_closing_line(self.of_all, metrics, self.output_dir))

    def refuse(self) -> None:
        """Raise InputError if a bag failed."""
        read, finished, failures, _ = self.of_all
        if failures:
            raise InputError(_failures_line(failures, len(read) + len(finished)))


def write_cohort(
    folder: Path, outcomes: Outcomes, metrics: Mapping[str, Interval], instance_table: bool = True, **more: Any
) -> None:
    """Write the files of a cohort.

    Args:
        folder: where to.
        outcomes: of its bags.
        metrics: what cohort_metrics finds.
        instance_table: write instances.csv.
        more: what else stands in metrics.json.
    """
    results = outcomes.results
    # files of an earlier run that this run does not replace would be taken for its own
    outdated = [f"{bag_id}/result.json" for bag_id in [*outcomes.failures, *outcomes.empty]]
    rows = [_summary_row(result) for result in results]
    for status, reasons in ((FAILED, outcomes.failures), (EMPTY, outcomes.empty)):
        rows += [{"bag_id": bag_id, "status": status, "error": reasons[bag_id]} for bag_id in sorted(reasons)]
    write_table(folder / "summary.csv", dict.fromkeys(name for row in rows for name in row), rows)
    if instance_table and results:
        _write_instances(folder / "instances.csv", results)
    else:
        outdated.append("instances.csv")
    if metrics:
        content = {**_metrics_json(results, metrics), **plain(more, 6)}
        write_whole(folder / "metrics.json", json.dumps(content, indent=4) + "\n")
    else:
        outdated.append("metrics.json")
    for name in outdated:
        (folder / name).unlink(missing_ok=True)


def _of_all_ranks(own: Outcomes) -> Outcomes:
    if not dist.is_initialized():
        return own
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, tuple(own))
    return Outcomes(
        *({name: each for part in parts for name, each in part.items()} for parts in zip(*gathered, strict=True))
    )


def write_table(path: Path, columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a csv whole or not at all."""
    with whole_file(path) as beside, beside.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _write_instances(path: Path, results: Sequence[BagResult]) -> None:
    """Write bag by bag: all rows of a cohort of slides would not fit into memory."""
    # all patches have the same columns, so the first one stands for them
    examples = (instance_rows(each, 1 if isinstance(each.instances, PatchCoordinates) else None) for each in results)
    columns = dict.fromkeys(name for rows in examples for row in rows for name in row)
    rows = ((result.bag_id, row) for result in results for row in instance_rows(result))
    full = ({"bag_id": bag_id, **row, "flagged": int(row["flagged"])} for bag_id, row in rows)
    write_table(path, ["bag_id", *columns], full)


def _failures_line(failures: Mapping[str, str], others: int) -> str:
    reason, more = next(iter(failures.values())), len(failures) - 1
    if more == others == 0:
        return reason
    if more:
        reason += f" (and {more} more, see summary.csv)"
    return f"{1 + more} of {1 + more + others} failed: {reason}; correct and run again, what is done is skipped"


def _summary_row(result: BagResult) -> dict[str, Any]:
    row: dict[str, Any] = {"bag_id": result.bag_id, "status": "done"}
    row |= {"probability": _digits(result.probability), "positive": int(result.positive)}
    if result.classes is None:
        row |= {"logit": _digits(*result.logits), "threshold": result.threshold} if result.logits else {}
    else:
        names = result.classes.names
        row |= {f"logit({name})": _digits(logit) for name, logit in zip(names, result.logits, strict=False)}
        fine = dict(zip(names, map(float, result.classes.probabilities), strict=True))
        coarse = {f"coarse {name}": p for name, p in result.classes.of_groups.items()}
        row |= {"called": result.verdict, **{f"p({name})": _digits(p) for name, p in {**fine, **coarse}.items()}}
    if result.label_set is not None:
        row["label_set"] = "|".join(result.label_set)
    return {
        **row,
        "label": result.true_verdict if result.classes else "" if result.label is None else result.label,
        "instances": len(result.scores),
        "flagged": int(result.flagged.sum()),
        **{name: _digits(value) for name, value in faithfulness_columns(result).items()},
        "score_name": result.score_name,
        "score_smoothing": result.score_smoothing,
        "flagged_above": "" if result.flag_above is None else result.flag_above,
        "warnings": "; ".join(
            [*result.about.get("warnings", []), *caveat(result.threshold_origin), *result.learned_from]
        ),
    }


def _digits(value: float) -> float:
    """As many as a network's numbers have: fewer would make ties of what it tells apart."""
    return float(f"{value:.9g}")


def _metrics_json(results: Sequence[BagResult], metrics: Mapping[str, Interval]) -> dict[str, Any]:
    labels = [r.label_positive for r in results if r.label_positive is not None]
    figures = {name: plain(figure._asdict(), 6) for name, figure in metrics.items()}
    one, thresholds = results[0], {result.threshold for result in results}  # networks of several folds have one each
    called_by: dict[str, Any] = {"threshold": thresholds.pop() if len(thresholds) == 1 else None}
    called_by["threshold_origin"] = one.threshold_origin
    if one.classes is not None:
        called_by["classes"] = {key: getattr(one.classes, key) for key in ("names", "groups", "negative")}
    if one.slots is not None:
        called_by["slots"] = one.slots
    called_by |= {"score_name": one.score_name, "score_smoothing": one.score_smoothing}
    return {"bags": len(labels), "positive_bags": sum(labels), **called_by, **figures}


def _closing_line(outcomes: Outcomes, metrics: Mapping[str, Interval], where: Path) -> str:
    results = outcomes.results
    names = ("read", "skipped (already there)", "failed", "empty (nothing to read)")
    sizes = [len(outcomes.read), len(outcomes.finished), len(outcomes.failures), len(outcomes.empty)]
    counts = [f"{size} {name}" for name, size in zip(names, sizes, strict=True) if size or name == "read"]
    warned = sum(bool(r.about.get("warnings")) for r in results)
    warning = [f"{warned} with warnings, see summary.csv"] if warned else []
    figures = ["{} {:.3f} [{:.3f}, {:.3f}]".format(name, *metrics[name]) for name in LOGGED if name in metrics]
    positive = [f"{sum(r.positive for r in results)} called positive"]
    if results:
        threshold, origin = results[0].threshold, results[0].threshold_origin
        positive.append(f"threshold {origin}" if threshold is None else f"threshold {threshold:.3g} ({origin})")
        positive.append(f"flagged by {in_words(results[0].score_name, results[0].score_smoothing)}")
    return "; ".join([", ".join(counts), *positive, *warning, *figures, f"written to {where}"])
