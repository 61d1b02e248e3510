# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Headline, colours and PNG encoding that all pictures of results share."""

import io

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from scripts.core.record import RESEARCH_USE, BagResult

NEARLY_EVEN = 1.5  # times the average: below it, being flagged means little
FLAGGED = "#d62728"
TRUTH = "#1f9e4b"


def called(result: BagResult) -> str:
    """Return what the bag is called, with the probability of just that."""
    classes = result.classes
    probability = result.probability if classes is None else classes.probabilities[classes.called]
    close = result.threshold is not None and abs(probability - result.threshold) < 0.01
    return f"{result.verdict}, probability {probability:.{3 if close else 2}f}"  # 0.50 alone is neither


def headline(result: BagResult, findings: str, name: str | None = None) -> str:
    """Return the two lines above a picture of a bag, or of what `name` says: findings are "3 of 40 slices flagged"."""
    truth = f" (label: {result.true_verdict})" if result.true_verdict else ""
    return f"{name or result.bag_id}: {called(result)}{truth} · {findings}\n{RESEARCH_USE}"


def evenness(result: BagResult) -> str:
    """Return what a picture says of attention that is nearly even, in parentheses; nothing where it is not."""
    highest = result.times_average.max(initial=0)  # of the bag: one of its slides may have little of the attention
    if len(result.attention) < 2 or highest >= NEARLY_EVEN:
        return ""
    return f" (nearly even: at most {highest:.2f} × {'the average' if result.slots is None else f'1/{result.slots}'})"


def png(figure: Figure, dpi: int = 90) -> bytes:
    """Return the figure as the bytes of a PNG file."""
    content = io.BytesIO()
    figure.set_dpi(dpi)
    # savefig would draw it twice, the first time for its layout alone; compressing harder takes longer than drawing
    FigureCanvasAgg(figure).print_png(content, pil_kwargs={"compress_level": 4})
    return content.getvalue()
