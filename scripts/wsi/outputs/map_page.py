# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""map.html, a page per slide: the slide and what was found in it, to zoom into; it needs no other file."""

import base64
import hashlib
import html
import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import shapely
from matplotlib import colormaps
from PIL import Image

from scripts.core.scoring import ATTENTION, EVIDENCE, in_words
from scripts.outputs.drawing import FLAGGED, TRUTH
from scripts.wsi.outputs.map import (
    ALPHA,
    CHOSEN_COLOUR,
    PATCH_PIXELS,
    Layer,
    highest,
    layer,
    patch_words,
    slide_headline,
    strip_title,
)
from scripts.wsi.outputs.map_controls import MAP_CONTROLS, MAP_STYLE
from scripts.wsi.outputs.map_drawing import MAP_DRAWING
from scripts.wsi.outputs.view import TIMES_AVERAGE, FilePerSlide, SlideResult, SlideView, Thumbnail, whole_number

SHADES = 256
RANK_COLOURS = "viridis"  # of percentiles, which mean another thing than a score
JPEG_QUALITY = 80
PIECE = 512  # pixels of the side of a piece of the slide's picture
OFF_A_CELL = 0.05  # of a patch: patches nearer to whole steps of their side are drawn as one pixel each
CELLS_OF_A_PATCH = 4  # along its side, where they lie anyhow
MOST_CELLS_OF_A_PAGE = 4096  # along the longer side: a browser's canvas ends somewhere
FINEST_OUTLINE = 1 / 16  # of a patch
HOW_TO_MOVE = (
    "wheel, pinch, double click, + and −: zoom\ndrag, arrows: move\n0: all of the slide\nspace, held: the slide alone"
)


class SaveMapPaged(FilePerSlide):
    """Write `output_dir/<bag_id>/map.html`, or `<slide_id>.html` for each of several slides.

    Args:
        output_dir: folder of the results.
        page_from: slides of so many patches or more have a page; None (or "none"): no slide has.
        most_pixels: of the picture of the slide, along its longer side.
        drawn: see `FilePerSlide`.
    """

    suffix = ".html"
    most_shown = 12

    def __init__(
        self, output_dir: str, page_from: int | str | None = 20_000, most_pixels: int = 4096, **drawn: Any
    ) -> None:
        super().__init__(output_dir, **drawn)
        never = str(page_from).lower() == "none"  # the command line has no null
        self.page_from = None if never else whole_number(page_from, "page_from", 0, ", or none")
        self.most_pixels = whole_number(most_pixels, "most_pixels", 1)

    def wants(self, slide: SlideResult) -> bool:
        """Return whether a slide has as many patches as a page is for."""
        return self.page_from is not None and len(slide.ranks) >= self.page_from

    def content(self, view: SlideView) -> str:
        """Return the page of a slide."""
        asked = (self.score, None, ATTENTION, EVIDENCE)
        layers = {each.key: each for each in (layer(view.slide, score) for score in asked)}
        return map_page(view, list(layers.values()), self.shown, self.most_pixels)


