# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Where the patches of a slide lie, and what its picture is read from."""

import dataclasses
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest

from scripts.wsi.features.base import FeatureHeader
from scripts.wsi.outputs.view import SlideResult, SlideView, file_stems, slides_of, view_slide, with_warnings
from scripts.wsi.slides.slide import SlideFolder
from tests.wsi.outputs.slide_results import SCAN_SIZE, bag, grid, header, own_form


def slide_result(
    coords: np.ndarray, said: FeatureHeader | None = None, source: str = "features/slide 7.h5"
) -> SlideResult:
    said = said or header(len(coords), pitch=256)
    return slides_of(bag(coords, np.ones(len(coords)), said, [source]))[0]


def seen(slides: Path | None, coords: np.ndarray | None = None, **said: Any) -> SlideView:
    coords = grid(5, 4, 256) if coords is None else coords
    folder = None if slides is None else str(slides)
    return view_slide(slide_result(coords, header(len(coords), **{"pitch": 256, **said})), SlideFolder(folder))


def test_without_a_folder_the_header_says_all_there_is() -> None:
    view = seen(None, slide_size=(9000, 7000), origin=(30, 40))
    assert (view.size, view.origin, view.mpp, view.path) == ((9000, 7000), (30, 40), 0.25, None)
    np.testing.assert_array_equal(view.coords, grid(5, 4, 256))
    assert view.thumbnail is None
    assert view.tiles([0], 64) == []
    assert view.warnings == ()


@pytest.mark.parametrize("size", [None, (200_000, 90_000)])
def test_without_a_picture_of_the_slide_as_much_is_drawn_as_has_patches(size: tuple[int, int] | None) -> None:
    view = seen(None, grid(5, 4, 256) + np.array([50_000, 20_000]), slide_size=size)
    assert view.window == (50_000 - 256, 20_000 - 256, 50_000 + 6 * 256, 20_000 + 5 * 256)
    assert seen(None, grid(5, 4, 256)[:0], slide_size=size).window == (0, 0, 256, 256)


def test_with_a_stored_picture_the_whole_slide_is_drawn(tmp_path: Path) -> None:
    source = own_form(tmp_path / "a.h5", np.zeros((128, 160, 3), np.uint8), 100)
    said = header(20, pitch=256, slide_size=(16_000, 12_800))
    assert view_slide(slide_result(grid(5, 4, 256), said, source), SlideFolder(None)).window == (0, 0, 16_000, 12_800)


@pytest.mark.parametrize("patches", [20, 0])
def test_truth_where_there_are_no_patches_is_not_cut_off(patches: int) -> None:
    outline = np.array([[4000.0, 100.0], [9000.0, 100.0], [9000.0, 6000.0]])
    view = dataclasses.replace(seen(None, grid(5, 4, 256)[:patches]), outlines=[outline])
    left = -256 if patches else 4000 - 256
    assert view.window == (left, -256 if patches else 100 - 256, 9256, 6256)


def test_the_slide_is_found_below_the_folder_whatever_the_case_of_its_suffix(scanned: Path) -> None:
    view = seen(scanned.parents[1])
    assert (view.path, view.window, view.warnings) == (scanned, (0, 0, *SCAN_SIZE), ())


