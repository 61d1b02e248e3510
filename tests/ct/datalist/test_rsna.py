# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from collections.abc import Callable
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


@pytest.fixture
def flawed(tmp_path: Path) -> Callable[[Callable[[Path, list[Scan]], None]], Collected]:
    """A small cohort, spoiled by a function before it is read."""

    def spoil(how: Callable[[Path, list[Scan]], None]) -> Collected:
        truth = write_rsna_cohort(tmp_path, series=5, slices=10, image_size=16)
        how(tmp_path, truth)
        return Collected(truth, collect(tmp_path))

    return spoil


def append(folder: Path, text: str) -> None:
    with (folder / "stage_2_train.csv").open("a") as file:
        file.write(text)


def without_rows_of(folder: Path, sop: str) -> None:
    lines = (folder / "stage_2_train.csv").read_text().splitlines(keepends=True)
    (folder / "stage_2_train.csv").write_text("".join(line for line in lines if not line.startswith(sop)))


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
    names = {scan.study: patients[collected.of(scan)["bag_id"]] for scan in collected.truth}
    for one in collected.truth:
        for other in collected.truth:
            assert (names[one.study] == names[other.study]) == (one.patient == other.patient)
    assert len(set(names.values())) < 40


def test_the_known_flaws_are_told(collected: Collected) -> None:
    rejected = collected.cohort.rejected.as_json()
    twice = rejected.pop("row that stands there again")
    assert twice["count"] == 6 * TWICE == 24
    assert all(re.fullmatch("ID_[0-9a-f]{9}_[a-z]+", name) for name in twice["examples"])
    assert rejected == {}


def test_a_slice_with_rows_that_disagree_is_left_out(flawed: Callable[..., Collected]) -> None:
    positive: list[Scan] = []

    def contradict(folder: Path, truth: list[Scan]) -> None:
        positive.extend(scan for scan in truth if scan.positive)
        append(folder, f"{positive[0].slices[positive[0].bleeding.index(True)]}_any,0\n")

    collected = flawed(contradict)
    (scan,) = positive[:1]
    sop = scan.slices[scan.bleeding.index(True)]
    bag = collected.of(scan)
    assert sop not in bag["instance_label"]
    assert f"stage_2_train/{sop}.dcm" not in bag["image"]
    assert bag["label"] == 1  # another slice bleeds too
    rejected = collected.cohort.rejected.as_json()
    assert rejected["slice whose rows disagree"] == {"count": 1, "examples": [f"stage_2_train/{sop}.dcm"]}


def test_files_without_rows_and_rows_without_files_are_left_out(flawed: Callable[..., Collected]) -> None:
    def lose(folder: Path, truth: list[Scan]) -> None:
        (folder / "stage_2_train" / f"{truth[1].slices[0]}.dcm").unlink()
        without_rows_of(folder, truth[2].slices[-1])

    collected = flawed(lose)
    first, last = collected.truth[1].slices[0], collected.truth[2].slices[-1]
    rejected = collected.cohort.rejected.as_json()
    assert rejected["row without its slice"] == {"count": 1, "examples": [first]}
    assert rejected["slice without a row"] == {"count": 1, "examples": [f"stage_2_train/{last}.dcm"]}
    assert list(collected.of(collected.truth[1])["instance_label"]) == list(collected.truth[1].slices[1:])
    assert list(collected.of(collected.truth[2])["instance_label"]) == list(collected.truth[2].slices[:-1])


def test_a_file_that_is_nothing_is_left_out_once(flawed: Callable[..., Collected]) -> None:
    """It has rows, and so is no row without a file."""
    collected = flawed(lambda folder, truth: (folder / "stage_2_train" / f"{truth[3].slices[4]}.dcm").write_bytes(b""))
    assert "row without its slice" not in collected.cohort.rejected.as_json()
    assert collected.truth[3].slices[4] not in collected.of(collected.truth[3])["instance_label"]


def test_a_study_that_cannot_be_read_is_left_out(flawed: Callable[..., Collected]) -> None:
    def lose(folder: Path, truth: list[Scan]) -> None:
        for sop in truth[2].slices:
            file = folder / "stage_2_train" / f"{sop}.dcm"
            file.write_bytes(file.read_bytes().replace(b"CT", b"MR"))

    collected = flawed(lose)
    assert len(collected.bags) == 4
    (kind,) = [kind for kind in collected.cohort.rejected.as_json() if kind.startswith("scan that")]
    assert kind.startswith("scan that holds no axial CT series that can be read (a series without a number (N slices)")
    assert "Modality MR" in kind


def test_positive_slices_that_are_not_read_are_told(flawed: Callable[..., Collected]) -> None:
    chosen: list[Scan] = []

    def resize(folder: Path, truth: list[Scan]) -> None:
        """The slices that bleed get another pixel spacing, as if they were of another stack."""
        chosen.append(next(scan for scan in truth if scan.positive and CORRUPT not in scan.slices))
        for sop, bleeds in zip(chosen[0].slices, chosen[0].bleeding, strict=True):
            file = folder / "stage_2_train" / f"{sop}.dcm"
            if bleeds:
                file.write_bytes(file.read_bytes().replace(b"14.375000\\14.375000", b"13.375000\\13.375000"))

    collected = flawed(resize)
    bag = collected.of(chosen[0])
    assert bag["label"] == 0
    assert set(bag["instance_label"]) == {
        sop for sop, bleeds in zip(chosen[0].slices, chosen[0].bleeding, strict=True) if not bleeds
    }
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
        ("ID_1_any,2", "line 2: the label '2' is not one of the classes: give 0 or 1"),
        ("ID_1,1", "line 2: 'ID_1' is not ID_<hex>_<subtype>: give RSNA's stage_2_train.csv"),
        ("any,1", "line 2: 'any' is not ID_<hex>_<subtype>: give RSNA's stage_2_train.csv"),
        ("ID_1_tumour,1", "line 2: 'ID_1_tumour' is not ID_<hex>_<subtype>: give RSNA's stage_2_train.csv"),
    ],
)
def test_rows_that_are_not_of_rsna_are_refused(tmp_path: Path, row: str, message: str) -> None:
    file = written(tmp_path, f"ID,Label\n{row}\n")
    with pytest.raises(InputError, match=f"^{re.escape(f'{file}, {message}')}$"):
        read_slice_labels(file, "any")


def test_a_subtype_that_is_none_is_refused(tmp_path: Path) -> None:
    kinds = "any, epidural, intraparenchymal, intraventricular, subarachnoid, subdural"
    with pytest.raises(InputError, match=f"^--subtype 'tumour' is not known: give {kinds}$"):
        read_slice_labels(tmp_path / "none.csv", "tumour")
