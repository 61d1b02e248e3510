# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The segmentation read back by pydicom: does each frame lie where its flagged slice does?"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from scripts.core.record import BagResult, Model
from scripts.ct.outputs.report import SaveReportd
from scripts.ct.outputs.segmentation import SaveSegmentationd, segmentation
from scripts.ct.reader import load_series
from tests.ct.series import STUDY_UID, couch, ramp, tilted, write_enhanced, write_series

FLAGGED = [1, 2]


def result(folder: Path, probability: float = 0.9) -> BagResult:
    """What was found in a scan of four slices, of which two stand out."""
    series = load_series(folder)
    count = series.array.shape[2]
    shares = np.full(count, 0.05)
    shares[FLAGGED] = 0.4
    rows = zip(series.sop_instance_uids, series.frames, series.files, strict=True)
    instances = [
        {"id": uid if frame is None else f"{uid}/{frame}", "file": file, **({} if frame is None else {"frame": frame})}
        for uid, frame, file in rows
    ]
    return BagResult(
        "scan", str(folder), probability, 0.5, shares, shares, instances, model=Model("a network", "1.2.3", "ab" * 32)
    )


def places(made: Any) -> dict[tuple[float, ...], np.ndarray]:
    """Position of each frame → its marks."""
    frames = made.pixel_array.reshape(-1, made.Rows, made.Columns)
    found = made.PerFrameFunctionalGroupsSequence
    return {
        tuple(map(float, group.PlanePositionSequence[0].ImagePositionPatient)): marks
        for group, marks in zip(found, frames, strict=True)
    }


NEGATED = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0)


@pytest.mark.parametrize(
    "orientation", [(1.0, 0, 0, 0, 1.0, 0), tilted(18), NEGATED], ids=["axial", "tilted", "negated"]
)
def test_the_flagged_slices_are_marked_where_they_lie(tmp_path: Path, orientation: tuple[float, ...]) -> None:
    folder = write_series(
        tmp_path / "a", ramp(4), couch(4), ImageOrientationPatient=list(orientation), StudyInstanceUID=STUDY_UID
    )
    found = result(folder)
    SaveSegmentationd(str(tmp_path))({"bag_result": found})
    made = pydicom.dcmread(tmp_path / "scan" / "flagged.dcm")
    assert made.Modality == "SEG"
    by_uid = {str(image.SOPInstanceUID): image for image in map(pydicom.dcmread, sorted(folder.glob("*.dcm")))}
    wanted = {tuple(map(float, by_uid[str(found.instances[k]["id"])].ImagePositionPatient)) for k in FLAGGED}
    got = places(made)
    assert set(got) == wanted
    assert all(marks.all() for marks in got.values())
    shared = made.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient
    np.testing.assert_allclose([float(value) for value in shared], orientation, atol=1e-6)
    (segment,) = made.SegmentSequence
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Intracranial hemorrhage"
    assert "not for diagnosis" in made.SeriesDescription
    assert made.StudyInstanceUID == STUDY_UID


def test_of_one_file_with_many_frames_the_flagged_ones_are_marked(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write_enhanced(tmp_path / "a" / "scan.dcm", ramp(4), couch(4))
    got = places(segmentation(result(tmp_path / "a")))
    assert len(got) == len(FLAGGED)
    heights = sorted(position[2] for position in places_of_frames(tmp_path / "a" / "scan.dcm"))
    assert sorted(position[2] for position in got) == [heights[k] for k in FLAGGED]


def places_of_frames(path: Path) -> list[tuple[float, ...]]:
    groups = pydicom.dcmread(path).PerFrameFunctionalGroupsSequence
    return [tuple(map(float, group.PlanePositionSequence[0].ImagePositionPatient)) for group in groups]


def test_it_is_the_same_at_any_hour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = result(write_series(tmp_path / "a", ramp(4)))
    contents = set()
    for _ in range(2):
        SaveSegmentationd(str(tmp_path))({"bag_result": found})
        contents.add((tmp_path / "scan" / "flagged.dcm").read_bytes())
    assert len(contents) == 1


def test_of_a_negative_scan_and_of_one_that_is_not_dicom_none_is_written_and_none_is_left(tmp_path: Path) -> None:
    found = result(write_series(tmp_path / "a", ramp(4)))
    save = SaveSegmentationd(str(tmp_path))
    save({"bag_result": found})
    save({"bag_result": replace(found, probability=0.1)})
    save({"bag_result": replace(found, instances=[{"id": k} for k in range(4)])})
    assert list((tmp_path / "scan").iterdir()) == []


@pytest.mark.parametrize(
    ("given", "moment"),
    [
        ({"StudyDate": "20190817", "StudyTime": "101112.5"}, ("20190817", "101112.5")),
        ({"StudyDate": "20190817"}, ("20190817", "000000")),
        ({"StudyDate": "2019-13-50", "StudyTime": "101112"}, ("19000101", "101112")),
    ],
)
def test_its_date_is_that_of_the_study_where_that_is_one(
    tmp_path: Path, given: dict[str, Any], moment: tuple[str, str]
) -> None:
    with pydicom.config.disable_value_validation():
        found = result(write_series(tmp_path / "a", ramp(4), **given))
    for save, name in ((SaveSegmentationd, "flagged.dcm"), (SaveReportd, "report.dcm")):
        save(str(tmp_path))({"bag_result": found})
        made = pydicom.dcmread(tmp_path / "scan" / name)
        assert (str(made.ContentDate), str(made.ContentTime)) == moment


def test_illegal_uids_and_missing_tags_are_filled(tmp_path: Path) -> None:
    folder = write_series(
        tmp_path / "a", ramp(4), SeriesInstanceUID="ID_0a1b", StudyInstanceUID="ID_2c", PatientName=None
    )
    made = segmentation(result(folder))
    assert made.FrameOfReferenceUID
    assert pydicom.uid.UID(made.StudyInstanceUID).is_valid
