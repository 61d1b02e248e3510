# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""map.png, a picture per slide: the slide, the map of a score over it, and the patches with the highest score."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import AsinhNorm, LogNorm, Normalize
from matplotlib.figure import Figure

from scripts.core.scoring import ATTENTION, EVIDENCE, SIGNED
from scripts.outputs.drawing import FLAGGED, TRUTH, evenness, headline, png, score_words, signed_score
from scripts.wsi.outputs.view import TIMES_AVERAGE, FilePerSlide, SlideResult, SlideView

ATTENTION_SCALE = LogNorm(0.1, 10)  # times the average: a negative slide must not glow because its own maximum is small
COLOURS = "RdYlBu_r"  # pale at the average, red above it: on pink tissue and on glass alike
SIGNED_SCALE = AsinhNorm(0.25, -20, 20)  # logit: even within 1/4, then by its order; the same on every slide
SIGNED_COLOURS = "RdBu_r"  # red for the finding, blue against it, white in the middle
ALPHA = 0.65
CHOSEN_COLOUR = "#0047ab"
DPI = 150  # a patch of the strip has about as many pixels as the network saw
PATCH_PIXELS = 224  # of a patch in the strip
ROUNDING = 1  # pixel by which tiles side by side may overlap, as their corners are whole pixels
MOST_CELLS = 1_000_000  # of the map: more than the picture has pixels for it, and matplotlib takes 75 bytes for each

# in inches
WIDTH = 12.0
MARGIN = 0.3
COLUMN = 4.95
HIGHEST = 6.2
HIGHEST_OF_WIDE = 2.6
WIDE = 2.2  # a slide with more width for its height is drawn above its map, not beside it
BAR_SPACE = 1.2  # for the colour bar, its numbers, and two lines that say what it is of
LEAST_BAR = 1.7
LINE = 0.24
TITLE = 0.3
SCALE = 0.4
PATCHES_IN_A_ROW = 8
PATCH_GAP = 0.1
LEAST_SQUARE = 0.09


class Layer(NamedTuple):
    """What is drawn over a slide."""

    key: str  # which score it is of
    name: str  # what that is called
    score: np.ndarray  # (n,) of its patches
    norm: Normalize
    colours: str
    title: str
    scale: str  # what the colour bar says
    ticks: Mapping[float, str]
    # what is drawn of a score is its distance from the middle, so many times
    middle: float = 0.0
    times: float = 1.0

    @property
    def values(self) -> np.ndarray:
        """(n,) as the colour bar counts them."""
        return (self.score - self.middle) * self.times


class DrawSlided(FilePerSlide):
    """Write `output_dir/<bag_id>/map.png`, or `<slide_id>.png` for each of several slides; see `FilePerSlide`."""

    suffix = ".png"
    most_shown = 8

    def content(self, view: SlideView) -> bytes:
        """Return the picture of a slide."""
        return png(draw_slide(view, self.shown, layer(view.slide, self.score)), DPI)


def layer(slide: SlideResult, score: str | None = None) -> Layer:
    """Return the map of a score over a slide; None: of the score that flags."""
    result = slide.bag
    asked = score or result.score_name
    signed = signed_score(result, asked) if asked in SIGNED else None
    if signed is None:
        of = "all slides" if len(result.about["slides"]) > 1 else "the slide"
        title, scale = f"attention of each patch{evenness(result)}", f"attention, times the\naverage of {of}"
        ticks = {0.1: "0.1", 1: "1", 10: "10"}
        return Layer(ATTENTION, TIMES_AVERAGE, slide.times_average, ATTENTION_SCALE, COLOURS, title, scale, ticks)
    # a patch's share of the logit is tiny: times their number it is what the logit would be if all were as this one
    times = (result.slots or len(result.instances)) if signed.name == EVIDENCE else 1
    white = f",\nwhite: the {signed.middle:.3g} that a bag needs" if signed.middle else ""
    scale = f"{signed.title}{f' × {times:,} patches' if times > 1 else ''}{white}"
    title = f"{signed.title} of each patch: red for the finding, blue against it"
    told = {at: f"{signed.middle + at:.3g}" for at in (-10.0, -1.0, 0.0, 1.0, 10.0)}  # of the score, as in the strip
    drawn = signed.title, signed.values[slide.own], SIGNED_SCALE, SIGNED_COLOURS, title, scale, told
    return Layer(signed.name, *drawn, signed.middle, times)


def slide_headline(slide: SlideResult) -> str:
    """Return the lines above the picture of one slide of a bag."""
    several = len(slide.bag.about["slides"]) > 1
    name = f"{slide.bag.bag_id}, slide {slide.header.slide_id}" if several else None
    return headline(slide.bag, f"{slide.flagged.sum()} of {len(slide.ranks)} patches flagged", name)


