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
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import same_color
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from PIL import Image

from scripts.core.errors import InputError
from scripts.core.record import BagResult
from scripts.outputs.drawing import FLAGGED, TRUTH
from scripts.wsi.outputs.map import DrawSlided, Layer, draw_slide, highest, lattice_image, layer
from scripts.wsi.outputs.view import SlideView, slides_of, view_slide
from scripts.wsi.slides.slide import SlideFacts, SlideFolder
from tests.outputs.results import told
from tests.wsi.outputs.slide_results import bag, grid, header, own_form

TILE = 100
PLACES = np.array([[0, 0], [300, 200], [775, 525]])  # the last one ends at the slide's corner
SHARES = (0.2, 0.1, 0.7)
BLANK = np.full((8, 8, 3), 255, np.uint8)
SQUARE = np.array([[100.0, 100.0], [400.0, 100.0], [400.0, 300.0], [100.0, 300.0], [100.0, 100.0]])


def small(source: str = "nowhere.h5", size: tuple[int, int] = (875, 625), **given: Any) -> BagResult:
    about = header(3, pitch=TILE, mpp=given.pop("mpp", 0.25), slide_size=size)
    return bag(PLACES, given.pop("attention", SHARES), about, source=source, **given)


def two_slides(attention: Sequence[float]) -> BagResult:
    return bag([PLACES, PLACES], attention, *(header(3, name, pitch=TILE) for name in "ab"))


def drawn(
    result: BagResult, number: int = 0, outlines: Sequence[np.ndarray] = (), slides: Path | None = None, shown: int = 8
) -> Figure:
    view = view_slide(slides_of(result)[number], SlideFolder(None if slides is None else str(slides)))
    return draw_slide(dataclasses.replace(view, outlines=outlines), shown, layer(view.slide))


def of_label(figure: Figure, label: str) -> Axes:
    (axes,) = [axes for axes in figure.axes if axes.get_label() == label]
    return axes


def panels(figure: Figure) -> list[Axes]:
    return [of_label(figure, label) for label in ("slide", "map")]


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
    image = of_label(figure, "map").images[-1]
    return value_at(image.get_array(), image.get_extent(), x, y)


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
    (slide,) = slides_of(bag(coords, np.ones(len(coords)), header(len(coords), pitch=tile)))
    return SlideView(slide, size and SlideFacts(Path(), size, None, (0, 0), size))


def test_of_tiles_rounded_apart_overlapping_or_tiny_each_is_drawn_where_it_lies() -> None:
    coords = grid(40, 30, 113.33)
    image, extent = lattice_image(np.arange(1200.0), viewed(coords, 113.33))
    inside = image[np.isfinite(image).any(axis=1)][:, np.isfinite(image).any(axis=0)]
    assert np.isfinite(inside).all()  # no seams
    assert [value_at(image, extent, x, y) for x, y in coords + 113.33 / 2] == np.arange(1200.0).tolist()
    image, extent = lattice_image(np.array([1.0, 3.0]), viewed(np.array([[0, 0], [50, 0]]), 100, (200, 100)))
    np.testing.assert_equal([value_at(image, extent, x, 50) for x in (25, 75, 125, 175)], [1, 2, 3, np.nan])
    coords = grid(3000, 3, 64) + np.array([0, 90_000])
    image, extent = lattice_image(np.arange(9000.0) % 3000, viewed(coords, 64, (192_000, 96_000)))
    assert max(image.shape) <= 1600
    cell = extent[1] / image.shape[1]
    for index in (0, 1499, 2999, 8999):
        assert abs(value_at(image, extent, *(coords[index] + 32)) - index % 3000) <= cell / 64 + 1


