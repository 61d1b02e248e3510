# Copyright (c) 2026 the smooth MIL bundle authors
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""The pictures as matplotlib holds them: what is drawn where, not its pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import same_color
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle
from PIL import Image

from scripts.data.features import PatchFeatures, write_features
from scripts.data.results import BagResult
from scripts.outputs.pictures import FLAGGED, TRUTH, DrawScand, DrawSlided, draw_scan, draw_slide
from scripts.units import Level0Coords, Level0Pixels

ATTENTION = (0.02, 0.3, 0.03, 0.25, 0.05, 0.35)  # three of six slices are above the average


def result(
    attention: Sequence[float] = ATTENTION,
    probability: float = 0.8,
    label: int | None = None,
    truth: np.ndarray | None = None,
) -> BagResult:
    n = len(attention)
    return BagResult(
        bag_id="bag_7",
        source="scans/bag_7",
        probability=probability,
        threshold=0.5,
        scores=np.arange(n, dtype=np.float32),
        attention=np.array(attention),
        instances=[{"id": i} for i in range(n)],
        label=label,
        truth=truth,
    )


def volume(slices: int = len(ATTENTION)) -> np.ndarray:
    """Not square, and no two slices alike."""
    return np.random.default_rng(0).normal(40, 20, (5, 4, slices))


def slices_of(figure: Figure) -> list[tuple[int, Axes]]:
    """The slices drawn, from left to right, by the number in their title."""
    drawn = [axes for axes in figure.axes if axes.images]
    return [(int(axes.get_title().split()[1]), axes) for axes in drawn]


def curve_of(figure: Figure) -> Axes:
    (axes,) = [axes for axes in figure.axes if axes.get_xlabel()]
    return axes


def headline(figure: Figure) -> str:
    return figure.get_suptitle()


def framed(axes: Axes) -> bool:
    shown = axes.axison and all(side.get_visible() for side in axes.spines.values())
    return shown and all(same_color(side.get_edgecolor(), FLAGGED) for side in axes.spines.values())


def test_the_flagged_slices_are_shown_in_scan_order_with_their_attention() -> None:
    drawn = slices_of(draw_scan(result(), volume()))
    assert [number for number, _ in drawn] == [2, 4, 6]
    assert [axes.get_title().splitlines()[1] for _, axes in drawn] == [
        "1.80 × average", "1.50 × average", "2.10 × average",
    ]  # fmt: skip


def test_of_too_many_the_highest_are_shown_still_in_scan_order() -> None:
    assert [number for number, _ in slices_of(draw_scan(result(), volume(), shown=2))] == [2, 6]


def test_each_slice_is_the_one_its_title_says_the_right_way_up() -> None:
    """In LPS axes x runs to the patient's left and y to the back: x goes right, y goes down."""
    scan = volume()
    for number, axes in slices_of(draw_scan(result(), scan)):
        (image,) = axes.images
        np.testing.assert_array_equal(np.asarray(image.get_array()), scan[:, :, number - 1].T)
        assert image.get_clim() == (0, 80)
        assert image.origin == "upper"
        assert axes.yaxis_inverted()


def test_red_frames_are_around_flagged_slices_alone() -> None:
    assert all(framed(axes) for _, axes in slices_of(draw_scan(result(), volume())))
    negative = slices_of(draw_scan(result(probability=0.3), volume()))
    assert [number for number, _ in negative] == [1, 2, 3, 4, 5, 6]  # those with the most attention, all the same
    assert not any(framed(axes) for _, axes in negative)


def test_the_curve_is_the_attention_in_averages_of_the_scan_and_marks_what_is_flagged() -> None:
    lines = {str(line.get_label()).split(":")[0]: line for line in curve_of(draw_scan(result(), volume())).lines}
    np.testing.assert_array_equal(
        lines["attention"].get_xydata(), np.stack([np.arange(1, 7), 6 * np.array(ATTENTION)], axis=1)
    )
    np.testing.assert_array_equal(lines["flagged"].get_xydata(), [[2, 6 * 0.3], [4, 6 * 0.25], [6, 6 * 0.35]])
    np.testing.assert_allclose(np.asarray(lines["average"].get_ydata(), dtype=float), 1)