def draw_slide(view: SlideView, shown: int, drawn: Layer) -> Figure:
    """Return the picture of one slide of a bag, with at most `shown` patches below it."""
    slide = view.slide
    headlines = [line for part in slide_headline(slide).splitlines() for line in textwrap.wrap(part, 120)]
    chosen = highest(slide, shown)
    patches = view.tiles(chosen, PATCH_PIXELS)
    sheet = _Sheet(view.window, len(headlines), len(patches))
    figure = sheet.figure
    for number, line in enumerate(headlines):
        height = sheet.up(0.12 + LINE * (number + 0.5))
        figure.text(0.5, height, line, ha="center", va="center", fontsize=11, parse_math=False)
    plain, overlaid = (_panel(sheet, view, number) for number in range(2))
    _draw_slide(plain, view, chosen if patches else [], LEAST_SQUARE / sheet.scale)
    image, extent = lattice_image(drawn.values, view)
    overlaid.imshow(image, extent=extent, cmap=drawn.colours, norm=drawn.norm, alpha=ALPHA, interpolation="nearest")
    overlaid.set_title(drawn.title if len(slide.ranks) else "no tissue", fontsize=10)
    bar = sheet.axes("colour bar", *sheet.bar)
    figure.colorbar(ScalarMappable(drawn.norm, drawn.colours), cax=bar, alpha=ALPHA, extend="both")
    bar.set_ylabel(drawn.scale, fontsize=9)
    bar.set_yticks(list(drawn.ticks), labels=list(drawn.ticks.values()))
    _draw_scale(sheet, view)
    if patches:
        _draw_patches(sheet, slide, chosen, patches)
    return figure


def highest(slide: SlideResult, shown: int) -> list[int]:
    """Return the patches with the highest score: flagged ones first, and of these first those that do not overlap."""
    left, apart = np.ones((2, len(slide.ranks)), dtype=bool)
    chosen: list[int] = []
    while len(chosen) < shown and left.any():
        candidates = left
        for preferred in (slide.flagged, apart):
            candidates = candidates & preferred if (candidates & preferred).any() else candidates
        best = int(np.where(candidates, slide.ranks, -np.inf).argmax())
        chosen.append(best)
        left[best] = False
        apart &= (np.abs(slide.coords - slide.coords[best]) >= slide.header.tile - ROUNDING).any(axis=1)
    return sorted(chosen, key=lambda index: -slide.ranks[index])


class _Sheet:
    """The layout in inches from the upper left corner; nothing overlaps, whatever the shape of the slide.

    It has so many headlines, two panels that show the window of the slide, and so many patches in the strip below.
    """

    def __init__(self, window: tuple[float, float, float, float], headlines: int, patches: int) -> None:
        left, top, right, bottom = window
        width, height = right - left, bottom - top
        wide = width > WIDE * height
        column = WIDTH - 2 * MARGIN - BAR_SPACE if wide else COLUMN
        highest = HIGHEST_OF_WIDE if wide else HIGHEST
        self.scale = min(column / width, highest / height)  # inches per unit of the window
        across, down = width * self.scale, height * self.scale
        first, start = 0.12 + LINE * headlines + TITLE, MARGIN + (column - across) / 2
        second = (start, first + down + TITLE) if wide else (start + column + MARGIN, first)
        self.panels = [(start, first, across, down), (*second, across, down)]
        last = second[1] + down
        length = max(min(last - first, 3.0), LEAST_BAR)
        self.bar = (WIDTH - MARGIN - BAR_SPACE + 0.15, first, 0.15, length)
        self.under = last + 0.05
        self.strip = max(self.under + SCALE, first + length + 0.15)
        self.patch = (WIDTH - 2 * MARGIN - PATCH_GAP * (PATCHES_IN_A_ROW - 1)) / PATCHES_IN_A_ROW
        rows = -(-patches // PATCHES_IN_A_ROW)
        self.row = self.patch + 0.45
        self.height = self.strip + (TITLE + rows * self.row if rows else 0)
        self.figure = Figure(figsize=(WIDTH, self.height))

    def up(self, inches: float) -> float:
        return 1 - inches / self.height

    def axes(self, label: str, left: float, top: float, width: float, height: float) -> Axes:
        place = (left / WIDTH, self.up(top + height), width / WIDTH, height / self.height)
        return self.figure.add_axes(place, label=label)

    def patch_place(self, number: int) -> tuple[float, float, float, float]:
        row, column = divmod(number, PATCHES_IN_A_ROW)
        left = MARGIN + column * (self.patch + PATCH_GAP)
        return left, self.strip + TITLE + row * self.row, self.patch, self.patch


def _panel(sheet: _Sheet, view: SlideView, number: int) -> Axes:
    axes = sheet.axes(("slide", "map")[number], *sheet.panels[number])
    left, top, right, bottom = view.window
    if view.thumbnail is not None:
        pixels, downsample, _ = view.thumbnail
        axes.imshow(pixels, extent=(0, pixels.shape[1] * downsample, pixels.shape[0] * downsample, 0))
    for outline in view.outlines:
        axes.fill(*outline.T, fill=False, edgecolor=TRUTH, linewidth=1.6)
    axes.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[], aspect="equal")
    return axes


