# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Results read back from the tables of a cohort are those that were written."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ignite.engine import Engine

from scripts.core.errors import InputError
from scripts.core.record import BagResult, Classes
from scripts.metrics.summary import cohort_metrics
from scripts.outputs.report import CohortReport
from scripts.outputs.results import read_results
from tests.outputs.results import COHORT, result, told

BINARY = [replace(one, logits=(float(np.log(one.probability / (1 - one.probability))),)) for one in COHORT]


def several(name: str, label: int, *probabilities: float) -> BagResult:
    classes = Classes(("N", "FEA", "IC"), np.array(probabilities), ("benign", "other", "other"), "N")
    one = result(name, classes.probability, [1.0, 2.0], label)
    return replace(one, threshold=None, classes=classes, logits=tuple(np.log(probabilities).tolist()))


CLASSES = [several("a", 0, 0.2, 0.5, 0.3), several("b", 2, 1 / 3, 1 / 7, 11 / 21)]
TOLD = [told(one, seed, score_smoothing=0.5, flag_above=seed / 7) for seed, one in enumerate(BINARY)]


@pytest.mark.parametrize("cohort", [BINARY, CLASSES, TOLD], ids=["one", "classes", "every score"])
def test_what_was_written_is_read_back(tmp_path: Path, cohort: list[BagResult]) -> None:
    engine = Engine(
        lambda engine, bags: [{"bag_result": one} for one in bags] + [{"bag_id": "z", "empty": "no tissue"}]
    )
    CohortReport(str(tmp_path)).attach(engine)
    engine.run([cohort])
    again = read_results(tmp_path)
    cohort = sorted(cohort, key=lambda one: one.bag_id)
    for one, read in zip(cohort, again, strict=True):
        same = ("bag_id", "label", "threshold", "positive", "verdict", "true_verdict")
        assert [getattr(read, name) for name in same] == [getattr(one, name) for name in same]
        np.testing.assert_allclose(read.logits, one.logits, rtol=1e-8)
        assert (read.score_name, read.score_smoothing, read.flag_above, read.flag_rule) == (
            *(one.score_name, one.score_smoothing, one.flag_above, one.flag_rule),
        )
        np.testing.assert_equal(read.of_instances, one.of_instances)
        np.testing.assert_array_equal(read.flagged, one.flagged)
    before, after = cohort_metrics(cohort), cohort_metrics(again)
    assert before.keys() == after.keys()
    for name, figure in before.items():
        np.testing.assert_allclose(after[name], figure, rtol=1e-7)


def test_a_folder_without_results_or_of_an_earlier_version_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no results .*summary\.csv\): give the output_dir of an evaluation"):
        read_results(tmp_path)
    (tmp_path / "summary.csv").write_text("bag_id,status,probability,positive,label\na,done,0.5,0,1\n")
    with pytest.raises(InputError, match=r"no results of this version .*: evaluate again"):
        read_results(tmp_path)


def test_tables_of_a_version_that_knew_of_attention_alone_are_read_as_such(tmp_path: Path) -> None:
    (tmp_path / "summary.csv").write_text(
        "bag_id,status,probability,positive,logit,threshold,label,instances,flagged,warnings\n"
        "a,done,0.75,1,1.1,0.5,1,2,1,\n"
    )
    (tmp_path / "instances.csv").write_text("bag_id,id,score,attention,flagged\na,0,1.5,0.75,1\na,1,0.4,0.25,0\n")
    (one,) = read_results(tmp_path)
    assert (one.score_name, one.flag_above, one.flagged.tolist()) == ("attention", None, [True, False])
    np.testing.assert_array_equal(one.attention_logits, one.scores)
