# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Confidence intervals that hold where a bootstrap does not: in small cohorts, and in such as are read without error.

A bootstrap of 20 bags that are all right has nothing that varies. A proportion gets Wilson's interval, a mean of
proportions that of Zou and Donner; an AUROC that of DeLong on the logit scale, or Newcombe's (method 5, 2006) where
DeLong's variance is 0.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

from scripts.metrics.figures import UNDEFINED, Interval

Z = float(ndtri(0.975))  # of 95 %


def wilson(successes: float, trials: float) -> Interval:
    """Return a proportion and Wilson's score interval."""
    if not trials:
        return UNDEFINED
    p = successes / trials
    middle = (p + Z**2 / (2 * trials)) / (1 + Z**2 / trials)
    half = Z * math.sqrt(p * (1 - p) / trials + Z**2 / (4 * trials**2)) / (1 + Z**2 / trials)
    return Interval(p, 0.0 if p == 0 else middle - half, 1.0 if p == 1 else middle + half)


def mean_proportion(parts: Sequence[Interval]) -> Interval:
    """Return the mean of proportions of different bags and its interval, made from theirs (Zou and Donner 2008)."""
    value, low, high = np.array(parts).T  # (parts,) each
    mean = float(value.mean())
    below, above = (float(np.linalg.norm(ends - value)) / len(parts) for ends in (low, high))
    return Interval(mean, mean - below, mean + above)


def auroc(truth: np.ndarray, score: np.ndarray) -> Interval:
    """Return the AUROC of bags and its interval; truth: (n,) 0 or 1, score: (n,)."""
    truth = truth.astype(bool)
    if truth.all() or not truth.any() or np.isnan(score).any():
        return UNDEFINED
    placed = placements(truth, score)
    value, error = _mean_and_error(placed)
    if not error or value in (0, 1):
        return _newcombe(value, *map(len, placed))
    logit, half = math.log(value / (1 - value)), Z * error / (value * (1 - value))
    return Interval(value, 1 / (1 + math.exp(half - logit)), 1 / (1 + math.exp(-half - logit)))


def auroc_difference(truth: np.ndarray, one: np.ndarray, other: np.ndarray) -> tuple[Interval, float]:
    """Return the AUROC of one score less that of another of the same bags, and its p-value, by DeLong's paired test.

    Neither interval nor p-value is known where the variance is not: of a single bag of a kind, and where both scores
    put every bag in the same place.
    """
    truth = truth.astype(bool)
    if truth.all() or not truth.any() or np.isnan(one).any() or np.isnan(other).any():
        return UNDEFINED, math.nan
    value, error = _mean_and_error(
        [a - b for a, b in zip(placements(truth, one), placements(truth, other), strict=True)]
    )
    if not error:
        return UNDEFINED._replace(value=value), math.nan
    return Interval(value, value - Z * error, value + Z * error), 2 * float(ndtr(-abs(value) / error))


def placements(truth: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each positive the share of negatives below it, for each negative that of positives above it."""
    positive, negative = score[truth], score[~truth]

    def share_below(of: np.ndarray, among: np.ndarray) -> np.ndarray:
        less, at_most = (np.searchsorted(np.sort(among), of, side) for side in ("left", "right"))
        return (less + at_most) / 2 / len(among)  # a tie counts half

    return share_below(positive, negative), 1 - share_below(negative, positive)


def _mean_and_error(placed: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return the mean of placements and DeLong's standard error of it: 0 where it is not known, of a lone bag."""
    lone = min(map(len, placed)) == 1
    return float(placed[0].mean()), 0.0 if lone else math.sqrt(sum(float(of.var()) / (len(of) - 1) for of in placed))


def _newcombe(value: float, positives: int, negatives: int) -> Interval:
    """Return an AUROC, and those from which it lies just as far as chance allows."""
    n = (positives + negatives) / 2 - 1

    def error(a: float) -> float:
        return math.sqrt(a * (1 - a) * (1 + n * (1 - a) / (2 - a) + n * a / (1 + a)) / (positives * negatives))

    low = 0.0 if value == 0 else brentq(lambda a: a + Z * error(a) - value, 0.0, min(value, 1 - 1e-9))
    high = 1.0 if value == 1 else brentq(lambda a: a - Z * error(a) - value, max(value, 1e-9), 1.0)
    return Interval(value, low, high)
