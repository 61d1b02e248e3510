# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""What the place of an instance tells of its label: bleeding lies in the middle of the head, and a score may know that.

The place of a slice is its height, 0 = the lowest of the scan and 1 = the highest; that of a patch its distance from
the centroid of the tissue on its slide, 1 = the farthest.
"""

from collections.abc import Sequence

import numpy as np

from scripts.core.record import BagResult, PatchCoordinates
from scripts.metrics.figures import Cases, Figure

BINS = 20  # of a place
REACH = 0.05  # within which two slices are at one height
FEWEST_SLICES = 5  # slices of a scan, in the median, that have a height worth the name
LENGTHS = ((1, 3), (4, 8), (9, 15), (16, np.inf))  # of a lesion, in slices


def place_figures(results: Sequence[BagResult], instances: Cases, score: np.ndarray) -> dict[str, Figure]:
    """Return the AUROC of the place alone, and of scans that of the score by height and by length of the lesion.

    Patches read back from a table have lost their place, and one bag leaves no others to learn a prior from.
    """
    if len(results) < 2:
        return {}
    if all(isinstance(result.instances, PatchCoordinates) for result in results):
        return _prior_figures("centre", instances, np.concatenate([from_centre(result) for result in results]))
    counts = [len(result.scores) for result in results]
    if np.median(counts) < FEWEST_SLICES or any("x" in row for result in results for row in result.instances[:1]):
        return {}
    height = np.concatenate([heights(count) for count in counts])
    won, pairs = pairs_at_one_place(instances, height, score)
    count = float(pairs.sum())
    return {
        **_prior_figures("height", instances, height),
        "auroc_height_adjusted": share_of_pairs(won, pairs),
        "height_adjusted_pairs": lambda _: count,  # of the cohort itself, which has no interval
        **by_length(instances, score),
    }


def heights(slices: int) -> np.ndarray:
    """Return the heights of the slices of a scan, from the lowest up; a lone one is in the middle."""
    return np.linspace(0, 1, slices) if slices > 1 else np.full(slices, 0.5)


def from_centre(result: BagResult) -> np.ndarray:
    """Return the distance of each patch from the centroid of its slide, (N,), as a share of the largest one."""
    patches = result.instances
    assert isinstance(patches, PatchCoordinates)
    distance = np.zeros(len(patches))
    for slide in np.unique(patches.slide):
        of_slide = patches.slide == slide
        coords = patches.coords[of_slide].astype(float)
        apart = np.linalg.norm(coords - coords.mean(axis=0), axis=1)
        distance[of_slide] = apart / max(apart.max(), 1e-9)
    return distance


def _prior_figures(name: str, instances: Cases, place: np.ndarray) -> dict[str, Figure]:
    won, pairs = pairs_by_prior(instances, place)
    prior, in_positive = share_of_pairs(won, pairs), pairs.any(axis=1)
    return {
        f"auroc_{name}_prior": prior,
        f"auroc_within_{name}_prior": lambda weight_of_bag: prior(weight_of_bag * in_positive),
    }


def share_of_pairs(won: np.ndarray, pairs: np.ndarray) -> Figure:
    """Return an AUROC of pairs, (bags, bags) each: the bag of the positive instance, and that of the negative one."""

    def figure(weight_of_bag: np.ndarray) -> float:
        whole = _counted(pairs, weight_of_bag)
        return _counted(won, weight_of_bag) / whole if whole else np.nan

    return figure


def _counted(pairs: np.ndarray, weight_of_bag: np.ndarray) -> float:
    weight = weight_of_bag.astype(float)
    return float(np.einsum("a,ab,b->", weight, pairs, weight))


def pairs_by_prior(instances: Cases, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how many pairs, (bags, bags), a prior of the label by place puts in order, and how many there are.

    The prior is a histogram of the labels over BINS places, with one more instance of the average label in each bin.
    A pair is compared by the histogram of all other bags of the cohort, so neither bag is judged by its own labels
    (leaving out one bag of the two alone would rank positive bags too low: what a bag takes away is its own label).
    """
    bags, bin_of = instances.bags, np.minimum((place * BINS).astype(int), BINS - 1)
    cell = instances.bag * BINS + bin_of
    counts = [np.bincount(cell, kind, bags * BINS).reshape(bags, BINS) for kind in (instances.truth, ~instances.truth)]
    positive, negative = counts
    won = np.zeros((bags, bags))
    for bag in np.flatnonzero(positive.any(axis=1)):
        others = [of.sum(axis=0) - of[bag] - of for of in counts]  # [bags, bins], but for this bag and each other one
        for rest, of in zip(others, counts, strict=True):
            rest[bag] += of[bag]  # which was taken away twice
        n = others[0] + others[1]
        average = others[0].sum(axis=1, keepdims=True) / np.maximum(n.sum(axis=1, keepdims=True), 1)
        prior = (others[0] + average) / (n + 1)
        own = np.flatnonzero(positive[bag])
        mine, theirs = prior[:, own, None], prior[:, None, :]
        ahead = (mine > theirs) + 0.5 * (mine == theirs)  # [bags, bins of this bag, bins]
        won[bag] = np.einsum("i,bij,bj->b", positive[bag, own], ahead, negative)
    return won, np.outer(positive.sum(axis=1), negative.sum(axis=1)).astype(float)