def test_both_halves_show_the_slide_in_level_0_pixels_and_the_annotation(tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(0, 256, (25, 35, 3), dtype=np.uint8)
    figure = drawn(small(own_form(tmp_path / "a.h5", stored, 25)), outlines=[SQUARE])
    for axes in panels(figure):
        assert (axes.get_xlim(), axes.get_ylim(), axes.get_aspect()) == ((0, 875), (625, 0), 1)
        np.testing.assert_array_equal(np.asarray(axes.images[0].get_array()), stored)
        assert tuple(axes.images[0].get_extent()) == (0, 875, 625, 0)
        (polygon,) = [patch for patch in axes.patches if isinstance(patch, Polygon)]
        np.testing.assert_array_equal(polygon.get_xy(), SQUARE)
        assert not polygon.get_fill()
        assert same_color(polygon.get_edgecolor()[:3], TRUTH)
    assert panels(figure)[0].get_title() == "slide; green: as annotated"


def test_without_a_picture_of_the_slide_its_patches_are_shown_as_places() -> None:
    figure = drawn(small(mpp=None))
    plain, overlaid = panels(figure)
    assert plain.get_title() == "where the slide has patches"
    (image,) = plain.images
    for x, y in PLACES + 50:
        assert value_at(image.get_array(), image.get_extent(), x, y) == 1
    assert len(overlaid.images) == 1
    assert not strip(figure)
    assert not plain.collections
    assert not any("most attention" in text for text in texts(figure))
    assert not of_label(figure, "scale").lines
    assert of_label(figure, "scale").texts[0].get_text() == "no scale bar: micrometres per pixel are not known"


def test_the_colours_mean_the_same_on_every_slide_and_are_explained_and_nearly_even_attention_is_called_so() -> None:
    """A scale of each slide's own would make a negative slide glow like a positive one."""
    alone, several = bag(PLACES[:1], [1.0], header(1, pitch=TILE)), two_slides([1, 1, 1, 1, 1, 9])
    for result, number, even in (
        (small(), 0, ""),
        (small(attention=(0.9, 0.05, 0.05)), 0, ""),
        (small(attention=(0.501, 0.25, 0.249)), 0, ""),
        (small(attention=(0.498, 0.251, 0.251)), 0, " (nearly even: at most 1.49 × the average)"),
        (small(attention=(1, 1, 1)), 0, " (nearly even: at most 1.00 × the average)"),
        (alone, 0, ""),
        *((several, number, "") for number in (0, 1)),  # even in the first, but not in the whole bag
    ):
        figure = drawn(result, number)
        assert of_label(figure, "map").get_title() == f"attention of each patch{even}"
        assert of_label(figure, "map").images[-1].get_clim() == (0.1, 10)
        bar = of_label(figure, "colour bar")
        assert (
            bar.get_ylabel() == f"attention, times the\naverage of {'all slides' if result is several else 'the slide'}"
        )
        assert [tick.get_text() for tick in bar.get_yticklabels()] == ["0.1", "1", "10"]


def test_the_headline_states_what_was_found_and_what_it_is_not_for() -> None:
    assert texts(drawn(small(probability=0.93, label=1)))[:2] == [
        "bag 7: positive, probability 0.93 (label: positive) · 1 of 3 patches flagged",
        "research use only, not for diagnosis",
    ]
    figure = drawn(two_slides(range(1, 7)), number=1)
    assert texts(figure)[0] == "bag 7, slide b: positive, probability 0.90 · 3 of 3 patches flagged"
    assert heat(figure, 350, 250) == pytest.approx(5 / 21 * 6)
    for probability, threshold, verdict in (  # close to the threshold it has another decimal
        (0.5045, 0.5, "positive, probability 0.504"),
        (0.1372, 0.1409, "negative, probability 0.137"),
        (0.511, 0.5, "positive, probability 0.51"),
    ):
        assert f": {verdict} · " in texts(drawn(small(probability=probability, threshold=threshold)))[0]


@pytest.mark.parametrize(
    ("size", "mpp", "text"),
    [((875, 625), 0.25, "50 µm"), ((875, 8000), 0.25, "50 µm"), ((90_000, 8000), 0.5, "10 mm"),
     ((2220, 2967), 0.499, "200 µm")],
)  # fmt: skip
def test_the_scale_bar_is_as_long_as_it_states(tmp_path: Path, size: tuple[int, int], mpp: float, text: str) -> None:
    figure = drawn(small(own_form(tmp_path / "a.h5", BLANK, 100), size=size, mpp=mpp))
    FigureCanvasAgg(figure).draw()  # which is when the panels get their aspect
    scale, panel = of_label(figure, "scale"), of_label(figure, "slide")
    ends = [[x, 0.0] for x in np.asarray(scale.lines[0].get_xdata(), dtype=float)]
    inches = np.ptp(scale.transData.transform(ends)[:, 0])
    microns = inches / np.ptp(panel.transData.transform([[0, 0], [1, 0]])[:, 0]) * mpp
    assert scale.texts[0].get_text() == text
    number, unit = text.split()
    assert microns == pytest.approx(float(number) * {"µm": 1, "mm": 1000}[unit], rel=1e-3)


def chosen_of(
    coords: np.ndarray, attention: np.ndarray | Sequence[float], tile: float, shown: int = 8, probability: float = 0.2
) -> list[int]:
    (slide,) = slides_of(bag(coords, attention, header(len(coords), pitch=tile), probability=probability))
    return highest(slide, shown)


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
    # whatever is higher was taken, or lies over one that was
    for index in set(np.flatnonzero(attention > attention[chosen[-1]]).tolist()) - set(chosen):
        assert min(np.abs(coords[chosen] - coords[index]).max(axis=1)) < tile


def test_flagged_patches_go_first_then_those_apart_and_of_few_all_are_shown() -> None:
    coords = np.array([[0, 0], [50, 0], [400, 0], [0, 50], [800, 0]])
    for shown, probability, wanted in (
        (2, 0.9, [0, 2]),  # flagged, and apart
        (3, 0.9, [0, 1, 2]),  # what overlaps and is flagged goes before what is neither
        (4, 0.9, [0, 1, 2, 4]),  # then what is apart
        (3, 0.2, [0, 2, 4]),  # nothing is flagged in a negative slide
    ):
        assert chosen_of(coords, [9, 8, 7, 2, 1], 100, shown, probability) == wanted
    for tile in (100, 250):
        assert chosen_of(grid(3, 1, 100), [0.1, 0.7, 0.2], tile) == [1, 2, 0]
    assert chosen_of(np.zeros((0, 2)), [], 100) == []
    assert chosen_of(grid(40, 1, 256.51), np.arange(40.0, 0, -1), 256.51) == list(range(8))  # whole pixels, no overlap


@pytest.mark.parametrize("probability", [0.9, 0.2])
def test_the_strip_shows_pixels_with_value_and_place_and_frames_what_is_flagged(
    scanned: Path, probability: float
) -> None:
    attention = np.random.default_rng(6).permutation([60.0, 50.0, *range(18)])  # of eight, some above the average
    result = bag(grid(5, 4, 256), attention, header(20, pitch=256), probability=probability)
    figure = drawn(result, slides=scanned.parent)
    best = np.argsort(-attention)[:8].tolist()
    assert list(strip(figure)) == best
    assert ("the patches with the most attention, red: flagged" in texts(figure)) == result.positive
    tiles = view_slide(slides_of(result)[0], SlideFolder(str(scanned.parent))).tiles(best, 224)
    for (index, axes), tile in zip(strip(figure).items(), tiles, strict=True):
        np.testing.assert_array_equal(np.asarray(axes.images[0].get_array()), tile)
        x, y = grid(5, 4, 256)[index]
        assert axes.get_xlabel() == f"{attention[index] / attention.mean():.2f} × average\nx {x}, y {y}"
        assert same_color(axes.spines["left"].get_edgecolor(), FLAGGED) == result.flagged[index]


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


@pytest.mark.parametrize(("columns", "rows"), [(1, 1), (30, 20), (1000, 1), (1, 1000), (22, 10), (21, 10)])
@pytest.mark.parametrize("mpp", [0.25, None])
def test_nothing_overlaps_whatever_the_shape_of_the_slide(
    tmp_path: Path, columns: int, rows: int, mpp: float | None
) -> None:
    size = columns * rows
    about = header(size, mpp=mpp, slide_size=(columns * 512, rows * 512))
    source = own_form(tmp_path / "a.h5", None if mpp is None else BLANK, 100)
    assert_readable(drawn(bag(grid(columns, rows), np.ones(size), about, source=source), outlines=[SQUARE]))


@pytest.mark.parametrize("shown", [1, 8, 17])
def test_nothing_overlaps_with_a_strip_and_long_names(scanned: Path, shown: int) -> None:
    coords = np.concatenate([grid(5, 4, 256) + shift for shift in (0, 1)])
    headers = [header(40, "slide 7", pitch=256, tile=200), header(3, "x" * 200, pitch=256)]
    result = bag([coords, coords[:3]], np.arange(1.0, 44), *headers, bag_id="patient " * 24 + "$x_{$", label=1)
    figure = drawn(result, slides=scanned.parent, shown=shown, outlines=[SQUARE])
    assert len(strip(figure)) == shown
    assert_readable(figure)
    assert_readable(drawn(result, number=1))


def test_each_slide_has_a_png_of_its_own_and_the_annotation_of_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outlined: list[Sequence[np.ndarray]] = []

    def spy(view: SlideView, shown: int, over: Layer) -> Figure:
        outlined.append(view.outlines)
        return draw_slide(view, shown, over)

    monkeypatch.setattr("scripts.wsi.outputs.map.draw_slide", spy)
    polygon, mask = tmp_path / "a.geojson", tmp_path / "b.png"
    ring = (SQUARE - (7, 8)).tolist()  # QuPath counts from the bounds of the slide
    polygon.write_text(f'{{"type": "Polygon", "coordinates": [{ring}]}}')
    pixels = np.zeros((625, 875), np.uint8)
    pixels[100:300, 100:400], pixels[500:, 500:] = 2, 1
    Image.fromarray(pixels).save(mask)
    places = {"a": PLACES, "b": PLACES[:0]}
    headers = [header(len(own), name, pitch=TILE, slide_size=(875, 625), origin=(7, 8)) for name, own in places.items()]
    several, alone = bag(list(places.values()), np.ones(3), *headers), small()
    cases: list[tuple[BagResult, Any, Any]] = [
        (several, [str(polygon), ""], None), (several, [None, str(mask)], [2]), (alone, None, None)
    ]  # fmt: skip
    for result, annotation, values in cases:
        data: dict[Hashable, Any] = {"bag_result": result, "annotation": annotation}
        assert DrawSlided(str(tmp_path / "out"), annotation_values=values)(data) == data
    first, second = (tmp_path / folder / "bag 7/map.png" for folder in ("out", "again"))
    DrawSlided(str(tmp_path / "again"))({"bag_result": alone})
    assert first.read_bytes() == second.read_bytes()
    assert [len(outlines) for outlines in outlined] == [1, 0, 0, 1, 0, 0]
    for (outline,) in (outlined[0], outlined[3]):
        assert (outline.min(axis=0).tolist(), outline.max(axis=0).tolist()) == ([100, 100], [400, 300])
    assert sorted(path.name for path in (tmp_path / "out/bag 7").iterdir()) == ["a.png", "b.png", "map.png"]
    Image.open(first).verify()
    assert of_label(drawn(several, 1), "map").get_title() == "no tissue"


def test_a_slide_that_breaks_while_it_is_read_is_a_warning_and_its_map_drawn(
    tmp_path: Path, scanned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: Any) -> np.ndarray:
        raise InputError("slide 7.TIFF is damaged (a tile); copy or scan it again, or remove it")

    monkeypatch.setattr("scripts.wsi.outputs.view.read_square", broken)
    draw = DrawSlided(str(tmp_path), slides=str(scanned.parent))
    (warning,) = draw({"bag_result": bag(grid(5, 4, 256), np.ones(20), header(20, pitch=256))})["bag_result"].about[
        "warnings"
    ]
    assert (tmp_path / "bag 7" / "map.png").is_file()
    assert warning.startswith("the slide is left out of its map: slide 7.TIFF is damaged")


# --- signed scores


def signed(score: str, evidence: Sequence[float] = (-0.4, 0.1, 1.2), **more: Any) -> BagResult:
    values = np.array(evidence, dtype=np.float32)
    flag_above = {"evidence": 0.05, "instance": 0.3}.get(score)
    return told(small(), evidence=values, scores=values, score_name=score, flag_above=flag_above, **more)


def mapped(result: BagResult, score: str | None = None) -> Layer:
    return layer(slides_of(result)[0], score)


@pytest.mark.parametrize("score", ["evidence", "instance"])
def test_what_speaks_for_the_finding_is_red_what_speaks_against_it_blue_and_the_middle_white(score: str) -> None:
    result = signed(score)
    shown = mapped(result)
    middle, times = (0.0, 3) if score == "evidence" else (0.3, 1)
    colours = colormaps[shown.colours](shown.norm(shown.values))[:, :3]
    for value, (red, green, blue) in zip(result.scores, colours, strict=True):
        assert (red > blue) == (value > middle)
        assert green < max(red, blue)
    near = np.array([-3.0, 0.0, 3.0])
    np.testing.assert_allclose(shown.norm(near) + shown.norm(-near), 1)  # symmetric
    np.testing.assert_allclose(colormaps[shown.colours](0.5)[:3], 1, atol=0.04)
    figure = drawn(result)
    for (x, y), value in zip(PLACES, result.scores, strict=True):
        assert heat(figure, x + 50, y + 50) == pytest.approx(times * (value - middle), abs=1e-6)
    title = of_label(figure, "map").get_title()
    assert title.endswith(" of each patch: red for the finding, blue against it")
    assert (" × 3 patches" in of_label(figure, "colour bar").get_ylabel()) == (score == "evidence")
    bar = of_label(figure, "colour bar")
    assert ("white: the 0.3 that a bag needs" in bar.get_ylabel()) == (score == "instance")
    assert [float(tick.get_text()) for tick in bar.get_yticklabels()] == [middle + at for at in (-10, -1, 0, 1, 10)]
    assert_readable(figure)


def test_long_numbers_and_two_lines_beside_the_colour_bar_are_on_the_sheet() -> None:
    result = dataclasses.replace(signed("instance", score_smoothing=0.7), flag_above=-0.000123)
    figure = drawn(result)
    assert of_label(figure, "colour bar").get_ylabel().count("\n") == 1
    assert_readable(figure)


def test_a_logit_of_one_is_clearly_coloured() -> None:
    norm = mapped(signed("instance")).norm
    for colour in colormaps["RdBu_r"](norm(np.array([-1.0, 1.0])))[:, :3]:
        assert np.ptp(colour) > 0.3  # of the map of a weak network, that seldom says more
    np.testing.assert_allclose(norm(np.array([-20.0, 20.0])), [0.0, 1.0], atol=1e-9)


def test_the_colours_of_a_signed_score_mean_the_same_on_every_slide_and_what_is_faint_stays_pale() -> None:
    faint, strong = mapped(signed("instance", (0.29, 0.31, 0.25))), mapped(signed("instance", (-9, 0, 90)))
    assert faint.norm is strong.norm
    assert colormaps[faint.colours](faint.norm(faint.values))[:, :3].min() > 0.93
    assert colormaps[strong.colours](strong.norm(strong.values))[0, 0] < 0.3  # deep blue


def test_the_map_of_another_score_is_drawn_by_its_name_and_that_of_attention_where_it_is_not_known() -> None:
    result = signed("evidence")
    assert mapped(result, "attention").colours == mapped(small()).colours
    np.testing.assert_array_equal(mapped(result, "attention").values, result.times_average)
    np.testing.assert_array_equal(mapped(result, "instance").values, result.of_instances["instance_logit"])
    assert mapped(small(), "evidence").title == "attention of each patch"
    assert "smoothed (α 0.5)" in mapped(signed("evidence", score_smoothing=0.5)).scale
    with pytest.raises(InputError, match="the score 'heat' is not known: give --picture_score"):
        DrawSlided("out", score="heat")


def test_the_strip_shows_the_highest_score_and_tells_it(scanned: Path) -> None:
    values = np.random.default_rng(7).normal(size=20).astype(np.float32)
    plain = bag(grid(5, 4, 256), np.arange(20.0), header(20, pitch=256))
    result = told(plain, scores=values, flag_above=0.5)
    figure = drawn(result, slides=scanned.parent, shown=4)
    shown = list(strip(figure))
    assert shown == np.argsort(-values)[:4].tolist()
    for index, axes in strip(figure).items():
        assert axes.get_xlabel().splitlines()[0] == f"{values[index]:+.3g}"
    assert any(text.startswith("the patches with the highest own logit") for text in texts(figure))
    assert_readable(figure)
    smoothed = drawn(dataclasses.replace(result, score_smoothing=0.7), slides=scanned.parent, shown=4)
    assert any(text.startswith("the patches with the highest smoothed own logit") for text in texts(smoothed))
