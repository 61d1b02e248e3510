# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""What the scores of slices are worth, by the metrics of the bundles, with intervals over scans."""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from scripts.metrics.figures import Cases, Figure, Interval, bootstrap, mean_over_bags
from scripts.metrics.place import by_length, heights, pairs_at_one_place, share_of_pairs

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

    def mean_auroc(self, scores: Sequence[np.ndarray]) -> Figure:
        """Mean slice AUC of several models; asked again about the same draw, it remembers."""
        figures, known = [self.cases.auroc(score) for score in scores], dict[bytes, float]()

        def figure(weight: np.ndarray) -> float:
            draw = weight.astype(np.int16).tobytes()
            if draw not in known:
                known[draw] = float(np.mean([own(weight) for own in figures]))
            return known[draw]

        return figure

    def gain(self, mine: Figure, theirs: Figure) -> Interval:
        """One figure less another, with its interval over scans, in the same draws."""
        return bootstrap(len(self.counts), {"gain": lambda weight: mine(weight) - theirs(weight)}, RESAMPLES)["gain"]

    def f1(self, flagged: np.ndarray) -> float:
        """Of the slices flagged."""
        both = (flagged & self.cases.truth).sum()
        return float(2 * both / max(flagged.sum() + self.cases.truth.sum(), 1))

    def in_scans(self, of_scan: np.ndarray) -> np.ndarray:
        """A value of each scan, at each of its slices."""
        return np.repeat(of_scan, self.counts)


def less_faithful(models: Sequence[np.ndarray], others: Sequence[np.ndarray] | None = None) -> Interval:
    """Mean deletion AUC over bags, or its excess over that of another score; of each model (bags,), NaN uncounted."""
    values = np.array(models) if others is None else np.array(models) - np.array(others)  # [models, bags]
    known = ~np.isnan(values).all(axis=0)
    of_bag = np.zeros(len(known))
    of_bag[known] = np.nanmean(values[:, known], axis=0)
    return bootstrap(len(known), {"deletion": mean_over_bags(of_bag, known.astype(float))}, RESAMPLES)["deletion"]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean and deviation over models."""
    return {"mean": float(np.mean(values)), "sd": float(np.std(values, ddof=1)) if len(values) > 1 else math.nan}


def spelled(found: Mapping[str, float] | None, sign: str = "") -> str:
    """Return a figure as a table shows it: with its deviation over models, or its interval, where it has one."""
    if found is None or math.isnan(found.get("mean", found.get("value", math.nan))):
        return "–"
    if "mean" in found:
        return f"{found['mean']:{sign}.3f}" + ("" if math.isnan(found["sd"]) else f" ± {found['sd']:.3f}")
    if math.isnan(found["low"]):
        return f"{found['value']:{sign}.3f}"
    return f"{found['value']:{sign}.3f} [{found['low']:{sign}.3f}, {found['high']:{sign}.3f}]"
