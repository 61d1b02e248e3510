# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The pictures of slides as matplotlib holds them: what is drawn where, and that it can be read."""

import dataclasses
from collections.abc import Hashable, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import same_color
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from PIL import Image

from scripts.core.errors import InputError
from scripts.core.record import BagResult
from scripts.outputs.drawing import FLAGGED, TRUTH
from scripts.wsi.outputs.map import DrawSlided, draw_slide, lattice_image, most_attention
from scripts.wsi.outputs.view import SlideView, slides_of, view_slide
from scripts.wsi.slides.slide import SlideFolder
from tests.wsi.outputs.slide_results import bag, grid, header, own_form

TILE = 100
PLACES = np.array([[0, 0], [300, 200], [775, 525]])  # the last one ends at the slide's corner
SHARES = (0.2, 0.1, 0.7)
BLANK = np.full((8, 8, 3), 255, np.uint8)
SQUARE = np.array([[100.0, 100.0], [400.0, 100.0], [400.0, 300.0], [100.0, 300.0], [100.0, 100.0]])


def small(source: str = "nowhere.h5", size: tuple[int, int] = (875, 625), **given: Any) -> BagResult:
    said = header(3, pitch=TILE, mpp=given.pop("mpp", 0.25), slide_size=size)
    return bag(PLACES, given.pop("attention", SHARES), said, [source], **given)


def drawn(
    result: BagResult, number: int = 0, outlines: Sequence[np.ndarray] = (), slides: str | None = None, shown: int = 8
) -> Figure:
    slide = slides_of(result)[number]
    view = dataclasses.replace(view_slide(slide, SlideFolder(slides)), outlines=outlines)
    return draw_slide(result, slide, view, shown)


def of_label(figure: Figure, label: str) -> Axes:
    (axes,) = [axes for axes in figure.axes if axes.get_label() == label]
    return axes


def panels(figure: Figure) -> list[Axes]:
    return [of_label(figure, label) for label in ("slide", "attention")]


def strip(figure: Figure) -> dict[int, Axes]:
    names = [(str(axes.get_label()), axes) for axes in figure.axes]
    return {int(name.split()[1]): axes for name, axes in names if name.startswith("patch ")}


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def value_at(image: Any, extent: tuple[float, float, float, float], x: float, y: float) -> float:
    """What is drawn at a place in level-0 pixels; NaN where nothing is."""
    left, right, bottom, top = extent
    cells: np.ndarray = np.ma.filled(np.ma.asarray(image, dtype=float), np.nan)  # row 0 at the top
    row, column = (y - top) / (bottom - top) * cells.shape[0], (x - left) / (right - left) * cells.shape[1]
    return float(cells[int(row), int(column)])


def heat(figure: Figure, x: float, y: float) -> float:
    image = of_label(figure, "attention").images[-1]
    return value_at(image.get_array(), image.get_extent(), x, y)


# --- the map


@pytest.mark.parametrize("size", [(875, 625), (890, 640)])  # whole quarters of a patch, and not
def test_a_patch_glows_where_it_lies_and_by_its_attention_times_their_number(size: tuple[int, int]) -> None:
    figure = drawn(small(size=size))
    for (x, y), share in zip(PLACES, SHARES, strict=True):
        for dx, dy in product((1, 50, 99), repeat=2):
            assert heat(figure, x + dx, y + dy) == pytest.approx(3 * share)
    for x, y in ((101, 1), (1, 101), (299, 201), (401, 201), (774, 526), (500, 500)):
        assert np.isnan(heat(figure, x, y)), (x, y)


def viewed(coords: np.ndarray, tile: float, size: tuple[int, int] | None = None) -> SlideView:
    """size: of the slide, which is then drawn as a whole."""
    slide = slides_of(bag(coords, np.ones(len(coords)), header(len(coords), pitch=tile)))[0]
    return dataclasses.replace(view_slide(slide, SlideFolder(None)), scanned=size and (0, 0, *size))


def test_there_are_no_seams_between_tiles_that_are_rounded_apart() -> None:
    coords = grid(40, 30, 113.33)
    image, extent = lattice_image(np.arange(1200.0), viewed(coords, 113.33))
    inside = image[np.isfinite(image).any(axis=1)][:, np.isfinite(image).any(axis=0)]
    assert np.isfinite(inside).all()
    middles = coords + 113.33 / 2
    assert [value_at(image, extent, x, y) for x, y in middles] == np.arange(1200.0).tolist()


