# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Draws a picture per scan that shows at a look which slices were flagged."""

import textwrap
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator
from monai.transforms import Transform

from scripts.core.files import write_whole
from scripts.core.record import BagResult
from scripts.core.scoring import EVIDENCE, SIGNED, score_name
from scripts.ct.outputs.answer import without_names
from scripts.outputs.drawing import (
    AGAINST,
    FLAGGED,
    FOR,
    TRUTH,
    Signed,
    evenness,
    headline,
    png,
    ranks,
    scored_words,
    signed_score,
)

BRAIN_WINDOW = (0, 80)  # HU
WIDTH, LINE_INCHES = 130, 0.2  # of the headline: letters of a line, and its height
CERTAIN = 5.0  # logit: beyond it, more makes no difference to a probability


class DrawScand(Transform):
    """The writer of `output_dir/<bag_id>/slices.png`: the flagged slices, above the score and attention along the scan.

    Args:
        output_dir: folder of the results.
        volume_key: the scan in HU at full resolution, [1, X, Y, N] in LPS axes; without it the curves alone are drawn.
        shown: at most so many slices, those with the highest score, in their order in the scan.
        score: "instance", "evidence" or "attention", whose curve is drawn; None: of the score that flags, or where that
            is attention of the evidence too, if it is known.
    """

    def __init__(self, output_dir: str, volume_key: str = "volume", shown: int = 6, score: str | None = None) -> None:
        self.output_dir = Path(output_dir)
        self.volume_key = volume_key
        self.shown = shown
        self.score = None if score is None else score_name(score, "picture_score")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result: BagResult = data["bag_result"]
        volume = np.asarray(data[self.volume_key][0]) if self.volume_key in data else None
        write_whole(
            self.output_dir / result.bag_id / "slices.png", png(draw_scan(result, volume, self.shown, self.score))
        )
        return dict(data)


def draw_scan(result: BagResult, volume: np.ndarray | None, shown: int = 6, score: str | None = None) -> Figure:
    """Draw the flagged slices above the curves along the scan; see `DrawScand`, without volume the curves alone."""
    signed = signed_score(result, score)
    rows = [*([1.15] if volume is not None else []), *([1] if signed else []), 1]
    flagged = f"{result.flagged.sum()} of {len(result.scores)} slices flagged"
    title = headline(result, flagged, warnings=without_names(result))
    lines = [line for part in title.splitlines() for line in textwrap.wrap(part, WIDTH)]
    height = {1: 3, 2: 5.2, 3: 7.2}[len(rows)] + LINE_INCHES * (len(lines) - 2)
    figure = Figure(figsize=(2.2 * shown, height), layout="constrained")
    figure.suptitle("\n".join(lines), parse_math=False)  # a $ in a name is a $
    grid = figure.add_gridspec(len(rows), shown, height_ratios=rows)
    if volume is not None:
        candidates = np.flatnonzero(result.flagged) if result.flagged.any() else np.arange(len(result.scores))
        best = np.sort(candidates[np.argsort(-ranks(result)[candidates], kind="stable")][:shown])
        for column in range(shown):
            axes = figure.add_subplot(grid[0, column])
            axes.set_axis_off()
            if column < len(best):
                _draw_slice(axes, result, volume, int(best[column]))
    attention = figure.add_subplot(grid[-1, :])
    if signed:
        above = figure.add_subplot(grid[-2, :], sharex=attention)
        above.tick_params(labelbottom=False)
        _draw_signed(above, result, signed)
    _draw_attention(attention, result)
    return figure


def _draw_slice(axes: Axes, result: BagResult, volume: np.ndarray, index: int) -> None:
    axes.imshow(volume[:, :, index].T, cmap="gray", vmin=BRAIN_WINDOW[0], vmax=BRAIN_WINDOW[1])
    height = result.instances[index].get("position_mm")
    where = f"slice {index + 1}" if height is None else f"slice {index + 1} · {height:.1f} mm"
    axes.set_title(f"{where}\n{scored_words(result, index)}", fontsize=8)
    if result.flagged[index]:
        axes.set_axis_on()
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(color=FLAGGED, linewidth=2)


def _draw_signed(axes: Axes, result: BagResult, signed: Signed) -> None:
    numbers = np.arange(1, len(signed.values) + 1)
    apart = signed.values - signed.middle
    for side, colour, what in ((apart > 0, FOR, "for the finding"), (apart <= 0, AGAINST, "against it")):
        if side.any():  # else the legend would have a bar of another colour
            axes.bar(numbers[side], apart[side], 0.8, signed.middle, color=colour, label=what)
    axes.axhline(signed.middle, color="black", linewidth=0.8)
    flags = result.score_name == signed.name
    if flags and result.flag_above is not None:
        label = f"{result.flag_above:.3g}: flagged\nabove, in a positive scan"
        axes.axhline(result.flag_above, color="grey", linestyle=":", label=label)
    if flags and result.flagged.any():
        axes.plot(numbers[result.flagged], signed.values[result.flagged], "o", color=FLAGGED, label="flagged")
    what = "its share of the scan's logit" if signed.name == EVIDENCE else "what the network says of it alone"
    axes.set_title(f"{signed.title} of each slice" + f", {what}" * (not signed.smoothing), fontsize=10)
    if np.abs(signed.values).max(initial=0) > 4 * CERTAIN:  # or one slice would flatten all others
        axes.set_yscale("asinh", linear_width=CERTAIN)
        ends = [step * 10.0**k for k in range(1, 7) for step in (1, 3)]
        axes.yaxis.set_major_locator(FixedLocator([-end for end in reversed(ends)] + [0.0] + ends))
        axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylabel(signed.title.replace(") ", ")\n"))
    axes.margins(y=0.12)
    _finish(axes, result)


def _draw_attention(axes: Axes, result: BagResult) -> None:
    numbers = np.arange(1, len(result.attention) + 1)
    attention, flags = result.times_average, result.score_name not in SIGNED
    axes.plot(numbers, attention, color="#1f4e79", marker="o", markersize=3, label="attention")
    average = "average" if result.slots is None else f"1/{result.slots}, that of {result.slots} slots"
    axes.axhline(1, color="grey", linestyle=":", label=average + ": flagged\nabove, in a positive scan" * flags)
    if flags and result.flagged.any():
        axes.plot(numbers[result.flagged], attention[result.flagged], "o", color=FLAGGED, label="flagged")
    axes.set_title(f"attention of each slice{evenness(result)}" + ", which has no sign" * (not flags), fontsize=10)
    axes.set_xlabel("slice, from the lowest to the highest")
    axes.set_ylabel("attention,\ntimes the average" if result.slots is None else f"attention,\ntimes 1/{result.slots}")
    _finish(axes, result)


def _finish(axes: Axes, result: BagResult) -> None:
    """Shade what bleeds where that is known, and name everything beside the curve."""
    numbers = np.arange(1, len(result.attention) + 1)
    if result.truth is not None and result.truth.any():
        look: dict[str, Any] = {"color": TRUTH, "alpha": 0.2, "zorder": 0, "label": "bleeding, as annotated"}
        axes.bar(numbers[result.truth.astype(bool)], 1, width=1, transform=axes.get_xaxis_transform(), **look)
    axes.set_xlim(0.5, len(numbers) + 0.5)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8, frameon=False)
