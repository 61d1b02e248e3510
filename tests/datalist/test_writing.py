# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from scripts.core.errors import InputError
from scripts.datalist.split import CohortRemarks, Leakage
from scripts.datalist.writing import CheckedDatalist, DatalistRequest, as_text, destination


class Request(DatalistRequest):
    content = "scans"


@dataclass(frozen=True)
class Bag:
    bag_id: str
    patient: str

    def entry(self) -> dict[str, Any]:
        return {"bag_id": self.bag_id, "image": ["a/1.dcm", "ä/2.dcm"]}


SECTIONS = {"training": [Bag("s1", "Jane"), Bag("s2", "Ann")], "validation": [], "test": [Bag("s3", "Jane")]}
COUNTS = {"training": {"slices": 752803.0, "prevalence": 0.1434}, "total": {"slices": 12345678.0, "prevalence": 1}}


def checked(request: Request, leaks: bool = False) -> str:
    leakage = Leakage("slices", {"p": {"training": "a", **({"test": "b"} if leaks else {})}, "q": {"test": "c"}}, {})
    remarks = CohortRemarks(notes=["a note"])
    remarks.rejected.add("broken file", ["x.dcm"])
    written = CheckedDatalist(as_text(SECTIONS), leakage, COUNTS, remarks, {"labels": "l.csv"}, Path("l.csv"))
    return written.write(request, *destination(request))


def test_a_datalist_is_written_with_its_check(tmp_path: Path) -> None:
    summary = checked(Request(folder=tmp_path, seed=3))
    text = (tmp_path / "datalist.json").read_text()
    numbers = {"Ann": "1", "Jane": "2"}  # no more is told of a patient
    expected = {name: [{**bag.entry(), "patient": numbers[bag.patient]} for bag in SECTIONS[name]] for name in SECTIONS}
    assert json.loads(text) == expected
    lines = [line.strip(" ,") for line in text.splitlines() if "bag_id" in line]
    assert [json.loads(line)["bag_id"] for line in lines] == ["s1", "s2", "s3"]  # a line for each
    check = json.loads((tmp_path / "datalist_check.json").read_text())
    assert (check["leakage"]["patients"], check["seed"], check["labels"], check["notes"]) == (2, 3, "l.csv", ["a note"])
    assert check["rejected"] == {"broken file": {"count": 1, "examples": ["x.dcm"]}}
    assert summary.splitlines() == [
        " section    slices  prevalence",
        "training    752803      0.1434",
        "   total  12345678           1",
        "leakage: 0 of 2 patients and 0 of 0 slices are in more than one section",
        "note: a note",
        "rejected: broken file: 1, such as x.dcm",
    ]


def test_a_leak_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^1 of 2 patients .* \(of a and b\): correct patient or section in l.csv$"):
        checked(Request(folder=tmp_path), leaks=True)
    assert list(tmp_path.iterdir()) == []


def test_a_datalist_written_by_hand_is_kept_unless_forced(tmp_path: Path) -> None:
    (tmp_path / "datalist.json").write_text("mine")
    with pytest.raises(InputError, match=r"datalist\.json is there, and no work of this command: .* or --force$"):
        checked(Request(folder=tmp_path))
    checked(Request(folder=tmp_path, force=True))
    checked(Request(folder=tmp_path))  # what the command wrote it may write again


def test_a_folder_that_takes_no_files_asks_for_an_output(tmp_path: Path) -> None:
    with patch("tempfile.TemporaryFile", side_effect=PermissionError):
        for output, advice in ((None, "--output FILE"), (tmp_path / "a.json", "another folder")):
            with pytest.raises(InputError, match=rf"{tmp_path}.* give .*{advice}$"):
                destination(Request(folder=tmp_path, output=output))


def test_shares_and_a_folder_that_are_none_are_refused(tmp_path: Path) -> None:
    shares: Any
    for shares in ((0.7, 0.2), 0.7, (0.7, 0.2, 0.2), (1.2, -0.2, 0), ("a", "b", "c")):
        with pytest.raises(InputError, match=r"^--shares .*: give three numbers that add up to 1, for training, val"):
            Request(folder=tmp_path, shares=shares)
    with pytest.raises(InputError, match=r"none is not a folder: give the one that holds the scans$"):
        Request(folder=tmp_path / "none")
