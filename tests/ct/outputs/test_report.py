# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The structured report as others read it: by highdicom, by pydicom, and by a validator of the standard."""

import logging
import shutil
import subprocess
import warnings
from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from highdicom.sr import CodedConcept, MeasurementReport, MeasurementsAndQualitativeEvaluations
from pydicom import Dataset
from pydicom.uid import UID, CTImageStorage, EnhancedCTImageStorage

from scripts.core.record import BagResult, Model
from scripts.core.scoring import SOURCES
from scripts.ct.outputs.report import SaveReportd, valid_uid
from tests.ct.series import SERIES_UID, STUDY_UID, ramp, sop_uid, write_series, write_slice
from tests.outputs.results import told
from tests.shared_data import shared_data

MODEL = Model("hemorrhage_ct_smooth_mil", "0.3.0", "ab" * 32)
SHARES = (0.05, 0.3, 0.05, 0.25, 0.05, 0.3)  # three of six slices are above the average
FLAGGED = (1, 3, 5)
FILE_UID = "1.2.826.0.1.3680043.8.498.5"
PATIENT = {"PatientName": "Müller^Jörg", "PatientBirthDate": "19500102", "PatientSex": "M"}
VISIT = {"StudyDate": "20190817", "StudyTime": "101112.5", "StudyID": "S-1", "AccessionNumber": "A-1"}
STUDY: dict[str, Any] = {**PATIENT, **VISIT, "StudyInstanceUID": STUDY_UID, "SpecificCharacterSet": "ISO_IR 100"}


def result(
    source: Path, instances: list[dict[str, Any]], probability: float = 0.731234567890123, **more: Any
) -> BagResult:
    shares = np.resize(SHARES, len(instances)).astype(np.float32)
    scores, attention = np.linspace(-1, 1, len(instances), dtype=np.float32), shares / shares.sum()
    origin: dict[str, Any] = {"threshold_origin": "the default, chosen on no data", "model": MODEL}
    return BagResult("scan 7", str(source), probability, 0.4, scores, attention, instances, **{**origin, **more})


def written(found: BagResult, folder: Path) -> hd.sr.ComprehensiveSR:
    data: dict[Hashable, Any] = {"bag_result": found, "label": 1}
    assert SaveReportd(str(folder))(data) == data
    report = hd.sr.srread(folder / "scan 7" / "report.dcm")
    assert isinstance(report, hd.sr.ComprehensiveSR)
    return report


def plain_series(folder: Path, names: Sequence[str] = tuple("abcdef"), **tags: Any) -> list[dict[str, Any]]:
    write_series(folder, ramp(len(names)), names=names, **{**STUDY, **tags})
    uid = tags.get("SeriesInstanceUID", SERIES_UID)
    return [{"id": sop_uid(k, uid), "position_mm": 5.0 * k, "file": name} for k, name in enumerate(names)]


def rsna_series(folder: Path) -> list[dict[str, Any]]:
    """As that data set has them: no UID is one, and nearly all else is gone."""
    gone: dict[str, Any] = dict.fromkeys(STUDY)
    with pydicom.config.disable_value_validation():
        return plain_series(folder, **gone | {"SeriesInstanceUID": "ID_0000abcde", "StudyInstanceUID": "ID_5eed"})


def multi_frame(folder: Path) -> list[dict[str, Any]]:
    folder.mkdir()
    write_slice(folder / "all", ramp(1)[0], **STUDY, SOPClassUID=EnhancedCTImageStorage, SOPInstanceUID=FILE_UID)
    order = (4, 2, 6, 1, 3, 5)  # the frames of a file need not be in the scan's order
    return [{"id": f"{FILE_UID}/{frame}", "frame": frame, "file": "all"} for frame in order]


def tilted_scan(folder: Path) -> list[dict[str, Any]]:
    files = sorted(folder.glob("*.dcm"))
    return [{"id": str(pydicom.dcmread(file).SOPInstanceUID), "file": file.name} for file in files]


def groups(report: hd.sr.ComprehensiveSR) -> list[MeasurementsAndQualitativeEvaluations]:
    assert isinstance(report.content, MeasurementReport)
    return report.content.get_image_measurement_groups()


def calls(group: MeasurementsAndQualitativeEvaluations) -> list[tuple[str, str]]:
    """Name and value of each coded statement."""
    coded: list[Any] = group.get_qualitative_evaluations()
    return [(item.name.meaning, item.value.meaning) for item in coded]


def figures(group: MeasurementsAndQualitativeEvaluations) -> dict[str, float]:
    assert {measurement.unit.value for measurement in group.get_measurements()} == {"1"}
    return {measurement.name.value: measurement.value for measurement in group.get_measurements()}


def texts(dataset: Dataset) -> list[tuple[str, str]]:
    """Name and text of each TEXT item, in their order."""
    items = [item for item in dataset.iterall() if item.keyword == "ContentSequence"]
    children = [child for item in items for child in item.value if child.ValueType == "TEXT"]
    return [(child.ConceptNameCodeSequence[0].CodeMeaning, child.TextValue) for child in children]


