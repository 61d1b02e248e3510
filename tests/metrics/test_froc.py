# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""FROC by hand, as MONAI computes it, and over slides that count twice."""

import tracemalloc
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_fp_tp_probs, compute_froc_curve_data, compute_froc_score
from monai.transforms import ProbNMS

from scripts.core.lesions import Lesions
from scripts.core.record import BagResult, PatchCoordinates
from scripts.metrics.froc import Detections, detections, froc_score, lesion_froc, peaks

pytestmark = pytest.mark.filterwarnings("error")  # an undefined figure is no reason to warn


def bag(
    scores: Any, places: Any, lesions: Lesions, probability: float = 0.9, slide: Any = None, pitches: Any = (256,)
) -> BagResult:
    """A slide whose patches lie at these columns and rows."""
    n = len(scores)
    of_slide = np.array(slide if slide is not None else [0] * n, dtype=int)
    coords = np.array(places, dtype=float).reshape(-1, 2) * np.array(pitches)[of_slide][:, None] + (1000, 3000)
    return BagResult(
        "bag", "", probability, 0.5, np.array(scores, dtype=np.float32), np.full(n, 1 / max(n, 1)),
        PatchCoordinates(coords, of_slide), lesions=lesions, about={"slides": [{"pitch": each} for each in pitches]},
    )  # fmt: skip


def lesions(of_instance: Sequence[int] | np.ndarray, count: int, excluded: tuple[int, ...] = ()) -> Lesions:
    return Lesions(np.array(of_instance, dtype=int), count, excluded)


FAR = [(5 * i, 0) for i in range(30)]  # no neighbours


def froc(results: Sequence[BagResult]) -> tuple[float, float]:
    """Gated and ungated."""
    figures = lesion_froc(results)
    return figures["froc_gated"](np.ones(len(results))), figures["froc_ungated"](np.ones(len(results)))


def test_froc_by_hand() -> None:
    """Gated, the lesions of a slide called negative are missed; between two thresholds sensitivity is on a line."""
    results = [
        bag([5, 3, 2], FAR[:3], lesions([1, 0, 2], 2)),  # found at 5 and at 2, a false alarm at 3
        bag([4, 1], FAR[:2], lesions([0, 0], 0), probability=0.1),  # two false alarms, but called negative
    ]
    # ungated: at 5 half, no alarm; at 4 and 3 half, ½ and 1 alarm per slide; at 2 all, 1 alarm per slide
    ungated = np.mean([0.5, 0.5, 1, 1, 1, 1])
    # gated: at 5 half, no alarm; at 3 half, ½ alarm; at 2 all, ½ alarm
    gated = np.mean([0.5, 1, 1, 1, 1, 1])
    assert froc(results) == pytest.approx((gated, ungated))
    assert froc([bag([5], FAR[:1], lesions([1], 1), probability=0.2)]) == (0, 1)
    found = [Detections(np.array([2.0]), np.array([2.0]), 1)]  # alarm and hit at once: (0, 0) to (1, 1)
    assert froc_score(found)(np.ones(1)) == pytest.approx(np.mean([0.25, 0.5, 1, 1, 1, 1]))


def test_no_lesion_no_patch_and_no_number() -> None:
    assert np.isnan(froc([bag([1], FAR[:1], lesions([0], 0))])).all()
    assert froc([bag([], [], lesions([], 1)), bag([3.0], FAR[:1], lesions([1], 1))])[1] == 0.5
    assert np.isnan(froc([bag([np.nan, 1], FAR[:2], lesions([0, 1], 1))])[1])


def test_a_lesion_counts_by_its_highest_detection_and_isolated_tumour_cells_not_at_all() -> None:
    found = detections(bag([5, 4, 3, 2, 1], FAR[:5], lesions([1, 0, 3, 2, 3], 4, excluded=(1, 2))))
    assert found.false_alarms.tolist() == [4]
    assert found.lesions.tolist() == [3, -np.inf]


