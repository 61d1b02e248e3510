# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Where the patches of a slide lie, and what its picture is read from."""

import dataclasses
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import openslide
import pytest

from scripts.wsi.outputs.view import SlideView, file_stems, slides_of, view_slide
from scripts.wsi.slides.slide import SlideFolder
from tests.wsi.outputs.slide_results import SCAN_SIZE, bag, grid, header, own_form

PLACES = grid(5, 4, 256)
STORED = np.random.default_rng(1).integers(0, 256, (128, 160, 3), dtype=np.uint8)


def seen(
    slides: Path | None = None, coords: np.ndarray = PLACES, source: str = "features/slide 7.h5", **said: Any
) -> SlideView:
    result = bag(coords, np.ones(len(coords)), header(len(coords), **{"pitch": 256, **said}), source=source)
    return view_slide(slides_of(result)[0], SlideFolder(None if slides is None else str(slides)))


def region(path: Path, corner: tuple[int, int], level: int, size: tuple[int, int]) -> np.ndarray:
    with openslide.OpenSlide(path) as slide:
        return np.asarray(slide.read_region(corner, level, size).convert("RGB"))


@pytest.mark.parametrize("size", [None, (200_000, 90_000)])
def test_without_a_picture_of_the_slide_as_much_is_drawn_as_has_patches_or_truth(size: tuple[int, int] | None) -> None:
    view = seen(coords=PLACES + np.array([50_000, 20_000]), slide_size=size)
    assert view.window == (50_000 - 256, 20_000 - 256, 50_000 + 6 * 256, 20_000 + 5 * 256)
    assert (view.facts, view.thumbnail, view.tiles([0], 64), view.warnings) == (None, None, [], ())
    empty = seen(coords=PLACES[:0], slide_size=size)
    assert empty.window == (0, 0, 256, 256)
    outline = np.array([[4000.0, 100.0], [9000.0, 100.0], [9000.0, 6000.0]])
    for before, left, top in ((seen(slide_size=size), -256, -256), (empty, 4000 - 256, 100 - 256)):
        assert dataclasses.replace(before, outlines=[outline]).window == (left, top, 9256, 6256)


def test_of_a_stored_picture_the_whole_is_drawn_and_tiles_are_cut_where_it_shows_something(tmp_path: Path) -> None:
    for downsample, tiles in ((8.0, [STORED[32:64, 32:64]]), (8.1, [])):  # 256 level-0 pixels are 32 of it, or fewer
        view = seen(source=own_form(tmp_path / "a.h5", STORED, downsample), slide_size=(16_000, 12_800))
        assert view.window == (0, 0, 16_000, 12_800)
        np.testing.assert_equal(view.tiles([6], 224), tiles)
    view = seen(source=own_form(tmp_path / "a.h5", STORED), coords=np.array([[1152, 512], [1280, 0]]))
    overhanging, outside = view.tiles([0, 1], 224)
    np.testing.assert_array_equal(overhanging[:, :16], STORED[64:96, 144:])
    assert (overhanging[:, 16:] == 255).all()
    assert outside.shape == (32, 32, 3)


def test_a_picture_that_lies_in_another_file_is_not_shown(tmp_path: Path) -> None:
    path = own_form(tmp_path / "a.h5", STORED, 8.0)
    (tmp_path / "secret").write_bytes(STORED.tobytes())
    with h5py.File(path, "r+") as file:
        del file["thumbnail"]
        file.create_dataset("thumbnail", STORED.shape, np.uint8, external=[(str(tmp_path / "secret"), 0, STORED.size)])
    assert seen(source=path).thumbnail is None


