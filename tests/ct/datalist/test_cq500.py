# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from scripts.core.errors import InputError
from scripts.ct.datalist.cq500 import collect_cq500, read_majority_labels
from scripts.ct.datalist.images import Cohort
from tests.ct.studies import write_series

VOTES = {0: (1, 1, 0), 1: (0, 1, 0), 7: (1, 1, 1)}


def case(folder: Path, number: int) -> Path:
    """Thick, thin and bone series, as CQ500 has them; none says who the patient is."""
    study = folder / f"CQ500CT{number} CQ500CT{number}" / "Unknown Study"
    common: dict[str, Any] = {"study": f"1.{number}", "patient": "anonymous"}
    write_series(study / "CT Plain", f"1.{number}.1", count=12, SeriesNumber=2, **common)
    write_series(study / "CT 0.625mm", f"1.{number}.2", count=20, step=0.625, SeriesNumber=3, **common)
    write_series(study / "CT Bone", f"1.{number}.3", count=12, SeriesNumber=4, ConvolutionKernel="BONE", **common)
    return study.parent


def write_reads(folder: Path, votes: dict[int, tuple[int, int, int]] = VOTES) -> Path:
    rows = [f"CQ500-CT-{number},B1,{','.join(f'{vote},1' for vote in three)}" for number, three in votes.items()]
    file = folder / "reads.csv"
    file.write_text("\n".join(["name,Category,R1:ICH,R1:IPH,R2:ICH,R2:IPH,R3:ICH,R3:IPH", *rows]))
    return file


def collect(folder: Path) -> Cohort:
    return collect_cq500(folder, folder / "reads.csv", folder / "index.jsonl")[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in VOTES:
        case(tmp_path, number)
    write_reads(tmp_path)
    return tmp_path


def test_each_case_is_a_scan_by_majority_and_its_own_patient(folder: Path) -> None:
    cohort = collect(folder)
    assert [(scan.bag_id, scan.label) for scan in cohort.scans] == [("CQ500CT0", 1), ("CQ500CT1", 0), ("CQ500CT7", 1)]
    assert len({scan.patient for scan in cohort.scans}) == 3  # though the files say "anonymous" throughout
    assert cohort.patients_not_in_headers().keys() == {"CQ500CT0", "CQ500CT1", "CQ500CT7"}
    assert cohort.rejected.as_json() == {}


def test_the_series_is_chosen_and_the_others_are_reported(folder: Path) -> None:
    cohort = collect(folder)
    for number, scan in zip(VOTES, cohort.scans, strict=True):
        assert (scan.image, scan.slices) == (f"CQ500CT{number} CQ500CT{number}/Unknown Study/CT Plain", 12)
        assert scan.sops == tuple(f"1.{number}.1.{index + 1}" for index in range(12))
    warnings = cohort.warnings.as_json()
    assert warnings.pop("series N (N slices): bone kernel BONE")["count"] == 3
    assert [(kind.startswith("series N (N slices): its spacing"), about["count"]) for kind, about in warnings.items()]


def test_a_case_may_be_the_zip_it_came_in(folder: Path) -> None:
    unpacked = folder / "CQ500CT1 CQ500CT1"
    shutil.make_archive(str(folder / "CQ500-CT-1"), "zip", folder, unpacked.name)
    assert collect(folder).scans[1].image == "CQ500CT1 CQ500CT1/Unknown Study/CT Plain"  # what was unpacked goes first
    shutil.rmtree(unpacked)
    cohort = collect(folder)
    assert [(scan.image, scan.slices) for scan in cohort.scans][1] == ("CQ500-CT-1.zip", 12)
    assert cohort.rejected.as_json() == {}


def test_cases_may_lie_deeper(folder: Path) -> None:
    (folder / "part 1").mkdir()
    shutil.move(folder / "CQ500CT7 CQ500CT7", folder / "part 1")
    assert collect(folder).scans[2].image == "part 1/CQ500CT7 CQ500CT7/Unknown Study/CT Plain"


def test_rows_without_folder_and_folders_without_row_are_left_out(folder: Path) -> None:
    write_reads(folder, {0: (1, 1, 1), 3: (1, 1, 1), 7: (0, 0, 0)})
    cohort = collect(folder)
    assert [scan.bag_id for scan in cohort.scans] == ["CQ500CT0", "CQ500CT7"]
    assert cohort.rejected.as_json() == {
        "folder without a row": {"count": 1, "examples": ["CQ500CT1 CQ500CT1"]},
        "row without its folder": {"count": 1, "examples": ["CQ500-CT-3"]},
    }


def test_a_case_without_images_is_left_out(folder: Path) -> None:
    shutil.rmtree(folder / "CQ500CT0 CQ500CT0" / "Unknown Study")
    cohort = collect(folder)
    assert [scan.bag_id for scan in cohort.scans] == ["CQ500CT1", "CQ500CT7"]
    assert cohort.rejected.as_lines() == [
        "scan that holds no images that can be read: 1, such as CQ500CT0: holds no images that can be read"
    ]


def test_a_case_that_is_there_twice_is_refused(folder: Path) -> None:
    twice = folder / "again" / "CQ500-CT-0"
    twice.mkdir(parents=True)
    with pytest.raises(InputError, match=rf"{folder}/CQ500CT0 CQ500CT0 and {twice} are of one case"):
        collect(folder)


def test_a_folder_without_cases_is_refused(tmp_path: Path) -> None:
    write_reads(tmp_path)
    with pytest.raises(InputError, match=rf"^{tmp_path} holds no folder named like CQ500CT0"):
        collect(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,R1:ICH,R2:ICH,R3:ICH\nCQ500-CT-0,1,,0\n", "line 2: the label '' is not one of the classes"),
        ("name,R1:ICH,R2:ICH,R3:ICH\nCT-1,1,1,0\n", "line 2: 'CT-1' is not like CQ500-CT-0: give CQ500's reads.csv"),
        ("name,R1:ICH\nCQ500-CT-0,1\n", "has no column R2:ICH, R3:ICH"),
        ("name,R1:ICH,R2:ICH,R3:ICH\n", "has no rows"),
    ],
)
def test_a_table_that_is_wrong_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "reads.csv"
    file.write_text(text)
    with pytest.raises(InputError, match=f"{file}[ ,]+{re.escape(message)}"):
        read_majority_labels(file)
