# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""FROC, the share of lesions found at given numbers of false alarms per slide, as CAMELYON16 and MONAI compute it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from scripts.core.record import BagResult, PatchCoordinates
from scripts.metrics.figures import Figure

FALSE_ALARMS_PER_SLIDE = (0.25, 0.5, 1, 2, 4, 8)


class Detections(NamedTuple):
    """The detections in one bag, as scores."""

    false_alarms: np.ndarray  # (n,)
    lesions: np.ndarray  # (m,) the highest score in each lesion, -inf where it was missed
    slides: int


def lesion_froc(results: Sequence[BagResult]) -> dict[str, Figure]:
    """Return the sensitivity for lesions averaged over FALSE_ALARMS_PER_SLIDE, of bags whose lesions are known.

    A detection is a patch that scores highest among its neighbours (see `peaks`). Gated: a bag called negative has no
    detections, and its lesions are missed. MONAI's compute_froc_score gives the same figures, except that it never
    counts the lowest of all scores, which with a single detection is all there is.
    """
    ungated = [detections(result) for result in results]
    gated = [
        found if result.positive else Detections(np.zeros(0), np.full_like(found.lesions, -np.inf), found.slides)
        for result, found in zip(results, ungated, strict=True)
    ]
    return {"froc_gated": froc_score(gated), "froc_ungated": froc_score(ungated)}


def detections(result: BagResult) -> Detections:
    """Return the detections in a bag; one in an excluded lesion is neither a hit nor a false alarm."""
    lesions, patches, slides = result.lesions, result.instances, result.about["slides"]
    assert lesions is not None
    assert isinstance(patches, PatchCoordinates)
    score = result.scores.astype(np.float64)
    found = np.zeros(len(score), dtype=bool)
    for number, slide in enumerate(slides):  # patches of two slides are no neighbours
        of_slide = np.flatnonzero(patches.slide == number)
        found[of_slide[peaks(patches.coords[of_slide] / slide["pitch"], score[of_slide])]] = True
    lesion = lesions.of_instance[found]
    best = np.full(lesions.count + 1, -np.inf)
    with np.errstate(invalid="ignore"):  # NaN stays NaN
        np.maximum.at(best, lesion, score[found])
    counted = np.setdiff1d(np.arange(1, lesions.count + 1), lesions.excluded)
    return Detections(score[found][lesion == 0], best[counted], len(slides))


def peaks(coords: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Return the indices of the detections among the patches of one slide, (N, 2) in units of the pitch.

    As MONAI's ProbNMS with a box of 3 × 3: the highest is one and removes the patches around it, the highest of the
    rest is the next, until none is left. Of equal scores the first in rows is taken.
    """
    if len(score) == 0:
        return np.zeros(0, dtype=int)
    column, row = np.rint(coords - coords.min(axis=0)).astype(int).T
    width = int(column.max()) + 3  # with a rim, so that no neighbour is in another row
    cell = (row + 1) * width + column + 1
    taken: set[int] = set()  # not a grid, which two patches at two ends of a slide would make huge
    kept = []
    for patch in np.lexsort((cell, -score)).tolist():
        own = int(cell[patch])
        if own not in taken:
            kept.append(patch)
            for middle in (own - width, own, own + width):
                taken.update((middle - 1, middle, middle + 1))
    return np.array(kept)


def froc_score(found: Sequence[Detections]) -> Figure:
    """Return the mean sensitivity at FALSE_ALARMS_PER_SLIDE, linear between thresholds."""
    slides = np.array([each.slides for each in found])
    lesions = np.array([len(each.lesions) for each in found])
    known = not any(np.isnan(scores).any() for each in found for scores in each[:2])
    # sensitivity rises at the scores of lesions alone: the points just before and at each give the whole curve
    threshold = np.unique(np.concatenate([each.lesions for each in found]))
    threshold = threshold[np.isfinite(threshold)][::-1]
    alarms, hits = (
        np.array([_before_and_at(scores, threshold) for scores in of_bag])  # [bags, points]
        for of_bag in ([each.false_alarms for each in found], [each.lesions for each in found])
    )

    def figure(weight_of_bag: np.ndarray) -> float:
        count = (weight_of_bag * lesions).sum()
        if not known or not count:
            return np.nan
        weight = weight_of_bag[:, None]
        rate = (weight * alarms).sum(axis=0) / (weight_of_bag * slides).sum()
        return float(np.interp(FALSE_ALARMS_PER_SLIDE, rate, (weight * hits).sum(axis=0) / count).mean())

    return figure


def _before_and_at(scores: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    """Return 0, then how many scores are above and how many at or above each threshold, from the highest down."""
    scores = np.sort(scores)
    above, at_or_above = (len(scores) - np.searchsorted(scores, threshold, side) for side in ("right", "left"))
    return np.append(0, np.stack([above, at_or_above], axis=1).ravel())
