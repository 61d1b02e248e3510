# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import numpy as np
import pytest

from scripts.core.errors import InputError
from scripts.wsi.features.files import feature_paths, open_features, read_header
from tests.wsi.foreign_arrays import write_owkin
from tests.wsi.foreign_features import grid, some_features


def test_the_first_columns_are_places_and_none_of_them_a_feature(tmp_path: Path) -> None:
    with open_features(write_owkin(tmp_path, "s", grid(12, 1))) as file:
        np.testing.assert_array_equal(file.coords, grid(12, 1))
        np.testing.assert_array_equal(file.read(2, 9), some_features(12)[2:9])
        assert (file.header.pitch_um, file.header.slide_id) == (None, "s")


def test_columns_that_are_no_places_are_refused(tmp_path: Path) -> None:
    for level in (np.arange(12), 15.5):
        path = write_owkin(tmp_path, "s", grid(12, 1), level=level)
        with pytest.raises(InputError, match=r"columns of .*features.npy are not one level, and x, y of tiles; give"):
            read_header(path)
    np.save(path, np.zeros((12, 3), np.float32))
    with pytest.raises(InputError, match=r"features.npy of \(12, 3\) has no columns level, x, y before features"):
        read_header(path)


def test_features_with_coords_beside_are_another_programs(tmp_path: Path) -> None:
    path = write_owkin(tmp_path, "s", grid(12, 1))
    assert feature_paths(tmp_path) == [path]
    np.save(path.with_name("coords.npy"), grid(12))
    assert feature_paths(tmp_path) == []
    with pytest.raises(InputError, match=r"holds no `coords`, and there is no .*coords/features.npy or"):
        read_header(path)
