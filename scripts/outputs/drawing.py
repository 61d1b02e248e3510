# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Headline, colours, what is drawn of a score, and PNG encoding: what all pictures of results share."""

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from scripts.core.record import RESEARCH_USE, BagResult
from scripts.core.scoring import EVIDENCE, INSTANCE, SCORE_WORDS, SIGNED, in_words
from scripts.engine.operating_point import caveat

WARNINGS_SHOWN = 3  # above a picture
NEARLY_EVEN = 1.5  # times the average: below it, being flagged means little
FLAGGED = "#d62728"
TRUTH = "#1f9e4b"
FOR, AGAINST = "#c9432f", "#3a6fb0"  # the finding: warm and cool


def called(result: BagResult) -> str:
    """Return what the bag is called, with the probability of just that."""
    classes = result.classes
    probability = result.probability if classes is None else classes.probabilities[classes.called]
    close = result.threshold is not None and abs(probability - result.threshold) < 0.01
    return f"{result.verdict}, probability {probability:.{3 if close else 2}f}"  # 0.50 alone is neither


def headline(result: BagResult, findings: str, name: str | None = None, warnings: Sequence[str] = ()) -> str:
    """Return the lines above a picture of a bag, or of what `name` says: findings are "3 of 40 slices flagged".

    Below the answer stands what it is not for, then the first warnings, and whether its threshold means little.
    """
    truth = f" (label: {result.true_verdict})" if result.true_verdict else ""
    more = [f"and {len(warnings) - WARNINGS_SHOWN} more, see summary.csv"] * (len(warnings) > WARNINGS_SHOWN)
    told = [f"warning: {each}" for each in (*warnings[:WARNINGS_SHOWN], *more, *caveat(result.threshold_origin))]
    told += result.learned_from
    return "\n".join([f"{name or result.bag_id}: {called(result)}{truth} · {findings}", RESEARCH_USE, *told])


def evenness(result: BagResult) -> str:
    """Return what a picture says of attention that is nearly even, in parentheses; nothing where it is not."""
    highest = result.times_average.max(initial=0)  # of the bag: one of its slides may have little of the attention
    if len(result.attention) < 2 or highest >= NEARLY_EVEN:
        return ""
    return f" (nearly even: at most {highest:.2f} × {'the average' if result.slots is None else f'1/{result.slots}'})"


class Signed(NamedTuple):
    """A score that speaks for the finding or against it, as pictures show it."""

    name: str
    values: np.ndarray  # (N,)
    middle: float  # neither for nor against
    smoothing: float = 0.0

    @property
    def title(self) -> str:
        """What it is called."""
        return in_words(self.name, self.smoothing)


def signed_score(result: BagResult, asked: str | None = None) -> Signed | None:
    """Return the signed score that is asked for, else the one that flags, else the evidence; None without such."""
    own = result.score_name in SIGNED and asked in (None, result.score_name)
    if own:
        middle = float(result.flag_above or 0) if result.score_name == INSTANCE else 0.0
        return Signed(result.score_name, result.scores, middle, result.score_smoothing)
    known = {EVIDENCE: result.evidence, INSTANCE: result.instance_logits}
    for name in known if asked is None else (asked,):
        values = known.get(name)
        if values is not None:
            return Signed(name, values, 0.0)
    return None


def ranks(result: BagResult) -> np.ndarray:
    """Return (N,) by which instances are shown, the highest first: the score that flags."""
    return result.times_average if result.flag_above is None else result.scores


def score_words(result: BagResult) -> str:
    """Return what a picture calls the score that flags, beside its numbers."""
    return ("smoothed " if result.score_smoothing else "") + SCORE_WORDS[result.score_name]


def scored_words(result: BagResult, index: int) -> str:
    """Return the score of an instance as its picture tells it."""
    if result.score_name in SIGNED:
        return f"{score_words(result)} {result.scores[index]:+.3g}"
    average = "average" if result.slots is None else f"1/{result.slots}"
    return f"{result.times_average[index]:.2f} × {average}"


def png(figure: Figure, dpi: int = 90) -> bytes:
    """Return the figure as the bytes of a PNG file."""
    content = io.BytesIO()
    figure.set_dpi(dpi)
    # savefig would draw it twice, the first time for its layout alone; compressing harder takes longer than drawing
    FigureCanvasAgg(figure).print_png(content, pil_kwargs={"compress_level": 4})
    return content.getvalue()