def test_patches_at_two_ends_of_a_slide_take_no_memory_for_what_lies_between() -> None:
    places = np.array([[0, 0], [1, 0], [60_000, 60_000]])
    tracemalloc.start()
    kept = peaks(places, np.array([1.0, 2.0, 3.0]))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept.tolist() == [2, 1]
    assert most < 1e6


def test_slides_of_one_bag_take_nothing_from_each_other() -> None:
    two = bag([5, 4, 3, 2], [(0, 0), (1, 0)] * 2, lesions([0, 0, 1, 1], 1), slide=[0, 0, 1, 1], pitches=[256, 512])
    found = detections(two)
    assert (found.false_alarms.tolist(), found.lesions.tolist(), found.slides) == ([5], [3], 2)


@pytest.mark.parametrize("seed", range(3))
def test_detections_are_those_of_monai(seed: int) -> None:
    """Neighbours of a detection are none, and their neighbours may be; rows do not touch at their ends."""
    rng = np.random.default_rng(seed)
    height, width = 17, 23
    tissue = rng.random((height, width)) < 0.7
    probability = np.where(tissue, rng.permutation(height * width).reshape(height, width) + 1.0, 0)
    row, column = np.nonzero(tissue)
    order = rng.permutation(len(row))  # patches need not come in rows
    places, scores = np.stack([column, row], axis=1)[order], probability[tissue][order]
    expected = [tuple(found) for found in ProbNMS(prob_threshold=0, box_size=3)(probability.copy())]
    kept = peaks(places + rng.uniform(-0.2, 0.2, places.shape), scores)  # coordinates are rounded to pixels
    assert [(scores[i], places[i, 1], places[i, 0]) for i in kept] == expected


def by_monai(results: Sequence[BagResult]) -> float:
    """Through masks and MONAI's functions; every lesion is one row of a mask, its detections points in it."""
    false_alarms: list[float] = []
    hits: list[float] = []
    count = 0
    for result in results:
        assert result.lesions is not None
        of_instance, column = result.lesions.of_instance, np.arange(len(result.scores))
        mask = np.zeros((2 + result.lesions.count, len(column) + 1), int)
        mask[1:] = np.arange(result.lesions.count + 1)[:, None]
        alarms, found, of_slide = compute_fp_tp_probs(
            result.scores, of_instance + 1, column, mask, labels_to_exclude=list(result.lesions.excluded)
        )
        false_alarms.extend(alarms)
        hits.extend(found)
        count += of_slide
    hits.append(0)  # as if something was missed: else MONAI leaves out what scores lowest
    rates, sensitivity = compute_froc_curve_data(np.array(false_alarms), np.array(hits), count, len(results))
    return float(compute_froc_score(rates, sensitivity))


@st.composite
def cohorts(draw: st.DrawFn) -> list[BagResult]:
    rng = np.random.default_rng(draw(st.integers(0, 100_000)))
    ties = draw(st.booleans())
    results = []
    for _ in range(draw(st.integers(1, 6))):
        n, count = int(rng.integers(0, 30)), int(rng.integers(0, 4))
        scores = rng.integers(1, 8, n) / 8 if ties else rng.random(n) + 0.01
        excluded = tuple(k for k in range(1, count + 1) if rng.random() < 0.2)
        results.append(bag(scores, FAR[:n], lesions(rng.integers(0, count + 1, n), count, excluded)))
    return results


@settings(max_examples=40, deadline=None, derandomize=True)
@given(cohorts(), st.integers(0, 1000))
def test_froc_is_that_of_monai_and_a_slide_drawn_twice_counts_as_two(results: list[BagResult], seed: int) -> None:
    for weight in (np.ones(len(results), dtype=int), np.random.default_rng(seed).integers(0, 4, len(results))):
        drawn = [result for result, times in zip(results, weight, strict=True) for _ in range(times)]
        found = froc_score([detections(result) for result in results])(weight)
        targets = sum(r.lesions.count - len(r.lesions.excluded) for r in drawn if r.lesions is not None)
        assert found == pytest.approx(by_monai(drawn)) if targets else np.isnan(found)
