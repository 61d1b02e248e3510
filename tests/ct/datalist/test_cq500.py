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
from tests.ct.series import write_head

VOTES = {0: (1, 1, 0), 1: (0, 1, 0), 7: (1, 1, 1)}


def case(folder: Path, number: int) -> Path:
    """Thick, thin and bone series, as CQ500 has them; none says who the patient is."""
    study = folder / f"CQ500CT{number} CQ500CT{number}" / "Unknown Study"
    common: dict[str, Any] = {"study": f"1.{number}", "patient": "anonymous"}
    write_head(study / "CT Plain", f"1.{number}.1", count=12, SeriesNumber=2, **common)
    write_head(study / "CT 0.625mm", f"1.{number}.2", count=20, step=0.625, SeriesNumber=3, **common)
    write_head(study / "CT Bone", f"1.{number}.3", count=12, SeriesNumber=4, ConvolutionKernel="BONE", **common)
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


def test_each_case_is_a_scan_by_majority_of_its_own_patient_and_of_the_chosen_series(folder: Path) -> None:
    cohort = collect(folder)
    assert [(scan.bag_id, scan.label) for scan in cohort.scans] == [("CQ500CT0", 1), ("CQ500CT1", 0), ("CQ500CT7", 1)]
    assert len({scan.patient for scan in cohort.scans}) == 3  # though the files say "anonymous" throughout
    assert cohort.patients_not_in_headers().keys() == {"CQ500CT0", "CQ500CT1", "CQ500CT7"}
    for number, scan in zip(VOTES, cohort.scans, strict=True):
        assert scan.image == f"CQ500CT{number} CQ500CT{number}/Unknown Study/CT Plain"
        assert (scan.slices, scan.sops) == (12, tuple(f"1.{number}.1.{index + 1}" for index in range(12)))
    bone, spacing = cohort.warnings.as_json().items()
    assert (bone[0], bone[1]["count"]) == ("series N (N slices): bone kernel BONE", 3)
    assert (spacing[0].startswith("series N (N slices): its spacing"), spacing[1]["count"]) == (True, 3)
    assert cohort.rejected.as_json() == {}


def test_a_case_may_be_the_zip_it_came_in_or_lie_deeper(folder: Path) -> None:
    unpacked = folder / "CQ500CT1 CQ500CT1"
    shutil.make_archive(str(folder / "CQ500-CT-1"), "zip", folder, unpacked.name)
    (folder / "part 1").mkdir()
    shutil.move(folder / "CQ500CT7 CQ500CT7", folder / "part 1")
    deeper = "part 1/CQ500CT7 CQ500CT7/Unknown Study/CT Plain"
    for one in ("CQ500CT1 CQ500CT1/Unknown Study/CT Plain", "CQ500-CT-1.zip"):  # what was unpacked goes first
        cohort = collect(folder)
        assert [(scan.image, scan.slices) for scan in cohort.scans[1:]] == [(one, 12), (deeper, 12)]
        assert cohort.rejected.as_json() == {}
        shutil.rmtree(unpacked, ignore_errors=True)


def test_cases_that_lack_rows_or_images_are_left_out_and_one_that_is_there_twice_is_refused(folder: Path) -> None:
    write_reads(folder, {0: (1, 1, 1), 3: (1, 1, 1), 7: (0, 0, 0)})
    shutil.rmtree(folder / "CQ500CT0 CQ500CT0" / "Unknown Study")
    cohort = collect(folder)
    assert [scan.bag_id for scan in cohort.scans] == ["CQ500CT7"]
    assert cohort.rejected.as_lines() == [
        "folder without a row: 1, such as CQ500CT1 CQ500CT1",
        "row without its folder: 1, such as CQ500-CT-3",
        "scan that holds no images that can be read: 1, such as CQ500CT0: holds no images that can be read",
    ]
    twice = folder / "again" / "CQ500-CT-0"
    twice.mkdir(parents=True)
    with pytest.raises(InputError, match=rf"{folder}/CQ500CT0 CQ500CT0 and {twice} are of one case"):
        collect(folder)
    with pytest.raises(InputError, match=rf"^{twice} holds no folder named like CQ500CT0"):
        collect_cq500(twice, folder / "reads.csv", folder / "index.jsonl")


def test_a_table_that_is_wrong_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "reads.csv"
    for text, message in (
        ("name,R1:ICH,R2:ICH,R3:ICH\nCQ500-CT-0,1,,0\n", ", line 2: the label '' is not one of the classes"),
        ("name,R1:ICH,R2:ICH,R3:ICH\nCT-1,1,1,0\n", ", line 2: 'CT-1' is not like CQ500-CT-0: give CQ500's reads.csv"),
        ("name,R1:ICH\nCQ500-CT-0,1\n", " has no column R2:ICH, R3:ICH"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=f"^{re.escape(f'{file}{message}')}"):
            read_majority_labels(file)