def test_what_the_header_says_stays_as_it_is(scanned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.wsi.slides.slide.read_origin", lambda slide: (300, 200))
    view = seen(scanned.parent, mpp=0.4, origin=(30, 40))
    assert (view.mpp, view.origin, view.path) == (0.4, (30, 40), scanned)
    assert seen(None, origin=None).origin == (0, 0)


def test_of_a_slide_that_is_mostly_empty_canvas_what_was_scanned_is_drawn(
    scanned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scripts.wsi.slides.slide.read_origin", lambda slide: (300, 200))
    monkeypatch.setattr("scripts.wsi.slides.slide.scanned_sides", lambda *given: (600, 500))
    view = seen(scanned.parent)
    assert view.window == (300, 200, 900, 700)
    assert view.thumbnail is not None
    assert view.thumbnail.downsample == 1  # by the part that is shown, not by the canvas


def test_where_nobody_knows_the_pixels_the_slide_is_not_drawn(scanned: Path) -> None:
    said: dict[str, Any] = {"unit": "micrometres", "mpp": None, "pitch": 128}
    view = seen(scanned.parent, grid(5, 4, 128), **said)
    assert (view.in_pixels, view.tile, view.microns_per_unit, view.path) == (False, 128, 1, None)
    np.testing.assert_array_equal(view.coords, grid(5, 4, 128))


@pytest.mark.parametrize("why", ["size", "patches"])
def test_another_slide_of_that_name_is_not_drawn(scanned: Path, why: str) -> None:
    if why == "size":
        view = seen(scanned.parent, slide_size=(9000, 7000))
        assert view.size == (9000, 7000)
    else:
        view = seen(scanned.parent, grid(6, 4, 256))
    assert view.path is None
    (warning,) = view.warnings
    assert warning.startswith(
        "slide 7.TIFF has 1280 × 1024 pixels, and its features are of another slide's: give the slide that"
    )


def test_a_slide_that_cannot_be_opened_is_left_out_with_a_warning(tmp_path: Path) -> None:
    (tmp_path / "slide 7.svs").write_bytes(b"not a slide")
    view = seen(tmp_path)
    assert view.path is None
    (warning,) = view.warnings
    assert warning.startswith("slide 7.svs is not a slide that OpenSlide reads")
    assert str(tmp_path) not in warning


def test_the_tiles_are_the_pixels_of_the_slide(scanned: Path) -> None:
    view = seen(scanned.parent)
    chosen = [0, 7, 19]
    with openslide.OpenSlide(scanned) as slide:
        for index, tile in zip(chosen, view.tiles(chosen, 256), strict=True):
            x, y = view.coords[index].astype(int).tolist()
            wanted = np.asarray(slide.read_region((x, y), 0, (256, 256)).convert("RGB"))
            np.testing.assert_array_equal(tile, wanted)


def test_large_tiles_are_read_from_a_smaller_level(scanned: Path) -> None:
    (tile,) = seen(scanned.parent, np.array([[0, 0]]), pitch=1024).tiles([0], 256)
    with openslide.OpenSlide(scanned) as slide:
        np.testing.assert_array_equal(tile, np.asarray(slide.read_region((0, 0), 1, (256, 256)).convert("RGB")))


def test_the_thumbnail_is_that_of_the_features_else_that_of_the_slide(scanned: Path, tmp_path: Path) -> None:
    stored = np.random.default_rng(1).integers(0, 256, (128, 160, 3), dtype=np.uint8)
    folder = SlideFolder(str(scanned.parent))
    coords, said = grid(5, 4, 256), header(20, pitch=256)
    with_one = view_slide(slide_result(coords, said, own_form(tmp_path / "a.h5", stored)), folder).thumbnail
    assert with_one is not None
    np.testing.assert_array_equal(with_one.pixels, stored)
    assert with_one.downsample == 8
    without = view_slide(slide_result(coords, said, own_form(tmp_path / "b.h5", None)), folder).thumbnail
    assert without is not None
    np.testing.assert_allclose(np.array(without.pixels.shape[1::-1]) * without.downsample, SCAN_SIZE, atol=2)
    with openslide.OpenSlide(scanned) as slide:
        mean = np.asarray(slide.read_region((0, 0), 0, SCAN_SIZE).convert("RGB")).mean(axis=(0, 1))
    np.testing.assert_allclose(without.pixels.mean(axis=(0, 1)), mean, atol=1)


@pytest.mark.parametrize(("downsample", "shown"), [(8.0, True), (8.1, False)])
def test_tiles_are_cut_from_the_thumbnail_where_it_shows_something(
    tmp_path: Path, downsample: float, shown: bool
) -> None:
    """256 level-0 pixels are 32 of it, or fewer."""
    stored = np.random.default_rng(1).integers(0, 256, (128, 160, 3), dtype=np.uint8)
    source = own_form(tmp_path / "a.h5", stored, downsample)
    tiles = view_slide(slide_result(grid(5, 4, 256), None, source), SlideFolder(None)).tiles([6], 224)
    assert len(tiles) == shown
    if shown:
        np.testing.assert_array_equal(tiles[0], stored[32:64, 32:64])


@pytest.mark.parametrize(
    ("ids", "stems"),
    [
        (["a", "b"], ["a", "b"]),
        (["a", "a", "a"], ["a", "a_", "a__"]),
        (["../up", "a/b", "a\\b", "."], ["_up", "a_b", "a_b_", "slide"]),
    ],
)
def test_every_slide_of_a_bag_has_a_file_name_of_its_own(ids: Sequence[str], stems: Sequence[str]) -> None:
    slides = slides_of(bag([grid(1, 1)] * len(ids), np.ones(len(ids)), [header(1, each) for each in ids]))
    assert file_stems(slides) == stems


def test_a_warning_is_added_once_and_the_result_that_was_given_stays_as_it_was() -> None:
    result = dataclasses.replace(bag(grid(2, 1), [1.0, 1.0]), about={"slides": [], "warnings": ["a"]})
    data: dict[Hashable, Any] = {"result": result, "other": 1}
    assert with_warnings(data, ["a"]) == data
    told = with_warnings(data, ["b", "a", "b"])
    assert told["result"].about["warnings"] == ["a", "b"]
    assert told["other"] == 1
    assert result.about["warnings"] == ["a"]
