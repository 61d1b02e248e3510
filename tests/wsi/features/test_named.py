# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Arrays that are known by usual names, or by those that the user gives."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts.core.errors import InputError
from scripts.wsi.features.base import Keys
from scripts.wsi.features.files import open_features, read_header
from tests.wsi.foreign_arrays import (
    write_atlaspatch,
    write_dict,
    write_npz,
    write_owkin,
    write_tiatoolbox_zarr,
    zarr_array,
    zarr_group,
)
from tests.wsi.foreign_features import grid, some_features, write_clam, write_h5, write_stamp, write_trident

FEATURES = some_features(12)


def test_the_user_may_say_which_arrays_are_which_and_what_their_unit_is(tmp_path: Path) -> None:
    path = write_npz(tmp_path, "s", grid(12, 100), features="x", places=grid(12, 50))
    with pytest.raises(InputError, match=r"s.npz holds no `features`, but x \(12, 8\), coords \(12, 2\), places"):
        open_features(path).__enter__()
    with open_features(path, Keys("x")) as file:
        assert (file.header.unit, float(file.header.pitch)) == ("level-0 pixels", 100)
    with open_features(path, Keys("x", "places", 0.5)) as file:
        assert (file.header.unit, float(file.header.pitch)) == ("micrometres", 25)
        np.testing.assert_array_equal(file.coords, grid(12, 25))
    with open_features(path, Keys("x", unit="micrometres", pitch=100.0)) as file:
        assert (file.header.unit, file.header.pitch_from) == ("micrometres", "--pitch")
    with pytest.raises(InputError, match=r"s.npz holds no `y`, but x \(12, 8\), coords"):
        open_features(path, Keys("y")).__enter__()


@pytest.mark.parametrize("rows", [None, 2])
def test_of_coords_in_several_batches_the_first_is_not_taken_for_all(tmp_path: Path, rows: int | None) -> None:
    coords = np.stack([grid(12)] * 12)
    path = write_h5(tmp_path / "s.h5", rows=rows, embeddings=FEATURES, coords=coords)
    with pytest.raises(
        InputError, match=r"features \(12, 8\) and coords \(12, 12, 2\) should be \(N, D\) and \(N, 2\)"
    ):
        read_header(path)


@pytest.mark.parametrize(("unit", "scale"), [(0.5, 0.5), ("micrometres", 1)])
def test_what_a_file_states_in_pixels_says_nothing_of_coords_in_another_unit(
    tmp_path: Path, unit: str | float, scale: float
) -> None:
    path = write_trident(tmp_path, "s", grid(12, 256))  # 512 pixels at 0.25 are 256 at 0.5
    with open_features(path, Keys(unit=unit)) as file:
        header = file.header
        assert (header.pitch, header.tile, header.unit) == (256 * scale, 256 * scale, "micrometres")
    with open_features(path, Keys(unit="level0")) as file:
        assert float(file.header.tile) == 512


def test_what_a_file_counts_as_its_coords_goes_with_them_and_micrometres_stay_what_they_are(tmp_path: Path) -> None:
    with open_features(write_owkin(tmp_path, "s", grid(1, 1)), Keys(unit=112)) as file:
        assert (float(file.header.pitch), float(file.header.tile)) == (112, 112)
    stamp = write_stamp(tmp_path, "s", grid(1, 128.0), tile_um=128)
    for unit, tile in (("micrometres", 128), ("level0", 256)):  # the latter a guess
        with open_features(stamp, Keys(unit=unit)) as file:
            assert float(file.header.tile) == tile


@pytest.mark.parametrize("name", ["features", "feats"])
def test_an_h5_file_of_other_usual_names_is_of_no_program(tmp_path: Path, name: str) -> None:
    arrays: dict[str, Any] = {name: FEATURES, "coordinates": grid(12)}
    path = write_h5(tmp_path / "s.h5", {"patch_size_level0": 512}, **arrays)
    with open_features(path) as file:
        assert (file.header.format, file.header.pitch_from) == ("named arrays", "patch_size_level0 less overlap")
        np.testing.assert_array_equal(file.coords, grid(12))
    path = write_h5(tmp_path / "t.h5", features=FEATURES[None], coordinates=grid(12)[None])
    assert read_header(path).format == "named arrays"


def test_a_store_of_corners_is_of_no_program(tmp_path: Path) -> None:
    store = zarr_group(tmp_path / "s.zarr")
    zarr_array(store / "features", FEATURES)
    zarr_array(store / "coordinates", grid(12))
    header = read_header(store)
    assert (header.format, header.unit, float(header.pitch)) == ("named arrays", "level-0 pixels", 512)


def test_a_dict_beside_the_patches_of_trident_or_clam(tmp_path: Path) -> None:
    write_trident(tmp_path / "t", "s", grid(12), as_pt=True)
    write_clam(tmp_path / "c", "s", grid(12), older=True, level=1)
    for folder in ("t", "c"):
        assert read_header(write_dict(tmp_path / folder, "s", grid(12))).format == "named arrays"


def test_columns_beyond_x_and_y_are_left_out_only_where_a_format_has_them(tmp_path: Path) -> None:
    path = write_npz(tmp_path, "s", grid(12), features="x", boxes=np.tile(grid(12), 2))
    with pytest.raises(InputError, match=r"coords \(12, 4\) should be \(N, D\) and \(N, 2\)"):
        open_features(path, Keys("x", "boxes")).__enter__()
    for path, keys in (
        (write_atlaspatch(tmp_path, "a", grid(12)), Keys("features/uni_v1")),
        (write_tiatoolbox_zarr(tmp_path, "b", grid(12)), Keys("features", "coordinates")),
    ):
        with open_features(path, keys) as file:
            np.testing.assert_array_equal(file.coords, grid(12))