@pytest.mark.parametrize("truth", [[0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0], [1, 0, 0, 0, 1, 1]])
def test_truth_is_shaded_over_each_slice_that_bleeds_be_it_one_alone(truth: list[int]) -> None:
    axes = curve_of(draw_scan(result(truth=np.array(truth)), volume()))
    shades = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    for number, bleeds in enumerate(truth, start=1):
        over = [shade for shade in shades if shade.get_x() < number < shade.get_x() + shade.get_width()]
        assert len(over) == bleeds
        assert all(same_color(shade.get_facecolor()[:3], TRUTH) for shade in over)
    assert sum(shade.get_width() for shade in shades) == sum(truth)
    assert "bleeding, as annotated" in axes.get_legend_handles_labels()[1]
    assert 2.1 < axes.get_ylim()[1] < 2.5  # the shade does not squeeze the curve


@pytest.mark.parametrize("truth", [None, np.zeros(6, dtype=int)])
def test_nothing_is_shaded_where_no_bleeding_is_known(truth: np.ndarray | None) -> None:
    axes = curve_of(draw_scan(result(truth=truth), volume()))
    assert not axes.patches
    assert not axes.collections
    assert not any("bleeding" in label for label in axes.get_legend_handles_labels()[1])


def test_a_scan_of_one_slice_is_drawn() -> None:
    assert [number for number, _ in slices_of(draw_scan(result([1.0]), volume(1)))] == [1]


@pytest.mark.parametrize(
    ("probability", "label", "wanted"),
    [
        (0.81, None, "bag_7: positive, probability 0.81 · 3 of 6 slices flagged"),
        (0.81, 0, "bag_7: positive, probability 0.81 (label: negative) · 3 of 6 slices flagged"),
        (0.12, 1, "bag_7: negative, probability 0.12 (label: positive) · 0 of 6 slices flagged"),
    ],
)
def test_the_headline_says_what_was_found_and_what_it_is_not_for(
    probability: float, label: int | None, wanted: str
) -> None:
    text = headline(draw_scan(result(probability=probability, label=label), volume()))
    assert text == f"{wanted}\nresearch use only, not for diagnosis"


@pytest.mark.parametrize("more", [{"volume": volume()[None]}, {}], ids=["scan", "features alone"])
def test_the_scan_becomes_a_png(tmp_path: Path, more: dict[Hashable, Any]) -> None:
    data: dict[Hashable, Any] = {"result": result(), **more}
    assert DrawScand(str(tmp_path))(data) == data
    with Image.open(tmp_path / "bag_7" / "slices.png") as image:
        image.load()
        assert image.format == "PNG"


def test_attention_of_a_network_of_slots_is_told_as_such() -> None:
    figure = draw_scan(dataclasses.replace(result(), slots=12), volume())
    assert slices_of(figure)[0][1].get_title().endswith("3.60 × 1/12")
    assert curve_of(figure).get_ylabel() == "attention,\ntimes 1/12"


TILE = 100.0
PLACES = np.array([[0, 0], [300, 200], [775, 525]])  # the last one ends at the slide's corner
SHARES = (0.2, 0.1, 0.7)
SQUARE = np.array([[100.0, 100.0], [400.0, 100.0], [400.0, 300.0], [100.0, 300.0], [100.0, 100.0]])


