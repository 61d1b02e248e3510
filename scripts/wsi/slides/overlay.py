# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""A picture of the tissue of a slide: which tiles will be encoded, and which not and why."""

from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from scripts.core.files import whole_file
from scripts.core.units import Level0Pixels
from scripts.wsi.slides.tissue import LITTLE_TISSUE, NO_TISSUE, TissueMap

LONGEST_SIDE = 9.0  # inches of the slide in the picture
LEGEND = 3.2  # inches beside it
LEAST_HEIGHT = 3.0
OVERLAY_DPI = 150
KEPT, LITTLE = "#0047ab", "#8c8c8c"
OUTLINE = "#1f9e4b"  # of the tissue
ARTEFACTS = ("#ff7f0e", "#d62728", "#9467bd", "#17becf")  # by their order
TINT = 0.6


def draw_tissue(path: Path, name: str, found: TissueMap, tile: Level0Pixels) -> None:
    """Write the picture of a slide of this name, whose tiles span so many level-0 pixels."""
    figure = tissue_figure(name, found, tile)
    with whole_file(path) as beside:
        figure.savefig(beside, format="png", dpi=OVERLAY_DPI)


def tissue_figure(name: str, found: TissueMap, tile: Level0Pixels) -> Figure:
    """Return the picture: the overview as the rules see it, the tissue outlined, the artefacts tinted, the tiles."""
    height, width = np.array(found.tissue.shape) * found.downsample
    right, lower = np.maximum((width, height), found.grid.max(axis=0, initial=0) + tile)
    inches = LONGEST_SIDE / max(right, lower)
    size = (right * inches + LEGEND, max(lower * inches, LEAST_HEIGHT) + 0.4)
    figure = Figure(figsize=size)
    axes = figure.add_axes((0.01, 0.01, (size[0] - LEGEND) / size[0], 1 - 0.4 / size[1]))
    extent = (0.0, width, height, 0.0)
    axes.imshow(found.overview, extent=extent)
    if found.tissue.any() and min(found.tissue.shape) > 1:  # a line of pixels has no outline
        middles = ((np.arange(count) + 0.5) * found.downsample for count in found.tissue.shape[::-1])
        axes.contour(*middles, found.tissue, levels=[0.5], colors=OUTLINE, linewidths=0.8)
    outlined = [("", KEPT), (LITTLE_TISSUE, LITTLE)]
    shown = [Patch(fill=False, edgecolor=OUTLINE, label=f"tissue: {found.shares['tissue']:.1%} of the slide")]
    shown.append(Patch(fill=False, edgecolor=KEPT, label=f"{len(found.tiles)} tiles are encoded"))
    for colour, (artefact, mask) in zip(cycle(ARTEFACTS), found.left_out.items(), strict=False):
        tint = np.zeros((*mask.shape, 4))
        tint[mask] = to_rgba(colour, TINT)
        axes.imshow(tint, extent=extent, interpolation="nearest")
        outlined.append((artefact, colour))
        told = f"{artefact}: {found.shares[artefact]:.1%} of the slide,\n{found.counts[artefact]} tiles left out"
        shown.append(Patch(facecolor=colour, label=told))
    for reason, colour in ((LITTLE_TISSUE, LITTLE), (NO_TISSUE, "none")):
        shown.append(Patch(fill=False, edgecolor=colour, label=f"{found.counts[reason]} tiles left out: {reason}"))
    square = tile * np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    for reason, colour in reversed(outlined):  # those that are encoded last, above the others
        corners = found.grid[found.reasons == reason]
        squares = list(corners[:, None] + square)
        axes.add_collection(PolyCollection(squares, facecolors="none", edgecolors=colour, linewidths=0.8))
    axes.set(xlim=(0, right), ylim=(lower, 0), xticks=[], yticks=[], aspect="equal", anchor="NW")
    figure.text(0.01, 1 - 0.2 / size[1], name, va="center", fontsize=11, parse_math=False)
    figure.legend(handles=shown, loc="upper right", fontsize=9, frameon=False)
    return figure
