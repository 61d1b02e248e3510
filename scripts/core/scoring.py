# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The score that ranks and flags the instances of a bag: which ones there are, and above what an instance is flagged.

instance: its own logit. Above the bag's threshold, it alone would be called positive.
evidence: its share of the bag's logit. Above the threshold's equal share, it gives more than the bag needs of it.
attention: its attention logit; attention × probability: its attention in the scale of the bag. Above the average
attention, which has no sign: an instance with much of it may speak against the finding.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from scripts.core.errors import InputError

INSTANCE, EVIDENCE, ATTENTION, WEIGHTED = "instance", "evidence", "attention", "attention × probability"
SOURCES = {  # score → which values of the network it is made of
    INSTANCE: "instance_logits",
    EVIDENCE: "evidence",
    ATTENTION: "scores",
    WEIGHTED: "attention",
}
SCORE_WORDS = {  # of one instance, in tables, pictures and reports
    INSTANCE: "own logit",
    EVIDENCE: "evidence",
    ATTENTION: "attention logit",
    WEIGHTED: "attention × probability",
}
SIGNED = (INSTANCE, EVIDENCE)  # for the finding, or against it
TOLD = ("evidence", "instance_logits", "leave_one_out")  # by networks that can
_EXTREME = 2.0**-53  # nearer to 1 no probability is told from it


def score_name(text: str, key: str = "score") -> str:
    """Return the score of the name that a key gives; "x" and "*" may stand for "×", which few keyboards have."""
    wanted = " ".join(str(text).lower().replace("*", " × ").replace(" x ", " × ").replace("×", " × ").split())
    if wanted not in SOURCES:
        allowed = f"{INSTANCE}, {EVIDENCE}, {ATTENTION} or '{WEIGHTED.replace('×', 'x')}'"
        raise InputError(f"the score {text!r} is not known: give --{key} {allowed}")
    return wanted


def in_words(name: str, smoothing: float = 0.0) -> str:
    """Return what a score is called in reports and pictures."""
    return f"smoothed (α {smoothing:g}) {SCORE_WORDS[name]}" if smoothing else SCORE_WORDS[name]


def smoothing_strength(alpha: float) -> float:
    """Return the strength α with which scores are smoothed along neighbours, 0 for none."""
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 <= alpha < 1:
        raise InputError(f"score_smoothing is {alpha!r}: give --score_smoothing from 0 (none) to below 1")
    return float(alpha)


def probabilities(logits: ArrayLike, scaling: Sequence[float] = (1.0, 0.0)) -> np.ndarray:
    """Return the probability that each bag is positive, or of each class; (..., 1 or classes) both.

    In double precision: in single precision all logits above 17 are the probability 1.

    Args:
        logits: of the network, before any scaling.
        scaling: slope and intercept of the logits; of several classes the slope alone.
    """
    slope, intercept = scaling
    scaled = slope * np.asarray(logits, dtype=float)
    if scaled.shape[-1] == 1:
        return np.exp(-np.logaddexp(0, -(scaled + intercept)))
    return np.exp(scaled - np.logaddexp.reduce(scaled, axis=-1, keepdims=True))


def needed_logit(threshold: float, slope: float, intercept: float) -> float:
    """Return the logit, before any scaling, above which a bag is called positive."""
    probability = min(max(threshold, _EXTREME), 1 - _EXTREME)
    return (math.log(probability / (1 - probability)) - intercept) / slope


class Asked(NamedTuple):
    """What is asked of the instances of a bag."""

    score: str  # where the network does not tell it, attention is taken
    smoothing: float
    probability: float  # of the bag
    slots: int | None
    needed: float = 0.0  # the logit above which a bag is called positive
    finding: int | None = None  # of several classes: which is asked for
    against: int = 0  # and which speaks against it


def scored(data: Mapping[Hashable, Any], real: Tensor, asked: Asked) -> dict[str, Any]:
    """Return the fields of a BagResult that are of its instances, of what the network tells of them.

    Args:
        data: `scores` and `attention` [1 or C, n], what else the network tells [C, n], `bias` [C]; and `score_values`,
            of which the score is made, if somebody smoothed them.
        real: [n], which of the instances are no padding.
        asked: what is asked of them.
    """

    def attended(values: Tensor) -> np.ndarray:
        return real_values(values, real, (asked.finding or 0) if len(values) > 1 else 0)

    def told(values: Tensor) -> Tensor:
        return values if asked.finding is None else values[asked.finding, None] - values[asked.against, None]

    name = asked.score if SOURCES[asked.score] in data else ATTENTION
    values = data.get("score_values", data[SOURCES[name]])
    scores = real_values(told(values), real) if name in SIGNED else attended(values)
    logits, attention = attended(data["scores"]), attended(data["attention"])
    count = asked.slots or len(scores)
    smoothing = asked.smoothing if "score_values" in data else 0.0
    above = None
    if name == INSTANCE:
        above = asked.needed
    elif name == EVIDENCE:
        above = max(0.0, (asked.needed - float(told(data["bias"])[0])) / count)
    elif smoothing:
        above = average_height(logits, attention, count) if name == ATTENTION else asked.probability / count
    return {
        "scores": scores * np.float32(asked.probability) if name == WEIGHTED else scores,
        "score_name": name,
        "score_smoothing": smoothing,
        "flag_above": above,
        "attention": attention,
        "attention_logits": logits,
        **{key: real_values(told(data[key]), real) for key in TOLD if key in data},
    }


def real_values(values: Tensor, real: Tensor, row: int = 0) -> np.ndarray:
    """Return a row of values [rows, n] of the instances that are no padding, (N,)."""
    return values[row].to(real.device)[real].float().cpu().numpy()


def average_height(attention_logits: np.ndarray, attention: np.ndarray, instances: int) -> float:
    """Return the attention logit at which the attention is 1 / instances; both (N,)."""
    if np.array_equal(attention_logits, attention):
        return 1 / instances  # no softmax, as of MaxPool
    with np.errstate(divide="ignore"):
        return float(np.median(attention_logits - np.log(attention.astype(float) * instances)))