@pytest.mark.parametrize("in_one_file", [False, True])
def test_each_flagged_slice_has_a_group_that_names_its_image_or_frame(in_one_file: bool, tmp_path: Path) -> None:
    folder = tmp_path / "series"
    expected = result(folder, multi_frame(folder) if in_one_file else plain_series(folder))
    report = written(expected, tmp_path)
    for group, index in zip(groups(report)[1:], FLAGGED, strict=True):
        instance, (image,) = expected.instances[index], group.source_images
        assert group.tracking_identifier == instance["id"]
        assert image.referenced_sop_instance_uid == (FILE_UID if in_one_file else instance["id"])
        assert image.referenced_sop_class_uid == (EnhancedCTImageStorage if in_one_file else CTImageStorage)
        assert image.referenced_frame_numbers == ([instance["frame"]] if in_one_file else None)
        assert group.finding_type == CodedConcept("1386000", "SCT", "Intracranial hemorrhage")
        numbers = {"attention": float(expected.attention[index]), "score_attention": float(expected.scores[index])}
        assert figures(group) == numbers
    assert len(report.get_evidence()) == (1 if in_one_file else 6)


def test_the_answer_comes_back_to_the_last_digit_with_the_study_the_network_and_what_it_is_not_for(
    tmp_path: Path,
) -> None:
    found = result(tmp_path / "series", plain_series(tmp_path / "series"))
    report = written(found, tmp_path)
    scan = groups(report)[0]
    assert (figures(scan), calls(scan)) == ({"122157": 0.731234567890123}, [("Intracranial hemorrhage", "Positive")])
    assert (scan.tracking_identifier, scan.finding_type) == (SERIES_UID, None)  # who looks for findings gets slices

    said = texts(report)
    assert said[:2] == [("Device Observer Name", MODEL.name), ("Comment", "Research use only, not for diagnosis")]
    assert {("Algorithm Name", MODEL.name), ("Algorithm Version", "0.3.0")} <= set(said)
    parameters = {text for name, text in said if name == "Algorithm Parameters"}
    assert parameters == {
        "threshold 0.4 (the default, chosen on no data)",
        f"weights sha256 {'ab' * 32}",
        "slices flagged above attention 1/6, in a positive bag",
    }
    assert report.SeriesDescription == "Research use only, not for diagnosis"
    assert report.ContentQualification == "RESEARCH"
    assert (report.ManufacturerModelName, report.SoftwareVersions) == (MODEL.name, "0.3.0")

    identity = {**STUDY, "PatientID": "SECRET-ID", "SpecificCharacterSet": "ISO_IR 192"}
    assert {keyword: report[keyword].value for keyword in identity} == identity
    assert report.SeriesInstanceUID != SERIES_UID
    assert [str(report.ContentDate), str(report.ContentTime)] == ["20190817", "101112.5"]
    assert {(study, series) for study, series, *_ in report.get_evidence()} == {(STUDY_UID, SERIES_UID)}

    negative = written(replace(found, probability=0.125, model=None), tmp_path)
    (scan,) = groups(negative)  # and none of a slice
    assert (figures(scan), calls(scan)) == ({"122157": 0.125}, [("Intracranial hemorrhage", "Negative")])
    assert ("Algorithm Name", "unknown") in texts(negative)
    assert {uid for *_, uid, _ in negative.get_evidence()} == {sop_uid(index) for index in range(6)}


@pytest.mark.parametrize("smoothing", [0.0, 0.5])
@pytest.mark.parametrize("score", SOURCES)
def test_a_flagged_slice_has_the_score_that_flags_it_by_its_name_and_all_else_that_is_known(
    tmp_path: Path, score: str, smoothing: float
) -> None:
    plain = result(tmp_path / "series", plain_series(tmp_path / "series"))
    above = None if score.startswith("attention") else 0.1
    given = told(plain, score_name=score, score_smoothing=smoothing, flag_above=above)
    _, *slices = groups(written(given, tmp_path))
    assert len(slices) == given.flagged.sum() > 0
    for group, index in zip(slices, given.flagged.nonzero()[0].tolist(), strict=True):
        named = {each.name.meaning: each.value for each in group.get_measurements()}
        (flags,) = [meaning for meaning in named if meaning.startswith("Score that flags: ")]
        assert named[flags] == float(given.scores[index])
        assert flags.startswith("Score that flags: smoothed ") == bool(smoothing)
        others = {each.name.value: each.value for each in group.get_measurements() if each.name.meaning != flags}
        known = {name: float(values[index]) for name, values in given.of_instances.items() if name != "score"}
        assert others == known
        assert len(known) == 5


def test_a_name_keeps_its_letters_and_is_printed_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    name = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    instances = plain_series(tmp_path / "series", SpecificCharacterSet=["", "ISO 2022 IR 87"], PatientName=name)
    caplog.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        of_name = written(result(tmp_path / "series", instances), tmp_path)
    assert str(of_name.PatientName) == name
    assert caplog.messages == []


