# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Metadata that slides supply where feature files leave it out."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import openslide
import pytest

from scripts.core.errors import InputError
from scripts.core.units import Level0Pixels, MicronsPerPixel
from scripts.wsi.features.base import MICROMETRES, PIXELS, FeatureHeader, SlidePatches
from scripts.wsi.features.files import open_features
from scripts.wsi.slides.slide import SlideFolder, read_facts
from tests.shared_data import shared_data
from tests.wsi.foreign_features import write_clam, write_trident
from tests.wsi.slide_files import glass, write_slide

SIZE, MPP, BOUNDS = (640, 512), 0.5, (30, 20)
COORDS = np.array([[0, 0], [128, 64], [512, 384]])
FOREIGN = FeatureHeader(
    "CLAM", 3, 8, "slide 7", "", Level0Pixels(128), "given", Level0Pixels(128), PIXELS, None, None, None
)
KNOWN = replace(FOREIGN, mpp=MicronsPerPixel(0.3), slide_size=SIZE, origin=(7, 9))
SILENT = replace(FOREIGN, unit=MICROMETRES, pitch=Level0Pixels(64), tile=Level0Pixels(64))  # as STAMP


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One slide below the folder, its suffix in capitals; one that states no scale; and one that is none."""
    folder = tmp_path_factory.mktemp("slides")
    write_slide(folder / "batch 2" / "slide 7.TIFF", glass(*SIZE[::-1]), MPP)
    write_slide(folder / "slide 8.ome.tif", glass(*SIZE[::-1]), MPP)
    (folder / "slide 7.ome.tif").write_bytes(b"another one")
    write_slide(folder / "no scale.tif", glass(*SIZE[::-1]), None)
    (folder / "broken.svs").write_bytes(b"not a slide")
    (folder / "._slide 7.svs").write_bytes(b"what a Mac leaves")
    return folder


@pytest.fixture(autouse=True)
def bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.wsi.slides.slide.read_origin", lambda slide: BOUNDS)


def completed(
    folder: SlideFolder, header: FeatureHeader, coords: np.ndarray, slide_mpp: float | None = None
) -> tuple[FeatureHeader, np.ndarray, tuple[str, ...]]:
    found = folder.completed(SlidePatches("a.h5", header, coords), slide_mpp)
    return found.header, found.coords, found.warnings


def test_what_the_features_say_goes_before_what_the_slide_says_and_that_before_the_user(slides: Path) -> None:
    folder = SlideFolder(str(slides))
    of_slide = replace(FOREIGN, slide_size=SIZE, mpp=MicronsPerPixel(MPP), origin=BOUNDS)
    header, coords, warnings = completed(folder, FOREIGN, COORDS)
    assert (header, coords.tolist(), warnings) == (of_slide, COORDS.tolist(), ())
    assert completed(folder, replace(KNOWN, origin=None), COORDS)[0] == replace(KNOWN, origin=BOUNDS)
    known = replace(FOREIGN, origin=(7, 9))
    assert completed(folder, known, COORDS, 0.25)[0] == replace(of_slide, origin=(7, 9))
    without = replace(FOREIGN, slide_id="no scale")
    assert completed(folder, without, COORDS)[0].mpp is None
    assert completed(folder, without, COORDS, 0.25)[0].mpp == 0.25
    of_user = replace(FOREIGN, mpp=MicronsPerPixel(0.25))
    assert completed(SlideFolder(None), FOREIGN, COORDS, 0.25)[0] == of_user
    for name in ("broken", "gone"):  # that is not opened where the features say all
        known = replace(KNOWN, slide_id=name)
        assert completed(folder, known, COORDS) == (known, COORDS, ())


def test_micrometres_become_pixels_where_the_slide_or_the_user_says_how_large_those_are(slides: Path) -> None:
    for folder, name, slide_mpp in ((str(slides), "slide 7", 99.0), (str(slides), "no scale", MPP), (None, "x", MPP)):
        said = replace(SILENT, slide_id=name)
        header, coords, _ = completed(SlideFolder(folder), said, COORDS / 2, slide_mpp)
        assert header.unit == PIXELS
        assert [header.pitch, header.tile, header.mpp] == pytest.approx([128, 128, MPP])
        np.testing.assert_array_equal(coords, COORDS)
    header, coords, _ = completed(SlideFolder(str(slides)), replace(SILENT, slide_id="no scale"), COORDS / 2)
    assert (header.unit, float(header.pitch), header.mpp) == (MICROMETRES, 64, None)
    np.testing.assert_array_equal(coords, COORDS / 2)


def test_a_slide_is_found_by_the_name_of_its_features_too_and_a_folder_that_is_none_refused(slides: Path) -> None:
    """TRIDENT's older and newer name of x.ome.tif too."""
    for name, of in (
        ("batch 2/slide 7.TIFF", "slide 7"),
        *(("slide 8.ome.tif", of) for of in ("slide 8.ome", "slide 8")),
    ):
        found = SlideFolder(str(slides)).find("an id of the laboratory", f"features/{of}.h5")
        assert found is not None
        assert found.path == slides / name
    with pytest.raises(InputError, match=r"^no folder of slides .*nowhere: give the folder that holds them"):
        SlideFolder(str(slides / "nowhere"))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"slide_id": "gone"}, r"^no slide gone in the folder of slides: of it only what its features say is known$"),
        ({"slide_id": "broken"}, r"^broken.svs is not a slide that OpenSlide reads \(.*\); remove or convert it$"),
        ({"slide_size": (9000, 7000)}, "^slide 7.TIFF has 640 × 512 pixels, and its features are of another slide's: "),
        ({}, r"^slide 7.TIFF is damaged \(a tag\); copy or scan it again, or remove it$"),
    ],
)
def test_a_slide_that_cannot_be_read_or_is_another_is_a_warning_and_the_user_is_believed(
    slides: Path, changes: dict[str, Any], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not changes:
        broken = Mock(side_effect=openslide.OpenSlideError("a tag"))
        monkeypatch.setattr("scripts.wsi.slides.slide.read_origin", broken)
    stated = replace(FOREIGN, **changes)
    header, coords, (warning,) = completed(SlideFolder(str(slides)), stated, COORDS, 0.25)
    assert header == replace(stated, mpp=MicronsPerPixel(0.25))
    np.testing.assert_array_equal(coords, COORDS)
    assert re.search(problem, warning)
    assert str(slides) not in warning


def test_a_slide_of_the_trade_says_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Aperio's."""
    monkeypatch.undo()
    shutil.copy(shared_data("wsi/CMU-1-Small-Region.svs"), tmp_path / "CMU.SVS")
    facts = read_facts(tmp_path / "CMU.SVS")
    assert (facts.size, facts.origin, facts.scanned) == ((2220, 2967), (0, 0), (2220, 2967))
    assert facts.mpp == pytest.approx(0.499)


@pytest.mark.parametrize(("write", "last"), [(write_clam, 2944), (write_trident, 2898)])
def test_patches_that_overhang_the_edge_of_a_real_slide_are_of_it_and_those_that_begin_outside_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[..., Path], last: int
) -> None:
    """CLAM pads the last row, TRIDENT keeps it: of a region of 2220 x 2967 pixels the last ones begin there."""
    monkeypatch.undo()
    shutil.copy(shared_data("wsi/CMU-1-Small-Region.svs"), tmp_path / "CMU.svs")
    for bottom, of_this_slide in ((last, True), (2967, False)):
        corners = np.array([[128 + 256 * column, bottom - 256 * row] for column in range(9) for row in range(11)])
        size = {"size": (2220, 2967), "patch_size_level0": 256} if write is write_trident else {}
        with open_features(write(tmp_path / str(bottom), "CMU", corners, **size)) as file:
            header, _, warnings = completed(SlideFolder(str(tmp_path)), file.header, file.coords)
        assert (header.mpp is not None, header.origin) == (of_this_slide, (0, 0) if of_this_slide else None)
        assert [warning.partition(":")[0] for warning in warnings] == [
            "CMU.svs has 2220 × 2967 pixels, and its features are of another slide's"
        ] * (not of_this_slide)
