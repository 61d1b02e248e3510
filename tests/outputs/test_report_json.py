# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""What a report shows is what the metrics say, and what is counted slowly."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts.core.record import BagResult
from scripts.outputs.report_json import report_content, training_record
from tests.outputs.cohorts import TINY, binary, classed, write_tables
from tests.outputs.results import TRAINING, result


def content_of(folder: Path, results: Sequence[BagResult]) -> dict[str, Any]:
    write_tables(folder, results)
    return report_content(folder)


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return content_of(tmp_path_factory.mktemp("binary"), binary())


@pytest.fixture(scope="module")
def of_classes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return content_of(tmp_path_factory.mktemp("classes"), classed())


def test_curves_run_from_corner_to_corner_and_have_the_areas_of_the_metrics(
    content: dict[str, Any], of_classes: dict[str, Any]
) -> None:
    assert list(content["curves"]) == ["positive"]
    assert list(of_classes["curves"]) == ["any finding", "N", "$a^", "<b>"]
    areas = []
    for curve in (*content["curves"].values(), *of_classes["curves"].values()):
        x, y = (np.array(curve["roc"][key]) for key in ("false_positive_rate", "sensitivity"))
        assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
        areas.append(np.trapezoid(y, x))
        for kind in ("roc", "precision_recall"):
            low, high = (np.array(curve[kind]["band"][end]) for end in ("low", "high"))
            assert ((low >= 0) & (low <= high) & (high <= 1)).all()
        band = curve["roc"]["band"]
        assert np.mean(np.interp(band["at"], x, y) <= np.array(band["high"]) + 1e-9) > 0.9
    figure = content["figures"]["bag_auroc"]["value"]
    classes = of_classes["figures"]
    assert areas[:2] == pytest.approx([figure, classes["bag_auroc"]["value"]], abs=1e-6)
    assert np.mean(areas[2:]) == pytest.approx(classes["class_auroc_macro"]["value"], abs=1e-6)
    curve = content["curves"]["positive"]["precision_recall"]
    steps = np.diff([0, *curve["recall"]]) @ np.array(curve["precision"])
    assert steps == pytest.approx(content["figures"]["bag_average_precision"]["value"], abs=1e-6)


def test_the_bins_give_the_calibration_error_before_and_after_scaling(
    content: dict[str, Any], of_classes: dict[str, Any]
) -> None:
    for each, cohort in ((content, binary()), (of_classes, classed())):
        errors = {}
        for when, of in each["calibration"].items():
            errors[when] = sum(abs(b["bags"] * b["mean_probability"] - b["positive"]) for b in of["bins"] if b["bags"])
            errors[when] /= len(cohort)
            assert of["calibration_error"] == pytest.approx(errors[when])
            assert sum(b["bags"] for b in of["bins"]) == len(cohort)
        assert errors["after"] == pytest.approx(each["figures"]["bag_calibration_error"]["value"], abs=1e-6)
        assert errors["before"] != pytest.approx(errors["after"])
    logits = np.array([one.logits[0] for one in binary()])
    below = 1 / (1 + np.exp(-logits)) <= 0.1
    assert content["calibration"]["before"]["bins"][0]["bags"] == below.sum()


def test_bars_hold_all_instances_and_shares_are_those_counted_one_by_one(content: dict[str, Any]) -> None:
    cohort = binary()
    positive = sum(int(one.truth.sum()) for one in cohort if one.truth is not None)
    for histogram in content["instances"].values():
        counts = {kind: sum(bars) for kind, bars in histogram["counts"].items()}
        assert counts == {"positive": positive, "negative": 6 * len(cohort) - positive}
    times_average = np.concatenate([one.attention * 6 for one in cohort])
    edges = content["instances"]["attention_times_average"]["edges"]
    counts = np.sum([*content["instances"]["attention_times_average"]["counts"].values()], axis=0)
    assert counts[np.searchsorted(edges, 1) :].sum() == (times_average >= edges[np.searchsorted(edges, 1)]).sum()
    bags = {bag["bag_id"]: bag for bag in content["attention_on_truth"]}
    assert bags.keys() == {one.bag_id for one in cohort if one.label}
    for one in cohort:
        if one.label:
            assert one.truth is not None
            pairs = [
                (a, b)
                for a, i in zip(one.scores, one.truth, strict=True)
                if i
                for b, j in zip(one.scores, one.truth, strict=True)
                if not j
            ]
            bag = bags[one.bag_id]
            on_truth = sum(a for a, t in zip(one.attention.tolist(), one.truth, strict=True) if t)
            assert bag["share_of_attention"] == pytest.approx(on_truth, rel=1e-6)
            assert bag["auroc"] == pytest.approx(np.mean([a > b for a, b in pairs]))
    shares = [bag["share_of_attention"] for bag in content["attention_on_truth"]]
    assert shares == sorted(shares, reverse=True)
    mean = np.mean([bag["auroc"] for bag in bags.values()])
    assert mean == pytest.approx(content["figures"]["instance_auroc_within_bags"]["value"], abs=1e-6)


