# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts.core.errors import InputError
from scripts.wsi.features.base import Keys
from scripts.wsi.features.files import open_features, read_header
from tests.wsi.foreign_arrays import write_spatialdata, zarr_group
from tests.wsi.foreign_features import grid


def test_what_a_store_says_of_the_slide(tmp_path: Path) -> None:
    header = read_header(write_spatialdata(tmp_path, "s", grid(12)))
    assert (header.mpp, header.slide_size, header.origin) == (0.25, (60_000, 50_000), None)
    header = read_header(write_spatialdata(tmp_path, "t", grid(12), spec=False))
    assert (header.mpp, header.slide_size, float(header.tile)) == (None, None, 512)


def test_a_slide_without_tiles(tmp_path: Path) -> None:
    header = read_header(write_spatialdata(tmp_path, "s", grid(0), spec=False))
    assert (header.patches, float(header.pitch), float(header.tile)) == (0, 256, 256)


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_spatialdata(tmp_path, "s", grid(12), codec="")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"shapes.parquet needs a package to be read: pip install pyarrow$"):
        read_header(path)


def test_of_several_tables_one_must_be_named(tmp_path: Path) -> None:
    path = write_spatialdata(tmp_path, "s", grid(12), encoders=("uni", "conch"))
    way = "write those of one: python -m scripts adopt FOLDER --features_key conch_tiles"
    with pytest.raises(InputError, match=f"{path} holds the tables conch_tiles and uni_tiles; {way}$"):
        read_header(path)
    with open_features(path, Keys("uni_tiles")) as file:
        assert file.header.encoder == "uni"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"order": np.arange(12)[::-1]}, "the rows of the table uni_tiles of .* are not those of its shapes tiles"),
        ({"transformation": "scale"}, "the shapes tiles of .* are not in level-0 pixels, but transformed; extract"),
    ],
)
def test_tiles_whose_place_is_not_known_are_refused(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_header(write_spatialdata(tmp_path, "s", grid(12), **given))


def test_shapes_that_are_missing_or_lie_outside_are_refused(tmp_path: Path) -> None:
    path = write_spatialdata(tmp_path, "s", grid(12))
    shapes = path / "shapes" / "tiles" / "shapes.parquet"
    outside = shapes.rename(tmp_path / "outside.parquet")
    with pytest.raises(InputError, match=r"holds no shapes/tiles/shapes.parquet of its tiles; extract its features"):
        read_header(path)
    shapes.symlink_to(outside)
    with pytest.raises(InputError, match=r"shapes.parquet lies outside of its Zarr store; give a store that holds"):
        read_header(path)
    zarr_group(path / "tables" / "uni_tiles", {"region": "../../../elsewhere"})
    with pytest.raises(InputError, match=r"elsewhere/shapes.parquet lies outside of its Zarr store"):
        read_header(path)
