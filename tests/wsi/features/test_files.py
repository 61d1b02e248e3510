# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Which files below a folder are of features, what their slides are called, and what a folder without any is told."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from scripts.core.errors import InputError
from scripts.wsi.features.files import feature_paths, files_of, find_features, nothing_found, open_features, slide_of
from tests.wsi.foreign_arrays import (
    write_atlaspatch,
    write_npz,
    write_owkin,
    write_slideflow,
    write_spatialdata,
    write_tiatoolbox,
    write_tiatoolbox_zarr,
    zarr_array,
    zarr_group,
)
from tests.wsi.foreign_features import grid, load, write_clam, write_h5

Write = Callable[..., Path]


@pytest.mark.parametrize(
    ("write", "beside"),
    [
        (write_atlaspatch, []),
        (write_slideflow, ["bags/CMU-1.index.npz", "bags/bags_config.json"]),
        (write_owkin, []),
        (write_tiatoolbox, ["0.position.npy", "file_map.dat"]),
        (write_tiatoolbox_zarr, []),
        (write_spatialdata, []),
        (write_npz, []),
    ],
)
def test_the_files_of_each_program_are_found_and_are_of_the_slide_that_they_were_made_of(
    tmp_path: Path, write: Write, beside: list[str]
) -> None:
    path = write(tmp_path, "CMU-1", grid(12))
    assert find_features(tmp_path) == [{"image": str(path), "bag_id": "CMU-1"}]
    if path.is_dir():
        assert files_of(path) == sorted(each for each in path.rglob("*") if each.is_file())
    else:
        assert files_of(path) == [path, *(tmp_path / name for name in beside)]
    with open_features(path) as file:
        assert file.header.slide_id == "CMU-1"


def test_a_store_of_any_name_is_found_and_may_be_given_itself(tmp_path: Path) -> None:
    for name in ("a.1", "a.2"):
        write_tiatoolbox_zarr(tmp_path, "s", grid(12, 224)).rename(tmp_path / name)
    write_clam(tmp_path, "s", grid(12))
    assert [bag["bag_id"] for bag in find_features(tmp_path)] == ["a.1", "a.2", "s"]
    for any_place in (False, True):
        assert feature_paths(tmp_path / "a.1", any_place) == [tmp_path / "a.1"]
    assert load(image=str(tmp_path / "a.1"))["mask"].shape == (1, 12)
    zarr_group(tmp_path / "none" / "image")
    assert "but 1 folder of Zarr; put those" in nothing_found(tmp_path / "none")


def test_a_store_whose_features_cannot_be_read_is_found_and_an_image_is_not(tmp_path: Path) -> None:
    store = write_tiatoolbox_zarr(tmp_path, "s", grid(12, 224))
    (store / "features" / "zarr.json").write_text("no JSON")
    zarr_array(zarr_group(tmp_path / "image.zarr") / "0", np.zeros((12, 8)), version=2)
    (tmp_path / "image.zarr" / "0" / ".zarray").write_text("no JSON")
    assert feature_paths(tmp_path) == [store]


def test_what_lies_where_features_may_is_passed_over_unless_any_place_is_looked_at(tmp_path: Path) -> None:
    clam = write_clam(tmp_path / "clam", "s", grid(12))  # with patches/s.h5, which holds no features
    zarr_group(tmp_path / "image.zarr")
    elsewhere = write_npz(tmp_path, "s", grid(12)).rename(tmp_path / "s.npz")
    for name in ("model.pt", "a.npy", "b.safetensors", "3.position.npy", "s.index.npz"):
        (tmp_path / name).touch()
    assert feature_paths(tmp_path) == [clam]
    anywhere = {path.name for path in feature_paths(tmp_path, any_place=True)}
    assert anywhere == {"s.h5", "image.zarr", "model.pt", "a.npy", "b.safetensors", elsewhere.name}


def test_a_folder_without_features_says_what_it_holds_instead(tmp_path: Path) -> None:
    known = r"no feature file \(.h5, .zarr, or .npy, .npz, .pt and .safetensors in a folder features… or pt_files\)"
    with pytest.raises(InputError, match=rf"^{known} in {tmp_path}; correct the folder, or make them with configs"):
        find_features(tmp_path)
    for name in ("a.pkl", "b.pkl", "labels.csv"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=rf"^{known} in {tmp_path}, but 2 .pkl and 1 .csv; correct the folder, or"):
        find_features(tmp_path)
    (tmp_path / "c.npz").touch()
    assert nothing_found(tmp_path) == (
        f"no feature file in {tmp_path}, but 1 .npz; put those of features in a folder called features_ENCODER, "
        f"or run python -m scripts adopt {tmp_path}"
    )


def test_slides_of_one_name_in_two_places_are_refused(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_owkin(tmp_path / folder, "s1", grid(12, 1))
    assert slide_of(tmp_path / "a" / "s1" / "features.npy") == "s1"
    with pytest.raises(InputError, match=r"holds features of s1 in a/s1 and b/s1; give the folder of one of them"):
        find_features(tmp_path)
    assert slide_of(write_h5(tmp_path / "x.y.h5", coords=grid(3))) == "x.y"
