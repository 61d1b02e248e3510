# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The metrics of an evaluation: which figures are computed of the bags, classes, instances and lesions of a cohort.

A new metric is computed in figures.py, or in a file of its own, and named in one of the groups below.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from scripts.core.record import BagResult, Lesions
from scripts.core.scoring import ATTENTION, EVIDENCE, INSTANCE
from scripts.metrics.energy import dirichlet_energies
from scripts.metrics.figures import Cases, Figure, Interval, bootstrap, class_figures, mean_over_bags, quadratic_kappa
from scripts.metrics.froc import lesion_froc
from scripts.metrics.intervals import auroc, wilson

# scores whose ranking every evaluation tells → what is known of instances
RAW_SCORES = {ATTENTION: "attention_logit", EVIDENCE: "evidence", INSTANCE: "instance_logit"}


class Group(NamedTuple):
    """Figures that are computed of the same bags."""

    bags: list[BagResult]
    figures: dict[str, Figure]


def cohort_metrics(results: Sequence[BagResult]) -> dict[str, Interval]:
    """Return every metric of a cohort by its name, with its confidence interval over bags."""
    by_bootstrap = {
        f"{prefix}_{name}": interval
        for prefix, (bags, figures) in figure_groups(results).items()
        for name, interval in bootstrap(len(bags), figures).items()
    }
    known = _intervals_of_bags([result for result in results if result.label is not None])
    return {name: known.get(name, interval) for name, interval in by_bootstrap.items()}


def figure_groups(results: Sequence[BagResult]) -> dict[str, Group]:
    """Return the figures of a cohort by what their names begin with: what they are of."""
    labelled = [result for result in results if result.label is not None]
    groups = (
        ("bag", _of_bags, labelled),
        ("bag_set", _of_sets, [result for result in labelled if result.label_set is not None]),
        ("class", _of_classes, labelled),
        ("coarse", _of_coarse_classes, labelled),
        ("instance", _of_instances, _with_annotation(labelled, "truth", _no_truth)),
        ("lesion", lesion_froc, _with_annotation(labelled, "lesions", lambda result: Lesions(_no_truth(result), 0))),
        ("dirichlet", dirichlet_energies, labelled),
    )
    return {prefix: Group(bags, figures(bags)) for prefix, figures, bags in groups if bags}


def _intervals_of_bags(results: Sequence[BagResult]) -> dict[str, Interval]:
    """What needs no bootstrap: it would give [1, 1] where no bag is mistaken."""
    truth = np.array([r.label_positive for r in results], dtype=bool)
    called = np.array([r.positive for r in results], dtype=bool)
    right, classes = truth == called, [r.classes.called == r.label for r in results if r.classes is not None]
    in_set = [r.true_verdict in r.label_set for r in results if r.label_set is not None]
    return {
        "bag_auroc": auroc(truth, np.array([r.probability for r in results])),
        "bag_accuracy": wilson(right.sum(), len(right)),
        "bag_precision": wilson(right[called].sum(), called.sum()),
        "bag_recall": wilson(right[truth].sum(), truth.sum()),
        "bag_specificity": wilson(right[~truth].sum(), (~truth).sum()),
        "bag_set_coverage": wilson(sum(in_set), len(in_set)),
        "class_accuracy": wilson(sum(classes), len(classes)),
    }


def _of_bags(results: Sequence[BagResult]) -> dict[str, Figure]:
    """Of a label with two values; of several classes, whether there is a finding at all."""
    if results[0].classes is not None and results[0].classes.negative is None:
        return {}
    bags = Cases([np.array([r.label_positive]) for r in results])
    probability = np.array([r.probability for r in results])
    called = np.array([r.positive for r in results])
    return {
        "auroc": bags.auroc(probability),
        **bags.curves(probability),
        **bags.agreement(called),
        **bags.calibration(probability),
    }


def _of_sets(results: Sequence[BagResult]) -> dict[str, Figure]:
    """Of the labels that a bag may have."""
    sets = [(r.true_verdict, r.label_set or ()) for r in results]
    every = np.ones(len(sets))
    return {
        "coverage": mean_over_bags(np.array([label in among for label, among in sets]), every),
        "size": mean_over_bags(np.array([len(among) for _, among in sets]), every),
    }


def _of_classes(results: Sequence[BagResult]) -> dict[str, Figure]:
    answers = [r.classes for r in results if r.classes is not None]
    if not answers:
        return {}
    truth = np.array([r.label for r in results])
    figures = class_figures(truth, np.array([answer.probabilities for answer in answers]))
    if all(name.isdigit() for name in answers[0].names):  # grades: how far off counts
        called = np.array([answer.called for answer in answers])
        figures["kappa_quadratic"] = quadratic_kappa(truth, called, len(answers[0].names))
    return figures


def _of_coarse_classes(results: Sequence[BagResult]) -> dict[str, Figure]:
    answers = [r.classes for r in results if r.classes is not None and r.classes.groups]
    if not answers:
        return {}
    groups = list(dict.fromkeys(answers[0].groups))
    truth = np.array([groups.index(answers[0].groups[label]) for label in np.array([r.label for r in results])])
    return class_figures(truth, np.array([[answer.of_groups[group] for group in groups] for answer in answers]))


def _of_instances(results: Sequence[BagResult]) -> dict[str, Figure]:
    """Of the instances of all bags, pooled, by the score that flags; and how each score ranks, whatever flags."""
    instances = Cases([r.truth for r in results if r.truth is not None])
    scores = np.concatenate([r.scores for r in results])
    gate = np.array([r.positive for r in results])[instances.bag]
    # each score that the network tells, raw: so that every evaluation says which of them ranks best
    raw = {
        f"auroc_{name}": instances.auroc(np.concatenate([r.of_instances[column] for r in results]))
        for name, column in RAW_SCORES.items()
        if all(column in r.of_instances for r in results)
    }
    return {
        "auroc_gated": instances.auroc(np.where(gate, scores, scores.min())),  # a floor in bags called negative
        "auroc_ungated": instances.auroc(scores),
        "auroc_within_bags": instances.auroc_within(scores),
        "auroc_weighted": instances.auroc(np.concatenate([r.attention * r.probability for r in results])),
        **raw,
        "separation": instances.separation(scores.astype(float)),
        **instances.agreement(np.concatenate([r.flagged for r in results])),
    }


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
