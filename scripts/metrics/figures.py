# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The figures of a cohort, each a function of how often every bag counts, and their bootstrap intervals.

To add a metric: write its figure here (one that needs many lines gets a file, as froc.py), and name it in that group of
summary.py which it belongs to: bags, classes, instances or lesions.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

# From how often each bag counts, (bags,), to a figure; NaN where it is undefined.
Figure = Callable[[np.ndarray], float]


class Interval(NamedTuple):
    """A figure and its confidence interval."""

    value: float
    low: float
    high: float


UNDEFINED = Interval(np.nan, np.nan, np.nan)


def draws(bags: int, resamples: int = 1000) -> Iterator[np.ndarray]:
    """Yield how often each bag counts, (bags,), in draws of as many bags with replacement; always the same draws."""
    generator = np.random.default_rng(0)
    return (np.bincount(generator.integers(bags, size=bags), minlength=bags) for _ in range(resamples))


def tenth(probability: np.ndarray) -> np.ndarray:
    """Return the bin of each probability, from 0 to 9: (0, 0.1], (0.1, 0.2], ...; 0 itself is in the first."""
    return np.digitize(probability, np.arange(1, 10) / 10, right=True)


def bootstrap(bags: int, figures: Mapping[str, Figure], resamples: int = 1000) -> dict[str, Interval]:
    """Return figures with 95 % percentile intervals over bags, not instances, drawn with replacement.

    Where the draws do not vary, as of bags that are all right, they tell nothing: the interval is NaN.
    """
    drawn = np.array([[figure(draw) for figure in figures.values()] for draw in draws(bags, resamples)])
    intervals = {}
    for (name, figure), of_draws in zip(figures.items(), drawn.T, strict=True):  # [resamples, figures]
        intervals[name] = UNDEFINED._replace(value=figure(np.ones(bags)))
        known = of_draws[~np.isnan(of_draws)]  # a draw of one class alone has no AUROC
        if len(known) > 0 and not np.isnan(intervals[name].value):
            low, high = map(float, np.quantile(known, [0.025, 0.975]))
            if high - low > 1e-12:
                intervals[name] = intervals[name]._replace(low=low, high=high)
    return intervals