def test_where_patches_overlap_it_is_their_mean() -> None:
    image, extent = lattice_image(np.array([1.0, 3.0]), viewed(np.array([[0, 0], [50, 0]]), 100, (200, 100)))
    assert [value_at(image, extent, x, 50) for x in (25, 75, 125)] == [1, 2, 3]
    assert np.isnan(value_at(image, extent, 175, 50))


def test_small_patches_of_a_large_slide_stay_in_their_places_and_the_image_stays_small() -> None:
    coords = grid(3000, 3, 64) + np.array([0, 90_000])
    image, extent = lattice_image(np.arange(9000.0) % 3000, viewed(coords, 64, (192_000, 96_000)))
    assert max(image.shape) <= 1600
    cell = extent[1] / image.shape[1]
    for index in (0, 1499, 2999, 8999):
        x, y = coords[index] + 32
        assert abs(value_at(image, extent, x, y) - index % 3000) <= cell / 64 + 1


def test_both_halves_show_the_slide_in_level_0_pixels(tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(0, 256, (25, 35, 3), dtype=np.uint8)
    for axes in panels(drawn(small(own_form(tmp_path / "a.h5", stored, 25)))):
        assert axes.get_xlim() == (0, 875)
        assert axes.get_ylim() == (625, 0)
        assert axes.get_aspect() == 1
        np.testing.assert_array_equal(np.asarray(axes.images[0].get_array()), stored)
        assert tuple(axes.images[0].get_extent()) == (0, 875, 625, 0)


def test_without_a_picture_of_the_slide_its_patches_are_shown_as_places() -> None:
    plain, overlaid = panels(drawn(small()))
    assert (len(plain.images), len(overlaid.images)) == (1, 1)
    assert plain.get_title() == "where the slide has patches"
    (image,) = plain.images
    for x, y in PLACES + 50:
        assert value_at(image.get_array(), image.get_extent(), x, y) == 1


def test_without_a_picture_of_the_slide_the_map_is_of_its_patches_and_of_the_truth() -> None:
    result = small(size=(200_000, 100_000))
    far = SQUARE + np.array([2000, 0])
    for outlines, right in ((), 975), ((far,), 2500):
        for axes in panels(drawn(result, outlines=outlines)):
            assert (axes.get_xlim(), axes.get_ylim()) == ((-100, right), (725, -100))
    assert heat(drawn(result), *(PLACES[2] + 50)) == pytest.approx(2.1)


def test_the_outline_is_the_annotation() -> None:
    figure = drawn(small(), outlines=[SQUARE])
    for axes in panels(figure):
        (polygon,) = [patch for patch in axes.patches if isinstance(patch, Polygon)]
        np.testing.assert_array_equal(polygon.get_xy(), SQUARE)
        assert not polygon.get_fill()
        assert same_color(polygon.get_edgecolor()[:3], TRUTH)
    assert panels(figure)[0].get_title().endswith("; green: as annotated")


def test_the_colours_mean_the_same_on_every_slide_and_are_explained() -> None:
    """A scale of each slide's own would make a negative slide glow like a positive one."""
    even, peaked = (drawn(small(attention=shares)) for shares in ((0.34, 0.33, 0.33), (0.9, 0.05, 0.05)))
    limits = [of_label(figure, "attention").images[-1].get_clim() for figure in (even, peaked)]
    assert limits == [(0.1, 10), (0.1, 10)]
    bar = of_label(even, "colour bar")
    assert bar.get_ylabel() == "attention, times the\naverage of the slide"
    assert [tick.get_text() for tick in bar.get_yticklabels()] == ["0.1", "1", "10"]


@pytest.mark.parametrize(
    ("attention", "said"),
    [
        ((1.0, 1.0, 1.0), " (nearly even: at most 1.00 × the average)"),
        ((0.36, 0.32, 0.32), " (nearly even: at most 1.08 × the average)"),
        ((0.498, 0.251, 0.251), " (nearly even: at most 1.49 × the average)"),
        ((0.501, 0.25, 0.249), ""),
    ],
)
def test_attention_that_is_nearly_even_is_called_so(attention: Sequence[float], said: str) -> None:
    assert of_label(drawn(small(attention=attention)), "attention").get_title() == f"attention of each patch{said}"


def test_attention_is_even_in_the_whole_bag_or_not_at_all() -> None:
    result = bag([PLACES, PLACES], [1, 1, 1, 1, 1, 9.0], [header(3, name, pitch=TILE) for name in "ab"])
    assert [of_label(drawn(result, number), "attention").get_title() for number in (0, 1)] == [
        "attention of each patch"
    ] * 2
    alone = bag(PLACES[:1], [1.0], header(1, pitch=TILE))
    assert of_label(drawn(alone), "attention").get_title() == "attention of each patch"


def test_of_several_slides_the_average_is_that_of_all(tmp_path: Path) -> None:
    result = bag([PLACES, PLACES], np.arange(1.0, 7), [header(3, name, pitch=TILE) for name in "ab"])
    figure = drawn(result, number=1)
    assert of_label(figure, "colour bar").get_ylabel() == "attention, times the\naverage of all slides"
    assert texts(figure)[0] == "bag 7, slide b: positive, probability 0.90 · 3 of 3 patches flagged"
    assert heat(figure, 350, 250) == pytest.approx(5 / 21 * 6)


def test_the_headline_says_what_was_found_and_what_it_is_not_for() -> None:
    assert texts(drawn(small(probability=0.93, label=1)))[:2] == [
        "bag 7: positive, probability 0.93 (label: positive) · 1 of 3 patches flagged",
        "research use only, not for diagnosis",
    ]


@pytest.mark.parametrize(
    ("probability", "threshold", "said"),
    [
        (0.5045, 0.5, "positive, probability 0.504"),
        (0.4961, 0.5, "negative, probability 0.496"),
        (0.511, 0.5, "positive, probability 0.51"),
        (0.1372, 0.1409, "negative, probability 0.137"),
        (0.5045, 0.3, "positive, probability 0.50"),
    ],
)
def test_a_probability_close_to_the_threshold_has_another_decimal(
    probability: float, threshold: float, said: str
) -> None:
    headline = texts(drawn(small(probability=probability, threshold=threshold)))[0]
    assert headline.startswith(f"bag 7: {said} · ")


# --- the scale bar


def bar_of(figure: Figure) -> tuple[float, str]:
    """Its length in level-0 pixels as it is drawn, and what is said beside it."""
    axes = of_label(figure, "scale")
    (line,) = axes.lines
    ends = np.asarray(line.get_xdata(), dtype=float)
    inches = np.ptp(axes.transData.transform([[ends[0], 0], [ends[1], 0]])[:, 0])
    panel = of_label(figure, "slide")
    pixels = np.ptp(panel.transData.transform([[0, 0], [1, 0]])[:, 0])
    return float(inches / pixels), axes.texts[0].get_text()


@pytest.mark.parametrize(
    ("size", "mpp", "text"),
    [((875, 625), 0.25, "50 µm"), ((875, 8000), 0.25, "50 µm"), ((90_000, 80_000), 0.25, "5 mm"),
     ((90_000, 8000), 0.5, "10 mm"), ((2220, 2967), 0.499, "200 µm")],
)  # fmt: skip
def test_the_scale_bar_is_as_long_as_it_says(tmp_path: Path, size: tuple[int, int], mpp: float, text: str) -> None:
    figure = drawn(small(own_form(tmp_path / "a.h5", BLANK, 100), size=size, mpp=mpp))
    FigureCanvasAgg(figure).draw()  # which is when the panels get their aspect
    pixels, said = bar_of(figure)
    assert said == text
    number, unit = text.split()
    assert pixels * mpp == pytest.approx(float(number) * {"µm": 1, "mm": 1000}[unit], rel=1e-3)


def test_without_a_scale_there_is_no_bar() -> None:
    axes = of_label(drawn(small(mpp=None)), "scale")
    assert not axes.lines
    assert axes.texts[0].get_text() == "no scale bar: micrometres per pixel are not known"


# --- the strip


def chosen_of(
    coords: np.ndarray, attention: np.ndarray | Sequence[float], tile: float, shown: int = 8, probability: float = 0.2
) -> list[int]:
    (slide,) = slides_of(bag(coords, attention, header(len(coords), pitch=tile), probability=probability))
    return most_attention(slide, view_slide(slide, SlideFolder(None)), shown)


@pytest.mark.parametrize("tile", [100, 150, 250])
def test_the_chosen_patches_have_the_most_attention_and_do_not_overlap(tile: float) -> None:
    rng = np.random.default_rng(5)
    coords, attention = grid(30, 20, 100), rng.permutation(600) / 600
    chosen = chosen_of(coords, attention, tile)
    assert chosen[0] == attention.argmax()
    assert len(chosen) == 8
    assert (np.diff(attention[chosen]) < 0).all()
    for one, other in combinations(chosen, 2):
        assert np.abs(coords[one] - coords[other]).max() >= tile
    higher = np.flatnonzero(
        attention > attention[chosen[-1]]
    )  # whatever is higher was taken, or lies over one that was
    for index in set(higher.tolist()) - set(chosen):
        assert min(np.abs(coords[chosen] - coords[index]).max(axis=1)) < tile


def test_of_few_patches_all_are_shown() -> None:
    assert chosen_of(grid(3, 1, 100), [0.1, 0.7, 0.2], 100) == [1, 2, 0]
    assert chosen_of(grid(3, 1, 100), [0.1, 0.7, 0.2], 250) == [1, 2, 0]
    assert chosen_of(np.zeros((0, 2)), [], 100) == []


def test_patches_side_by_side_do_not_overlap_because_their_corners_are_whole_pixels() -> None:
    coords = grid(40, 1, 256.51)
    assert set(np.diff(coords[:, 0])) == {256, 257}
    assert chosen_of(coords, np.arange(40.0, 0, -1), 256.51) == list(range(8))


@pytest.mark.parametrize(
    ("shown", "probability", "wanted"),
    [
        (2, 0.9, [0, 2]),  # flagged, and apart
        (3, 0.9, [0, 1, 2]),  # what overlaps and is flagged goes before what is neither
        (4, 0.9, [0, 1, 2, 4]),  # then what is apart
        (5, 0.9, [0, 1, 2, 3, 4]),
        (3, 0.2, [0, 2, 4]),  # nothing is flagged in a negative slide
        (4, 0.2, [0, 1, 2, 4]),
    ],
)
def test_flagged_patches_go_first_and_those_that_overlap_fill_up(
    shown: int, probability: float, wanted: list[int]
) -> None:
    coords = np.array([[0, 0], [50, 0], [400, 0], [0, 50], [800, 0]])
    assert chosen_of(coords, [9, 8, 7, 2, 1], 100, shown, probability) == wanted


def test_the_strip_shows_the_pixels_of_the_slide_with_value_and_place(scanned: Path) -> None:
    coords = grid(5, 4, 256)
    attention = np.random.default_rng(6).permutation(20) + 1.0
    result = bag(coords, attention, header(20, pitch=256))
    folder = str(scanned.parent)
    found = strip(drawn(result, slides=folder))
    best = np.argsort(-attention)[:8]
    assert list(found) == best.tolist()
    tiles = view_slide(slides_of(result)[0], SlideFolder(folder)).tiles(best.tolist(), 224)
    for index, tile in zip(best, tiles, strict=True):
        np.testing.assert_array_equal(np.asarray(found[index].images[0].get_array()), tile)
        x, y = coords[index]
        value = attention[index] / attention.mean()
        assert found[index].get_xlabel() == f"{value:.2f} × average\nx {x}, y {y}"


def test_red_frames_are_around_flagged_patches_alone(scanned: Path) -> None:
    result = bag(grid(5, 1, 256), [5, 4, 1, 1, 1], header(5, pitch=256))
    for probability, flagged in ((0.9, [True, True, False, False, False]), (0.2, [False] * 5)):
        one = drawn(dataclasses.replace(result, probability=probability), slides=str(scanned.parent))
        framed = [same_color(axes.spines["left"].get_edgecolor(), FLAGGED) for axes in strip(one).values()]
        assert framed == flagged
        assert ("the patches with the most attention, red: flagged" in texts(one)) == any(flagged)


def test_where_nothing_shows_them_there_is_no_strip() -> None:
    figure = drawn(small())
    assert not strip(figure)
    assert not of_label(figure, "slide").collections
    assert not any("most attention" in text for text in texts(figure))


# --- nothing overlaps


def assert_readable(figure: Figure) -> None:
    """Every axes with its texts, and every line of the headline, on paper of its own, all of it on the sheet."""
    figure.set_dpi(50)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    boxes: dict[str, Any] = {str(axes.get_label()): axes.get_tightbbox(renderer) for axes in figure.axes}
    boxes |= {text.get_text(): text.get_window_extent(renderer) for text in figure.texts}
    width, height = figure.canvas.get_width_height()
    for name, box in boxes.items():
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, (name, box)  # noqa: PT018
    for (name, box), (other, its) in combinations(boxes.items(), 2):
        apart = box.x1 <= its.x0 or its.x1 <= box.x0 or box.y1 <= its.y0 or its.y1 <= box.y0
        assert apart, (name, box, other, its)


@pytest.mark.parametrize(
    ("columns", "rows"), [(1, 1), (30, 20), (300, 5), (5, 300), (1000, 1), (1, 1000), (22, 10), (21, 10)]
)
@pytest.mark.parametrize(("mpp", "pictured"), [(0.25, True), (None, False)])
def test_nothing_overlaps_whatever_the_shape_of_the_slide(
    tmp_path: Path, columns: int, rows: int, mpp: float | None, pictured: bool
) -> None:
    coords = grid(columns, rows)
    said = header(len(coords), mpp=mpp, slide_size=(columns * 512, rows * 512))
    source = own_form(tmp_path / "a.h5", BLANK if pictured else None, 100)
    assert_readable(drawn(bag(coords, np.ones(len(coords)), said, [source]), outlines=[SQUARE]))


@pytest.mark.parametrize("shown", [1, 8, 17])
def test_nothing_overlaps_with_a_strip_and_long_names(scanned: Path, shown: int) -> None:
    coords = np.concatenate([grid(5, 4, 256) + shift for shift in (0, 1)])
    headers = [header(40, "slide 7", pitch=256, tile=200), header(3, "x" * 200, pitch=256)]
    result = bag([coords, coords[:3]], np.arange(1.0, 44), headers, bag_id="patient " * 24 + "$x_{$", label=1)
    figure = drawn(result, slides=str(scanned.parent), shown=shown, outlines=[SQUARE])
    assert len(strip(figure)) == shown
    assert_readable(figure)
    assert_readable(drawn(result, number=1))


# --- files


def test_a_slide_becomes_a_png_with_the_annotation_of_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outlined: list[Sequence[np.ndarray]] = []

    def spy(*given: Any) -> Figure:
        outlined.append(given[2].outlines)
        return draw_slide(*given)

    monkeypatch.setattr("scripts.wsi.outputs.map.draw_slide", spy)
    ring = ",".join(f"[{x}, {y}]" for x, y in SQUARE)
    (tmp_path / "slide.geojson").write_text(f'{{"type": "Polygon", "coordinates": [[{ring}]]}}')
    draw = DrawSlided(str(tmp_path / "out"))
    data: dict[Hashable, Any] = {"result": small(), "annotation": str(tmp_path / "slide.geojson")}
    assert draw(data) == data
    with Image.open(tmp_path / "out" / "bag 7" / "map.png") as image:
        image.load()
        assert image.format == "PNG"
    draw({"result": small()})
    assert [len(outlines) for outlines in outlined] == [1, 0]
    np.testing.assert_array_equal(np.unique(outlined[0][0], axis=0), np.unique(SQUARE, axis=0))


def test_each_slide_of_a_bag_has_a_picture_and_an_annotation_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    class Nothing:
        def outlines(self) -> list[np.ndarray]:
            return []

    def spy(*given: Any) -> Nothing:
        asked.append(given)
        return Nothing()

    monkeypatch.setattr("scripts.wsi.outputs.map.read_annotation", spy)
    headers = [header(3, name, pitch=TILE, slide_size=(875, 625), origin=(7, 8)) for name in "ab"]
    result = bag([PLACES, PLACES], np.ones(6), headers)
    draw = DrawSlided(str(tmp_path), annotation_values=[2])
    for nothing in (None, ""):
        draw({"result": result, "annotation": [nothing, "b.xml"]})
    assert sorted(path.name for path in (tmp_path / "bag 7").iterdir()) == ["a.png", "b.png"]
    assert asked == [("b.xml", (875, 625), [2], (7, 8))] * 2
    with pytest.raises(InputError, match=r"^1 annotations for the 2 slides of a bag: give one for each, or null$"):
        draw({"result": result, "annotation": "b.xml"})


def test_a_slide_without_tissue_among_others_is_drawn_as_such(tmp_path: Path) -> None:
    result = bag([PLACES, PLACES[:0]], np.ones(3))
    DrawSlided(str(tmp_path))({"result": result})
    assert (tmp_path / "bag 7" / "slide 1.png").is_file()
    assert of_label(drawn(result, number=1), "attention").get_title() == "no tissue"


def test_a_slide_that_breaks_while_it_is_read_is_a_warning_and_its_map_drawn(
    tmp_path: Path, scanned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: Any) -> np.ndarray:
        raise InputError("slide 7.TIFF is damaged (a tile); copy or scan it again, or remove it")

    monkeypatch.setattr("scripts.wsi.outputs.view.read_square", broken)
    draw = DrawSlided(str(tmp_path), slides=str(scanned.parent))
    told = draw({"result": bag(grid(5, 4, 256), np.ones(20), header(20, pitch=256))})
    assert (tmp_path / "bag 7" / "map.png").is_file()
    assert told["result"].about["warnings"] == [
        "the slide is left out of its map: slide 7.TIFF is damaged (a tile); copy or scan it again, or remove it"
    ]


def test_the_same_result_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        DrawSlided(str(tmp_path / name))({"result": small()})
    first, second = (tmp_path / name / "bag 7" / "map.png" for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()
