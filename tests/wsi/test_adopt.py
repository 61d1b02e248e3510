# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Features of any form become files of this project's own, or a line says what is missing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts.core.errors import InputError
from scripts.core.units import MicronsPerPixel
from scripts.wsi.cli import adopt
from scripts.wsi.features.files import feature_paths, read_header
from tests.wsi.foreign_arrays import write_npz, write_owkin, write_tiatoolbox_zarr
from tests.wsi.foreign_features import grid, own, some_features, write_cells, write_clam, write_stamp, write_trident
from tests.wsi.slide_files import glass, read_features, write_slide


def adopted(folder: Path, **given: Any) -> Path:
    """The one file that was written."""
    adopt(str(folder), **given)
    output = Path(given.get("output_dir", folder.with_name(f"{folder.name}_adopted")))
    (path,) = feature_paths(output)
    return path


def test_arrays_of_any_name_in_any_unit_become_level_0_pixels(tmp_path: Path) -> None:
    folder = write_npz(tmp_path / "mine", "s1", grid(12), features="x", where=grid(12, 128.0)).parent
    path = adopted(folder, features_key="x", coords_key="where", coords_unit="micrometres", slide_mpp=0.25)
    found = read_features(path)
    assert path == folder.with_name("features_uni_adopted") / "s1.h5"
    np.testing.assert_array_equal(found.features, some_features(12))
    np.testing.assert_array_equal(found.coords, grid(12))
    assert [float(found.pitch), float(found.tile), found.mpp] == [512, 512, 0.25]
    assert (found.encoder, found.origin) == ("uni", None)
    assert read_header(path).slide_size is None


@pytest.mark.parametrize(("write", "unit"), [(write_owkin, 112.0), (write_tiatoolbox_zarr, 0.5)])
def test_units_that_no_file_states_are_given_in_micrometres_and_the_slide_says_the_rest(
    tmp_path: Path, write: Any, unit: float
) -> None:
    pitch = 1 if write is write_owkin else 224
    write(tmp_path / "features", "s1", grid(12, pitch))
    write_slide(tmp_path / "slides" / "s1.tif", glass(1400, 1800), 0.25)
    path = adopted(tmp_path / "features", coords_unit=unit, slides=str(tmp_path / "slides"), encoder_name="uni")
    found = read_header(path)
    assert (float(found.pitch), found.slide_size, found.encoder) == (448, (1800, 1400), "uni")
    assert found.mpp == pytest.approx(0.25)
    assert found.origin == (0, 0)


def test_what_a_file_states_in_pixels_is_not_made_larger_with_its_coords(tmp_path: Path) -> None:
    write_trident(tmp_path / "t", "s", grid(12, 256))
    header = read_header(adopted(tmp_path / "t", coords_unit=0.5, slide_mpp=0.25))
    assert (float(header.pitch), float(header.tile)) == (512, 512)


def test_a_slide_that_is_missing_or_anothers_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (write_trident(tmp_path / "t", name, grid(12)) for name in ("s1", "s2"))
    write_slide(tmp_path / "slides" / "s1.tif", glass(140, 180), 0.25)
    adopt(str(tmp_path / "t"), slides=str(tmp_path / "slides"))
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"{first}: s1.tif has 180 × 140 pixels, and its features are of another slide's: "
        "give the slide that they were made of",
        f"{second}: no slide s2 in the folder of slides: of it only what its features say is known",
        f"2 slides written to {tmp_path / 't_adopted'}, 0 not",
    ]


def test_a_store_may_be_given_itself(tmp_path: Path) -> None:
    store = write_tiatoolbox_zarr(tmp_path, "s", grid(12, 224))
    assert adopted(store, coords_unit="level0", output_dir=str(tmp_path / "new")).name == "s.h5"


def test_a_slide_without_patches_and_an_origin_that_is_known_or_not(tmp_path: Path) -> None:
    write_cells(tmp_path / "t", "empty", np.zeros((0, 2), int))
    assert read_header(adopted(tmp_path / "t")).patches == 0
    assert read_header(adopted(write_clam(tmp_path / "c", "s", grid(12)).parents[1])).origin is None
    assert read_header(own(tmp_path / "o.h5", origin=(3, 4))).origin == (3, 4)


def test_what_cannot_be_adopted_is_named_and_the_rest_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file of the own form stays where it is."""
    folder = tmp_path / "mixed"
    write_clam(folder, "a", grid(12))
    own(folder / "b.h5")
    write_stamp(folder, "c", grid(12, 256.0))
    write_owkin(folder, "d", grid(12, 1))
    (folder / "e.pt").write_text("none")
    write_clam(folder / "more", "a", grid(12))
    assert adopted(folder).name == "a.h5"
    lines = capsys.readouterr().out.splitlines()
    pixels = "not level-0 pixels; give"
    assert f"the coords of {folder / 'c.h5'} are micrometres, {pixels} --slides or --slide_mpp" in lines
    assert f"the coords of {folder / 'd' / 'features.npy'} are tiles, {pixels} --coords_unit, and --slides" in lines
    assert any(line.startswith(f"{folder / 'e.pt'} is not an HDF5") for line in lines)
    assert any(line.endswith("are of one slide, a; give the folder of one of them") for line in lines)
    assert lines[-1] == f"1 slides written to {folder}_adopted, 4 not"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"^no file of .*mine could be adopted; mend what is said above$"),
        ({"coords_unit": "feet"}, r"^--coords_unit 'feet' is none: give level0, micrometres, or how many one of them"),
        ({"coords_unit": 0}, r"^--coords_unit 0: give a number above 0$"),
        ({"pitch": -1}, r"^--pitch -1: give a number above 0$"),
        ({"slide_mpp": float("nan")}, r"^--slide_mpp nan: give a number above 0$"),
        ({"output_dir": "mine/new"}, r"new lies in .*mine, and would be read with it: give another folder$"),
        ({"slides": "none"}, r"^no folder of slides none: give"),
    ],
)
def test_what_is_given_wrong(
    tmp_path: Path, given: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_npz(tmp_path / "mine", "s1", grid(12), features="x")
    with pytest.raises(InputError, match=message):
        adopt(str(tmp_path / "mine"), **given)
    assert not (tmp_path / "mine_adopted").exists()  # nothing is left of it
    with pytest.raises(InputError, match=r"empty does not exist: correct the path$"):
        adopt(str(tmp_path / "empty"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"^no feature file .* in .*empty; correct the folder"):
        adopt(str(tmp_path / "empty"))


def test_numbers_that_no_network_takes_are_not_adopted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cells(tmp_path, features=np.full((7, 8), 3e38, np.float32))
    with pytest.raises(InputError, match=r"could be adopted"):
        adopt(str(tmp_path), slide_mpp=MicronsPerPixel(0.25), output_dir=str(tmp_path.with_name("elsewhere")))
    assert "features are as large as 3e+38 (file " in capsys.readouterr().out
