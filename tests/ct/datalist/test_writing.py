# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from scripts.core.bags import load_bags
from scripts.core.errors import InputError
from scripts.ct.datalist.writing import CONTRADICTION, CtDatalistRequest, write_ct_datalist
from scripts.datalist.tables import SECTIONS
from tests.ct.datalist import test_cq500
from tests.ct.rsna_cohort import CORRUPT, Scan, write_rsna_cohort
from tests.ct.series import write_head


def write(folder: Path, **given: Any) -> str:
    return write_ct_datalist(CtDatalistRequest(folder=folder, **given))


class Written(NamedTuple):
    folder: Path
    truth: list[Scan]
    summary: str


@pytest.fixture(scope="module")
def rsna(tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder = tmp_path_factory.mktemp("rsna")
    return Written(folder, write_rsna_cohort(folder, series=40), write(folder))


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Six scans of five patients with labels.csv."""
    for n in range(6):
        write_head(tmp_path / f"s{n}", f"1.{n}", count=9, study=f"1.{n}.9", patient=f"P{max(n, 1)}")
    labels(tmp_path, *(f"s{n},{n % 2}" for n in range(6)))
    return tmp_path


def labels(folder: Path, *lines: str, columns: str = "scan,label") -> None:
    (folder / "labels.csv").write_text("\n".join([columns, *lines]))


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file()}


def bags_in(folder: Path) -> Any:
    return json.loads((folder / "datalist.json").read_text())


def check_in(folder: Path) -> Any:
    return json.loads((folder / "datalist_check.json").read_text())


def test_training_can_load_every_section_and_nothing_names_a_patient(rsna: Written) -> None:
    bags = {section: load_bags(str(rsna.folder / "datalist.json"), section, str(rsna.folder)) for section in SECTIONS}
    assert sum(map(len, bags.values())) == 40
    written = rsna.summary + json.dumps([bags_in(rsna.folder), check_in(rsna.folder)])
    assert not any(scan.patient in written or scan.study in written for scan in rsna.truth)
    for own in bags.values():
        assert {max(bag["instance_label"].values()) for bag in own} == {bag["label"] for bag in own} == {0, 1}
        assert all(len(bag["instance_label"]) == len(bag["image"]) for bag in own)


def test_the_check_counts_what_is_there(rsna: Written) -> None:
    """Counted here from the datalist and the cohort's own truth, by other means than the program's."""
    check = check_in(rsna.folder)
    study = {sop: scan for scan in rsna.truth for sop in scan.slices}
    in_sections = {
        section: [study[next(iter(bag["instance_label"]))] for bag in bags]
        for section, bags in bags_in(rsna.folder).items()
    }
    for section, scans in {**in_sections, "total": rsna.truth}.items():
        patients, positive = {scan.patient for scan in scans}, sum(scan.positive for scan in scans)
        slices = sum(len(set(scan.slices) - {CORRUPT}) for scan in scans)
        counts = [len(scans), len(patients), slices, positive, round(positive / len(scans), 4)]
        assert list(check["sections"][section].values()) == counts
    total = check["sections"]["total"]
    assert list(total) == ["scans", "patients", "slices", "positive_scans", "prevalence"]
    assert sum(check["sections"][section]["patients"] for section in SECTIONS) == total["patients"]
    assert list(check["leakage"].values()) == [total["patients"], 0, total["slices"], 0]
    rejected = {kind: about["count"] for kind, about in check["rejected"].items()}
    assert rejected == {"row that stands there again": 24, "file that holds no complete image": 1}
    assert (check["seed"], check["subtype"], check["labels"]) == (0, "any", "stage_2_train.csv")
    lines = rsna.summary.splitlines()
    assert lines[4].split() == ["total", *(f"{value:g}" for value in total.values())]
    assert f"rejected: file that holds no complete image: 1, such as stage_2_train/{CORRUPT}.dcm" in lines
    assert lines[-1] == f"written: {rsna.folder}/datalist.json, datalist_check.json and .headers.jsonl"


def test_a_second_run_reads_no_header_again_and_the_seed_and_the_shares_decide(
    rsna: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (rsna.folder / "datalist.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.delattr("pydicom.dcmread")  # reading would raise
        assert write(rsna.folder) == rsna.summary
    assert (rsna.folder / "datalist.json").read_bytes() == before
    written = []
    for given in ({"seed": 1}, {"shares": [0.5, 0.25, 0.25]}, {"shares": (1, 0, 0)}):
        write(rsna.folder, output=tmp_path / "datalist.json", **given)
        written.append(bags_in(tmp_path))
    assert written[0] != bags_in(rsna.folder)
    assert 7 <= len(written[1]["validation"]) <= 13
    assert [len(bags) for bags in written[2].values()] == [40, 0, 0]
    assert check_in(tmp_path)["notes"] == ["validation is empty", "test is empty"]
    assert files(tmp_path) == {"datalist.json", "datalist_check.json", ".headers.jsonl"}


def test_cq500_is_seen_from_its_csv(tmp_path: Path) -> None:
    for number in range(4):
        test_cq500.case(tmp_path, number)
    test_cq500.write_reads(tmp_path, {number: (number % 2, 1, 0) for number in range(4)})
    summary = write(tmp_path)
    bags = [bag for section in bags_in(tmp_path).values() for bag in section]
    assert {bag["bag_id"]: bag["label"] for bag in bags} == {f"CQ500CT{n}": n % 2 for n in range(4)}
    assert not any("instance_label" in bag for bag in bags)
    assert "warning: series N (N slices): bone kernel BONE: 4, such as CQ500CT0: series 4 (12 slices)" in summary
    assert "leakage: 0 of 4 patients and 0 of 48 slices" in summary


def test_the_csv_may_be_named_from_the_folder_and_one_without_a_scan_is_refused(
    cohort: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cohort / "none").mkdir()
    (cohort / "mine.csv").write_text("scan,label\nnone,1")
    reasons = "image in no scan that has a row: 54, .*; scan that holds no images that can be read: 1, such as none"
    with pytest.raises(InputError, match=rf"^{cohort} holds no scan that can be used: {reasons}"):
        write(cohort, labels=Path("mine.csv"))
    assert files(cohort) == {"labels.csv", "mine.csv", ".headers.jsonl"}
    (cohort / "s0" / "mine.csv").write_text("name,nothing\n")
    monkeypatch.chdir(cohort / "s0")
    with pytest.raises(InputError, match=r"^mine.csv has no columns scan, label"):  # what lies here goes before
        write(cohort, labels=Path("mine.csv"))


@pytest.mark.parametrize("patient", ["P1", ""])
def test_a_patient_or_a_nameless_study_in_two_sections_stops_it(cohort: Path, patient: str) -> None:
    """s0 and s1 are of one patient; nothing is left behind."""
    for n in range(2):
        write_head(cohort / f"s{n}", f"1.{n}", count=9, study="1.9", patient=patient)
    sections = ("training", "test", "training", "test", "training", "test")
    labels(cohort, *(f"s{n},{n % 2},{section}" for n, section in enumerate(sections)), columns="scan,label,section")
    with pytest.raises(InputError, match=r"^1 of 5 patients and 0 of 54 slices .* \(of s0 and s1\): correct .*/labels"):
        write(cohort)
    assert files(cohort) == {"labels.csv", ".headers.jsonl"}
    by_name = "\n".join(f"s{n},{n % 2},{section},p{n}" for n, section in enumerate(sections))
    labels(cohort, by_name, columns="scan,label,section,patient")  # the user knows better than the headers
    write(cohort)
    assert check_in(cohort)["leakage"]["patients"] == 6


def test_patients_of_the_headers_that_a_column_contradicts_or_that_are_one_are_reported(tmp_path: Path) -> None:
    sections = ("training", "test", "training", "test", "training", "training")
    for patient_of, contradicted in (
        (lambda n: f"P{n // 2}", ["x0 and x1", "x2 and x3"]),
        (lambda n: "ANON" if n < 4 else "P", []),  # it is that of nobody
    ):
        for n in range(6):
            write_head(tmp_path / f"x{n}", f"1.{n}", count=5, study=f"1.{n}.9", patient=patient_of(n))
        lines = (f"x{n},{n % 2},{section},mine{n}" for n, section in enumerate(sections))
        labels(tmp_path, *lines, columns="scan,label,section,patient")
        summary = write(tmp_path)
        assert check_in(tmp_path)["warnings"].get(CONTRADICTION, {"examples": []})["examples"] == contradicted
        assert (f"warning: {CONTRADICTION}: 2, such as x0 and x1" in summary.splitlines()) == bool(contradicted)
    labels(tmp_path, *(f"x{n},{n % 2}" for n in range(4)))
    with pytest.raises(InputError, match=rf"^the 4 scans in {tmp_path} are of one patient: give a column patient"):
        write(tmp_path)
    labels(tmp_path, *(f"x{n},{n % 2}" for n in range(5)))
    nobody = "warning: most scans carry one PatientID, is it that of nobody?: 1, such as 4 scans\n"
    assert nobody in write(tmp_path, force=True)


def test_what_cannot_be_done_is_refused_and_nothing_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds none of stage_2_train.csv, reads.csv, labels.csv: name .* --labels"):
        write(tmp_path)
    labels(tmp_path, "a,1")
    refused: tuple[tuple[dict[str, Any], str], ...] = (
        ({"subtype": "subdural"}, r"--subtype subdural is for RSNA's csv of slices, which .*/labels\.csv is not"),
        ({"labels": Path("none.csv")}, r"cannot read none\.csv \(No such file or directory\): give .* --labels"),
        ({"output": Path("/proc/none/x.json")}, "cannot write to /proc/none"),
        ({"folder": Path("none")}, "none is not a folder: give the one that holds the scans$"),
    )
    for given, message in refused:
        with pytest.raises(InputError, match=f"^{message}"):
            write(**{"folder": tmp_path, **given})
    labels(tmp_path, "a,b", columns="image,class")
    with pytest.raises(InputError, match=r"labels.csv has no columns scan, label, or ID, Label .*, or name, R1:ICH"):
        write(tmp_path)
    shutil.copy(tmp_path / "labels.csv", tmp_path / "reads.csv")
    with pytest.raises(InputError, match=r"holds reads.csv and labels.csv: name .* --labels FILE$"):
        write(tmp_path)
    assert files(tmp_path) == {"labels.csv", "reads.csv"}
