# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Tables and metrics of a cohort, and a run that goes on where another ended."""

import dataclasses
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
from scripts.core.record import BagResult, Classes
from scripts.engine.evaluator import BagEvaluator
from scripts.metrics.figures import bootstrap
from scripts.metrics.summary import cohort_metrics
from scripts.networks import Features, MILNetwork, SmoothAttentionPool
from scripts.outputs.report import CohortReport, ResultsFolder, input_of, recipe
from scripts.outputs.result_json import SaveResultd
from scripts.wsi.reader import checked_bags
from tests.outputs.results import COHORT, result, strict_json, table
from tests.wsi.foreign_features import write_torchmil


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The intervals have tests of their own; here a thousand resamples would only take time."""
    monkeypatch.setattr("scripts.metrics.summary.bootstrap", partial(bootstrap, resamples=40))


def report(folder: Path, batches: Sequence[Sequence[BagResult]]) -> Engine:
    """What an evaluator does: each batch goes out as a list of decollated bags."""
    engine = Engine(lambda engine, batch: [{"result": one} for one in batch])
    CohortReport(str(folder)).attach(engine)
    engine.run(list(batches))
    return engine


def test_the_summary_has_a_row_per_bag_in_order(tmp_path: Path) -> None:
    report(tmp_path, [COHORT[:3], COHORT[3:]])
    columns = ("bag_id", "status", "probability", "positive", "label", "instances", "flagged", "warnings")
    assert [tuple(row[name] for name in columns) for row in table(tmp_path / "summary.csv")] == [
        ("a", "done", "0.1", "0", "0", "1", "0", ""),
        ("b", "done", "0.2", "0", "1", "2", "0", ""),
        ("c", "done", "0.7", "1", "0", "2", "1", ""),
        ("d", "done", "0.9", "1", "1", "3", "1", ""),
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
    wanted = {
        "bag_auroc": roc_auc_score(labels, probabilities),
        "bag_accuracy": accuracy_score(labels, np.array(probabilities) > 0.5),
        "instance_auroc_gated": roc_auc_score(truth, gated),
        "instance_auroc_ungated": roc_auc_score(truth, scores),
    }
    assert {name: written[name]["value"] for name in wanted} == pytest.approx(wanted, abs=1e-6)
    assert all(written[name]["low"] <= written[name]["value"] <= written[name]["high"] for name in wanted)


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

    def all_gather_object(gathered: list[Any], mine: Any) -> None:
        by_name: list[Any] = [({r.bag_id: r for r in share}, {}, {}, {}) for share in shares]
        assert mine == by_name[rank]
        gathered[:] = by_name

    of_two = SimpleNamespace(
        is_initialized=lambda: True,
        get_world_size=lambda: 2,
        get_rank=lambda: rank,
        all_gather_object=all_gather_object,
    )
    monkeypatch.setattr("scripts.outputs.report.dist", of_two)
    report(tmp_path, [shares[rank]])
    if rank == 0:
        assert [row["bag_id"] for row in table(tmp_path / "summary.csv")] == ["a", "b", "c", "d"]
    else:
        assert list(tmp_path.iterdir()) == []


# --- a run that goes on


def bags(*names: str) -> list[dict[str, Any]]:
    return [{"bag_id": name, "image": f"scans/{name}"} for name in names]


def finished(folder: Path, *results: BagResult, recipe: str = "one") -> None:
    for done in results:
        (bag,) = bags(done.bag_id)
        SaveResultd(str(folder), recipe)({"result": done, "input": input_of(bag)})


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    finished(tmp_path, COHORT[0], COHORT[1])
    folder = ResultsFolder(str(tmp_path), bags("a", "b", "c", "d"), "one")
    assert [bag["bag_id"] for bag in folder.unfinished()] == ["a", "c"]
    assert list(folder.finished) == ["b", "d"]


@pytest.mark.parametrize(
    "why",
    [
        *("another recipe", "another scan of that name", "another label", "one more file"),
        *("half a file", "asked to", "another form"),
    ],
)
def test_what_is_not_the_same_is_done_again(tmp_path: Path, why: str) -> None:
    finished(tmp_path, COHORT[0], recipe="two" if why == "another recipe" else "one")
    given = bags("d")
    if why == "another scan of that name":
        given[0]["image"] = "elsewhere/d"
    if why == "another label":
        given[0]["label"] = 1
    if why == "one more file":
        given[0]["image"] = [given[0]["image"], "scans/e"]
    file = tmp_path / "d" / "result.json"
    if why == "half a file":
        file.write_text(file.read_text()[:100])
    if why == "another form":
        file.write_text("[]")
    left = ResultsFolder(str(tmp_path), given, "one", skip_finished=why != "asked to").unfinished()
    assert left == [{**given[0], "input": input_of(given[0])}]


def test_nothing_of_an_earlier_run_is_taken_for_this_one(tmp_path: Path) -> None:
    finished(tmp_path, COHORT[0])
    report(tmp_path, [COHORT])
    engine = Engine(lambda engine, batch: [batch])
    CohortReport(str(tmp_path)).attach(engine)
    with pytest.raises(InputError, match=r"^d is empty$"):
        engine.run([{"bag_id": "d", "failed": "d is empty"}])
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["summary.csv"]


def test_the_tables_hold_what_was_there_what_was_read_and_what_failed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    finished(tmp_path, COHORT[0])
    folder = ResultsFolder(str(tmp_path), bags("a", "b", "d", "e"), "one")
    outputs = [{"result": COHORT[1]}, {"bag_id": "e", "failed": "e is empty: copy it again"}, {"result": COHORT[3]}]
    engine = Engine(lambda engine, batch: [batch])
    CohortReport(str(tmp_path), folder).attach(engine)
    with (
        caplog.at_level("INFO", logger="scripts.outputs.report"),
        pytest.raises(InputError, match=r"^1 of 4 failed: e is empty: copy it again; correct and run again, "),
    ):
        engine.run(outputs)
    rows = table(tmp_path / "summary.csv")
    assert [(row["bag_id"], row["status"]) for row in rows] == [
        ("a", "done"), ("b", "done"), ("d", "done"), ("e", "failed"),
    ]  # fmt: skip
    assert rows[-1]["error"] == "e is empty: copy it again"
    assert {row["bag_id"] for row in table(tmp_path / "instances.csv")} == {"a", "b", "d"}
    assert strict_json(tmp_path / "metrics.json")["bags"] == 3
    assert "2 read, 1 skipped (already there), 1 failed; 1 called positive" in caplog.text


def test_a_run_of_which_all_is_already_there_keeps_its_tables(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    finished(tmp_path, *COHORT)
    ids = {each.bag_id for each in COHORT}
    folder = ResultsFolder(str(tmp_path), bags(*sorted(ids)), "one")
    left = folder.unfinished()
    assert not left
    network = torch.nn.Identity()
    evaluator = BagEvaluator(torch.device("cpu"), left, network, val_handlers=[CohortReport(str(tmp_path), folder)])
    with caplog.at_level("INFO", logger="scripts.outputs.report"):
        evaluator.run()
    assert {row["bag_id"] for row in table(tmp_path / "summary.csv")} == ids
    assert {row["bag_id"] for row in table(tmp_path / "instances.csv")} == ids
    assert f"0 read, {len(ids)} skipped (already there)" in caplog.text


def test_a_slide_without_tissue_is_no_failure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    finished(tmp_path, COHORT[0])  # as it was before its features were made anew
    engine = Engine(lambda engine, batch: [batch])
    CohortReport(str(tmp_path), instance_table=False).attach(engine)
    with caplog.at_level("INFO", logger="scripts.outputs.report"):
        engine.run([{"bag_id": "d", "empty": "d.h5 holds no patches"}, {"result": COHORT[1]}])
    rows = {row["bag_id"]: row for row in table(tmp_path / "summary.csv")}
    assert (rows["d"]["status"], rows["d"]["error"]) == ("empty", "d.h5 holds no patches")
    assert rows["b"]["status"] == "done"
    assert "1 read, 1 empty (nothing to read)" in caplog.text
    assert not (tmp_path / "d" / "result.json").exists()
    assert not (tmp_path / "instances.csv").exists()


def test_classes_stand_in_the_table_by_their_names(tmp_path: Path) -> None:
    classes = Classes(("N", "FEA", "DCIS"), np.array([0.2, 0.5, 0.3]), ("benign", "other", "other"), "N")
    report(tmp_path, [[dataclasses.replace(COHORT[0], classes=classes, label=2)]])
    (row,) = table(tmp_path / "summary.csv")
    assert (row["called"], row["label"], row["p(FEA)"], row["p(coarse other)"]) == ("FEA", "DCIS", "0.5", "0.8")


def test_several_processes_share_the_bags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished(tmp_path, COHORT[0])
    shares = []
    for rank in range(2):
        of_two = SimpleNamespace(is_initialized=lambda: True, get_world_size=lambda: 2, get_rank=lambda rank=rank: rank)
        monkeypatch.setattr("scripts.outputs.report.dist", of_two)
        folder = ResultsFolder(str(tmp_path), bags("a", "b", "c", "d", "e"), "one")
        shares.append(([bag["bag_id"] for bag in folder.unfinished()], list(folder.finished)))
    assert shares == [(["a", "c", "e"], []), (["b"], ["d"])]


def test_features_whose_coords_were_made_anew_are_read_anew(tmp_path: Path) -> None:
    """They lie in a file beside."""
    file = write_torchmil(tmp_path, "slide", np.arange(6).reshape(3, 2) * 256, np.zeros(3))
    (before,) = map(input_of, checked_bags([{"bag_id": "slide", "image": str(file)}]))
    np.save(tmp_path / "coords" / "slide.npy", np.arange(6).reshape(3, 2) * 512.0)
    (after,) = map(input_of, checked_bags([{"bag_id": "slide", "image": str(file)}]))
    assert before != after


@pytest.mark.parametrize("key", ["image", "annotation", "instance_label"])
def test_a_file_made_anew_is_read_anew(tmp_path: Path, key: str) -> None:
    file = tmp_path / "truth"
    file.write_text("old")
    bag = {"bag_id": "slide", "image": "slide.h5", key: [str(file), None]}
    before = input_of(bag)
    file.write_text("newer")
    assert before != input_of(bag)


def test_a_recipe_changes_with_each_part_and_with_the_network_but_for_its_weights() -> None:
    def network(slots: int | None = None, placement: str = "early") -> MILNetwork:
        pool = SmoothAttentionPool(4, 3, placement=placement)
        return MILNetwork(Features(4), pool, torch.nn.Linear(4, 1), spatial_dims=1, slots=slots)

    one = recipe(network(), threshold=0.5, other="a")
    assert one == recipe(network(), other="a", threshold=0.5)  # of other weights, as each is drawn anew
    others = [
        recipe(network(), threshold=0.4, other="a"),
        recipe(network(slots=57), threshold=0.5, other="a"),
        recipe(network(placement="mid"), threshold=0.5, other="a"),
    ]
    assert len({one, *others}) == 4
