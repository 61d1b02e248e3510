# Copyright (c) 2026 the smooth MIL bundle authors
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Files of a result: one JSON per bag, two tables and the metrics per cohort, each written whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from ignite.engine import Engine, Events
from monai.transforms import Transform

from scripts.data.results import BagResult
from scripts.files import write_whole
from scripts.metrics.cohort import cohort_metrics

logger = logging.getLogger(__name__)

RESEARCH_USE = "research use only, not for diagnosis"


def as_json(result: BagResult) -> dict[str, Any]:
    """What result.json holds."""
    return {
        "bag_id": result.bag_id,
        "source": result.source,
        "probability": round(result.probability, 6),
        "threshold": result.threshold,
        "positive": result.positive,
        "label": result.label,
        "note": RESEARCH_USE,
        "instances": _instance_rows(result),
    }


def _instance_rows(result: BagResult) -> list[dict[str, Any]]:
    columns = zip(result.instances, result.scores, result.attention, result.flagged, strict=True)
    rows = [
        {**about, "score": float(score), "attention": float(attention), "flagged": bool(flagged)}
        for about, score, attention, flagged in columns
    ]
    if result.truth is not None:
        for row, truth in zip(rows, result.truth, strict=True):
            row["truth"] = int(truth)
    return rows


class SaveResultd(Transform):
    """Writes `output_dir/<bag_id>/result.json`."""

    def __init__(self, output_dir: str) -> None:
        self.output_dir = Path(output_dir)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result: BagResult = data["result"]
        write_whole(self.output_dir / result.bag_id / "result.json", json.dumps(as_json(result), indent=1) + "\n")
        return dict(data)


class CohortReport:
    """Ignite handler: gathers the results of all bags and ranks, then writes the tables and, with labels, the metrics.

    `summary.csv` has a row per bag, `instances.csv` a row per instance, `metrics.json` each figure with its interval.
    """

    def __init__(self, output_dir: str) -> None:
        self.output_dir = Path(output_dir)
        self.results: list[BagResult] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self.results.clear)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.report)

    def collect(self, engine: Engine) -> None:
        bags: Any = engine.state.output  # a list of decollated bags
        self.results += [bag["result"] for bag in bags]

    def report(self, engine: Engine) -> None:
        results = _of_all_ranks(self.results)
        if dist.is_initialized() and dist.get_rank() > 0:
            return
        metrics = cohort_metrics(results)
        engine.state.metrics.update({name: figure.value for name, figure in metrics.items()})
        write_whole(self.output_dir / "summary.csv", _table([_summary_row(r) for r in results]))
        rows = [
            {"bag_id": r.bag_id, **row, "flagged": int(row["flagged"])} for r in results for row in _instance_rows(r)
        ]
        write_whole(self.output_dir / "instances.csv", _table(rows))
        if metrics:
            write_whole(self.output_dir / "metrics.json", json.dumps(_metrics_json(results, metrics), indent=4) + "\n")
        logger.info(_closing_line(results, metrics, self.output_dir))


def _of_all_ranks(results: list[BagResult]) -> list[BagResult]:
    if dist.is_initialized():
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, results)
        results = [result for of_rank in gathered for result in of_rank]
    by_id = {result.bag_id: result for result in results}  # an uneven cohort may give a bag to two ranks
    return [by_id[bag_id] for bag_id in sorted(by_id)]


def _summary_row(result: BagResult) -> dict[str, Any]:
    return {
        "bag_id": result.bag_id,
        "probability": round(result.probability, 6),
        "positive": int(result.positive),
        "label": "" if result.label is None else result.label,
        "instances": len(result.scores),
        "flagged": int(result.flagged.sum()),
    }


def _metrics_json(results: Sequence[BagResult], metrics: Mapping[str, Any]) -> dict[str, Any]:
    labels = [r.label for r in results if r.label is not None]
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


def _closing_line(results: Sequence[BagResult], metrics: Mapping[str, Any], where: Path) -> str:
    figures = [f"{name} {f.value:.3f} [{f.low:.3f}, {f.high:.3f}]" for name, f in metrics.items()]
    positive = sum(r.positive for r in results)
    return "; ".join([f"{len(results)} read, {positive} called positive", *figures, f"written to {where}"])
