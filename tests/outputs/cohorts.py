# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Cohorts whose tables a report is made of: one with mistakes and truth, one of several classes, and tiny ones."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from ignite.engine import Engine

from scripts.core.record import BagResult, Classes
from scripts.metrics.figures import bootstrap
from scripts.outputs.report import CohortReport
from tests.outputs.results import result

NASTY = '<script>alert(1)</script> & "b"'


def write_tables(folder: Path, results: Sequence[BagResult]) -> None:
    engine = Engine(
        lambda engine, bags: [{"bag_result": one} for one in bags] + [{"bag_id": "z", "empty": "no tissue"}]
    )
    with pytest.MonkeyPatch.context() as patch:  # the intervals of metrics.json have tests of their own
        patch.setattr("scripts.metrics.summary.bootstrap", partial(bootstrap, resamples=20))
        CohortReport(str(folder)).attach(engine)
        engine.run([results])


def binary(bags: int = 60) -> list[BagResult]:
    """Every third is positive; ties among probabilities, and a scaling by 1.5 · logit + 0.3."""
    generator = np.random.default_rng(1)
    cohort = []
    for number in range(bags):
        positive = number % 3 == 0
        logit = round(float(generator.normal(1.0 if positive else -1.0, 1.5)), 1) if number else -4.0  # a mistake
        truth = [int(positive and place < 2) for place in range(6)]
        scores = (generator.normal(size=6) + (-2 if number % 4 == 0 else 2) * np.array(truth)).tolist()
        probability = 1 / (1 + np.exp(-(1.5 * logit + 0.3)))
        one = result(NASTY if number == 0 else f"bag_{number:02d}", probability, scores, int(positive), truth)
        cohort.append(replace(one, logits=(logit,), threshold_origin="youden on 20 bags"))
    return cohort


def classed(bags: int = 30, negative: str | None = "N") -> list[BagResult]:
    generator = np.random.default_rng(2)
    cohort = []
    for number in range(bags):
        logits = generator.normal(size=3) + 2 * np.eye(3)[number % 3]
        exponential = np.exp(0.5 * logits)
        classes = Classes(("N", "$a^", "<b>"), exponential / exponential.sum(), ("x", "y", "y"), negative)
        one = result(f"bag_{number:02d}", classes.probability, [1.0, 2.0], number % 3)
        cohort.append(replace(one, threshold=None, classes=classes, logits=tuple(logits.tolist())))
    return cohort


TINY: dict[str, list[BagResult]] = {
    "nothing": [],
    "one bag": binary(1),
    "one class alone": [one for one in binary(9) if one.label == 0],
    "no label": [replace(one, label=None, truth=None) for one in binary(3)],
    "no truth": [replace(one, truth=None) for one in binary(9)],
    "not a number": [replace(one, scores=np.full(6, np.nan), attention=np.full(6, np.nan)) for one in binary(6)],
    "every class a finding": classed(6, None),
}
