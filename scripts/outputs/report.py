# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Files of a cohort: two tables and the metrics, and which of its bags are already done."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist
from ignite.engine import Engine, Events
from torch import nn

from scripts.core.errors import InputError
from scripts.core.files import whole_file, write_whole
from scripts.core.record import BagResult, PatchCoordinates
from scripts.engine.evaluator import EMPTY, FAILED
from scripts.engine.provenance import settings_of
from scripts.metrics.summary import cohort_metrics
from scripts.outputs.result_json import from_json, instance_rows

logger = logging.getLogger(__name__)

# in the log; the rest in files
TOLD = ("class_accuracy", "bag_auroc", "bag_accuracy", "instance_auroc_gated", "instance_auroc_ungated")


def recipe(network: nn.Module, **parts: object) -> str:
    """A short text that is another one where the network (but for its weights) or any part is."""
    of_modules = [(name, type(module).__name__, settings_of(module)) for name, module in network.named_modules()]
    return hashlib.sha256(repr((of_modules, sorted(parts.items()))).encode()).hexdigest()[:16]


def input_of(bag: Mapping[str, Any]) -> str:
    """Changes with its files, and with what is said of it: its label, the labels of its instances."""
    said: dict[str, Any] = {key: bag.get(key) for key in ("image", "label", "instance_label", "annotation")}
    paths = [path for given in said.values() for path in (given if isinstance(given, list) else [given])]
    files = (path for path in paths if isinstance(path, str) and os.path.isfile(path))
    said["stamp"] = bag.get("stamp")  # of what else `described` knows that it is read from
    said["files"] = [(status.st_size, status.st_mtime_ns) for status in map(os.stat, files)]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


class ResultsFolder:
    """The results of a run, and what is left to do of it.

    Args:
        output_dir: folder of the results.
        bags: the bags of the run; of several processes each takes its share of them.
        recipe: that of the run; a result of another one is made anew.
        skip_finished: False makes all of them anew.
    """

    def __init__(
        self, output_dir: str, bags: Sequence[dict[str, Any]], recipe: str, skip_finished: bool = True
    ) -> None:
        self.output_dir = Path(output_dir)
        self.bags = bags[dist.get_rank() :: dist.get_world_size()] if dist.is_initialized() else bags
        self.recipe = recipe
        self.skip_finished = skip_finished

    @cached_property
    def finished(self) -> dict[str, BagResult]:
        """What an earlier run left, by bag_id."""
        found = ((bag, self._read(bag)) for bag in self.bags if self.skip_finished)
        return {bag["bag_id"]: result for bag, result in found if result is not None}

    def unfinished(self) -> list[dict[str, Any]]:
        """With the `input` that the result of each will keep."""
        return [{**bag, "input": input_of(bag)} for bag in self.bags if bag["bag_id"] not in self.finished]

    def _read(self, bag: Mapping[str, Any]) -> BagResult | None:
        try:
            folder = self.output_dir / bag["bag_id"]
            content = json.loads((folder / "result.json").read_text())
            same = content["recipe"] == self.recipe and content["input"] == input_of(bag)
            return from_json(content, folder) if same else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None  # not there, or not whole: it is made anew


class CohortReport:
    """Ignite handler: gathers the results of all bags and ranks, then writes the tables and, with labels, the metrics.

    `summary.csv` has a row per bag, `instances.csv` a row per instance, `metrics.json` each figure with its interval.

    Args:
        output_dir: folder of the results.
        folder: what an earlier run left there, which belongs into the tables too.
        instance_table: write instances.csv; a cohort of slides has millions of rows.
    """

    def __init__(self, output_dir: str, folder: ResultsFolder | None = None, instance_table: bool = True) -> None:
        self.output_dir = Path(output_dir)
        self.folder = folder
        self.instance_table = instance_table
        self.results: list[BagResult] = []
        self.failures: dict[str, str] = {}
        self.empty: dict[str, str] = {}

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self.forget)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.report)

    def forget(self) -> None:
        self.results.clear()
        self.failures.clear()
        self.empty.clear()

    def collect(self, engine: Engine) -> None:
        bags: Any = engine.state.output  # a list of decollated bags
        self.results += [bag["result"] for bag in bags if "result" in bag]
        self.failures.update({bag["bag_id"]: bag[FAILED] for bag in bags if FAILED in bag})
        self.empty.update({bag["bag_id"]: bag[EMPTY] for bag in bags if EMPTY in bag})

    def report(self, engine: Engine) -> None:
        finished = {} if self.folder is None else self.folder.finished
        report = _of_all_ranks(Report({r.bag_id: r for r in self.results}, finished, self.failures, self.empty))
        if not dist.is_initialized() or dist.get_rank() == 0:
            self._write(engine, report)
        if report.failures:
            raise InputError(_failures_line(report.failures, len(report.read) + len(report.finished)))

    def _write(self, engine: Engine, report: Report) -> None:
        everything = {**report.finished, **report.read}
        results = [everything[bag_id] for bag_id in sorted(everything)]
        metrics = cohort_metrics(results)
        engine.state.metrics.update({name: figure.value for name, figure in metrics.items()})
        for bag_id in [*report.failures, *report.empty]:  # what an earlier run made of it is not what this one says
            (self.output_dir / bag_id / "result.json").unlink(missing_ok=True)
        without = [("failed", report.failures), ("empty", report.empty)]
        rest = [
            {"bag_id": bag_id, "status": status, "error": whys[bag_id]}
            for status, whys in without
            for bag_id in sorted(whys)
        ]
        write_whole(self.output_dir / "summary.csv", _table([*map(_summary_row, results), *rest]))
        instances = self.output_dir / "instances.csv"
        if self.instance_table and results:
            _write_instances(instances, results)
        else:
            instances.unlink(missing_ok=True)  # that of an earlier run would be taken for this one's
        figures = json.dumps(_metrics_json(results, metrics), indent=4) + "\n" if metrics else None
        if figures is None:
            (self.output_dir / "metrics.json").unlink(missing_ok=True)
        else:
            write_whole(self.output_dir / "metrics.json", figures)
        logger.info(_closing_line(report, results, metrics, self.output_dir))


