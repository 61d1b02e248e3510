# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
import re
from pathlib import Path
from typing import NamedTuple
from unittest.mock import Mock

import pytest

from scripts.core.errors import InputError
from scripts.ct.datalist import rsna
from scripts.ct.datalist.images import Cohort
from scripts.ct.datalist.rsna import RSNA_SUBTYPES, read_slice_labels
from tests.ct.rsna_cohort import CORRUPT, TWICE, Scan, write_rsna_cohort


class Collected(NamedTuple):
    truth: list[Scan]
    cohort: Cohort

    def of(self, scan: Scan) -> dict:
        """The bag of a true scan."""
        (bag,) = [bag.entry() for bag in self.cohort.scans if set(bag.sops) & set(scan.slices)]
        return bag


def collect(folder: Path) -> Cohort:
    return rsna.collect_rsna(folder, folder / "stage_2_train.csv", folder / "index.jsonl", "any")[0]


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Collected:
    folder = tmp_path_factory.mktemp("rsna")
    return Collected(write_rsna_cohort(folder, series=40), collect(folder))


def write_flawed(folder: Path) -> list[Scan]:
    """A small cohort, to be spoiled before it is read."""
    return write_rsna_cohort(folder, series=5, slices=10, image_size=16)


def spoil(folder: Path, sop: str, old: bytes, new: bytes) -> None:
    file = folder / "stage_2_train" / f"{sop}.dcm"
    file.write_bytes(file.read_bytes().replace(old, new))


def test_every_study_is_a_scan_with_its_own_label_and_patients_stay_together(collected: Collected) -> None:
    assert len(collected.cohort.scans) == len(collected.truth) == 40
    for scan in collected.truth:
        bag = collected.of(scan)
        whole = [(sop, int(bleeds)) for sop, bleeds in zip(scan.slices, scan.bleeding, strict=True) if sop != CORRUPT]
        assert list(bag["instance_label"].items()) == whole  # from inferior to superior
        assert bag["image"] == [f"stage_2_train/{sop}.dcm" for sop, _ in whole]
        assert bag["label"] == int(scan.positive)
    assert 0 < sum(scan.label for scan in collected.cohort.scans) < 40
    patients = {found.bag_id: found.patient for found in collected.cohort.scans}
    pairs = {(scan.patient, patients[collected.of(scan)["bag_id"]]) for scan in collected.truth}
    assert len(pairs) == len({true for true, _ in pairs}) == len({found for _, found in pairs}) < 40
    ((kind, twice),) = collected.cohort.rejected.as_json().items()
    assert (kind, twice["count"]) == ("row that stands there again", 6 * TWICE)


def test_slices_and_rows_that_lack_the_other_or_disagree_are_left_out(tmp_path: Path) -> None:
    truth = write_flawed(tmp_path)
    scan, one, two, three, _ = sorted(truth, key=lambda scan: not scan.positive)
    disagrees = scan.slices[scan.bleeding.index(True)]
    first, last, nothing = one.slices[0], two.slices[-1], three.slices[4]
    (tmp_path / "stage_2_train" / f"{first}.dcm").unlink()
    (tmp_path / "stage_2_train" / f"{nothing}.dcm").write_bytes(b"")  # has rows, and so is no row without a file
    csv = tmp_path / "stage_2_train.csv"
    rows = "".join(line for line in csv.read_text().splitlines(keepends=True) if not line.startswith(last))
    csv.write_text(f"{rows}{disagrees}_any,0\n")
    collected = Collected(truth, collect(tmp_path))
    rejected = {kind: about["examples"] for kind, about in collected.cohort.rejected.as_json().items()}
    assert rejected["row without its slice"] == [first]
    assert rejected["slice without a row"] == [f"stage_2_train/{last}.dcm"]
    assert rejected["slice whose rows disagree"] == [f"stage_2_train/{disagrees}.dcm"]
    left_out = {first, last, nothing, disagrees, CORRUPT}
    for true in truth:
        assert list(collected.of(true)["instance_label"]) == [sop for sop in true.slices if sop not in left_out]
    assert collected.of(scan)["label"] == 1  # another slice bleeds too