def test_cases_are_the_worst_in_order_and_the_table_of_calls_is_counted(content: dict[str, Any]) -> None:
    cohort = binary()
    wrong = [one for one in cohort if one.positive != bool(one.label)]
    surest = sorted((max(one.probability, 1 - one.probability) for one in wrong), reverse=True)[:10]
    assert [case["confidence"] for case in content["cases"]["confident_mistakes"]] == pytest.approx(surest)
    assert {case["bag_id"] for case in content["cases"]["confident_mistakes"]} <= {one.bag_id for one in wrong}
    nearest = sorted(cohort, key=lambda one: abs(one.probability - 0.5))[:10]
    assert [case["margin"] for case in content["cases"]["least_certain"]] == pytest.approx(
        [abs(one.probability - 0.5) for one in nearest]
    )
    elsewhere = content["cases"]["attention_elsewhere"]
    assert elsewhere
    assert all(bag["share_of_attention"] < 1 / 3 for bag in elsewhere)
    (_, alarm), (missed, _) = content["confusion"]["bags"]
    assert alarm + missed == len(wrong)
    assert content["cohort"]["bags"] == {"done": 60, "empty": 1}


def test_negative_bags_need_no_truth_and_bags_of_unknown_truth_are_kept_apart(tmp_path: Path) -> None:
    cohort = [result("a", 0.9, [1, 2], 1, [0, 1]), result("b", 0.1, [1, 2, 3], 0), result("c", 0.8, [4], 1)]
    cohort.append(result("d", 0.1, [5, 6], None))
    counts = content_of(tmp_path, [replace(one, logits=(0.0,)) for one in cohort])["instances"]["score"]["counts"]
    assert {kind: sum(bars) for kind, bars in counts.items()} == {"positive": 1, "negative": 4, "unknown": 3}


@pytest.mark.parametrize("cohort", TINY.values(), ids=TINY)
def test_tiny_cohorts_have_what_can_be_computed(tmp_path: Path, cohort: list[BagResult]) -> None:
    content = content_of(tmp_path, cohort)
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert (content["curves"] is None) == (len({one.label for one in cohort}) < 2)
    assert content["cohort"]["labelled"] == sum(one.label is not None for one in cohort)


def test_a_record_of_training_is_read_as_far_as_it_is_one(tmp_path: Path) -> None:
    file = tmp_path / "model.run.json"
    epochs = [{"epoch": 1, "time": 5, "train_loss": 0.5, "alpha": 0.4}, {"epoch": 2, "time": 6}]
    for kept, epoch in (({"epoch": 2}, 2), (None, None)):  # none before the first validation
        file.write_text(json.dumps({**TRAINING, "epochs": epochs, "kept": kept}))
        curves = {"train_loss": [(1, 0.5)], "alpha": [(1, 0.4)]}
        assert training_record(tmp_path / "model.pt") == {"run_name": "r", "curves": curves, "kept": epoch}
    parts = [{key: value for key, value in TRAINING.items() if key != gone} for gone in TRAINING]
    spoilt: list[dict[str, Any]] = [{"epochs": 3}, {"epochs": [{"loss": 1}]}, {"epochs": None}, {"kept": {"loss": 1}}]
    for damaged in (
        "",
        "[]",
        "3",
        *(json.dumps(each) for each in (*parts, *({**TRAINING, **each} for each in spoilt))),
    ):
        file.write_text(damaged)
        assert training_record(tmp_path / "model.pt") is None
