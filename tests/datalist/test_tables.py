# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
import re
from pathlib import Path

import pytest

from scripts.core.errors import InputError
from scripts.datalist.tables import read_rows


def written(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    file = folder / "labels.csv"
    file.write_bytes(text.encode(encoding))
    return file


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_csv_is_read_as_spreadsheets_write_it(tmp_path: Path, delimiter: str, encoding: str) -> None:
    lines = ["Scan,other,LABEL", "a,x,1", "", '"b",,0', ",,", " c d ,x, 1 "]
    file = written(tmp_path, "\r\n".join(lines).replace(",", delimiter), encoding)
    wanted = [(2, ["a", "1"]), (4, ["b", "0"]), (6, ["c d", "1"])]
    assert list(read_rows(file, ("scan", "label"))) == wanted


def test_what_is_no_csv_is_refused(tmp_path: Path) -> None:
    missing = tmp_path / "none.csv"
    with pytest.raises(InputError, match=rf"^cannot read {re.escape(str(missing))} .*: give .* --labels FILE$"):
        list(read_rows(missing, ["a"]))
    file = written(tmp_path, "scan,label\nköln,1\n", "latin-1")
    with pytest.raises(InputError, match=r"labels\.csv is no csv in UTF-8: save it as one$"):
        list(read_rows(file, ["scan"]))


def test_an_optional_column_that_is_not_there_is_empty(tmp_path: Path) -> None:
    file = written(tmp_path, "b,a\n1,2\n")
    assert list(read_rows(file, ["a"], ["c", "b"])) == [(2, ["2", "", "1"])]
