# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Figures of a cohort, and how sure they are: each with an interval from bags drawn anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

# From how often each bag counts, (bags,), to a figure; NaN where it is not defined.
Figure = Callable[[np.ndarray], float]


class Interval(NamedTuple):
    value: float
    low: float
    high: float


class Cases:
    """Bags, or the instances in them. Whatever can be is done once: a bootstrap asks for a figure a thousand times.

    Args:
        truth: of each bag, (n,) 0 or 1 of its cases; N in all.
    """

    def __init__(self, truth: Sequence[np.ndarray]) -> None:
        self.truth = np.concatenate(truth).astype(bool)
        self.bag = np.repeat(np.arange(len(truth)), [len(of_bag) for of_bag in truth])
        self.bags = len(truth)

    def auroc(self, score: np.ndarray) -> Figure:
        """The chance that a positive case scores, (N,), above a negative one, ties by half."""
        order = np.argsort(score)
        truth, score, bag = self.truth[order], score[order], self.bag[order]
        bag_of_positive, bag_of_negative = bag[truth], bag[~truth]
        # of each positive, how many negatives score less, and how many at most as much
        less, at_most = (np.searchsorted(score[~truth], score[truth], side) for side in ("left", "right"))
        known = not np.isnan(score).any()

        def figure(weight_of_bag: np.ndarray) -> float:
            positive = weight_of_bag[bag_of_positive]
            negative = np.append(0, weight_of_bag[bag_of_negative].cumsum())  # of the lowest 0, 1, 2, ...
            pairs = positive.sum() * negative[-1]
            won = positive * (negative[less] + negative[at_most]) / 2
            return float(won.sum() / pairs) if known and pairs else np.nan

        return figure

    def agreement(self, called: np.ndarray) -> dict[str, Figure]:
        """Of what the cases were called, (N,) 0 or 1, with the truth."""
        truth, called = self.truth, called.astype(bool)
        hit = truth & called
        return {
            "accuracy": self._ratio(truth == called, np.ones_like(truth)),
            "precision": self._ratio(hit, called),
            "recall": self._ratio(hit, truth),
            "specificity": self._ratio(~truth & ~called, ~truth),
            "f1": self._ratio(2.0 * hit, 1.0 * called + truth),
        }

    def calibration(self, probability: np.ndarray) -> dict[str, Figure]:
        """Of a probability, (N,): its squared error; and how far off the share of positives it is, in ten bins."""
        excess = probability - self.truth
        place = np.digitize(probability, np.arange(1, 10) / 10, right=True)  # (0, 0.1], (0.1, 0.2], ...

        def calibration_error(weight_of_bag: np.ndarray) -> float:
            weight = weight_of_bag[self.bag]
            return float(np.abs(np.bincount(place, weight * excess)).sum() / weight.sum())

        return {"brier_score": self._ratio(excess**2, np.ones_like(excess)), "calibration_error": calibration_error}

    def _ratio(self, numerator: np.ndarray, denominator: np.ndarray) -> Figure:
        """Of two sums over the cases."""
        above, below = (np.bincount(self.bag, each, self.bags) for each in (numerator, denominator))

        def figure(weight_of_bag: np.ndarray) -> float:
            whole = (weight_of_bag * below).sum()  # not by @: its threads wait for each other on a busy machine
            return float((weight_of_bag * above).sum() / whole) if whole else np.nan

        return figure


def bootstrap(
    bags: int,
    figures: Mapping[str, Figure],
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Figures and their percentile intervals over bags drawn with replacement: bags, not instances, are independent."""
    generator = np.random.default_rng(seed)
    draws = (np.bincount(generator.integers(bags, size=bags), minlength=bags) for _ in range(resamples))
    drawn = np.array([[figure(draw) for figure in figures.values()] for draw in draws])  # [resamples, figures]
    values = [figure(np.ones(bags)) for figure in figures.values()]
    return {
        name: _interval(value, of_draws, confidence)
        for name, value, of_draws in zip(figures, values, drawn.T, strict=True)
    }


def _interval(value: float, drawn: np.ndarray, confidence: float) -> Interval:
    drawn = drawn[~np.isnan(drawn)]  # a draw with one class alone has no AUROC
    if np.isnan(value) or len(drawn) == 0:
        return Interval(value, np.nan, np.nan)
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, float(low), float(high))
