# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""What every picture of a result has in common: its headline, its colours, and how it becomes a file."""

from __future__ import annotations

import io

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from scripts.core.record import RESEARCH_USE, BagResult

FLAGGED = "#d62728"
TRUTH = "#1f9e4b"


def called(result: BagResult) -> str:
    """What the bag is called, with the probability of just that."""
    classes = result.classes
    probability = result.probability if classes is None else classes.probabilities[classes.called]
    close = result.threshold is not None and abs(probability - result.threshold) < 0.01
    return f"{result.verdict}, probability {probability:.{3 if close else 2}f}"  # 0.50 alone is neither


def headline(result: BagResult, findings: str, name: str | None = None) -> str:
    """What was found, and what it is not for; `name` where it is not the bag that is drawn."""
    truth = f" (label: {result.true_verdict})" if result.true_verdict else ""
    return f"{name or result.bag_id}: {called(result)}{truth} · {findings}\n{RESEARCH_USE}"


def png(figure: Figure, dpi: int = 90) -> bytes:
    content = io.BytesIO()
    figure.set_dpi(dpi)
    # savefig would draw it twice, the first time for its layout alone; compressing harder takes longer than drawing
    FigureCanvasAgg(figure).print_png(content, pil_kwargs={"compress_level": 4})
    return content.getvalue()