def patches(size: tuple[int, int] = (875, 625), thumbnail: bool = True) -> PatchFeatures:
    picture = np.random.default_rng(0).integers(0, 256, (size[1] // 25, size[0] // 25, 3), dtype=np.uint8)
    return PatchFeatures(
        features=np.zeros((len(PLACES), 2), dtype=np.float32),
        coords=Level0Coords(PLACES),
        pitch=Level0Pixels(TILE),
        tile=Level0Pixels(TILE),
        mpp=None,
        encoder="mean colour",
        slide_id="slide 7",
        slide_size=size,
        thumbnail=picture if thumbnail else None,
        thumbnail_downsample=25.0 if thumbnail else None,
    )


def map_axes(figure: Figure) -> tuple[Axes, Axes, Axes]:
    plain, overlaid, bar = figure.axes
    return plain, overlaid, bar


def heat(figure: Figure, x: float, y: float) -> float:
    """The value drawn at a place in level-0 pixels; NaN where nothing is."""
    image = map_axes(figure)[1].images[-1]
    left, right, bottom, top = image.get_extent()
    cells: np.ndarray = np.ma.filled(np.ma.asarray(image.get_array(), dtype=float), np.nan)  # row 0 at the top
    row, column = (y - top) / (bottom - top) * cells.shape[0], (x - left) / (right - left) * cells.shape[1]
    return float(cells[int(row), int(column)])


@pytest.mark.parametrize("size", [(875, 625), (890, 640)])  # whole quarters of a patch, and not
def test_a_patch_glows_where_it_lies_and_by_its_attention_times_their_number(size: tuple[int, int]) -> None:
    figure = draw_slide(result(SHARES), patches(size), [])
    for (x, y), share in zip(PLACES, SHARES, strict=True):
        for dx in (1, 50, 99):
            for dy in (1, 50, 99):
                assert heat(figure, x + dx, y + dy) == pytest.approx(3 * share)
    for x, y in ((101, 1), (1, 101), (299, 201), (401, 201), (774, 526), (500, 500)):
        assert np.isnan(heat(figure, x, y)), (x, y)


def test_both_halves_show_the_slide_in_level_0_pixels() -> None:
    slide = patches()
    for axes in map_axes(draw_slide(result(SHARES), slide, []))[:2]:
        assert axes.get_xlim() == (0, 875)
        assert axes.get_ylim() == (625, 0)
        assert axes.get_aspect() == 1
        np.testing.assert_array_equal(np.asarray(axes.images[0].get_array()), slide.thumbnail)
        assert tuple(axes.images[0].get_extent()) == (0, 875, 625, 0)


def test_a_slide_without_a_thumbnail_has_its_map_alone() -> None:
    plain, overlaid, _ = map_axes(draw_slide(result(SHARES), patches(thumbnail=False), []))
    assert (len(plain.images), len(overlaid.images)) == (0, 1)


def test_the_outline_is_the_annotation() -> None:
    for axes in map_axes(draw_slide(result(SHARES), patches(), [SQUARE]))[:2]:
        (polygon,) = [patch for patch in axes.patches if isinstance(patch, Polygon)]
        np.testing.assert_array_equal(polygon.get_xy(), SQUARE)
        assert not polygon.get_fill()
        assert same_color(polygon.get_edgecolor()[:3], TRUTH)


def test_the_annotation_is_spoken_of_only_if_there_is_one() -> None:
    assert "annotated" in map_axes(draw_slide(result(SHARES), patches(), [SQUARE]))[0].get_title()
    plain = map_axes(draw_slide(result(SHARES), patches(), []))[0]
    assert plain.get_title() == "slide"
    assert not plain.patches


def test_the_colours_mean_the_same_on_every_slide_and_are_explained() -> None:
    """A scale of each slide's own would make a negative slide glow like a positive one."""
    even, peaked = (draw_slide(result(shares), patches(), []) for shares in ((0.34, 0.33, 0.33), (0.9, 0.05, 0.05)))
    assert [map_axes(figure)[1].images[-1].get_clim() for figure in (even, peaked)] == [(0.1, 10), (0.1, 10)]
    bar = map_axes(even)[2]
    assert bar.get_ylabel() == "attention, times the average of the slide"
    assert [tick.get_text() for tick in bar.get_yticklabels()] == ["0.1", "1", "10"]


def test_the_headline_of_a_slide_speaks_of_patches() -> None:
    text = headline(draw_slide(result(SHARES, probability=0.93, label=1), patches(), []))
    assert text.startswith("bag_7: positive, probability 0.93 (label: positive) · 1 of 3 patches flagged\n")
    assert text.endswith("research use only, not for diagnosis")


def test_a_slide_becomes_a_png_with_the_annotation_of_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[np.ndarray]] = []

    def spy(result: BagResult, slide: PatchFeatures, outlines: list[np.ndarray]) -> Figure:
        drawn.append(outlines)
        return draw_slide(result, slide, outlines)

    monkeypatch.setattr("scripts.outputs.pictures.draw_slide", spy)
    write_features(tmp_path / "slide.h5", patches())
    ring = ",".join(f"[{x}, {y}]" for x, y in SQUARE)
    (tmp_path / "slide.geojson").write_text(f'{{"type": "Polygon", "coordinates": [[{ring}]]}}')
    of_slide = BagResult(
        "slide", str(tmp_path / "slide.h5"), 0.9, 0.5, np.zeros(3), np.array(SHARES), [{}, {}, {}], label=1
    )
    draw = DrawSlided(str(tmp_path / "out"))
    data: dict[Hashable, Any] = {"result": of_slide, "annotation": str(tmp_path / "slide.geojson")}
    assert draw(data) == data
    with Image.open(tmp_path / "out" / "slide" / "map.png") as image:
        image.load()
        assert image.format == "PNG"
    draw({"result": of_slide})
    np.testing.assert_array_equal(drawn[0], [SQUARE])
    assert drawn[1] == []
