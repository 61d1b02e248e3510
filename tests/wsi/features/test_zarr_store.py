# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Zarr stores of both versions are read chunk by chunk, and no chunk from outside of them."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts.core.errors import InputError
from scripts.wsi.features.base import Keys
from scripts.wsi.features.files import open_features
from scripts.wsi.features.zarr_store import is_zarr, zarr_array, zarr_arrays, zarr_attributes
from tests.wsi import foreign_arrays
from tests.wsi.foreign_features import grid, some_features

FEATURES = some_features(177)
KINDS = [(3, "zstd"), (3, "gzip"), (3, ""), (2, "zlib"), (2, "gzip"), (2, "zstd"), (2, "")]


def store(folder: Path, array: np.ndarray = FEATURES, **how: Any) -> Path:
    root = foreign_arrays.zarr_group(folder / "a.zarr", {"of": "it"}, version=how.get("version", 3))
    foreign_arrays.zarr_array(root / "features", array, **how)
    return root


@pytest.mark.parametrize(("version", "codec"), KINDS)
@pytest.mark.parametrize("chunk", [(50, 5), (7, 8), (300, 9)])
def test_rows_are_those_that_were_stored_whatever_the_chunks(
    tmp_path: Path, version: int, codec: str, chunk: tuple[int, ...]
) -> None:
    path = store(tmp_path, version=version, codec=codec, chunk=chunk)
    assert is_zarr(path)
    assert zarr_attributes(path) == {"of": "it"}
    array = zarr_arrays(path)["features"]
    assert (array.shape, array.dtype) == (FEATURES.shape, FEATURES.dtype)
    for start, stop in ((0, 177), (3, 3), (0, 1), (49, 51), (100, 177), (176, 177)):
        np.testing.assert_array_equal(array.rows(start, stop), FEATURES[start:stop])


def test_a_chunk_that_was_never_written_is_of_the_fill_value(tmp_path: Path) -> None:
    found = zarr_arrays(store(tmp_path, FEATURES + 9, missing=(1, 0)))["features"].whole()
    assert (found[50:100, :5] == 0).all()
    assert (found[50:100, 5:] != 0).all()
    assert zarr_array(tmp_path / "a.zarr", "other") is None
    assert zarr_attributes(tmp_path / "a.zarr", "other") == {}


def rewritten(path: Path, **changes: Any) -> Path:
    file = next(path / "features" / name for name in ("zarr.json", ".zarray") if (path / "features" / name).is_file())
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return path


@pytest.mark.parametrize(
    ("version", "changes", "message"),
    [
        (2, {"filters": [{"id": "pickle"}]}, "an array with filters or in Fortran's order; write the arrays again"),
        (2, {"order": "F"}, "an array with filters or in Fortran's order; write the arrays again without it, or as an"),
        (2, {"dtype": "|O"}, "holds an array of object by zlib, which is not read"),
        (2, {"compressor": {"id": "pickle"}}, "holds an array of float32 by pickle, which is not read"),
        (2, {"dimension_separator": "/../"}, "which is not read"),
        (3, {"codecs": [{"name": "sharding_indexed"}]}, "an array in shards or by sharding_indexed; write the arrays"),
        (3, {"shape": [10**9, 10**4]}, r"features claims \(1000000000, 10000\) numbers and holds \d+ bytes; extract"),
        (3, {"shape": [177]}, r"an array of \(177,\) in chunks of \(50, 5\); write"),
        (3, {"shape": ["x", 8]}, "a.zarr is damaged or cut short; copy it again"),
    ],
)
def test_what_is_not_read_says_so(tmp_path: Path, version: int, changes: dict[str, Any], message: str) -> None:
    path = rewritten(store(tmp_path, version=version, codec="zlib" if version == 2 else "zstd"), **changes)
    with pytest.raises(InputError, match=message), open_features(path):
        pass


def test_blosc_says_which_package_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numcodecs", None)
    path = rewritten(store(tmp_path, version=2, codec=""), compressor={"id": "blosc"})
    with pytest.raises(InputError, match=r"is compressed by Blosc, which needs a package: pip install numcodecs, or"):
        zarr_arrays(path)["features"].whole()


def test_zstd_says_which_package_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = zarr_arrays(store(tmp_path))["features"]
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"is compressed by zstd, which needs a package: pip install pyarrow$"):
        array.whole()


def test_an_array_that_cannot_be_read_is_passed_over_until_it_is_asked_for(tmp_path: Path) -> None:
    path = foreign_arrays.write_tiatoolbox_zarr(tmp_path, "s", grid(120, 224), version=2, codec="zlib")
    foreign_arrays.zarr_array(path / "embeddings", np.zeros((120, 8), np.float32), version=2, codec="")
    about = path / "embeddings" / ".zarray"
    about.write_text(about.read_text().replace('"C"', '"F"'))
    assert sorted(zarr_arrays(path)) == ["coordinates", "features"]
    with open_features(path) as file:
        assert file.header.patches == 120
    message = "holds an array with filters or in Fortran's order"
    with pytest.raises(InputError, match=message):
        open_features(path, Keys("embeddings")).__enter__()
    (path / "features").rename(tmp_path / "features")
    (path / "coordinates").rename(path / "coords")
    with pytest.raises(InputError, match=message):
        open_features(path).__enter__()


def test_a_link_out_of_the_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(FEATURES[:50, :5].tobytes())
    path = store(tmp_path, codec="")
    chunk = path / "features" / "c" / "0" / "0"
    chunk.unlink()
    chunk.symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match=r"c/0/0 lies outside of its Zarr store; give a store that holds its own"):
        zarr_arrays(path)["features"].whole()


def test_a_slide_is_read_of_it_whole_and_in_blocks_of_damage_too(tmp_path: Path) -> None:
    path = foreign_arrays.write_tiatoolbox_zarr(tmp_path, "s", grid(120, 224))
    (path / "features" / "c" / "1" / "0").write_bytes(b"no zstd")
    with open_features(path) as file:
        assert len(file.read(0, 50)) == 50
        with pytest.raises(InputError, match=r"s.zarr is damaged or cut short; copy it again or extract"):
            file.read(50, 60)
