# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Tables and metrics of a cohort, and a run that goes on where another ended."""

import dataclasses
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from sklearn.metrics import accuracy_score, roc_auc_score

from scripts.core.errors import InputError
from scripts.core.record import NO_THRESHOLD, BagResult, Classes, ModelCard
from scripts.engine.evaluator import BagEvaluator
from scripts.metrics.figures import bootstrap
from scripts.networks import Features, MILNetwork, SmoothAttentionPool
from scripts.outputs.report import CohortReport, Recipe, ResultsFolder, input_of
from scripts.outputs.result_json import SaveResultd
from scripts.wsi.reader import checked_bags
from tests.outputs.results import COHORT, result, strict_json, table
from tests.wsi.foreign_features import write_torchmil


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The intervals have tests of their own; here a thousand resamples would only take time."""
    monkeypatch.setattr("scripts.metrics.summary.bootstrap", partial(bootstrap, resamples=40))


def reporting(folder: Path, earlier: ResultsFolder | None = None, **keys: Any) -> Engine:
    """What an evaluator does: each batch goes out as a list of decollated bags."""
    engine = Engine(lambda engine, batch: [{"bag_result": one} if isinstance(one, BagResult) else one for one in batch])
    CohortReport(str(folder), earlier, **keys).attach(engine)
    return engine


def report(folder: Path, *batches: Sequence[Any]) -> Engine:
    engine = reporting(folder)
    engine.run(list(batches))
    return engine


def test_the_tables_have_a_row_per_bag_and_per_instance_in_order(tmp_path: Path) -> None:
    cohort = [*COHORT, result("e", 0.1, [1.0], None)]  # the last without label and truth
    cohort[1] = dataclasses.replace(
        cohort[1], about={"warnings": ["a gap"]}, threshold_origin="the default, on no data"
    )
    engine = report(tmp_path, cohort[:3], cohort[3:])
    columns = ("bag_id", "status", "probability", "positive", "label", "instances", "flagged", "warnings")
    assert [tuple(row[name] for name in columns) for row in table(tmp_path / "summary.csv")] == [
        ("a", "done", "0.1", "0", "0", "1", "0", ""),
        ("b", "done", "0.2", "0", "1", "2", "0", "a gap; the threshold is the default, on no data"),
        ("c", "done", "0.7", "1", "0", "2", "1", ""),
        ("d", "done", "0.9", "1", "1", "3", "1", ""),
        ("e", "done", "0.1", "0", "", "1", "0", ""),
    ]
    wanted = [
        (one.bag_id, about["uid"], score, "" if one.truth is None else str(one.truth[place]), str(int(flagged)))
        for one in sorted(cohort, key=lambda one: one.bag_id)
        for place, (about, score, flagged) in enumerate(zip(one.instances, one.scores, one.flagged, strict=True))
    ]
    rows = table(tmp_path / "instances.csv")
    assert [(r["bag_id"], r["uid"], float(r["score"]), r["truth"], r["flagged"]) for r in rows] == wanted
    engine.run([cohort[4:]])  # without labels there are no metrics, and two runs do not accumulate
    assert sorted(path.name for path in tmp_path.iterdir()) == ["instances.csv", "summary.csv"]
    assert [row["bag_id"] for row in table(tmp_path / "summary.csv")] == ["e"]


def test_the_metrics_are_those_of_sklearn_or_null_and_the_engine_learns_them(tmp_path: Path) -> None:
    engine = reporting(tmp_path)
    engine.state.metrics["another"] = 3
    engine.run([COHORT])
    written = strict_json(tmp_path / "metrics.json")
    labels, probabilities = [1, 1, 0, 0], [0.9, 0.2, 0.7, 0.1]
    truth = [1, 0, 0, 1, 0, 0, 0, 0]
    scores = [5, 1, 0.5, 4, 0, 6, 3, 2]
    gated = [5, 1, 0.5, 0, 0, 6, 3, 0]  # b and a are called negative: the lowest of all scores
    assert (written.pop("bags"), written.pop("positive_bags")) == (4, 2)
    wanted = {
        "bag_auroc": roc_auc_score(labels, probabilities),
        "bag_accuracy": accuracy_score(labels, np.array(probabilities) > 0.5),
        "instance_auroc_gated": roc_auc_score(truth, gated),
        "instance_auroc_ungated": roc_auc_score(truth, scores),
    }
    assert {name: written[name]["value"] for name in wanted} == pytest.approx(wanted, abs=1e-6)
    assert all(written[name]["low"] <= written[name]["value"] <= written[name]["high"] for name in wanted)
    assert {name: engine.state.metrics[name] for name in wanted} == pytest.approx(wanted, abs=1e-6)
    assert engine.state.metrics["another"] == 3
    report(tmp_path, COHORT[:2])  # with one class alone there is no ROC curve, and NaN is not JSON
    written = strict_json(tmp_path / "metrics.json")
    assert written["bag_auroc"] == {"value": None, "low": None, "high": None}
    assert written["bag_accuracy"]["value"] == 0.5


def two_processes(monkeypatch: pytest.MonkeyPatch, rank: int, **functions: Any) -> None:
    named = {"is_initialized": lambda: True, "get_world_size": lambda: 2, "get_rank": lambda: rank, **functions}
    monkeypatch.setattr("scripts.outputs.report.dist", SimpleNamespace(**named))


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_rank_writes_what_all_ranks_saw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    shares = [COHORT[:2], COHORT[1:]]  # an uneven cohort: both ranks saw b

    def all_gather_object(gathered: list[Any], mine: Any) -> None:
        gathered[:] = [({r.bag_id: r for r in share}, {}, {}, {}) for share in shares]
        assert mine == gathered[rank]

    two_processes(monkeypatch, rank, all_gather_object=all_gather_object)
    report(tmp_path, shares[rank])
    written = [row["bag_id"] for path in tmp_path.glob("summary.csv") for row in table(path)]
    assert written == (["a", "b", "c", "d"] if rank == 0 else [])


# --- a run that goes on


def bags(*names: str) -> list[dict[str, Any]]:
    return [{"bag_id": name, "image": f"scans/{name}"} for name in names]


def finished(folder: Path, *results: BagResult) -> None:
    for done in results:
        SaveResultd(str(folder), "one")({"bag_result": done, "input": input_of(*bags(done.bag_id))})


def test_what_is_done_is_not_done_again_stays_in_the_tables_and_is_shared_among_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    finished(tmp_path, COHORT[0], COHORT[1])

    def divided() -> tuple[list[str], list[str]]:
        folder = ResultsFolder(str(tmp_path), bags("a", "b", "c", "d", "e"), "one")
        return [bag["bag_id"] for bag in folder.unfinished()], list(folder.finished)

    assert divided() == (["a", "c", "e"], ["b", "d"])
    folder = ResultsFolder(str(tmp_path), bags("b", "d"), "one")
    handlers = [CohortReport(str(tmp_path), folder)]
    with caplog.at_level("INFO", logger="scripts.outputs.report"):
        BagEvaluator(torch.device("cpu"), folder.unfinished(), torch.nn.Identity(), val_handlers=handlers).run()
    for name in ("summary.csv", "instances.csv"):
        assert {row["bag_id"] for row in table(tmp_path / name)} == {"b", "d"}
    assert "0 read, 2 skipped (already there)" in caplog.text
    for rank, wanted in ((0, (["a", "c", "e"], [])), (1, ([], ["b", "d"]))):
        two_processes(monkeypatch, rank)
        assert divided() == wanted


def test_what_is_not_the_same_is_done_again(tmp_path: Path) -> None:
    finished(tmp_path, COHORT[0])
    changes: tuple[dict[str, Any], ...] = ({"image": "elsewhere/d"}, {"image": ["scans/d", "scans/e"]}, {"label": 1})
    for change, of_run, skip in [({}, "two", True), ({}, "one", False), *((each, "one", True) for each in changes)]:
        entry = {**bags("d")[0], **change}
        assert ResultsFolder(str(tmp_path), [entry], of_run, skip).unfinished() == [{**entry, "input": input_of(entry)}]
    file = tmp_path / "d" / "result.json"
    for damaged in (file.read_text()[:100], "[]"):
        file.write_text(damaged)
        assert len(ResultsFolder(str(tmp_path), bags("d"), "one").unfinished()) == 1


def test_the_tables_hold_what_was_there_what_was_read_what_is_empty_and_what_failed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cohort = [dataclasses.replace(one, threshold_origin="chosen by hand") for one in COHORT]
    finished(tmp_path, cohort[0], cohort[2])  # c as it was before its features were made anew
    folder = ResultsFolder(str(tmp_path), bags("a", "b", "d", "e"), "one")
    batches = [[cohort[1]], [{"bag_id": "c", "empty": "c.h5 holds no patches"}], [cohort[3]]]
    failed = {"bag_id": "e", "failed": "e is empty: copy it again"}
    with (
        caplog.at_level("INFO", logger="scripts.outputs.report"),
        pytest.raises(InputError, match=r"^1 of 4 failed: e is empty: copy it again; correct and run again, "),
    ):
        reporting(tmp_path, folder).run([*batches, [failed]])
    rows = table(tmp_path / "summary.csv")
    assert " ".join(f"{row['bag_id']} {row['status']}" for row in rows) == "a done b done d done e failed c empty"
    assert [row["error"] for row in rows[3:]] == ["e is empty: copy it again", "c.h5 holds no patches"]
    assert {row["bag_id"] for row in table(tmp_path / "instances.csv")} == {"a", "b", "d"}
    assert strict_json(tmp_path / "metrics.json")["bags"] == 3
    assert "2 read, 1 skipped (already there), 1 failed, 1 empty (nothing to read); 1 called positive; " in caplog.text
    assert "; threshold 0.5 (chosen by hand); flagged by attention logit; " in caplog.text
    with pytest.raises(InputError, match=r"^d is empty$"):
        report(tmp_path, [{"bag_id": "d", "failed": "d is empty"}])
    # nothing of an earlier run is taken for this one
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["summary.csv"]
    reporting(tmp_path, instance_table=False).run(batches)  # without a failure
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {"summary.csv", "metrics.json"}


def test_classes_stand_in_the_table_by_their_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    classes = Classes(("N", "FEA", "DCIS"), np.array([0.2, 0.5, 0.3]), ("benign", "other", "other"), "N")
    called = dataclasses.replace(COHORT[0], classes=classes, label=2, threshold=None, threshold_origin=NO_THRESHOLD)
    with caplog.at_level("INFO", logger="scripts.outputs.report"):
        report(tmp_path, [called])
    assert "; threshold none: the most probable class is called; " in caplog.text
    (row,) = table(tmp_path / "summary.csv")
    assert (row["called"], row["label"], row["p(FEA)"], row["p(coarse other)"]) == ("FEA", "DCIS", "0.5", "0.8")


def test_a_file_made_anew_is_read_anew_and_so_are_features_whose_coords_lie_in_a_file_beside(tmp_path: Path) -> None:
    for key in ("image", "annotation", "instance_label"):
        bag, seen = {"bag_id": "slide", "image": "slide.h5", key: [str(tmp_path / key), None]}, set()
        for content in ("old", "newer"):
            (tmp_path / key).write_text(content)
            seen.add(input_of(bag))
        assert len(seen) == 2, key
    seen = set()
    for pitch in (256, 512):
        file = write_torchmil(tmp_path, "slide", np.arange(6).reshape(3, 2) * pitch, np.zeros(3))
        os.utime(file, ns=(0, 0))
        seen.update(map(input_of, checked_bags([{"bag_id": "slide", "image": str(file)}])))
    assert len(seen) == 2


def test_a_recipe_changes_with_each_part_with_the_network_and_with_the_file_of_its_weights(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "metadata.json").write_text('{"name": "a network", "version": "1.2.3"}')
    weights = tmp_path / "model.pt"

    def made(threshold: float = 0.5, slots: int | None = None, placement: str = "early") -> str:
        pool = SmoothAttentionPool(4, 3, placement=placement)
        network = MILNetwork(Features(4), pool, torch.nn.Linear(4, 1), spatial_dims=1, slots=slots)
        return str(Recipe(network, ModelCard(str(tmp_path), str(weights)), threshold=threshold, other="a"))

    assert made() == made()  # of other weights, as each is drawn anew
    seen = {made(), made(threshold=0.4), made(slots=57), made(placement="mid")}
    weights.write_bytes(b"weights")
    assert len({*seen, made()}) == 5