def map_page(view: SlideView, layers: Sequence[Layer], shown: int = 12, most_pixels: int = 4096) -> str:
    """Return the page of one slide of a bag, the first of its layers in sight."""
    slide = view.slide
    chosen = highest(slide, shown)
    pictures = [_jpeg(Image.fromarray(tile)) for tile in view.tiles(chosen, PATCH_PIXELS)] or [""] * len(chosen)
    told = _told(view, layers, most_pixels)
    # names may be hostile: "<" could end the script that holds them
    facts = json.dumps(told, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    script = MAP_DRAWING + MAP_CONTROLS
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    title, *more = (html.escape(line) for line in slide_headline(slide).splitlines())
    strip = "".join(_best_button(slide, *each) for each in zip(chosen, pictures, strict=True))
    heading = html.escape(strip_title(slide, chosen)) if chosen else "no tissue"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title><style>{MAP_STYLE}</style></head><body>
<header><h1>{title}</h1>{"".join(f"<p>{line}</p>" for line in more)}
<noscript>This page needs JavaScript.</noscript></header>
<main><div id="map"><canvas tabindex="0" role="img" aria-label="the slide and its layers"></canvas>
<div id="zoom" class="over"></div><div id="scale" class="over"></div><table id="under" class="over"></table></div>
<aside><div id="layers"></div><p class="says">{HOW_TO_MOVE}</p></aside></main>
<nav id="best"><h2>{heading}</h2><div>{strip}</div></nav>
<script type="application/json" id="told">{facts}</script>
<script>{script}</script></body></html>
"""


def _told(view: SlideView, layers: Sequence[Layer], most_pixels: int) -> dict[str, Any]:
    """Return what the script is told of a slide: see `map_drawing.py`, which reads it."""
    slide, tile = view.slide, view.slide.header.tile
    numbers = {each.name: each.score for each in layers}
    numbers.setdefault(in_words(slide.bag.score_name, slide.bag.score_smoothing), slide.of_patches["score"])
    numbers.setdefault(TIMES_AVERAGE, slide.times_average)
    names = list(numbers)
    annotated = 0 if slide.truth is None else slide.truth > 0
    marks = slide.flagged * 1 + annotated * 2  # FLAGGED and ANNOTATED of the script
    picture = view.picture(most_pixels)
    return {
        "window": [float(side) for side in view.window],
        "microns": slide.microns,
        "tile": float(tile),
        "cell": _cell(slide.coords, tile),
        "coords": [_by_value(places) for places in slide.coords.T],
        "numbers": [{"name": name, "values": _array(values, "f4")} for name, values in numbers.items()],
        "marks": _array(marks, "u1"),
        "layers": [{**_coloured(each), "number": names.index(each.name), "on": each is layers[0]} for each in layers],
        "ranks": _shades(RANK_COLOURS),
        "outlines": [_array(_simple(each, tile), "f4") for each in view.outlines],
        "picture": picture and _pyramid(picture),
        "colours": {"flagged": FLAGGED, "annotation": TRUTH, "chosen": CHOSEN_COLOUR},
    }


def _array(values: np.ndarray, kind: str) -> dict[str, str]:
    """Return numbers as a typed array of JavaScript takes them: its kind, and its bytes as base64."""
    return {"kind": kind, "data": base64.b64encode(np.ascontiguousarray(values, f"<{kind}").tobytes()).decode()}


def _by_value(places: np.ndarray) -> dict[str, Any]:
    """Return coordinates along one side as the few that there are, and which of them each patch has."""
    values, which = np.unique(places, return_inverse=True)
    return {"values": _array(values, "f8"), "of": _array(which, "u2" if len(values) <= 2**16 else "u4")}


def _cell(coords: np.ndarray, tile: float) -> float:
    """Return the side of a pixel of the map: that of a patch, or a part of it where patches lie anyhow."""
    if len(coords) == 0:
        return float(tile)
    steps = (coords - coords.min(axis=0)) / tile
    regular = bool((np.abs(steps - np.rint(steps)) <= OFF_A_CELL).all())
    least = float(np.ptp(coords, axis=0).max() + tile) / MOST_CELLS_OF_A_PAGE
    return max(float(tile) / (1 if regular else CELLS_OF_A_PATCH), least)


def _coloured(drawn: Layer) -> dict[str, Any]:
    """Return a layer whose colours are told by the scores that divide them: the page needs no formula of a scale."""
    edges = np.asarray(drawn.norm.inverse(np.arange(1, SHADES) / SHADES), dtype=float) / drawn.times + drawn.middle
    # what the page's own words have said already is left out
    says = [drawn.title.removeprefix(f"{drawn.name} of each patch: ")]
    says += filter(None, [drawn.scale.replace("\n", " ").removeprefix(drawn.name).strip(", ")])
    return {
        "key": drawn.key,
        "name": drawn.name,
        "edges": edges.tolist(),
        "colours": _shades(drawn.colours),
        "ticks": [[round(float(drawn.norm(at)), 4), text] for at, text in drawn.ticks.items()],
        "says": "\n".join(says),
        "opacity": ALPHA,
    }


def _shades(name: str) -> dict[str, str]:
    return _array(colormaps[name](np.arange(SHADES), bytes=True)[:, :3], "u1")


def _simple(outline: np.ndarray, tile: float) -> np.ndarray:
    """Return an outline without what nobody sees of it."""
    return shapely.get_coordinates(shapely.simplify(shapely.linestrings(outline), tile * FINEST_OUTLINE))


def _pyramid(picture: Thumbnail) -> dict[str, Any]:
    """Return a picture in pieces, whole and by halves until it is one piece."""
    levels, step = [], 1
    image = Image.fromarray(picture.pixels)
    while True:
        width, height = image.size
        pieces = [
            [_jpeg(image.crop((x, y, min(x + PIECE, width), min(y + PIECE, height)))) for x in range(0, width, PIECE)]
            for y in range(0, height, PIECE)
        ]
        levels.append({"step": step, "tiles": pieces})
        if max(width, height) <= PIECE:
            break
        image, step = image.reduce(2), 2 * step
    corner = [int(side) for side in picture.corner]
    return {"side": PIECE, "downsample": picture.downsample, "corner": corner, "levels": levels}


def _jpeg(image: Image.Image) -> str:
    """Return a picture as base64 of a JPEG, which says nothing of where it is from."""
    content = io.BytesIO()
    image.save(content, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return base64.b64encode(content.getvalue()).decode()


def _best_button(slide: SlideResult, index: int, picture: str) -> str:
    image = f'<img src="data:image/jpeg;base64,{picture}" alt="">' if picture else ""
    kind = ' class="flagged"' if slide.flagged[index] else ""
    return f'<button data-patch="{index}"{kind}>{image}{html.escape(patch_words(slide, index))}</button>'
