# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
import re
from pathlib import Path
from typing import NamedTuple

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
        (bag,) = [bag for bag in self.bags if set(bag["instance_label"]) & set(scan.slices)]
        return bag

    @property
    def bags(self) -> list[dict]:
        return [scan.entry() for scan in self.cohort.scans]


def collect(folder: Path, subtype: str = "any") -> Cohort:
    return rsna.collect_rsna(folder, folder / "stage_2_train.csv", folder / "index.jsonl", subtype)[0]


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Collected:
    folder = tmp_path_factory.mktemp("rsna")
    return Collected(write_rsna_cohort(folder, series=40), collect(folder))


def write_flawed(folder: Path) -> list[Scan]:
    """A small cohort, to be spoiled before it is read."""
    return write_rsna_cohort(folder, series=5, slices=10, image_size=16)


def test_every_study_is_a_scan_with_its_own_label(collected: Collected) -> None:
    assert len(collected.bags) == len(collected.truth) == 40
    for scan in collected.truth:
        bag = collected.of(scan)
        whole = [(sop, int(bleeds)) for sop, bleeds in zip(scan.slices, scan.bleeding, strict=True) if sop != CORRUPT]
        assert list(bag["instance_label"].items()) == whole  # from inferior to superior
        assert bag["image"] == [f"stage_2_train/{sop}.dcm" for sop, _ in whole]
        assert bag["label"] == int(scan.positive)
    assert 0 < sum(bag["label"] for bag in collected.bags) < 40


def test_scans_of_one_patient_stay_together(collected: Collected) -> None:
    patients = {found.bag_id: found.patient for found in collected.cohort.scans}
    pairs = {(scan.patient, patients[collected.of(scan)["bag_id"]]) for scan in collected.truth}
    assert len(pairs) == len({true for true, _ in pairs}) == len({found for _, found in pairs}) < 40


def test_rows_that_stand_there_twice_are_reported(collected: Collected) -> None:
    ((kind, twice),) = collected.cohort.rejected.as_json().items()
    assert (kind, twice["count"]) == ("row that stands there again", 6 * TWICE)
    assert all(re.fullmatch("ID_[0-9a-f]{9}_[a-z]+", name) for name in twice["examples"])


def test_a_slice_with_rows_that_disagree_is_left_out(tmp_path: Path) -> None:
    truth = write_flawed(tmp_path)
    scan = next(scan for scan in truth if scan.positive)
    sop = scan.slices[scan.bleeding.index(True)]
    with (tmp_path / "stage_2_train.csv").open("a") as file:
        file.write(f"{sop}_any,0\n")
    collected = Collected(truth, collect(tmp_path))
    bag = collected.of(scan)
    assert sop not in bag["instance_label"]
    assert f"stage_2_train/{sop}.dcm" not in bag["image"]
    assert bag["label"] == 1  # another slice bleeds too
    rejected = collected.cohort.rejected.as_json()
    assert rejected["slice whose rows disagree"] == {"count": 1, "examples": [f"stage_2_train/{sop}.dcm"]}


def test_files_without_rows_and_rows_without_files_are_left_out(tmp_path: Path) -> None:
    """A file that is nothing has rows, and so is no row without a file."""
    truth = write_flawed(tmp_path)
    first, last, nothing = truth[1].slices[0], truth[2].slices[-1], truth[3].slices[4]
    (tmp_path / "stage_2_train" / f"{first}.dcm").unlink()
    (tmp_path / "stage_2_train" / f"{nothing}.dcm").write_bytes(b"")
    csv = tmp_path / "stage_2_train.csv"
    csv.write_text("".join(line for line in csv.read_text().splitlines(keepends=True) if not line.startswith(last)))
    collected = Collected(truth, collect(tmp_path))
    rejected = collected.cohort.rejected.as_json()
    assert rejected["row without its slice"] == {"count": 1, "examples": [first]}
    assert rejected["slice without a row"] == {"count": 1, "examples": [f"stage_2_train/{last}.dcm"]}
    assert list(collected.of(truth[1])["instance_label"]) == list(truth[1].slices[1:])
    assert list(collected.of(truth[2])["instance_label"]) == list(truth[2].slices[:-1])
    assert nothing not in collected.of(truth[3])["instance_label"]


def test_a_study_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    truth = write_flawed(tmp_path)
    for sop in truth[2].slices:
        file = tmp_path / "stage_2_train" / f"{sop}.dcm"
        file.write_bytes(file.read_bytes().replace(b"CT", b"MR"))
    collected = Collected(truth, collect(tmp_path))
    assert len(collected.bags) == 4
    (kind,) = [kind for kind in collected.cohort.rejected.as_json() if kind.startswith("scan that")]
    assert kind.startswith("scan that holds no axial CT series that can be read")
    assert "Modality MR" in kind


