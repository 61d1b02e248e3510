# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Conformal sets: the labels that a bag may have, such that the true one is among them as often as was asked for.

Split conformal prediction, for each class by itself: of the bags of every class, at least the chosen share have their
class in their set, whatever the network and however its probabilities are scaled, if the bags are of the same kind as
those that the cuts were taken from.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from scripts.core.errors import InputError

ONE_LOGIT = ("negative", "positive")  # the classes of a network of one logit


class Conformal(NamedTuple):
    """What decides whether a class is in the set of a bag."""

    coverage: float  # the least share of the bags of each class whose set holds it
    cuts: Mapping[str, float | None]  # class → the most odds against it, as a logarithm; None: every set holds it
    bags: Mapping[str, int]  # class → the bags that its cut was taken from


def log_odds_against(logits: np.ndarray) -> np.ndarray:
    """Return the logarithm of the odds against each class; logits: (bags, 1) or (bags, classes) → (bags, classes).

    In its order this is 1 less the softmax probability, but it tells apart what that rounds to 0 or 1.
    """
    logits = np.asarray(logits, dtype=np.float32).astype(float)  # as the network gave them, also from a table
    if logits.shape[1] == 1:
        return np.concatenate([logits, -logits], axis=1)
    others = [np.logaddexp.reduce(np.delete(logits, k, axis=1), axis=1) for k in range(logits.shape[1])]
    return np.stack(others, axis=1) - logits


def choose_conformal(logits: np.ndarray, labels: np.ndarray, names: Sequence[str], coverage: float) -> Conformal:
    """Take the cut of each class from its bags; labels: (bags,) numbers of classes."""
    if not (isinstance(coverage, (int, float)) and 0 < coverage < 1):  # Fire gives what was typed
        raise InputError(f"the coverage {coverage} is no share: give one between 0 and 1, such as 0.9")
    cuts: dict[str, float | None] = {}
    bags = {}
    for number, name in enumerate(names):
        of_class = np.sort(log_odds_against(logits)[labels == number, number])
        left_out = math.floor((len(of_class) + 1) * (1 - coverage) + 1e-9)  # 1 - 0.9 is a little less than 0.1
        cuts[name] = float(of_class[-left_out]) if left_out else None
        bags[name] = len(of_class)
    return Conformal(coverage, cuts, bags)


def label_set(logits: Sequence[float], names: Sequence[str], conformal: Conformal) -> tuple[str, ...]:
    """Return the classes that a bag may have; none where it is unlike those of every class."""
    if conformal.cuts.keys() != set(names):
        raise InputError(
            f"the conformal sets are of the classes {', '.join(conformal.cuts)}, the network has {', '.join(names)}: "
            "calibrate again"
        )
    (against,) = log_odds_against(np.array([logits]))
    cuts = [conformal.cuts[name] for name in names]
    return tuple(name for name, odds, cut in zip(names, against, cuts, strict=True) if cut is None or odds <= cut)
