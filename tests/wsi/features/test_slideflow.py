# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import numpy as np
import pytest

from scripts.core.errors import InputError
from scripts.wsi.features.files import open_features, read_header
from tests.wsi.foreign_arrays import write_slideflow
from tests.wsi.foreign_features import grid


def test_centres_become_corners(tmp_path: Path) -> None:
    with open_features(write_slideflow(tmp_path, "s", grid(12))) as file:
        np.testing.assert_array_equal(file.coords, grid(12))


def test_an_index_without_places_and_a_configuration_that_is_none(tmp_path: Path) -> None:
    path = write_slideflow(tmp_path, "s", grid(12))
    path.with_name("bags_config.json").write_text("[1]")
    assert read_header(path).encoder == ""
    np.savez(path.with_name("s.index"), arr_0=np.arange(12))  # where the tiles lie in a TFRecord
    with pytest.raises(InputError, match=r"s.index.npz does not hold the places of tiles.*; export the bags again$"):
        read_header(path)
    path.with_name("s.index.npz").write_bytes(b"none")
    with pytest.raises(InputError, match=r"s.index.npz is damaged or cut short; copy it again"):
        read_header(path)