class Cases:
    """Bags, or the instances in them, with a `truth` of (n,) 0 or 1 each, N cases in all; its methods return figures.

    Whatever does not depend on the weights is computed once: a bootstrap asks for a figure a thousand times.
    """

    def __init__(self, truth: Sequence[np.ndarray]) -> None:
        self.truth = np.concatenate(truth).astype(bool)
        self.bag = np.repeat(np.arange(len(truth)), [len(of_bag) for of_bag in truth])
        self.bags = len(truth)

    def auroc(self, score: np.ndarray) -> Figure:
        """Return the chance that a positive case scores, (N,), above a negative one; a tie counts half."""
        order = np.argsort(score)
        truth, score, bag = self.truth[order], score[order], self.bag[order]
        bag_of_positive, bag_of_negative = bag[truth], bag[~truth]
        # of each positive, how many negatives score less, and how many at most as much
        less, at_most = (np.searchsorted(score[~truth], score[truth], side) for side in ("left", "right"))
        known = not np.isnan(score).any()

        def figure(weight_of_bag: np.ndarray) -> float:
            positive = weight_of_bag[bag_of_positive]
            negative = np.append(0, weight_of_bag[bag_of_negative].cumsum())  # of the lowest 0, 1, 2, ...
            pairs = positive.sum() * negative[-1]
            won = positive * (negative[less] + negative[at_most]) / 2
            return float(won.sum() / pairs) if known and pairs else np.nan

        return figure

    def rates(self, score: np.ndarray) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
        """Return a function of the weights: hits and false alarms at each threshold, from above all scores down."""
        order = np.argsort(-score, kind="stable")
        truth, bag = self.truth[order], self.bag[order]
        last = np.append(np.diff(score[order]) != 0, True)  # of the cases that score alike: they are called together

        def counted(weight_of_bag: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            weight = weight_of_bag[bag]
            hits, alarms = ((weight * each).cumsum()[last] for each in (truth, ~truth))
            return np.append(0, hits), np.append(0, alarms)  # at first nothing is called

        return counted

    def curves(self, score: np.ndarray, at: float = 0.9) -> dict[str, Figure]:
        """Return the area under precision and recall, and the best of one rate where the other is at least `at`."""
        rates = self.rates(score)
        known = not np.isnan(score).any()

        def average_precision(weight_of_bag: np.ndarray) -> float:
            hits, alarms = rates(weight_of_bag)
            precision = hits[1:] / np.maximum(hits[1:] + alarms[1:], 1)
            return float((np.diff(hits) * precision).sum() / hits[-1]) if known and hits[-1] else np.nan

        def best_at(weight_of_bag: np.ndarray, wanted: int) -> float:
            hits, alarms = rates(weight_of_bag)
            if not (known and hits[-1] and alarms[-1]):
                return np.nan
            both = np.stack([hits / hits[-1], 1 - alarms / alarms[-1]])  # sensitivity and specificity
            return float(both[wanted, both[1 - wanted] >= at - 1e-9].max())

        return {
            "average_precision": average_precision,
            f"sensitivity_at_specificity_{at:g}": lambda weight_of_bag: best_at(weight_of_bag, 0),
            f"specificity_at_sensitivity_{at:g}": lambda weight_of_bag: best_at(weight_of_bag, 1),
        }

    def auroc_within(self, score: np.ndarray) -> Figure:
        """Return the mean AUROC of the cases within each bag that has cases of both kinds."""
        of_bag = [self.bag == k for k in range(self.bags)]
        has_both = np.array([len(set(self.truth[mine])) == 2 for mine in of_bag])
        within = [Cases([self.truth[mine]]).auroc(score[mine])(np.ones(1)) for mine in of_bag]
        return mean_over_bags(np.where(has_both, within, 0.0), has_both)

    def auroc_in_positive_bags(self, score: np.ndarray) -> Figure:
        """Return the AUROC of the cases of all bags that have a positive one, pooled."""
        has_positive = np.bincount(self.bag, self.truth, self.bags) > 0
        auroc = self.auroc(score)
        return lambda weight_of_bag: auroc(weight_of_bag * has_positive)

    def separation(self, score: np.ndarray) -> Figure:
        """Return Cohen's d: the mean score, (N,), of positive cases less that of negative ones, in deviations of both.

        The deviation is that within the two kinds, pooled.
        """
        score = score - score.mean()  # as sums of squares lose what is far from 0
        kinds = (self.truth, ~self.truth)
        count, total, squares = (
            np.array([np.bincount(self.bag, kind * each, self.bags) for kind in kinds])  # [2, bags]
            for each in (np.ones_like(score), score, score**2)
        )

        def figure(weight_of_bag: np.ndarray) -> float:
            n, s, q = ((weight_of_bag * each).sum(axis=1) for each in (count, total, squares))
            if min(n) == 0 or sum(n) < 3:
                return np.nan
            variance = (q - s**2 / n).sum() / (sum(n) - 2)
            means = s / n
            return float((means[0] - means[1]) / np.sqrt(variance)) if variance > 1e-12 * sum(q) else np.nan

        return figure

    def agreement(self, called: np.ndarray) -> dict[str, Figure]:
        """Return the agreement of calls, (N,) 0 or 1, with the truth."""
        truth, called = self.truth, called.astype(bool)
        hit = truth & called
        recall, specificity = self._ratio(hit, truth), self._ratio(~truth & ~called, ~truth)
        return {
            "accuracy": self._ratio(truth == called, np.ones_like(truth)),
            "balanced_accuracy": lambda weight_of_bag: (recall(weight_of_bag) + specificity(weight_of_bag)) / 2,
            "precision": self._ratio(hit, called),
            "recall": recall,
            "specificity": specificity,
            "f1": self._ratio(2.0 * hit, 1.0 * called + truth),
        }

    def calibration(self, probability: np.ndarray) -> dict[str, Figure]:
        """Return the mean squared error of a probability, (N,), and its expected calibration error in ten bins."""
        excess = probability - self.truth
        bin_of_case = tenth(probability)

        def calibration_error(weight_of_bag: np.ndarray) -> float:
            weight = weight_of_bag[self.bag]
            return float(np.abs(np.bincount(bin_of_case, weight * excess)).sum() / weight.sum())

        return {"brier_score": self._ratio(excess**2, np.ones_like(excess)), "calibration_error": calibration_error}

    def _ratio(self, numerator: np.ndarray, denominator: np.ndarray) -> Figure:
        """Return the ratio of two sums over the cases."""
        above, below = (np.bincount(self.bag, each, self.bags) for each in (numerator, denominator))
        return mean_over_bags(above, below)


def mean_over_bags(above: np.ndarray, below: np.ndarray) -> Figure:
    """Return the ratio of two sums over bags, (bags,) each: a mean where `below` says which bags count."""

    def figure(weight_of_bag: np.ndarray) -> float:
        whole = (weight_of_bag * below).sum()  # not by @: its threads wait for each other on a busy machine
        return float((weight_of_bag * above).sum() / whole) if whole else np.nan

    return figure


def class_figures(truth: np.ndarray, probabilities: np.ndarray) -> dict[str, Figure]:
    """Return the figures of several classes; each class counts the same in a mean, one that is undefined not at all.

    truth: (bags,) the number of the class, probabilities: (bags, classes).
    """
    called = probabilities.argmax(axis=1)
    every = Cases([np.ones(1)] * len(truth))
    cases = [Cases((truth == number)[:, None]) for number in range(probabilities.shape[1])]
    agreements = [one.agreement(called == number) for number, one in enumerate(cases)]
    return {
        "accuracy": every.agreement(called == truth)["recall"],
        "balanced_accuracy": _mean([agreement["recall"] for agreement in agreements]),
        "f1_macro": _mean([agreement["f1"] for agreement in agreements]),
        "auroc_macro": _mean([one.auroc(probabilities[:, number]) for number, one in enumerate(cases)]),
    }


def _mean(figures: Sequence[Figure]) -> Figure:
    def figure(weight_of_bag: np.ndarray) -> float:
        values = np.array([each(weight_of_bag) for each in figures])
        known = values[~np.isnan(values)]
        return float(known.mean()) if len(known) else np.nan

    return figure


def quadratic_kappa(truth: np.ndarray, called: np.ndarray, classes: int) -> Figure:
    """Return Cohen's kappa where an error counts by the square of its distance; truth and called: (bags,)."""
    number = np.arange(classes)
    distance = (number[:, None] - number) ** 2  # [classes, classes]

    def figure(weight_of_bag: np.ndarray) -> float:
        found = np.bincount(truth * classes + called, weight_of_bag, classes**2).reshape(classes, classes)
        by_chance = np.outer(found.sum(axis=1), found.sum(axis=0)) / found.sum()
        expected = (distance * by_chance).sum()
        return float(1 - (distance * found).sum() / expected) if expected else np.nan

    return figure
