# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Draws a picture per scan that shows at a look which slices were flagged."""

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from monai.transforms import Transform

from scripts.core.files import write_whole
from scripts.core.record import BagResult
from scripts.outputs.drawing import FLAGGED, TRUTH, evenness, headline, png

BRAIN_WINDOW = (0, 80)  # HU


class DrawScand(Transform):
    """The writer of `output_dir/<bag_id>/slices.png`: the flagged slices, above the attention along the scan.

    Args:
        output_dir: folder of the results.
        volume_key: the scan in HU at full resolution, [1, X, Y, N] in LPS axes; without it the curve alone is drawn.
        shown: at most so many slices, those with the highest attention, in their order in the scan.
    """

    def __init__(self, output_dir: str, volume_key: str = "volume", shown: int = 6) -> None:
        self.output_dir = Path(output_dir)
        self.volume_key = volume_key
        self.shown = shown

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result: BagResult = data["result"]
        volume = np.asarray(data[self.volume_key][0]) if self.volume_key in data else None
        write_whole(self.output_dir / result.bag_id / "slices.png", png(draw_scan(result, volume, self.shown)))
        return dict(data)


def draw_scan(result: BagResult, volume: np.ndarray | None, shown: int = 6) -> Figure:
    """Draw the flagged slices above the attention along the scan; see `DrawScand`, without volume the curve alone."""
    figure = Figure(figsize=(2.2 * shown, 3 if volume is None else 5.2), layout="constrained")
    title = headline(result, f"{result.flagged.sum()} of {len(result.scores)} slices flagged")
    figure.suptitle(title, parse_math=False)  # a $ in a name is a $
    if volume is None:
        _draw_curve(figure.add_subplot(), result)
        return figure
    candidates = np.flatnonzero(result.flagged) if result.flagged.any() else np.arange(len(result.attention))
    best = np.sort(candidates[np.argsort(-result.attention[candidates], kind="stable")][:shown])
    grid = figure.add_gridspec(2, shown, height_ratios=[1.15, 1])
    for column in range(shown):
        axes = figure.add_subplot(grid[0, column])
        axes.set_axis_off()
        if column < len(best):
            _draw_slice(axes, result, volume, int(best[column]))
    _draw_curve(figure.add_subplot(grid[1, :]), result)
    return figure


def _draw_slice(axes: Axes, result: BagResult, volume: np.ndarray, index: int) -> None:
    axes.imshow(volume[:, :, index].T, cmap="gray", vmin=BRAIN_WINDOW[0], vmax=BRAIN_WINDOW[1])
    height = result.instances[index].get("position_mm")
    where = f"slice {index + 1}" if height is None else f"slice {index + 1} · {height:.1f} mm"
    average = "average" if result.slots is None else f"1/{result.slots}"
    axes.set_title(f"{where}\n{result.times_average[index]:.2f} × {average}", fontsize=9)
    if result.flagged[index]:
        axes.set_axis_on()
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(color=FLAGGED, linewidth=2)


def _draw_curve(axes: Axes, result: BagResult) -> None:
    numbers = np.arange(1, len(result.attention) + 1)
    attention = result.times_average
    axes.plot(numbers, attention, color="#1f4e79", marker="o", markersize=3, label="attention")
    average = "average" if result.slots is None else f"1/{result.slots}, that of {result.slots} slots"
    axes.axhline(1, color="grey", linestyle=":", label=f"{average}: flagged\nabove, in a positive scan")
    if result.flagged.any():
        axes.plot(numbers[result.flagged], attention[result.flagged], "o", color=FLAGGED, label="flagged")
    if result.truth is not None and result.truth.any():
        look: dict[str, Any] = {"color": TRUTH, "alpha": 0.2, "label": "bleeding, as annotated"}
        axes.bar(numbers[result.truth.astype(bool)], 1, width=1, transform=axes.get_xaxis_transform(), **look)
    axes.set_title(f"attention of each slice{evenness(result)}", fontsize=10)
    axes.set(xlabel="slice, from the lowest to the highest", xlim=(0.5, len(numbers) + 0.5))
    axes.set_ylabel("attention,\ntimes the average" if result.slots is None else f"attention,\ntimes 1/{result.slots}")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8, frameon=False)