def pairs_at_one_place(
    instances: Cases, place: np.ndarray, score: np.ndarray, reach: float = REACH
) -> tuple[np.ndarray, np.ndarray]:
    """Return how many pairs, (bags, bags), at places at most `reach` apart the score puts in order, of how many."""
    won, pairs = np.zeros((2, instances.bags, instances.bags))
    negative = np.flatnonzero(~instances.truth)
    negative = negative[np.argsort(place[negative], kind="stable")]
    for bag in np.unique(instances.bag[instances.truth]):
        positive = np.flatnonzero(instances.truth & (instances.bag == bag))
        ends = [place[positive] - reach - 1e-9, place[positive] + reach + 1e-9]
        first, last = (np.searchsorted(place[negative], end) for end in ends)
        rival = negative[np.concatenate([np.arange(*each) for each in zip(first, last, strict=True)])]
        mine, theirs = np.repeat(score[positive], last - first), score[rival]
        ahead = np.where(np.isnan(mine) | np.isnan(theirs), np.nan, (mine > theirs) + 0.5 * (mine == theirs))
        won[bag] = np.bincount(instances.bag[rival], ahead, instances.bags)
        pairs[bag] = np.bincount(instances.bag[rival], minlength=instances.bags)
    return won, pairs


def by_length(instances: Cases, score: np.ndarray) -> dict[str, Figure]:
    """Of the slices in lesions of each length that the cohort has, against all slices without in positive scans."""
    length = run_lengths(instances)
    in_positive = np.bincount(instances.bag, instances.truth, instances.bags) > 0
    rivals = ~instances.truth & in_positive[instances.bag]
    figures = {}
    for least, most in LENGTHS:
        of_length = (least <= length) & (length <= most)
        if of_length.any():
            kept = of_length | rivals
            ends = np.bincount(instances.bag[kept], minlength=instances.bags).cumsum()
            cases = Cases(np.split(instances.truth[kept], ends[:-1]))
            name = f"{least}_or_more" if most == np.inf else f"{least}_to_{most}"
            figures[f"auroc_lesions_of_{name}"] = cases.auroc(score[kept])
    return figures


def run_lengths(instances: Cases) -> np.ndarray:
    """Return of each instance, (N,), how many positive ones follow each other where it is one of them; else 0."""
    begins = np.append(True, (np.diff(instances.bag) != 0) | (np.diff(instances.truth.astype(int)) != 0))
    run = begins.cumsum() - 1
    return np.bincount(run)[run] * instances.truth
