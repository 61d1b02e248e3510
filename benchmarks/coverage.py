# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""How often the intervals of metrics.json cover what they are of, in cohorts drawn from known populations."""

from collections.abc import Callable
from statistics import NormalDist

import numpy as np

from scripts.metrics.intervals import auroc, auroc_difference, mean_proportion, wilson

Draw = Callable[[np.random.Generator], bool]  # of one cohort: whether its interval covers

AUROCS = ((0.85, 12, 12), (0.85, 18, 42), (0.85, 75, 75), (0.97, 30, 30))  # with the positive and negative bags
PROPORTION = (0.95, 40)  # and the bags
BALANCED = (0.85, 15, 0.95, 40)  # sensitivity and specificity, each with its bags


def two_normals(
    auc: float, positives: int, negatives: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores whose AUROC is `auc` in the population."""
    truth = np.repeat([1, 0], [positives, negatives])
    return truth, generator.normal(truth * np.sqrt(2) * NormalDist().inv_cdf(auc), 1.0)


def covers_auroc(auc: float, positives: int, negatives: int) -> Draw:
    def draw(generator: np.random.Generator) -> bool:
        _, low, high = auroc(*two_normals(auc, positives, negatives, generator))
        return low <= auc <= high

    return draw


def covers_proportion(share: float, bags: int) -> Draw:
    def draw(generator: np.random.Generator) -> bool:
        _, low, high = wilson(generator.binomial(bags, share), bags)
        return low <= share <= high

    return draw


def covers_balanced_accuracy(sensitivity: float, positives: int, specificity: float, negatives: int) -> Draw:
    def draw(generator: np.random.Generator) -> bool:
        kinds = ((sensitivity, positives), (specificity, negatives))
        _, low, high = mean_proportion([wilson(generator.binomial(bags, share), bags) for share, bags in kinds])
        return low <= (sensitivity + specificity) / 2 <= high

    return draw


def covers_no_difference(auc: float, positives: int, negatives: int) -> Draw:
    """Two scores of the same bags, alike in the population and correlated as two networks are."""

    def draw(generator: np.random.Generator) -> bool:
        truth, shared = two_normals(auc, positives, negatives, generator)
        one, other = (shared + generator.normal(size=len(truth)) for _ in range(2))
        _, low, high = auroc_difference(truth, one, other)[0]
        return low <= 0 <= high

    return draw


def share_of(covers: Draw, draws: int, seed: int = 1) -> float:
    generator = np.random.default_rng(seed)
    return float(np.mean([covers(generator) for _ in range(draws)]))


def cases() -> dict[str, Draw]:
    """Each kind of interval by what it is of."""
    found = {
        f"AUROC {auc}, {positives} positive and {negatives} negative bags": covers_auroc(auc, positives, negatives)
        for auc, positives, negatives in AUROCS
    }
    found["proportion {}, {} bags".format(*PROPORTION)] = covers_proportion(*PROPORTION)
    found["balanced accuracy, {} of {} and {} of {} bags".format(*BALANCED)] = covers_balanced_accuracy(*BALANCED)
    found["difference of two AUROCs, 30 positive and 30 negative bags"] = covers_no_difference(0.85, 30, 30)
    return found
