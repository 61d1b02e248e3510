# Copyright (c) 2026 the smooth MIL bundle authors
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""How well a cohort was read: of the bags, and of the instances in them, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from scripts.data.results import BagResult


class Interval(NamedTuple):
    value: float
    low: float
    high: float


class Ranking:
    """Cases by their score, each of some bag; sorted once, as a bootstrap asks for the AUROC a thousand times.

    Args:
        truth: (N,) 0 or 1.
        score: (N,) higher is more suspicious.
        bag: (N,) which bag a case belongs to.
    """

    def __init__(self, truth: np.ndarray, score: np.ndarray, bag: np.ndarray) -> None:
        self.truth = truth
        self.bag = bag
        self.rank = np.unique(score, return_inverse=True)[1]  # equal scores share a rank

    def auroc(self, weight_of_bag: np.ndarray) -> float:
        """The chance that a positive case scores above a negative one, ties by half; NaN where one class is missing."""
        weight = weight_of_bag[self.bag]
        positive = np.bincount(self.rank, weight * self.truth)  # weight at each rank
        negative = np.bincount(self.rank, weight * (1 - self.truth))
        pairs = positive.sum() * negative.sum()
        if pairs == 0:
            return float("nan")
        return float((positive * (negative.cumsum() - negative / 2)).sum() / pairs)


def rank_bags(results: Sequence[BagResult]) -> Ranking:
    truth = np.array([r.label for r in results])
    return Ranking(truth, np.array([r.probability for r in results]), np.arange(len(results)))


def rank_instances(results: Sequence[BagResult], gated: bool) -> Ranking:
    """Instance scores of all bags pooled. Gated: those of bags called negative are set to a floor."""
    known = [(bag, r, r.truth) for bag, r in enumerate(results) if r.truth is not None]
    floor = min(r.scores.min() for _, r, _ in known)
    return Ranking(
        truth=np.concatenate([truth for _, _, truth in known]),
        score=np.concatenate(
            [np.full_like(r.scores, floor) if gated and not r.positive else r.scores for _, r, _ in known]
        ),
        bag=np.concatenate([np.full(len(r.scores), bag) for bag, r, _ in known]),
    )


def bootstrap(
    bags: int,
    metric: Callable[[np.ndarray], float],
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """A metric and its percentile interval over bags drawn with replacement: bags, not instances, are independent.

    Args:
        bags: how many there are.
        metric: from how often each bag counts, (bags,), to the figure.
    """
    value = metric(np.ones(bags))
    draws = np.random.default_rng(seed).multinomial(bags, np.full(bags, 1 / bags), size=resamples)
    values = np.array([metric(draw) for draw in draws])
    values = values[~np.isnan(values)]  # a draw with one class alone has no AUROC
    if np.isnan(value) or len(values) == 0:
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, float(low), float(high))


def cohort_metrics(results: Sequence[BagResult]) -> dict[str, Interval]:
    """Every figure of an evaluation, by a name that says what it is."""
    labelled = [r for r in results if r.label is not None]
    if not labelled:
        return {}
    correct = np.array([r.positive == bool(r.label) for r in labelled])
    figures: dict[str, Callable[[np.ndarray], float]] = {
        "bag_auroc": rank_bags(labelled).auroc,
        "bag_accuracy": lambda weights: float(np.average(correct, weights=weights)),
    }
    if any(r.truth is not None for r in labelled):
        figures["instance_auroc_gated"] = rank_instances(labelled, gated=True).auroc
        figures["instance_auroc_ungated"] = rank_instances(labelled, gated=False).auroc
    return {name: bootstrap(len(labelled), metric) for name, metric in figures.items()}
