# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The metrics of an evaluation: which figures are computed of the bags, classes, instances and lesions of a cohort.

A new metric is named in one of the groups below; figures.py says where it is computed.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from scripts.core.record import BagResult, Lesions
from scripts.metrics.figures import Cases, Figure, Interval, bootstrap, class_figures, quadratic_kappa
from scripts.metrics.froc import lesion_froc


def cohort_metrics(results: Sequence[BagResult]) -> dict[str, Interval]:
    """Return every metric of a cohort by its name, with its confidence interval over bags."""
    labelled = [result for result in results if result.label is not None]
    metrics: dict[str, Interval] = {}
    for group, bags in (
        (_of_bags, labelled),
        (_of_class_probabilities, labelled),
        (_of_instances, _with_annotation(labelled, "truth", _no_truth)),
        (_of_lesions, _with_annotation(labelled, "lesions", lambda result: Lesions(_no_truth(result), 0))),
    ):
        metrics |= bootstrap(len(bags), group(bags) if bags else {})
    return metrics


# --- the groups of metrics


def _of_bags(results: Sequence[BagResult]) -> dict[str, Figure]:
    """Of a label with two values; of several classes, whether there is a finding at all."""
    if results[0].classes is not None and results[0].classes.negative is None:
        return {}
    bags = Cases([np.array([r.label_positive]) for r in results])
    probability = np.array([r.probability for r in results])
    called = np.array([r.positive for r in results])
    figures = {"auroc": bags.auroc(probability), **bags.agreement(called), **bags.calibration(probability)}
    return {f"bag_{name}": figure for name, figure in figures.items()}


def _of_class_probabilities(results: Sequence[BagResult]) -> dict[str, Figure]:
    """Of several classes, and of the coarse classes above them."""
    answers = [r.classes for r in results if r.classes is not None]
    if not answers:
        return {}
    names, groups = answers[0].names, list(dict.fromkeys(answers[0].groups))
    truth = np.array([r.label for r in results])
    of_classes = class_figures(truth, np.array([answer.probabilities for answer in answers]))
    if all(name.isdigit() for name in names):  # grades: how far off counts
        called = np.array([answer.called for answer in answers])
        of_classes["kappa_quadratic"] = quadratic_kappa(truth, called, len(names))
    figures = {f"class_{name}": figure for name, figure in of_classes.items()}
    if groups:
        coarse = np.array([groups.index(answers[0].groups[label]) for label in truth])
        probabilities = np.array([[answer.of_groups[group] for group in groups] for answer in answers])
        figures |= {f"coarse_{name}": figure for name, figure in class_figures(coarse, probabilities).items()}
    return figures


def _of_instances(results: Sequence[BagResult]) -> dict[str, Figure]:
    """Of the instances of all bags, pooled."""
    instances = Cases([r.truth for r in results if r.truth is not None])
    scores = np.concatenate([r.scores for r in results])
    gate = np.array([r.positive for r in results])[instances.bag]
    figures = {
        "auroc_gated": instances.auroc(np.where(gate, scores, scores.min())),  # a floor in bags called negative
        "auroc_ungated": instances.auroc(scores),
        "auroc_weighted": instances.auroc(np.concatenate([r.attention * r.probability for r in results])),
        **instances.agreement(np.concatenate([r.flagged for r in results])),
    }
    return {f"instance_{name}": figure for name, figure in figures.items()}


def _of_lesions(results: Sequence[BagResult]) -> dict[str, Figure]:
    return {f"lesion_{name}": figure for name, figure in lesion_froc(results).items()}


def _with_annotation(results: Sequence[BagResult], field: str, nothing: Callable[[BagResult], Any]) -> list[BagResult]:
    """Return the bags with an annotation; where any bag has one, a negative bag needs none, as nothing is in it."""
    if all(getattr(r, field) is None for r in results):
        return []
    filled = [
        r if r.label_positive or getattr(r, field) is not None else replace(r, **{field: nothing(r)}) for r in results
    ]
    return [r for r in filled if getattr(r, field) is not None]


def _no_truth(result: BagResult) -> np.ndarray:
    return np.zeros(len(result.scores), dtype=int)
