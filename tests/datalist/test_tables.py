# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
import re
from pathlib import Path

import pytest

from scripts.core.errors import InputError
from scripts.datalist.tables import read_rows, zero_or_one


@pytest.mark.parametrize(("delimiter", "encoding"), [(",", "utf-8"), (";", "utf-8-sig"), ("\t", "utf-8-sig")])
def test_a_csv_is_read_as_spreadsheets_write_it(tmp_path: Path, delimiter: str, encoding: str) -> None:
    lines = ["Scan,other,LABEL", "a,x,1", "", '"b",,0', ",,", " c d ,x, 1 "]
    file = tmp_path / "labels.csv"
    file.write_bytes("\r\n".join(lines).replace(",", delimiter).encode(encoding))
    wanted = [(2, ["a", "1", ""]), (4, ["b", "0", ""]), (6, ["c d", "1", ""])]
    assert list(read_rows(file, ("scan", "label"), ("section",))) == wanted  # a column that is not there is empty


def test_what_is_no_csv_of_labels_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    with pytest.raises(InputError, match=rf"^cannot read {re.escape(str(file))} .*: give .* --labels FILE$"):
        list(read_rows(file, ["a"]))
    file.write_bytes("scan,label\nköln,1\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"labels\.csv is no csv in UTF-8: save it as one$"):
        list(read_rows(file, ["scan"]))
    file.write_text("scan,label\na,1\n")
    with pytest.raises(InputError, match=r"has no column section: name it in the first line$"):
        list(read_rows(file, ["label", "section"]))
    with pytest.raises(InputError, match=r"labels\.csv, line 2: the label 'x' is not one of the classes: give 0 or 1$"):
        zero_or_one("x", file, 2)