def test_the_warnings_of_a_scan_stand_ahead_of_its_measurements_without_names_of_files(tmp_path: Path) -> None:
    found = result(tmp_path / "series", plain_series(tmp_path / "series"))
    quiet = written(found, tmp_path)
    about = {"warnings": ["a gap", "smith_9.dcm is damaged and is left out", "hardly a head CT"]}
    report = written(replace(found, about=about), tmp_path)
    comments = [text for name, text in texts(report) if name == "Comment"]
    assert comments == [
        "Research use only, not for diagnosis",
        *("Warning: a gap", "Warning: hardly a head CT", "Warning: 1 files are left out"),
    ]
    assert report.SOPInstanceUID != quiet.SOPInstanceUID
    assert len(groups(report)) == len(groups(quiet))


def test_an_unknown_character_set_is_one_warning_of_the_scan(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pydicom.config.disable_value_validation():
        instances = plain_series(tmp_path / "series", SpecificCharacterSet="SMITH", PatientName="Smith^John")
    caplog.clear()
    found = replace(result(tmp_path / "series", instances), about={"warnings": ["a gap"]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warned = SaveReportd(str(tmp_path))({"bag_result": found})["bag_result"]
    assert warned.about["warnings"] == [
        "a gap",
        "its SpecificCharacterSet is none that is known, so letters of its names may be wrong in report.dcm",
    ]
    assert caplog.messages == []


def test_what_is_missing_stays_empty_and_damaged_values_are_left_out(tmp_path: Path) -> None:
    missing: dict[str, Any] = dict.fromkeys(STUDY) | {"PatientID": None, "PatientWeight": "70.5", "StudyDate": "x"}
    with pydicom.config.disable_value_validation():
        instances = plain_series(tmp_path / "series", **missing)
    for file in (tmp_path / "series").iterdir():
        file.write_bytes(file.read_bytes().replace(b"\x10\x00\x30\x10DS", b"\x10\x00\x30\x10QQ"))
    poor = written(result(tmp_path / "series", instances), tmp_path)
    empty = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyTime", "AccessionNumber")
    assert not any(poor[keyword].value for keyword in empty)
    assert "PatientWeight" not in poor
    assert [str(poor.ContentDate), str(poor.ContentTime)] == ["19000101", "000000"]
    assert UID(poor.StudyInstanceUID).is_valid


def test_uids_that_are_none_are_replaced_and_the_original_ones_are_kept_as_names(tmp_path: Path) -> None:
    instances = rsna_series(tmp_path / "series")
    of_rsna = written(result(tmp_path / "series", instances), tmp_path)
    scan, *slices = groups(of_rsna)
    assert scan.tracking_identifier == "ID_0000abcde"
    for group, index in zip(slices, FLAGGED, strict=True):
        (image,) = group.source_images
        name = instances[index]["id"]
        assert (group.tracking_identifier, image.referenced_sop_instance_uid) == (name, valid_uid(name))
    names = ("ID_5eed", "ID_0000abcde", *(instance["id"] for instance in instances))
    uids = {uid for reference in of_rsna.get_evidence() for uid in reference}
    assert uids == {CTImageStorage, *map(valid_uid, names)}
    assert len(uids) == 6 + 3
    assert all(UID(uid).is_valid for uid in (*uids, valid_uid("1.2." + "3" * 70)))
    assert (of_rsna.StudyInstanceUID, of_rsna.PatientName) == (valid_uid("ID_5eed"), "")


def test_other_file_names_give_the_same_file_and_what_says_something_else_another(tmp_path: Path) -> None:
    contents = set()
    for names in ("abcdef", "badcfe"):
        found = result(tmp_path / names, plain_series(tmp_path / names, names))
        report = written(found, tmp_path)
        contents.add((tmp_path / "scan 7" / "report.dcm").read_bytes())
    assert len(contents) == 1
    others: list[dict[str, Any]] = [{"threshold_origin": "given"}, {"model": MODEL._replace(sha256="c")}]
    for other in others:
        another = written(replace(found, **other), tmp_path)
        assert another.SOPInstanceUID != report.SOPInstanceUID
        assert (another.SeriesInstanceUID == report.SeriesInstanceUID) == ("model" not in other)


def test_where_the_input_is_not_dicom_nothing_is_written(tmp_path: Path) -> None:
    save = SaveReportd(str(tmp_path / "out"))
    save({"bag_result": result(tmp_path, [{"id": 0, "position_mm": 1.5}] * 6)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("probability", [0.9, 0.1])
@pytest.mark.parametrize("source", [plain_series, rsna_series, multi_frame, tilted_scan])
def test_the_validator_finds_no_error(source: Any, probability: float, tmp_path: Path) -> None:
    if shutil.which("dciodvfy") is None:
        pytest.skip("needs dciodvfy: install Debian's dicom3tools")
    folder = shared_data("ct_dicom/ge_head_tilt18") if source is tilted_scan else tmp_path / "series"
    written(result(folder, source(folder), probability), tmp_path)
    said = subprocess.run(["dciodvfy", tmp_path / "scan 7" / "report.dcm"], capture_output=True, text=True).stderr
    assert "ComprehensiveSR" in said
    assert [line for line in said.splitlines() if line.startswith("Error")] == []