def test_positive_slices_that_are_not_read_are_reported(tmp_path: Path) -> None:
    """The slices that bleed get another pixel spacing, as if they were of another stack."""
    truth = write_flawed(tmp_path)
    scan = next(scan for scan in truth if scan.positive and CORRUPT not in scan.slices)
    for sop in (sop for sop, bleeds in zip(scan.slices, scan.bleeding, strict=True) if bleeds):
        file = tmp_path / "stage_2_train" / f"{sop}.dcm"
        file.write_bytes(file.read_bytes().replace(b"14.375000\\14.375000", b"13.375000\\13.375000"))
    collected = Collected(truth, collect(tmp_path))
    (bag,) = [bag for bag in collected.bags if set(bag["instance_label"]) & set(scan.slices)]
    assert set(bag["instance_label"].values()) == {bag["label"]} == {0}
    warnings = collected.cohort.warnings.as_json()
    assert warnings["positive slices are not among those that are read"] == {"count": 1, "examples": [bag["bag_id"]]}


def test_names_that_would_meet_grow_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(len(name) == len("scan_") + 8 for name in rsna._scan_names(["a", "b"]))

    class Digest:
        def __init__(self, study: bytes) -> None:
            self.text = "0" * 8 + study.decode() * 56

        def hexdigest(self) -> str:
            return self.text

    monkeypatch.setattr("scripts.ct.datalist.rsna.hashlib.sha256", Digest)
    assert rsna._scan_names(["a", "b"]) == ["scan_00000000aaaa", "scan_00000000bbbb"]


def test_a_subtype_makes_other_labels(tmp_path: Path) -> None:
    truth = write_rsna_cohort(tmp_path, series=12, slices=8, image_size=8, prevalence=1.0)
    subtype = next(scan.subtype for scan in truth if scan.subtype)
    found = Collected(truth, collect(tmp_path, subtype))
    labels = {scan.study: found.of(scan)["label"] for scan in truth}
    assert labels == {scan.study: int(scan.subtype == subtype) for scan in truth}
    assert 0 < sum(labels.values()) < 12


def written(folder: Path, text: str) -> Path:
    file = folder / "labels.csv"
    file.write_text(text)
    return file


def rsna_rows(sop: str, *positive: str) -> str:
    return "".join(f"{sop}_{kind},{int(kind in positive)}\n" for kind in RSNA_SUBTYPES)


@pytest.mark.parametrize("subtype", RSNA_SUBTYPES)
def test_each_subtype_has_its_own_row(tmp_path: Path, subtype: str) -> None:
    file = written(tmp_path, "ID,Label\n" + rsna_rows("ID_1", subtype) + rsna_rows("ID_2"))
    for asked in RSNA_SUBTYPES:
        assert read_slice_labels(file, asked).labels == {"ID_1": int(asked == subtype), "ID_2": 0}


@pytest.mark.parametrize(
    ("rows", "contradictory", "repeated"),
    [
        (rsna_rows("ID_1", "any") * 2, set(), 6),
        (rsna_rows("ID_1", "any") * 3, set(), 12),
        (rsna_rows("ID_1", "any") + "ID_1_any,0\n", {"ID_1"}, 1),
        ("ID_1_any,0\n" + rsna_rows("ID_1", "any"), {"ID_1"}, 1),
        (rsna_rows("ID_1", "any", "subdural") + "ID_1_subdural,0\nID_1_subdural,1\n", {"ID_1"}, 2),
    ],
)
def test_rows_that_repeat_and_rows_that_disagree(
    tmp_path: Path, rows: str, contradictory: set[str], repeated: int
) -> None:
    read = read_slice_labels(written(tmp_path, "ID,Label\n" + rsna_rows("ID_2") + rows), "any")
    assert (read.contradictory, len(read.repeated_rows)) == (contradictory, repeated)
    assert all(row.startswith("ID_1_") for row in read.repeated_rows)
    assert read.labels == {"ID_2": 0, **({} if contradictory else {"ID_1": 1})}


def test_a_slice_without_the_row_that_was_asked_for_has_no_label(tmp_path: Path) -> None:
    file = written(tmp_path, "ID,Label\nID_1_subdural,1\n" + rsna_rows("ID_2"))
    assert read_slice_labels(file, "any").labels == {"ID_2": 0}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("ID_1_any,2", "the label '2' is not one of the classes: give 0 or 1"),
        ("ID_1,1", "'ID_1' is not ID_<hex>_<subtype>"),
        ("any,1", "'any' is not ID_<hex>_<subtype>"),
        ("ID_1_tumour,1", "'ID_1_tumour' is not ID_<hex>_<subtype>"),
    ],
)
def test_rows_that_are_not_of_rsna_are_refused(tmp_path: Path, row: str, message: str) -> None:
    file = written(tmp_path, f"ID,Label\n{row}\n")
    with pytest.raises(InputError, match=f"^{re.escape(f'{file}, line 2: {message}')}"):
        read_slice_labels(file, "any")


def test_a_subtype_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^--subtype 'tumour' is not known: give any, .*, subdural$"):
        read_slice_labels(tmp_path / "none.csv", "tumour")
