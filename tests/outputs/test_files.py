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
"""What the files of a result say, against the numbers that went in."""

from __future__ import annotations

import csv
import json
from collections.abc import Hashable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from sklearn.metrics import accuracy_score, roc_auc_score

from scripts.data.results import BagResult, BagResultd
from scripts.metrics.cohort import bootstrap, cohort_metrics
from scripts.outputs.files import CohortReport, SaveResultd, as_json


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The intervals have tests of their own; here a thousand resamples would only take time."""
    monkeypatch.setattr("scripts.metrics.cohort.bootstrap", partial(bootstrap, resamples=40))


def result(
    bag_id: str, probability: float, scores: Sequence[float], label: int | None, truth: Sequence[int] | None = None
) -> BagResult:
    weights = np.exp(np.array(scores))
    return BagResult(
        bag_id=bag_id,
        source=f"scans/{bag_id}",
        probability=probability,
        threshold=0.5,
        scores=np.array(scores, dtype=np.float32),
        attention=(weights / weights.sum()).astype(np.float32),
        instances=[{"uid": f"{bag_id}.{place}", "position": 5.0 * place} for place in range(len(scores))],
        label=label,
        truth=None if truth is None else np.array(truth),
    )


COHORT = [
    result("d", 0.9, [5.0, 1.0, 0.5], 1, [1, 0, 0]),
    result("b", 0.2, [4.0, 0.0], 1, [1, 0]),
    result("c", 0.7, [6.0, 3.0], 0, [0, 0]),
    result("a", 0.1, [2.0], 0, [0]),
]


def report(folder: Path, batches: Sequence[Sequence[BagResult]]) -> Engine:
    """What an evaluator does: each batch goes out as a list of decollated bags."""
    engine = Engine(lambda engine, batch: [{"result": one} for one in batch])
    CohortReport(str(folder)).attach(engine)
    engine.run(list(batches))
    return engine


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def strict_json(path: Path) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_result_json_says_all_there_is_to_say(tmp_path: Path) -> None:
    data: dict[Hashable, Any] = {"result": COHORT[0], "other": 1}
    assert SaveResultd(str(tmp_path))(data) == data
    written = strict_json(tmp_path / "d" / "result.json")
    instances = written.pop("instances")
    assert written == {
        "bag_id": "d",
        "source": "scans/d",
        "probability": 0.9,
        "threshold": 0.5,
        "positive": True,
        "label": 1,
        "note": "research use only, not for diagnosis",
    }
    assert [row["uid"] for row in instances] == ["d.0", "d.1", "d.2"]
    assert [row["position"] for row in instances] == [0, 5, 10]
    assert [row["score"] for row in instances] == [5, 1, 0.5]
    assert [row["truth"] for row in instances] == [1, 0, 0]
    assert [row["flagged"] for row in instances] == [True, False, False]
    assert sum(row["attention"] for row in instances) == pytest.approx(1)


def test_what_is_not_known_is_not_claimed(tmp_path: Path) -> None:
    SaveResultd(str(tmp_path))({"result": result("x", 0.4, [1.0, 2.0], None)})
    written = strict_json(tmp_path / "x" / "result.json")
    assert written["label"] is None
    assert not any("truth" in row for row in written["instances"])
    assert not any(row["flagged"] for row in written["instances"])


def test_nothing_of_the_padding_is_written() -> None:
    padded: dict[Hashable, Any] = {
        "bag_id": "scan",
        "source": "scans/scan",
        "logits": torch.tensor([3.0]),
        "scores": torch.tensor([[1.0, 2.0, 99.0, 99.0]]),
        "attention": torch.tensor([[0.25, 0.75, 0.0, 0.0]]),
        "instance_label": torch.tensor([[0.0, 1.0, 1.0, 1.0]]),
        "mask": torch.tensor([[1.0, 1.0, 0.0, 0.0]]),
        "instances": json.dumps([{"uid": "first"}, {"uid": "second"}]),
    }
    assert as_json(BagResultd()(padded)["result"])["instances"] == [
        {"uid": "first", "score": 1, "attention": 0.25, "flagged": False, "truth": 0},
        {"uid": "second", "score": 2, "attention": 0.75, "flagged": True, "truth": 1},
    ]


def test_the_summary_has_a_row_per_bag_in_order(tmp_path: Path) -> None:
    report(tmp_path, [COHORT[:3], COHORT[3:]])
    assert table(tmp_path / "summary.csv") == [
        {"bag_id": "a", "probability": "0.1", "positive": "0", "label": "0", "instances": "1", "flagged": "0"},
        {"bag_id": "b", "probability": "0.2", "positive": "0", "label": "1", "instances": "2", "flagged": "0"},
        {"bag_id": "c", "probability": "0.7", "positive": "1", "label": "0", "instances": "2", "flagged": "1"},
        {"bag_id": "d", "probability": "0.9", "positive": "1", "label": "1", "instances": "3", "flagged": "1"},
    ]


def test_the_instances_have_a_row_each(tmp_path: Path) -> None:
    report(tmp_path, [COHORT])
    rows = table(tmp_path / "instances.csv")
    wanted = [
        (one.bag_id, about["uid"], score, truth, flagged)
        for one in sorted(COHORT, key=lambda one: one.bag_id)
        for about, score, truth, flagged in zip(one.instances, one.scores, one.truth, one.flagged, strict=True)  # type: ignore[arg-type]
    ]
    got = [(r["bag_id"], r["uid"], float(r["score"]), int(r["truth"]), int(r["flagged"])) for r in rows]
    assert got == wanted


def test_a_bag_without_truth_leaves_its_cells_empty(tmp_path: Path) -> None:
    report(tmp_path, [[result("a", 0.1, [1.0], 0), *COHORT[:1]]])
    assert [row["truth"] for row in table(tmp_path / "instances.csv")] == ["", "1", "0", "0"]


def test_the_metrics_are_those_of_sklearn(tmp_path: Path) -> None:
    report(tmp_path, [COHORT])
    written = strict_json(tmp_path / "metrics.json")
    labels, probabilities = [1, 1, 0, 0], [0.9, 0.2, 0.7, 0.1]
    truth = [1, 0, 0, 1, 0, 0, 0, 0]
    scores = [5, 1, 0.5, 4, 0, 6, 3, 2]
    gated = [5, 1, 0.5, 0, 0, 6, 3, 0]  # b and a are called negative: the lowest of all scores
    assert (written.pop("bags"), written.pop("positive_bags")) == (4, 2)
    assert {name: figure["value"] for name, figure in written.items()} == pytest.approx(
        {
            "bag_auroc": roc_auc_score(labels, probabilities),
            "bag_accuracy": accuracy_score(labels, np.array(probabilities) > 0.5),
            "instance_auroc_gated": roc_auc_score(truth, gated),
            "instance_auroc_ungated": roc_auc_score(truth, scores),
        },
        abs=1e-6,
    )
    assert all(figure["low"] <= figure["value"] <= figure["high"] for figure in written.values())


def test_the_engine_learns_the_metrics_and_keeps_its_own(tmp_path: Path) -> None:
    engine = Engine(lambda engine, batch: [{"result": one} for one in batch])
    engine.state.metrics["another"] = 3
    CohortReport(str(tmp_path)).attach(engine)
    engine.run([COHORT])
    expected = {name: figure.value for name, figure in cohort_metrics(COHORT).items()}
    assert engine.state.metrics == {"another": 3, **expected}
    assert engine.state.metrics["bag_auroc"] == 3 / 4  # of four pairs b and c alone are the wrong way round


def test_without_labels_there_are_tables_and_no_metrics(tmp_path: Path) -> None:
    engine = report(tmp_path, [[result("a", 0.8, [1.0, 2.0], None)]])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["instances.csv", "summary.csv"]
    assert table(tmp_path / "summary.csv")[0]["label"] == ""
    assert engine.state.metrics == {}


def test_a_figure_that_is_not_defined_is_null(tmp_path: Path) -> None:
    """With one class alone there is no ROC curve, and NaN is not JSON."""
    report(tmp_path, [[COHORT[0], COHORT[1]]])
    written = strict_json(tmp_path / "metrics.json")
    assert written["bag_auroc"] == {"value": None, "low": None, "high": None}
    assert written["bag_accuracy"]["value"] == 0.5


def test_a_bag_seen_twice_is_counted_once(tmp_path: Path) -> None:
    report(tmp_path / "once", [COHORT])
    report(tmp_path / "twice", [COHORT[:2], COHORT[1:], COHORT[:1]])
    for name in ("summary.csv", "instances.csv", "metrics.json"):
        assert (tmp_path / "twice" / name).read_text() == (tmp_path / "once" / name).read_text()


def test_two_runs_do_not_accumulate(tmp_path: Path) -> None:
    engine = report(tmp_path, [COHORT])
    engine.run([COHORT[:2]])
    assert [row["bag_id"] for row in table(tmp_path / "summary.csv")] == ["b", "d"]
    assert strict_json(tmp_path / "metrics.json")["bags"] == 2


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_rank_writes_what_all_ranks_saw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    shares = [COHORT[:2], COHORT[1:]]  # an uneven cohort: both ranks saw b

    def all_gather_object(gathered: list[Any], mine: list[BagResult]) -> None:
        assert mine == shares[rank]
        gathered[:] = shares

    of_two = SimpleNamespace(
        is_initialized=lambda: True,
        get_world_size=lambda: 2,
        get_rank=lambda: rank,
        all_gather_object=all_gather_object,
    )
    monkeypatch.setattr("scripts.outputs.files.dist", of_two)
    report(tmp_path, [shares[rank]])
    if rank == 0:
        assert [row["bag_id"] for row in table(tmp_path / "summary.csv")] == ["a", "b", "c", "d"]
    else:
        assert list(tmp_path.iterdir()) == []


def test_the_last_line_of_the_log_names_the_figures_and_the_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="scripts.outputs.files"):
        report(tmp_path, [COHORT])
    (line,) = [record.getMessage() for record in caplog.records if record.name == "scripts.outputs.files"]
    assert line.startswith("4 read, 2 called positive; bag_auroc 0.750 [")
    assert line.endswith(f"written to {tmp_path}")
