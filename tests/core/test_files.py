# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
import errno
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from scripts.core.errors import InputError
from scripts.core.files import in_bundle, plain, whole_file, writable_folder, write_whole
from tests.shared_data import ROOT


def test_a_folder_is_made_and_left_empty_unless_it_cannot_be(tmp_path: Path) -> None:
    assert list(writable_folder(tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write to .*file/results \(Not a directory\): give another folder"):
        writable_folder(tmp_path / "file" / "results")


def test_a_file_is_replaced_whole_or_not_at_all_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "new" / "result.json"
    write_whole(path, "first, and longer")
    write_whole(path, b"second")
    with patch("os.replace", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        write_whole(path, "third")
    assert [(each.name, each.read_text()) for each in path.parent.iterdir()] == [("result.json", "second")]


def test_a_full_disk_is_one_line_and_leaves_the_file_of_before(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    write_whole(path, "first")
    full = OSError(errno.ENOSPC, "of any wording")
    message = f"cannot write {path} (No space left on device): make room there, or give another folder"
    with patch("pathlib.Path.write_bytes", side_effect=full), pytest.raises(InputError, match=re.escape(message)):
        write_whole(path, "second")
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("model.pt", "first")]
    with pytest.raises(FileNotFoundError), whole_file(path):
        (tmp_path / "another").read_text()  # is no fault of the disk


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EDQUOT])
def test_a_folder_that_the_system_refuses_is_one_line(tmp_path: Path, number: int) -> None:
    path = tmp_path / "new" / "result.json"
    message = f"cannot write {path} ({os.strerror(number)}): make room there, or give another folder"
    refused = OSError(number, "of any wording", str(path.parent))
    with patch("pathlib.Path.mkdir", side_effect=refused), pytest.raises(InputError, match=re.escape(message)):
        write_whole(path, "first")
    path.parent.mkdir()
    refused.filename = str(path.with_name(f".{path.name}.{os.getpid()}.part"))
    with (  # on a read-only disk not even what is not there can be removed
        patch("pathlib.Path.write_bytes", side_effect=refused),
        patch("pathlib.Path.unlink", side_effect=refused),
        pytest.raises(InputError, match=re.escape(message)),
    ):
        write_whole(path, "first")


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        dead = ended.pid
    gone = [f".a[1].h5.{dead}.part", ".a[1].h5.99999999999999999999.part", ".a[1].h5.x.part"]
    living = {f".a[1].h5.{process}.part" for process in (1, os.getppid())}
    stay = [*living, f".b.h5.{dead}.part", f".a1.h5.{dead}.part"]
    for name in gone + stay:
        (tmp_path / name).write_text("half of it")
    write_whole(tmp_path / "a[1].h5", "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["a[1].h5", *stay])
    assert (tmp_path / "a[1].h5").read_text() == "whole"


def test_numbers_are_plain() -> None:
    assert plain({"a": np.array([1.0, np.nan]), "b": (np.int64(2), float("inf"), "x", None, True)}) == {
        "a": [1.0, None],
        "b": [2, None, "x", None, True],
    }


def test_a_relative_path_that_leads_nowhere_is_looked_for_in_the_bundle_of_this_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert in_bundle("scripts/core/files.py").samefile(ROOT / "scripts" / "core" / "files.py")
    (tmp_path / "scripts").mkdir()
    for path in ("scripts", "nowhere.pt", str(tmp_path / "nowhere.pt")):
        assert in_bundle(path) == Path(path)
