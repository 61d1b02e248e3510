# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m scripts compare`: whether two networks differ on the same bags, figure by figure."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from scripts.core.cli import aligned
from scripts.core.errors import InputError
from scripts.core.files import plain, write_whole
from scripts.core.record import BagResult
from scripts.core.scoring import TOLD
from scripts.metrics.figures import Figure, Interval, bootstrap, mean_over_bags
from scripts.metrics.intervals import auroc_difference
from scripts.metrics.summary import figure_groups, of_one_network
from scripts.outputs.results import read_metrics, read_results

COMPARED = {
    *("bag_auroc", "bag_average_precision", "bag_accuracy", "bag_balanced_accuracy", "bag_brier_score"),
    *("class_accuracy", "class_balanced_accuracy", "class_auroc_macro"),
    *("instance_auroc_gated", "instance_auroc_ungated", "instance_auroc_within_bags"),
    *("instance_auroc_within_positive_bags", "instance_auroc_height_adjusted"),
    *("instance_auroc_attention", "instance_auroc_evidence", "instance_auroc_instance"),
}
RANKED = ("scores", "attention", *TOLD)  # as far as the tables have them


class Comparison(NamedTuple):
    """One figure of two runs."""

    a: float
    b: float
    difference: Interval  # a less b
    p: float = math.nan  # where the interval is a bootstrap's


def compare_results(a: Path, b: Path, file: Path | None = None) -> None:
    """Print how two evaluations differ, and write it into a file if one is given."""
    folders = a, b
    of_a, of_b = (sorted(read_results(folder), key=lambda bag: bag.bag_id) for folder in folders)
    _require_same_bags(of_a, of_b, folders)
    found = comparisons(of_a, of_b)
    if any("over_folds" in read_metrics(folder) for folder in folders):
        found = {name: each for name, each in found.items() if not of_one_network(name)}
    print(_as_table(found))
    if _judged(of_a) != _judged(of_b):
        print("faithfulness is not compared: it is known of bags called positive, and A and B call different ones so")
    alike = rank_correlations(of_a, of_b)
    if alike:
        print(f"rank correlation of instances within a bag\n{_as_correlations(alike)}")
    if file is not None:
        figures = {name: _as_json(each) for name, each in found.items()}
        content = {"a": str(a), "b": str(b), "bags": len(of_a), "figures": figures}
        content["rank_correlations"] = {name: plain(each._asdict()) for name, each in alike.items()}
        write_whole(file, json.dumps(content, indent=4) + "\n")
        print(f"written: {file}")


def _judged(bags: Sequence[BagResult]) -> list[str]:
    return [bag.bag_id for bag in bags if "faithfulness" in bag.about]


def comparisons(a: Sequence[BagResult], b: Sequence[BagResult]) -> dict[str, Comparison]:
    """Return the figures that both have of the same bags."""
    found = {}
    of_b = figure_groups(b)
    for prefix, mine in figure_groups(a).items():
        yours = of_b.get(prefix)
        if yours is None or [bag.bag_id for bag in yours.bags] != [bag.bag_id for bag in mine.bags]:
            continue
        names = [
            name
            for name in mine.figures
            if name in yours.figures and (prefix == "faithfulness" or f"{prefix}_{name}" in COMPARED)
        ]
        pairs = {name: (mine.figures[name], yours.figures[name]) for name in names}
        drawn = bootstrap(len(mine.bags), {name: _difference(*pair) for name, pair in pairs.items()})
        every = np.ones(len(mine.bags))
        for name, (one, other) in pairs.items():
            found[f"{prefix}_{name}"] = Comparison(one(every), other(every), drawn[name])
        if "bag_auroc" in found and prefix == "bag":
            difference, p = _by_delong(mine.bags, yours.bags)
            found["bag_auroc"] = found["bag_auroc"]._replace(difference=difference, p=p)
    return found


def rank_correlations(a: Sequence[BagResult], b: Sequence[BagResult]) -> dict[str, Interval]:
    """Return Spearman's correlation of each score that both have of the instances, averaged over the same bags.

    A bag in which all of a score are alike has no order, and does not count.
    """
    found = {}
    for name in RANKED:
        pairs = [(getattr(one, name, None), getattr(other, name, None)) for one, other in zip(a, b, strict=True)]
        values = np.array([np.nan if x is None or y is None else _spearman(x, y) for x, y in pairs])
        known = np.isfinite(values)
        if known.any():
            mean = mean_over_bags(np.where(known, values, 0.0), known)
            found[name] = bootstrap(len(a), {name: mean})[name]
    return found


def _spearman(one: np.ndarray, other: np.ndarray) -> float:
    if len(one) != len(other) or len(one) < 2 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return np.nan
    return float(np.corrcoef(rankdata(one), rankdata(other))[0, 1])


def _by_delong(a: Sequence[BagResult], b: Sequence[BagResult]) -> tuple[Interval, float]:
    truth = np.array([bag.label_positive for bag in a])
    one, other = (np.array([bag.probability for bag in bags]) for bags in (a, b))
    return auroc_difference(truth, one, other)


def _difference(one: Figure, other: Figure) -> Figure:
    return lambda weight_of_bag: one(weight_of_bag) - other(weight_of_bag)


def _require_same_bags(a: Sequence[BagResult], b: Sequence[BagResult], folders: tuple[Path, Path]) -> None:
    names = [{bag.bag_id for bag in bags} for bags in (a, b)]
    for has, lacks in ((0, 1), (1, 0)):
        only = sorted(names[has] - names[lacks])
        if only:
            raise InputError(
                f"{folders[lacks]} has no result of {only[0]} ({len(only)} in all), which {folders[has]} has: "
                "evaluate both on the same bags"
            )
    for one, other in zip(a, b, strict=True):
        if one.true_verdict != other.true_verdict:
            labels = [bag.true_verdict or "without label" for bag in (one, other)]
            raise InputError(
                f"{one.bag_id} is {labels[0]} in {folders[0]} and {labels[1]} in {folders[1]}: "
                "evaluate both with the same labels"
            )
    if not any(bag.label is not None for bag in a):
        raise InputError(f"no result in {folders[0]} has a label: give the output folders of evaluations")


def _as_table(found: Mapping[str, Comparison]) -> str:
    rows = [["figure", "A", "B", "A - B", "95 % interval", "p"]]
    for name, (one, other, (value, low, high), p) in found.items():
        interval = "–" if math.isnan(low) else f"[{low:+.3f}, {high:+.3f}]"
        difference = [f"{value:+.3f}", interval, "" if math.isnan(p) else f"{p:.3g}"]
        rows.append([name, f"{one:.3f}", f"{other:.3f}", *difference])
    return aligned(rows)


def _as_correlations(found: Mapping[str, Interval]) -> str:
    rows = [
        [name, f"{mean:.3f}", "–" if math.isnan(low) else f"[{low:.3f}, {high:.3f}]"]
        for name, (mean, low, high) in found.items()
    ]
    return aligned([["score", "mean", "95 % interval"], *rows])


def _as_json(one: Comparison) -> dict[str, float | None]:
    figures = {"a": one.a, "b": one.b, **one.difference._asdict(), "p": one.p}
    figures["difference"] = figures.pop("value")
    return dict(plain(figures, 6))
