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
from sklearn.metrics import roc_auc_score

from scripts.data.results import BagResult


class Interval(NamedTuple):
    value: float
    low: float
    high: float


def auroc(truth: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve; NaN where only one class is present."""
    if len(np.unique(truth)) < 2:
        return float("nan")
    return float(roc_auc_score(truth, score))


def bag_auroc(results: Sequence[BagResult]) -> float:
    return auroc(np.array([r.label for r in results]), np.array([r.probability for r in results]))


def instance_auroc(results: Sequence[BagResult], gated: bool) -> float:
    """Instance scores of all bags pooled. Gated: those of bags called negative are set to a floor."""
    known = [r for r in results if r.truth is not None]
    if not known:
        return float("nan")
    floor = min(r.scores.min() for r in known)
    scores = [np.full_like(r.scores, floor) if gated and not r.positive else r.scores for r in known]
    return auroc(np.concatenate([r.truth for r in known if r.truth is not None]), np.concatenate(scores))


def bootstrap(
    results: Sequence[BagResult],
    metric: Callable[[Sequence[BagResult]], float],
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The metric and its percentile interval over bags drawn with replacement: bags, not instances, are independent."""
    value = metric(results)
    rng = np.random.default_rng(seed)
    draws = (rng.integers(len(results), size=len(results)) for _ in range(resamples))
    values = np.array([metric([results[i] for i in draw]) for draw in draws])
    values = values[~np.isnan(values)]  # a draw with one class alone has no AUROC
    if np.isnan(value) or len(values) == 0:
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, float(low), float(high))


def cohort_metrics(results: Sequence[BagResult]) -> dict[str, Interval]:
    """Every figure of an evaluation, by a name that says what it is."""
    labelled = [r for r in results if r.label is not None]
    figures: dict[str, Callable[[Sequence[BagResult]], float]] = {
        "bag_auroc": bag_auroc,
        "bag_accuracy": lambda rs: float(np.mean([r.positive == bool(r.label) for r in rs])),
    }
    if any(r.truth is not None for r in labelled):
        figures["instance_auroc_gated"] = lambda rs: instance_auroc(rs, gated=True)
        figures["instance_auroc_ungated"] = lambda rs: instance_auroc(rs, gated=False)
    return {name: bootstrap(labelled, metric) for name, metric in figures.items()} if labelled else {}
