# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Two evaluations of the same bags are compared figure by figure, and others are refused."""

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from scripts.core.errors import InputError
from scripts.core.record import BagResult
from scripts.metrics.faithfulness import faithfulness_figures
from scripts.metrics.figures import bootstrap
from scripts.metrics.intervals import auroc_difference
from scripts.metrics.summary import cohort_metrics
from scripts.studies.cli import compare
from scripts.studies.compare import COMPARED, comparisons, rank_correlations
from tests.outputs.results import COHORT, result, strict_json
from tests.outputs.test_report import report


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.metrics.summary.bootstrap", partial(bootstrap, resamples=20))
    monkeypatch.setattr("scripts.studies.compare.bootstrap", partial(bootstrap, resamples=300))


def cohort(seed: int, skill: float, bags: int = 60) -> list[BagResult]:
    """Bags whose positive half has a positive instance in four."""
    truths, noise = np.random.default_rng(1), np.random.default_rng(seed)
    found = []
    for k in range(bags):
        truth = np.eye(4, dtype=int)[truths.integers(4)] * (k % 2)
        scores = noise.normal(skill * truth)
        probability = 1 / (1 + np.exp(-noise.normal(skill * (k % 2 - 0.5), 1)))
        one = result(f"bag_{k:02d}", float(probability), scores.tolist(), k % 2, truth.tolist())
        every_score: dict[str, Any] = dict.fromkeys(("attention_logits", "evidence", "instance_logits"), one.scores)
        found.append(replace(one, logits=(0.0,), **every_score))
    return found


def test_each_figure_is_that_of_each_run_and_their_difference_has_an_interval() -> None:
    better, worse = cohort(2, 3.0), cohort(3, 0.5)
    found, figures = comparisons(better, worse), [cohort_metrics(bags) for bags in (better, worse)]
    assert found.keys() == {name for name in COMPARED if not name.startswith("class_") and "height" not in name}
    for name, (a, b, (difference, low, high), p) in found.items():
        assert (a, b) == pytest.approx(tuple(each[name].value for each in figures))
        assert difference == pytest.approx(a - b)
        assert low < difference < high
        assert np.isnan(p) == (name != "bag_auroc")
        assert (low > 0) != (name == "bag_brier_score")  # the better one is better in each
    label, one, other = (
        np.array([getattr(bag, what) for bag in bags])
        for what, bags in (("label", better), ("probability", better), ("probability", worse))
    )
    assert (found["bag_auroc"].difference, found["bag_auroc"].p) == auroc_difference(label, one, other)


def test_bags_are_drawn_alike_for_both() -> None:
    """The interval of what differs in one bag alone is that of one bag, not that of two cohorts."""
    one = cohort(2, 1.0)
    other = [replace(one[0], probability=1 - one[0].probability), *one[1:]]
    accuracy = comparisons(one, other)["bag_accuracy"].difference
    assert abs(accuracy.value) == pytest.approx(1 / 60)
    assert accuracy.high - accuracy.low < 0.06
    same = comparisons(one, one)
    assert all(each.difference.value == 0 for each in same.values())
    assert all(np.isnan(each.difference[1:]).all() for each in same.values())  # nothing tells how far they may differ


def test_the_folders_are_compared_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, bags in (("a", cohort(2, 3.0)), ("b", cohort(3, 0.5))):
        report(tmp_path / name, bags)
    compare(str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "comparison.json"))
    written = strict_json(tmp_path / "comparison.json")
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["figure", "A", "B", "A", "-", "B", "95", "%", "interval", "p"]
    figures, score_lines = printed[1 : len(written["figures"]) + 1], printed[len(written["figures"]) + 1 : -1]
    assert [line.split()[0] for line in figures] == list(written["figures"])
    assert score_lines[0] == "rank correlation of instances within a bag"
    assert [line.split()[0] for line in score_lines[2:]] == list(written["rank_correlations"])
    auroc = written["figures"]["bag_auroc"]
    assert auroc["difference"] == pytest.approx(auroc["a"] - auroc["b"], abs=2e-6)
    assert 0 < auroc["p"] < 0.05
    assert written["figures"]["bag_accuracy"]["p"] is None
    assert "instance_auroc_gated" in written["figures"]
    metrics = strict_json(tmp_path / "b" / "metrics.json")
    (tmp_path / "b" / "metrics.json").write_text(json.dumps({**metrics, "over_folds": {"folds": 5}}))
    compare(str(tmp_path / "a"), str(tmp_path / "b"))
    told = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line}
    # the scores of several networks are compared within bags alone
    assert {name for name in written["figures"] if name not in told} == {
        *("instance_auroc_gated", "instance_auroc_ungated", "instance_auroc_within_positive_bags"),
        *("instance_auroc_attention", "instance_auroc_evidence", "instance_auroc_instance"),
    }


def test_a_score_is_as_stable_as_it_ranks_alike() -> None:
    one, other = cohort(2, 1.0), cohort(3, 1.0)
    same = [replace(bag, scores=3 * bag.scores - 1, attention=-bag.attention) for bag in one]
    found = rank_correlations(one, same)
    assert found["scores"].value == 1
    assert found["attention"].value == -1
    assert math.isnan(found["scores"].low)  # draws that do not vary say nothing of it
    wanted = [spearmanr(a.scores, b.scores).statistic for a, b in zip(one, other, strict=True)]
    assert rank_correlations(one, other)["scores"].value == pytest.approx(np.mean(wanted))
    flat = [replace(bag, attention=np.ones(4)) for bag in one[:30]]
    half = rank_correlations(one, [*flat, *one[30:]])
    assert half["attention"].value == 1  # a bag without an order says nothing of it
    assert "attention" not in rank_correlations(one[:30], flat)


def test_faithfulness_is_compared_where_both_measured_it() -> None:
    measured = []
    for seed in (0, 1):
        about = [{"faithfulness": {"evidence": {"deletion": seed + k / 60}}} for k in range(60)]
        measured.append([replace(bag, about=each) for bag, each in zip(cohort(2, 1.0), about, strict=True)])
    found = faithfulness_figures(measured[0])
    assert found.keys() == {"deletion_evidence"}
    assert comparisons(*measured)["faithfulness_deletion_evidence"].difference.value == pytest.approx(-1)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (COHORT[1:], "b has no result of d .1 in all., which .*a has: evaluate both on the same bags"),
        ([*COHORT, result("e", 0.1, [1.0], 0)], "a has no result of e .1 in all., which .*b has"),
        ([replace(COHORT[0], label=0), *COHORT[1:]], "d is positive in .*a and negative in .*b: .* the same labels"),
        ([replace(COHORT[0], label=None), *COHORT[1:]], "d is positive in .*a and without label in .*b"),
    ],
)
def test_other_bags_or_labels_are_refused_with_an_example(tmp_path: Path, other: list[BagResult], message: str) -> None:
    for name, bags in (("a", COHORT), ("b", other)):
        report(tmp_path / name, [replace(bag, logits=(0.0,)) for bag in bags])
    with pytest.raises(InputError, match=message):
        compare(str(tmp_path / "a"), str(tmp_path / "b"))


def test_without_labels_or_with_annotations_of_one_alone_there_is_less_to_compare(tmp_path: Path) -> None:
    report(tmp_path, [replace(bag, label=None, logits=(0.0,)) for bag in COHORT])
    with pytest.raises(InputError, match="has a label: give the output folders of evaluations"):
        compare(str(tmp_path), str(tmp_path))
    blind = [replace(bag, truth=None) for bag in COHORT]
    assert {name.split("_")[0] for name in comparisons(COHORT, blind)} == {"bag"}