class Report(NamedTuple):
    """What became of each bag, by its name: an uneven cohort may give one to two processes."""

    read: dict[str, BagResult]
    finished: dict[str, BagResult]  # by an earlier run
    failures: dict[str, str]
    empty: dict[str, str]


def _of_all_ranks(own: Report) -> Report:
    if not dist.is_initialized():
        return own
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, tuple(own))
    return Report(
        *({name: each for part in parts for name, each in part.items()} for parts in zip(*gathered, strict=True))
    )


def _typical(result: BagResult) -> list[dict[str, Any]]:
    """Rows with all columns there are: patches are all alike."""
    return instance_rows(result, 1 if isinstance(result.instances, PatchCoordinates) else None)


def _write_instances(path: Path, results: Sequence[BagResult]) -> None:
    """Bag by bag: all rows of a cohort of slides would not fit into memory."""
    columns = ["bag_id", *dict.fromkeys(name for result in results for row in _typical(result) for name in row)]
    with whole_file(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        for result in results:
            rows = instance_rows(result)
            writer.writerows({"bag_id": result.bag_id, **row, "flagged": int(row["flagged"])} for row in rows)


def _failures_line(failures: Mapping[str, str], others: int) -> str:
    first, more = next(iter(failures.values())), len(failures) - 1
    if more == others == 0:
        return first
    told = f"{first} (and {more} more, see summary.csv)" if more else first
    return f"{len(failures)} of {len(failures) + others} failed: {told}; mend and run again, what is done is skipped"


def _summary_row(result: BagResult) -> dict[str, Any]:
    return {
        "bag_id": result.bag_id,
        "status": "done",
        "probability": round(result.probability, 6),
        "positive": int(result.positive),
        **_of_classes(result),
        "label": result.true_verdict if result.classes else "" if result.label is None else result.label,
        "instances": len(result.scores),
        "flagged": int(result.flagged.sum()),
        "warnings": "; ".join(result.about.get("warnings", [])),
    }


def _of_classes(result: BagResult) -> dict[str, Any]:
    if result.classes is None:
        return {}
    probabilities = {
        **dict(zip(result.classes.names, result.classes.probabilities, strict=True)),
        **{f"coarse {name}": probability for name, probability in result.classes.of_groups.items()},
    }
    return {"called": result.verdict, **{f"p({name})": round(float(p), 6) for name, p in probabilities.items()}}


def _metrics_json(results: Sequence[BagResult], metrics: Mapping[str, Any]) -> dict[str, Any]:
    labels = [r.label_positive for r in results if r.label_positive is not None]
    counts = {"bags": len(labels), "positive_bags": sum(labels)}
    return {**counts, **{name: _without_nan(figure._asdict()) for name, figure in metrics.items()}}


def _without_nan(figures: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else round(value, 6) for name, value in figures.items()}


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _closing_line(report: Report, results: Sequence[BagResult], metrics: Mapping[str, Any], where: Path) -> str:
    counts = {
        "read": len(report.read),
        "skipped (already there)": len(report.finished),
        "failed": len(report.failures),
        "empty (nothing to read)": len(report.empty),
    }
    told = [f"{count} {what}" for what, count in counts.items() if count or what == "read"]
    warned = sum(bool(r.about.get("warnings")) for r in results)
    positive = sum(r.positive for r in results)
    shown = [(name, metrics[name]) for name in TOLD if name in metrics]
    figures = [f"{name} {f.value:.3f} [{f.low:.3f}, {f.high:.3f}]" for name, f in shown]
    warning = [f"{warned} with warnings, see summary.csv"] if warned else []
    return "; ".join([", ".join(told), f"{positive} called positive", *warning, *figures, f"written to {where}"])
