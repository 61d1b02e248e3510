# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Confidence intervals that hold where a bootstrap does not: in small cohorts, and in such as are read without error.

A bootstrap of 20 bags that are all right has nothing that varies. A proportion gets Wilson's interval, a mean of
proportions that of Zou and Donner; an AUROC that of DeLong on the logit scale, or Newcombe's (method 5, 2006) where
DeLong's variance is 0.
"""

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np

from scripts.metrics.figures import Interval


def wilson(successes: float, trials: float, confidence: float = 0.95) -> Interval:
    """Return a proportion and Wilson's score interval."""
    if not trials:
        return Interval(math.nan, math.nan, math.nan)
    p, z = successes / trials, _z(confidence)
    middle = (p + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z * math.sqrt(p * (1 - p) / trials + z**2 / (4 * trials**2)) / (1 + z**2 / trials)
    return Interval(p, 0.0 if p == 0 else middle - half, 1.0 if p == 1 else middle + half)


def mean_proportion(parts: Sequence[Interval]) -> Interval:
    """Return the mean of proportions of different bags and its interval, made from theirs (Zou and Donner 2008)."""
    value, low, high = np.array(parts).T  # (parts,) each
    mean = float(value.mean())
    below, above = (float(np.linalg.norm(ends - value)) / len(parts) for ends in (low, high))
    return Interval(mean, mean - below, mean + above)


def auroc(truth: np.ndarray, score: np.ndarray, confidence: float = 0.95) -> Interval:
    """Return the AUROC of bags and its interval; truth: (n,) 0 or 1, score: (n,)."""
    truth = truth.astype(bool)
    if truth.all() or not truth.any() or np.isnan(score).any():
        return Interval(math.nan, math.nan, math.nan)
    of_positive, of_negative = placements(truth, score)
    value = float(of_positive.mean())
    error = math.sqrt(sum(float(each.var()) / max(len(each) - 1, 1) for each in (of_positive, of_negative)))
    if error == 0 or value in (0, 1) or min(len(of_positive), len(of_negative)) == 1:
        return Interval(value, *_newcombe(value, len(of_positive), len(of_negative), confidence))
    logit, half = math.log(value / (1 - value)), _z(confidence) * error / (value * (1 - value))
    return Interval(value, 1 / (1 + math.exp(half - logit)), 1 / (1 + math.exp(-half - logit)))


def auroc_difference(
    truth: np.ndarray, one: np.ndarray, other: np.ndarray, confidence: float = 0.95
) -> tuple[Interval, float]:
    """Return the AUROC of one score less that of another of the same bags, and its p-value, by DeLong's paired test.

    Neither interval nor p-value is known where the variance is not: of a single bag of a kind, and where both scores
    put every bag in the same place.
    """
    truth, nothing = truth.astype(bool), (math.nan, math.nan)
    if truth.all() or not truth.any() or np.isnan(one).any() or np.isnan(other).any():
        return Interval(math.nan, *nothing), math.nan
    apart = [a - b for a, b in zip(placements(truth, one), placements(truth, other), strict=True)]
    value = float(apart[0].mean())
    variance = sum(float(each.var()) / max(len(each) - 1, 1) for each in apart)
    if variance == 0 or min(map(len, apart)) == 1:
        return Interval(value, *nothing), math.nan
    error = math.sqrt(variance)
    half = _z(confidence) * error
    return Interval(value, value - half, value + half), 2 * NormalDist().cdf(-abs(value) / error)


def placements(truth: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each positive the share of negatives below it, for each negative that of positives above it."""
    positive, negative = score[truth], score[~truth]

    def share_below(of: np.ndarray, among: np.ndarray) -> np.ndarray:
        less, at_most = (np.searchsorted(np.sort(among), of, side) for side in ("left", "right"))
        return (less + at_most) / 2 / len(among)  # a tie counts half

    return share_below(positive, negative), 1 - share_below(negative, positive)


def _newcombe(value: float, positives: int, negatives: int, confidence: float) -> tuple[float, float]:
    """Return the AUROCs from which the one found lies just as far as chance allows."""
    z, n = _z(confidence), (positives + negatives) / 2 - 1

    def error(a: float) -> float:
        return math.sqrt(a * (1 - a) * (1 + n * (1 - a) / (2 - a) + n * a / (1 + a)) / (positives * negatives))

    low = 0.0 if value == 0 else _root(lambda a: a + z * error(a) - value, 0.0, min(value, 1 - 1e-9))
    high = 1.0 if value == 1 else _root(lambda a: a - z * error(a) - value, max(value, 1e-9), 1.0)
    return low, high


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """Return where a function that is negative at `low` and not at `high` crosses 0."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) < 0 else (low, middle)
    return high


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)
