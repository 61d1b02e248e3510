# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Errors of probabilities are those before and after the scaling that so many validation bags give."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.__main__ import PREFACE, RESULTS, written
from benchmarks.belief import told_of
from benchmarks.calibration import ERRORS, HEADS, errors, measure
from benchmarks.report import page, read
from tests.outputs.results import result


def test_scaling_helps_a_network_that_is_too_sure_the_more_the_more_bags_it_is_fitted_on() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=2000)
    labels = generator.random(2000) < 1 / (1 + np.exp(-logits))
    bags = [
        replace(result(f"{k:04d}", 0.5, [0.0], int(label)), logits=(6 * logit,))
        for k, (logit, label) in enumerate(zip(logits, labels, strict=True))
    ]
    found = errors(bags[:1000], bags[1000:], HEADS._replace(fitted_on=(20, 1000)))
    error = {fitted: each["bag_calibration_error"] for fitted, each in found.items()}
    assert error["1000 bags"] < 0.06 < error["20 bags"] < error["no scaling"]
    assert found["1000 bags"]["bag_brier_score"] < found["no scaling"]["bag_brier_score"]


def test_what_is_published_is_what_the_code_says_of_the_stored_figures() -> None:
    path = RESULTS / "calibration.json"
    stored = json.loads(path.read_text())
    published = read(path)
    assert published is not None
    told = told_of(published.measured, published.quick, published.where)
    assert json.loads(json.dumps(asdict(told))) == json.loads(json.dumps(asdict(published)))
    assert [each["verdict"] for each in stored["targets"]] == [target.verdict for target in told.targets]
    assert (RESULTS / "README.md").read_text() == page(written(RESULTS), PREFACE)


def test_a_gain_is_shown_by_the_upper_end_of_its_interval() -> None:
    seed: dict[str, Any] = {"bag_auroc": 0.9, "instance_auroc_gated": 0.8, "instance_auroc_ungated": 0.8}
    seed["errors"] = {at: dict.fromkeys(ERRORS, 0.1) for at in ("no scaling", "8 bags", "80 bags")}
    ends = {"8 bags": 0.01, "80 bags": -0.01}
    changes = {at: {"mean": -0.02, "low": -0.05, "high": end} for at, end in ends.items()}
    differences = {at: dict.fromkeys(ERRORS, change) for at, change in changes.items()}
    told = told_of({"HEADS": {"seeds": [seed], "differences": differences}}, False, {})
    assert [target.verdict for target in told.targets] == ["missed", "reached"]


@pytest.mark.soak
@pytest.mark.parametrize(("cohort", "encoder"), [("SLIDES", {}), ("HEADS", {"max_epochs": 1})])
def test_a_small_cohort_goes_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cohort: str, encoder: object
) -> None:
    monkeypatch.chdir(tmp_path)  # and back
    small = {"counts": (4, 2, 4), "keys": {"in_features": 128, "max_epochs": 1}, "fitted_on": (2,)}
    found = measure(cohort, str(tmp_path), seeds=2, encoder=encoder, **small)
    assert len(found["seeds"]) == 2
    assert list(json.loads(json.dumps(found))["differences"]) == ["2 bags"]
