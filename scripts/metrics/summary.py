# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The metrics of an evaluation: which figures are computed of the bags, classes, instances and lesions of a cohort.

A new metric is computed in figures.py, or in a file of its own, and named in one of the groups below.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from scripts.core.lesions import Lesions
from scripts.core.record import BagResult
from scripts.core.scoring import ATTENTION, EVIDENCE, INSTANCE
from scripts.metrics.energy import attention_spreads, dirichlet_energies
from scripts.metrics.faithfulness import faithfulness_figures
from scripts.metrics.figures import Cases, Figure, Interval, bootstrap, class_figures, mean_over_bags, quadratic_kappa
from scripts.metrics.froc import lesion_froc
from scripts.metrics.intervals import auroc, mean_proportion, wilson
from scripts.metrics.place import place_figures

# They compare scores of instances in different bags, so these must be of one network: each has a scale of its own.
ACROSS_BAGS = (
    *("instance_auroc_gated", "instance_auroc_ungated", "instance_auroc_weighted", "instance_separation"),
    *("instance_auroc_within_positive", "instance_auroc_height_adjusted", "instance_auroc_lesions_of", "lesion_froc"),
    *("instance_auroc_attention", "instance_auroc_evidence", "instance_auroc_instance"),
)


def of_one_network(name: str) -> bool:
    """Return whether a metric has a meaning for bags of one network alone."""
    return name.startswith(ACROSS_BAGS)


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
        ("instance", _of_instances, with_truth(labelled)),
        ("lesion", lesion_froc, _with_annotation(labelled, "lesions", lambda result: Lesions(_no_truth(result), 0))),
        ("attention", attention_spreads, labelled),
        ("dirichlet", dirichlet_energies, labelled),
        ("faithfulness", faithfulness_figures, [result for result in results if "faithfulness" in result.about]),
    )
    return {prefix: Group(bags, figures(bags)) for prefix, figures, bags in groups if bags}


def is_one_question(results: Sequence[BagResult]) -> bool:
    """Return whether there is a probability of being positive: of several classes, that of a finding at all."""
    return bool(results) and (results[0].classes is None or results[0].classes.negative is not None)


def with_truth(results: Sequence[BagResult]) -> list[BagResult]:
    """Return the bags the truth of whose instances is known."""
    return _with_annotation(results, "truth", _no_truth)


def _intervals_of_bags(results: Sequence[BagResult]) -> dict[str, Interval]:
    """What needs no bootstrap, which tells nothing where no bag is mistaken."""
    truth = np.array([r.label_positive for r in results], dtype=bool)
    called = np.array([r.positive for r in results], dtype=bool)
    right = truth == called
    recall, specificity = (wilson(right[kind].sum(), kind.sum()) for kind in (truth, ~truth))
    in_set = [r.true_verdict in r.label_set for r in results if r.label_set is not None]
    intervals = {
        "bag_auroc": auroc(truth, np.array([r.probability for r in results])),
        "bag_accuracy": wilson(right.sum(), len(right)),
        "bag_balanced_accuracy": mean_proportion([recall, specificity]),
        "bag_precision": wilson(right[called].sum(), called.sum()),
        "bag_recall": recall,
        "bag_specificity": specificity,
        "bag_set_coverage": wilson(sum(in_set), len(in_set)),
    }
    for prefix, (label, probabilities) in _answers(results).items():
        right = label == probabilities.argmax(axis=1)
        recalls = [wilson(right[label == each].sum(), (label == each).sum()) for each in np.unique(label)]
        intervals[f"{prefix}_accuracy"] = wilson(right.sum(), len(label))
        intervals[f"{prefix}_balanced_accuracy"] = mean_proportion(recalls)
    return intervals


def _of_bags(results: Sequence[BagResult]) -> dict[str, Figure]:
    """Of a label with two values; of several classes, whether there is a finding at all."""
    if not is_one_question(results):
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
    answers = _answers(results)
    if not answers:
        return {}
    truth, probabilities = answers["class"]
    figures = class_figures(truth, probabilities)
    if results[0].classes and all(name.isdigit() for name in results[0].classes.names):  # grades: how far off counts
        figures["kappa_quadratic"] = quadratic_kappa(truth, probabilities.argmax(axis=1), probabilities.shape[1])
    return figures


def _of_coarse_classes(results: Sequence[BagResult]) -> dict[str, Figure]:
    answers = _answers(results)
    return class_figures(*answers["coarse"]) if "coarse" in answers else {}


def _answers(results: Sequence[BagResult]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of fine and coarse classes: by the label the number of the class, (bags,), and probabilities, (bags, classes)."""
    classes = [r.classes for r in results if r.classes is not None]
    if not classes:
        return {}
    label = np.array([r.label for r in results])
    answers = {"class": (label, np.array([each.probabilities for each in classes]))}
    if classes[0].groups:
        groups = list(classes[0].of_groups)
        of_class = np.array([groups.index(group) for group in classes[0].groups])
        answers["coarse"] = of_class[label], np.array([list(each.of_groups.values()) for each in classes])
    return answers


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
        "auroc_within_positive_bags": instances.auroc_in_positive_bags(scores),
        "auroc_weighted": instances.auroc(np.concatenate([r.attention * r.probability for r in results])),
        **raw,
        **place_figures(results, instances, scores),
        "separation": instances.separation(scores.astype(float)),
        **instances.agreement(np.concatenate([r.flagged for r in results])),
    }


def _with_annotation(results: Sequence[BagResult], field: str, nothing: Callable[[BagResult], Any]) -> list[BagResult]:
    """Return the bags with an annotation; where any bag has one, a negative bag needs none, as nothing is in it."""
    if all(getattr(r, field) is None for r in results):
        return []
    filled = [
        replace(r, **{field: nothing(r)}) if r.label_positive is False and getattr(r, field) is None else r
        for r in results
    ]
    return [r for r in filled if getattr(r, field) is not None]


def _no_truth(result: BagResult) -> np.ndarray:
    return np.zeros(len(result.scores), dtype=int)
