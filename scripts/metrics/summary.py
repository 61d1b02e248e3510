# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""How well a cohort was read: of the bags, and of the instances in them, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from scripts.core.record import BagResult, Lesions
from scripts.metrics.figures import Cases, Figure, Interval, bootstrap
from scripts.metrics.froc import froc


def cohort_metrics(results: Sequence[BagResult]) -> dict[str, Interval]:
    """Every figure of an evaluation, by a name that says what it is."""
    labelled = [r for r in results if r.label is not None]
    return {
        **_bag_metrics(labelled),
        **class_metrics(labelled),
        **_instance_metrics(_with_truth(labelled)),
        **froc(_with_lesions(labelled)),
    }


def _with_truth(results: Sequence[BagResult]) -> list[BagResult]:
    """Where the truth is known of some, it is known of every negative bag too: nothing in it is positive."""
    if all(r.truth is None for r in results):
        return []
    known = [replace(r, truth=np.zeros(len(r.scores), dtype=int)) if _needs_none(r, r.truth) else r for r in results]
    return [r for r in known if r.truth is not None]


def _with_lesions(results: Sequence[BagResult]) -> list[BagResult]:
    if all(r.lesions is None for r in results):
        return []
    none = [Lesions(np.zeros(len(r.scores), dtype=int), 0) for r in results]
    known = [replace(r, lesions=no) if _needs_none(r, r.lesions) else r for r, no in zip(results, none, strict=True)]
    return [r for r in known if r.lesions is not None]


def _needs_none(result: BagResult, known: object) -> bool:
    return known is None and not result.label_positive


def _bag_metrics(results: Sequence[BagResult]) -> dict[str, Interval]:
    """Of one question with two answers; of several classes, whether there is a finding at all."""
    if not results or (results[0].classes is not None and results[0].classes.negative is None):
        return {}
    bags = Cases([np.array([r.label_positive]) for r in results])
    probability = np.array([r.probability for r in results])
    called = np.array([r.positive for r in results])
    figures = {"auroc": bags.auroc(probability), **bags.agreement(called), **bags.calibration(probability)}
    return bootstrap(len(results), {f"bag_{name}": figure for name, figure in figures.items()})


def _instance_metrics(results: Sequence[BagResult]) -> dict[str, Interval]:
    """Of the instances of all bags, pooled."""
    if not results:
        return {}
    instances = Cases([r.truth for r in results if r.truth is not None])
    scores = np.concatenate([r.scores for r in results])
    gate = np.array([r.positive for r in results])[instances.bag]
    weighted = np.concatenate([r.attention * r.probability for r in results])
    figures = {
        "auroc_gated": instances.auroc(np.where(gate, scores, scores.min())),  # a floor in bags called negative
        "auroc_ungated": instances.auroc(scores),
        "auroc_weighted": instances.auroc(weighted),  # attention × probability of the bag
        **instances.agreement(np.concatenate([r.flagged for r in results])),
    }
    return bootstrap(len(results), {f"instance_{name}": figure for name, figure in figures.items()})


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