def _draw_slide(axes: Axes, view: SlideView, chosen: Sequence[int], least: float) -> None:
    title = ["slide"]
    if view.thumbnail is None:
        covered, extent = lattice_image(np.ones(len(view.slide.coords)), view)
        axes.imshow(covered, extent=extent, cmap="Greys", vmin=0, vmax=4, interpolation="nearest")
        title = ["where the slide has patches"]
    if view.outlines:
        title.append("green: as annotated")
    if len(chosen):
        tile = view.slide.header.tile
        corners = max(tile, least) * (np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) - 0.5)  # a mark that can be seen
        squares = list(view.slide.coords[chosen, None] + tile / 2 + corners)
        axes.add_collection(PolyCollection(squares, facecolors="none", edgecolors=CHOSEN_COLOUR, linewidths=1.2))
        title.append("squares: the patches below")
    axes.set_title("; ".join(title), fontsize=10)


def lattice_image(values: np.ndarray, view: SlideView) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """Return the values as an image of the window, and its extent; the mean where patches overlap, NaN without one.

    A pixel is a quarter of a patch, or as small as the picture can show.
    """
    left, top, right, bottom = view.window
    coords, tile = view.slide.coords - np.array([left, top]), view.slide.header.tile
    cell = max(tile / 4, ((right - left) * (bottom - top) / MOST_CELLS) ** 0.5)
    width, height = (int(np.ceil(side / cell)) for side in (right - left, bottom - top))
    first = np.rint(coords / cell).astype(int)
    behind = np.maximum(np.rint((coords + tile) / cell).astype(int), first + 1)
    total, count = np.zeros((2, width * height))
    spans = int((behind - first).max(initial=0))
    for dy, dx in np.ndindex(spans, spans):
        x, y = first[:, 0] + dx, first[:, 1] + dy
        covered = (x < behind[:, 0]) & (y < behind[:, 1]) & (x >= 0) & (y >= 0) & (x < width) & (y < height)
        cells = (y * width + x)[covered]
        total += np.bincount(cells, values[covered], minlength=len(total))
        count += np.bincount(cells, minlength=len(count))
    image = np.full(len(total), np.nan)
    np.divide(total, count, out=image, where=count > 0)
    return image.reshape(height, width), (left, left + width * cell, top + height * cell, top)


def _draw_scale(sheet: _Sheet, view: SlideView) -> None:
    """Draw a bar below the slide, where it hides no tissue; its length is …, 1, 2, 5, 10, … micrometres."""
    left, _, panel, _ = sheet.panels[0]
    width = max(panel, COLUMN / 2)  # a narrow slide still has room for the text
    axes = sheet.axes("scale", left, sheet.under, width, SCALE)
    axes.set_axis_off()
    axes.set(xlim=(0, width / sheet.scale), ylim=(0, 1))
    microns_per_unit = view.slide.microns
    if microns_per_unit is None:
        axes.text(0, 0.5, "no scale bar: micrometres per pixel are not known", fontsize=9, color="grey", va="center")
        return
    longest = panel / sheet.scale * microns_per_unit * 0.3
    decade = 10.0 ** np.floor(np.log10(longest))
    microns = decade * max(step for step in (1, 2, 5) if step * decade <= longest * (1 + 1e-9))
    length = microns / microns_per_unit
    axes.plot([0, length], [0.5, 0.5], color="black", linewidth=4, solid_capstyle="butt", clip_on=False)
    text = f"{microns / 1000:g} mm" if microns >= 1000 else f"{microns:g} µm"
    axes.text(length + 0.08 / sheet.scale, 0.5, text, fontsize=9, va="center")


def strip_title(slide: SlideResult, chosen: Sequence[int]) -> str:
    """Return what the chosen patches of a slide are."""
    signed = slide.bag.score_name in SIGNED
    title = f"the patches with the {f'highest {score_words(slide.bag)}' if signed else 'most attention'}"
    title += ", red: flagged" if slide.flagged[chosen].any() else ""
    left_out = len(chosen) and (np.delete(slide.ranks, chosen) > slide.ranks[chosen].min()).any()
    return title + ("; left out: patches that overlap one of these" if left_out else "")


def patch_words(slide: SlideResult, index: int) -> str:
    """Return what is said of one patch below it; the title says of what the number is."""
    x, y = np.rint(slide.coords[index]).astype(int)
    if slide.bag.score_name in SIGNED:
        said = f"{slide.of_patches['score'][index]:+.3g}"
    else:
        said = f"{slide.times_average[index]:.2f} × average"
    return f"{said}\nx {x}, y {y}"


def _draw_patches(sheet: _Sheet, slide: SlideResult, chosen: Sequence[int], patches: Sequence[np.ndarray]) -> None:
    title, height = strip_title(slide, chosen), sheet.up(sheet.strip + TITLE / 2)
    sheet.figure.text(0.5, height, title, ha="center", va="center", fontsize=10)
    for number, (index, pixels) in enumerate(zip(chosen, patches, strict=True)):
        axes = sheet.axes(f"patch {index}", *sheet.patch_place(number))
        axes.imshow(pixels, interpolation="antialiased")
        axes.set(xticks=[], yticks=[])
        if slide.flagged[index]:
            axes.spines[:].set(color=FLAGGED, linewidth=2)
        axes.set_xlabel(patch_words(slide, index), fontsize=8)
