# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""What the scores of slices are worth, by the metrics of the bundles, with intervals over scans."""

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import torch

from scripts.metrics.figures import Cases, Figure, Interval, bootstrap
from scripts.metrics.place import by_length, heights, pairs_at_one_place, share_of_pairs
from scripts.networks import SmoothOperator, build_graph

SMOOTHED = (0.5, 0.7)  # α of Sm along the slices when a scan is read
RESAMPLES = 400


class Truth:
    """The slices of a cohort, in a row, with their labels."""

    def __init__(self, truth: Sequence[np.ndarray]) -> None:
        self.cases = Cases(truth)
        self.counts = [len(of_scan) for of_scan in truth]
        self.positive_scan = np.array([of_scan.any() for of_scan in truth])

    @cached_property
    def height(self) -> np.ndarray:
        return np.concatenate([heights(count) for count in self.counts])

    def figures(self, score: np.ndarray) -> dict[str, Figure]:
        """Every figure of one score."""
        won, pairs = pairs_at_one_place(self.cases, self.height, score)
        return {
            "slice AUC": self.cases.auroc(score),
            "at one height": share_of_pairs(won, pairs),
            "within scans": self.cases.auroc_within(score),
            **by_length(self.cases, score),
        }

    def values(self, score: np.ndarray) -> dict[str, float]:
        """The same as numbers."""
        return {name: figure(np.ones(len(self.counts))) for name, figure in self.figures(score).items()}

    def intervals(self, score: np.ndarray) -> dict[str, Interval]:
        """The same with 95 % intervals over scans."""
        return bootstrap(len(self.counts), self.figures(score), RESAMPLES)

    def gain(self, scores: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> Interval:
        """Mean slice AUC of several models less that of others, with its interval over scans, in the same draws."""
        mine, theirs = ([self.cases.auroc(score) for score in own] for own in (scores, others))

        def difference(weight: np.ndarray) -> float:
            means = [np.mean([figure(weight) for figure in own]) for own in (mine, theirs)]
            return float(means[0] - means[1])

        return bootstrap(len(self.counts), {"gain": difference}, RESAMPLES)["gain"]

    def f1(self, flagged: np.ndarray) -> float:
        """Of the slices flagged."""
        both = (flagged & self.cases.truth).sum()
        return float(2 * both / max(flagged.sum() + self.cases.truth.sum(), 1))

    def in_scans(self, of_scan: np.ndarray) -> np.ndarray:
        """A value of each scan, at each of its slices."""
        return np.repeat(of_scan, self.counts)


def smoothed(score: np.ndarray, counts: Sequence[int], alpha: float) -> np.ndarray:
    """Return the score smoothed along the slices of each scan, as `score_smoothing` does."""
    smooth, ends = SmoothOperator(alpha, mode="exact"), np.cumsum(counts)
    parts = []
    for values in np.split(score, ends[:-1]):
        graph = build_graph(torch.arange(len(values), dtype=torch.float)[None, None])
        parts.append(smooth.evenly(torch.from_numpy(values.astype(np.float32))[None, None], graph)[0, 0].numpy())
    return np.concatenate(parts)


def with_smoothed(scores: Mapping[str, np.ndarray], counts: Sequence[int]) -> dict[str, np.ndarray]:
    """Add the instance logits, smoothed."""
    more = {
        f"instance, Sm {alpha}": smoothed(scores["instance"], counts, alpha)
        for alpha in SMOOTHED
        if "instance" in scores
    }
    return {**scores, **more}
