# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts.core.errors import InputError
from scripts.wsi.features.files import find_features, read_header, slide_of
from tests.wsi.foreign_arrays import Harm, write_tiatoolbox, write_tiatoolbox_zarr
from tests.wsi.foreign_features import grid


def test_numbered_files_are_of_the_slides_of_the_list_and_without_one_of_their_numbers(tmp_path: Path) -> None:
    listed = [["/slides/a.svs", "/elsewhere/0"], ["/slides/b.svs", "/elsewhere/1"]]
    for number in (0, 1):
        write_tiatoolbox(tmp_path, "", grid(12), number, listed)
    assert [bag["bag_id"] for bag in find_features(tmp_path)] == ["a", "b"]
    (tmp_path / "file_map.dat").unlink()
    assert [bag["bag_id"] for bag in find_features(tmp_path)] == ["0", "1"]


def nested(depth: int) -> Any:
    """Lists whose text is as long as 2 to the power of so many."""
    found: Any = "a"
    for _ in range(depth):
        found = [found, found]
    return found


DEEP = b"]]\x8c\x01s\x94a" + b"]" * 10_000 + b"a" * 10_001 + b"."  # [["s", [[[…]]]]]


def test_a_list_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tiatoolbox(tmp_path, "a", grid(12))
    assert slide_of(path) == "a"
    with monkeypatch.context() as patched:
        patched.setattr("scripts.wsi.features.tiatoolbox._PlainPickle.load", lambda self: 1 / 0)
        assert slide_of(path) == "a"
    write_tiatoolbox(tmp_path, "b", grid(12))
    os.utime(tmp_path / "file_map.dat", (9, 9))
    assert slide_of(path) == "b"


def test_of_two_outputs_of_a_network_both_files_are_named(tmp_path: Path) -> None:
    path = write_tiatoolbox(tmp_path, "a", grid(12))
    shutil.copy(path, tmp_path / "0.features.1.npy")
    message = r"holds features of a in 0.features.0.npy and 0.features.1.npy; keep one of them$"
    with pytest.raises(InputError, match=message):
        find_features(tmp_path)


LARGE = b"Nr\xff\xff\xff\xff."  # would have the unpickler of C make a table of 64 GiB


@pytest.mark.parametrize("content", [DEEP, LARGE, b"\x80\x04N\x94.", b"\x80\x04\x8c", b"(" * 99], ids=range(5))
def test_a_list_that_is_damaged_is_passed_over(tmp_path: Path, content: bytes) -> None:
    path = write_tiatoolbox(tmp_path, "s", grid(12), 7)
    (tmp_path / "file_map.dat").write_bytes(content)
    assert slide_of(path) == "7"


@pytest.mark.parametrize(
    "listed", [[["s", nested(60)]], [["s", 7]], Harm(), [["a", Harm()]], [1], "x", [["a", "b", "c"]]]
)
def test_a_list_that_is_none_is_passed_over_and_never_run(
    tmp_path: Path, listed: object, capfd: pytest.CaptureFixture[str]
) -> None:
    assert slide_of(write_tiatoolbox(tmp_path, "s", grid(12), 7, listed)) == "7"
    assert "run as code" not in "".join(capfd.readouterr())


def test_positions_of_other_columns_are_refused_and_canvas_is_features_too(tmp_path: Path) -> None:
    path = write_tiatoolbox(tmp_path, "s", grid(12))
    np.save(tmp_path / "0.position.npy", grid(12))
    with pytest.raises(InputError, match=r"the positions of .*0.npy are \(12, 2\), not left, top, right and bottom"):
        read_header(path)
    store = write_tiatoolbox_zarr(tmp_path, "s", grid(12, 224))
    (store / "features").rename(store / "canvas")
    assert (read_header(store).format, read_header(store).patches) == ("TIAToolbox", 12)
