# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import h5py
import numpy as np
import pytest

from scripts.core.errors import InputError
from scripts.wsi.features.base import Keys
from scripts.wsi.features.files import open_features, read_header
from tests.wsi.foreign_arrays import write_atlaspatch
from tests.wsi.foreign_features import grid


def test_what_the_file_says_of_the_slide_and_corners_of_five_columns(tmp_path: Path) -> None:
    with open_features(write_atlaspatch(tmp_path, "s", grid(12))) as file:
        assert (file.header.slide_size, file.header.magnification) == ((60_000, 50_000), 40)
        np.testing.assert_array_equal(file.coords, grid(12))


def test_of_several_encoders_one_must_be_named_and_what_is_half_written_does_not_count(tmp_path: Path) -> None:
    path = write_atlaspatch(tmp_path, "s", grid(12), encoders=("uni_v1", "conch_v1"))
    way = "write those of one: python -m scripts adopt FOLDER --features_key features/ENCODER"
    with pytest.raises(InputError, match=rf"{path} holds features of conch_v1 and uni_v1; {way}$"):
        read_header(path)
    with open_features(path, Keys("features/conch_v1")) as file:
        assert (file.header.encoder, float(file.header.pitch)) == ("conch_v1", 512)
    with h5py.File(path, "r+") as raw:
        raw.move("features/conch_v1", "features/__tmp_conch_v1")
    assert read_header(path).encoder == "uni_v1"
    with h5py.File(path, "r+") as raw:
        raw.move("features/uni_v1", "features/__tmp_uni_v1")
    with pytest.raises(InputError, match=rf"{path} holds features of no encoder; "):
        read_header(path)
