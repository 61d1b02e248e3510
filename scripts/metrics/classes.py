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
"""Figures of a network of several classes, and of the coarse classes above them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scripts.data.results import BagResult
from scripts.metrics.figures import Cases, Figure, Interval, bootstrap


def class_metrics(results: Sequence[BagResult]) -> dict[str, Interval]:
    """Of several classes, and of the coarse classes above them; a mean over classes counts each class alike."""
    said = [r.classes for r in results if r.classes is not None]
    if not said:
        return {}
    truth = np.array([r.label for r in results])
    figures = _of_classes("class", said[0].names, truth, np.array([each.probabilities for each in said]))
    if all(name.isdigit() for name in said[0].names):  # grades: how far off counts
        figures["class_kappa_quadratic"] = _quadratic_kappa(
            truth, np.array([each.called for each in said]), len(said[0].names)
        )
    groups = list(dict.fromkeys(said[0].groups))
    if groups:
        coarse = np.array([groups.index(said[0].groups[label]) for label in truth])
        probabilities = np.array([[each.of_groups[group] for group in groups] for each in said])
        figures |= _of_classes("coarse", groups, coarse, probabilities)
    return bootstrap(len(results), figures)


def _of_classes(prefix: str, names: Sequence[str], truth: np.ndarray, probabilities: np.ndarray) -> dict[str, Figure]:
    """truth: (bags,) the number of the class, probabilities: (bags, classes)."""
    called = probabilities.argmax(axis=1)
    bags = len(truth)
    right = Cases([np.ones(1)] * bags).agreement(called == truth)["recall"]
    each = [Cases([np.array([is_this]) for is_this in truth == number]) for number in range(len(names))]
    agreements = [cases.agreement(called == number) for number, cases in enumerate(each)]
    aurocs = [cases.auroc(probabilities[:, number]) for number, cases in enumerate(each)]
    return {
        f"{prefix}_accuracy": right,
        f"{prefix}_balanced_accuracy": _mean([agreement["recall"] for agreement in agreements]),
        f"{prefix}_f1_macro": _mean([agreement["f1"] for agreement in agreements]),
        f"{prefix}_auroc_macro": _mean(aurocs),
    }


def _mean(figures: Sequence[Figure]) -> Figure:
    """Over the classes for which it is defined."""

    def figure(weight_of_bag: np.ndarray) -> float:
        values = np.array([each(weight_of_bag) for each in figures])
        known = values[~np.isnan(values)]
        return float(known.mean()) if len(known) else np.nan

    return figure


def _quadratic_kappa(truth: np.ndarray, called: np.ndarray, classes: int) -> Figure:
    """Cohen's kappa where an error counts by the square of its distance."""
    place = np.arange(classes)
    distance = (place[:, None] - place) ** 2  # [classes, classes]

    def figure(weight_of_bag: np.ndarray) -> float:
        found = np.bincount(truth * classes + called, weight_of_bag, classes**2).reshape(classes, classes)
        by_chance = np.outer(found.sum(axis=1), found.sum(axis=0)) / found.sum()
        expected = (distance * by_chance).sum()
        return float(1 - (distance * found).sum() / expected) if expected else np.nan

    return figure