def test_a_study_that_cannot_be_read_and_positive_slices_that_are_not_are_reported(tmp_path: Path) -> None:
    truth = write_flawed(tmp_path)
    scan = next(scan for scan in truth if scan.positive and CORRUPT not in scan.slices)
    for sop, bleeds in zip(scan.slices, scan.bleeding, strict=True):
        if bleeds:  # as if they were of another stack
            spoil(tmp_path, sop, b"14.375000\\14.375000", b"13.375000\\13.375000")
    other = next(other for other in truth if other is not scan)
    for sop in other.slices:
        spoil(tmp_path, sop, b"CT", b"MR")
    collected = Collected(truth, collect(tmp_path))
    assert len(collected.cohort.scans) == 4
    (reason,) = [line for line in collected.cohort.rejected.as_lines() if line.startswith("scan that")]
    assert reason.startswith("scan that holds no axial CT series that can be read")
    assert "Modality MR" in reason
    bag = collected.of(scan)
    assert set(bag["instance_label"].values()) == {bag["label"]} == {0}
    warnings = collected.cohort.warnings.as_json()
    assert warnings["positive slices are not among those that are read"] == {"count": 1, "examples": [bag["bag_id"]]}


def test_names_that_would_meet_grow_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(len(name) == len("scan_") + 8 for name in rsna._scan_names(["a", "b"]))
    digests = {b"a": "0" * 8 + "a" * 56, b"b": "0" * 8 + "b" * 56}
    monkeypatch.setattr("scripts.ct.datalist.rsna.hashlib.sha256", lambda study: Mock(hexdigest=lambda: digests[study]))
    assert rsna._scan_names(["a", "b"]) == ["scan_00000000aaaa", "scan_00000000bbbb"]


def written(folder: Path, text: str) -> Path:
    file = folder / "labels.csv"
    file.write_text(f"ID,Label\n{text}\n")
    return file


def rsna_rows(sop: str, *positive: str) -> str:
    return "".join(f"{sop}_{kind},{int(kind in positive)}\n" for kind in RSNA_SUBTYPES)


def test_each_subtype_has_its_own_row_and_a_slice_without_it_no_label(tmp_path: Path) -> None:
    for subtype in RSNA_SUBTYPES:
        file = written(tmp_path, f"{rsna_rows('ID_1', subtype)}{rsna_rows('ID_2')}ID_3_{subtype},1")
        for asked in RSNA_SUBTYPES:
            has_row = {"ID_3": 1} if asked == subtype else {}
            assert read_slice_labels(file, asked).labels == {"ID_1": int(asked == subtype), "ID_2": 0, **has_row}


def test_rows_that_repeat_and_rows_that_disagree(tmp_path: Path) -> None:
    for rows, disagree, repeated in (
        (rsna_rows("ID_1", "any") * 3, False, 12),
        (rsna_rows("ID_1", "any") + "ID_1_any,0", True, 1),
        ("ID_1_any,0\n" + rsna_rows("ID_1", "any"), True, 1),
        (rsna_rows("ID_1", "any", "subdural") + "ID_1_subdural,0\nID_1_subdural,1", True, 2),
    ):
        read = read_slice_labels(written(tmp_path, rsna_rows("ID_2") + rows), "any")
        assert read.contradictory == ({"ID_1"} if disagree else set())
        assert [row.startswith("ID_1_") for row in read.repeated_rows] == [True] * repeated
        assert read.labels == ({"ID_2": 0} if disagree else {"ID_1": 1, "ID_2": 0})


def test_rows_and_a_subtype_that_are_not_of_rsna_are_refused(tmp_path: Path) -> None:
    for name in ("ID_1", "any", "ID_1_tumour"):
        file = written(tmp_path, f"{name},1")
        with pytest.raises(InputError, match=f"^{re.escape(str(file))}, line 2: '{name}' is not ID_<hex>_<subtype>"):
            read_slice_labels(file, "any")
    with pytest.raises(InputError, match=r"line 2: the label '2' is not one of the classes: give 0 or 1"):
        read_slice_labels(written(tmp_path, "ID_1_any,2"), "any")
    with pytest.raises(InputError, match=r"^--subtype 'tumour' is not known: give any, .*, subdural$"):
        read_slice_labels(tmp_path / "none.csv", "tumour")