def test_of_a_slide_below_the_folder_what_was_scanned_is_drawn(scanned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    view = seen(scanned.parents[1])
    assert view.facts is not None
    assert (view.facts.path, view.window, view.warnings) == (scanned, (0, 0, *SCAN_SIZE), ())
    monkeypatch.setattr("scripts.wsi.slides.slide.read_origin", lambda slide: (300, 200))
    monkeypatch.setattr("scripts.wsi.slides.slide.scanned_sides", lambda *given: (600, 500))
    view = seen(scanned.parent)  # the rest of it is empty canvas
    assert view.window == (300, 200, 900, 700)
    assert view.thumbnail is not None
    assert view.thumbnail.downsample == 1  # by the part that is shown


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"slide_size": (9000, 7000)}, "slide 7.TIFF has 1280 × 1024 pixels, and its features are of another slide's"),
        ({"slide_id": "gone", "source": "gone.h5"}, "no slide gone in the folder of slides"),
        ({"unit": "micrometres", "mpp": None}, None),  # nobody knows the size of a pixel
    ],
)
def test_a_slide_that_is_another_or_gone_or_of_unknown_scale_is_left_out(
    scanned: Path, given: dict[str, Any], problem: str | None
) -> None:
    view = seen(scanned.parent, **given)
    assert (view.facts, view.thumbnail, view.tiles([0], 64)) == (None, None, [])
    assert view.slide.in_pixels == (problem is not None)
    assert [warning.startswith(str(problem)) for warning in view.warnings] == [True] * view.slide.in_pixels


def test_tiles_are_pixels_of_the_slide_at_a_fit_level_and_the_thumbnail_of_the_features_or_else_of_the_slide(
    scanned: Path, tmp_path: Path
) -> None:
    chosen, view = [0, 7, 19], seen(scanned.parent)
    for (x, y), tile in zip(PLACES[chosen].tolist(), view.tiles(chosen, 256), strict=True):
        np.testing.assert_array_equal(tile, region(scanned, (x, y), 0, (256, 256)))
    (tile,) = seen(scanned.parent, np.array([[0, 0]]), pitch=1024).tiles([0], 256)
    np.testing.assert_array_equal(tile, region(scanned, (0, 0), 1, (256, 256)))
    stored = seen(scanned.parent, source=own_form(tmp_path / "a.h5", STORED)).thumbnail
    made = seen(scanned.parent, source=own_form(tmp_path / "b.h5", None)).thumbnail
    assert stored is not None
    assert made is not None
    np.testing.assert_array_equal(stored.pixels, STORED)
    assert stored.downsample == 8
    np.testing.assert_allclose(np.array(made.pixels.shape[1::-1]) * made.downsample, SCAN_SIZE, atol=2)
    whole = region(scanned, (0, 0), 0, SCAN_SIZE)
    np.testing.assert_allclose(made.pixels.mean(axis=(0, 1)), whole.mean(axis=(0, 1)), atol=1)


def test_the_picture_is_of_what_was_scanned_as_fine_as_is_asked_for(
    scanned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = seen(source=own_form(tmp_path / "a.h5", STORED)).picture(50)
    assert stored is not None
    np.testing.assert_array_equal(stored.pixels, STORED)  # no file of the slide: the thumbnail
    assert seen().picture(50) is None
    monkeypatch.setattr("scripts.wsi.slides.slide.read_origin", lambda slide: (300, 200))
    monkeypatch.setattr("scripts.wsi.slides.slide.scanned_sides", lambda *given: (600, 500))
    view = seen(scanned.parent, source=own_form(tmp_path / "b.h5", STORED))
    for most, downsample, shape in ((4096, 1, (500, 600, 3)), (150, 4, (125, 150, 3))):
        picture = view.picture(most)
        assert picture is not None
        assert (picture.pixels.shape, picture.downsample, picture.corner) == (shape, downsample, (300, 200))
        level = 0 if downsample == 1 else 1
        wanted = region(scanned, (300, 200), level, shape[1::-1])
        np.testing.assert_array_equal(picture.pixels, wanted)


def test_every_slide_of_a_bag_has_a_file_name_of_its_own() -> None:
    for ids, stems in (
        (["../alone"], ["map"]),
        (["a", "a", "a"], ["a", "a_", "a__"]),
        (["../up", "a/b", "a\\b", "."], ["_up", "a_b", "a_b_", "slide"]),
    ):
        slides = slides_of(bag([grid(1, 1)] * len(ids), np.ones(len(ids)), *(header(1, each) for each in ids)))
        assert file_stems(slides, "map") == stems
