# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The phantom's DICOM series say what the phantom is, and its truth is where the blood is."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pydicom
import pytest

from demo import heads
from demo.cohorts import plan_cases
from demo.heads import Head, header_style, plan_head, slice_uids, write_series

AWKWARD = 2  # tilted, shuffled, padded, and numbered from the top


@cache
def head(case: int, positive: bool = True) -> Head:
    return Head(plan_head(0, case, positive), 0)


def along_normal(dataset: pydicom.Dataset) -> float:
    orientation = np.array(dataset.ImageOrientationPatient, float)
    return float(np.dot(np.cross(orientation[:3], orientation[3:]), np.array(dataset.ImagePositionPatient, float)))


def test_a_series_is_a_complete_synthetic_ct_of_the_phantom_sheared_along_the_table(tmp_path: Path) -> None:
    """In the order along the normal, which names and numbers hide."""
    phantom = head(AWKWARD)
    write_series(phantom, "scan_002", 0, tmp_path)
    files = sorted(map(pydicom.dcmread, tmp_path.iterdir()), key=along_normal)
    uids = slice_uids("scan_002", 0, phantom.plan.geometry.slices)
    assert [ds.SOPInstanceUID for ds in files] == uids
    assert [ds.SOPInstanceUID for ds in sorted(files, key=lambda ds: str(ds.filename))] != uids
    assert [ds.SOPInstanceUID for ds in sorted(files, key=lambda ds: int(ds.InstanceNumber))] == uids[::-1]
    assert len(set(uids)) == len(files)
    assert len({ds.SeriesInstanceUID for ds in files}) == 1
    type_2 = ("PatientBirthDate", "PatientSex", "ReferringPhysicianName", "AccessionNumber", "StudyID")
    for index, dataset in enumerate(files):
        hounsfield = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
        assert np.abs(hounsfield - phantom.hounsfield(index))[phantom.in_circle].max() <= 0.501
        assert (dataset.pixel_array[~phantom.in_circle] == dataset.PixelPaddingValue).all()
        assert dataset.PixelPaddingValue == -2000
        assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
        assert dataset.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
        assert dataset.SOPInstanceUID.is_valid
        assert dataset.SOPClassUID == pydicom.uid.CTImageStorage
        assert dataset.PatientName == "SYNTHETIC^scan_002"
        assert all("SYNTHETIC" in text for text in (dataset.Manufacturer, dataset.ImageComments))
        assert dataset.BurnedInAnnotation == "NO"
        assert all(name in dataset for name in type_2)
    steps = np.diff([np.array(ds.ImagePositionPatient, float) for ds in files], axis=0)
    assert np.allclose(steps, (0, 0, phantom.plan.geometry.table_step), atol=1e-5)
    _, cosine, sine = np.array(files[0].ImageOrientationPatient[3:], float)
    assert np.degrees(np.arctan2(sine, cosine)) == pytest.approx(float(files[0].GantryDetectorTilt), abs=1e-4)
    assert float(files[0].GantryDetectorTilt) != 0


def test_tilted_slices_cut_the_anatomy_where_their_header_says() -> None:
    """A calcification is found, through the header alone, at the place where the plan puts it."""
    case = next(c for c in range(60) if header_style(c).tilt_degrees and plan_head(0, c, False).calcifications)
    phantom = head(case, positive=False)
    geometry, body = phantom.plan.geometry, phantom.plan.calcifications[0]
    c, s = np.cos(phantom.plan.turn), np.sin(phantom.plan.turn)
    centre = np.array(((c, -s, 0), (s, c, 0), (0, 0, 1))) @ body.centre + np.array((*phantom.plan.shift, 0))
    distances: list[float] = []
    for index in range(geometry.slices):
        rows, columns = np.nonzero(np.abs(phantom.hounsfield(index) - 190) < 25)
        pixels = np.stack((columns, rows, 0 * rows), 1) * geometry.pixel
        y, z = geometry.column_direction[1:]
        points = np.array(geometry.first_pixel(index)) + pixels @ np.array(((1, 0, 0), (0, y, z), (0, 0, 0)), float)
        distances.extend(np.linalg.norm(points - centre, axis=1))
    assert np.sum(np.array(distances) < max(body.radii)) >= 10


def test_instance_numbers_are_missing_where_that_is_the_style(tmp_path: Path) -> None:
    case = next(case for case in range(9) if header_style(case).instance_numbers == "missing")
    write_series(head(case), "scan", 0, tmp_path)
    assert not any("InstanceNumber" in pydicom.dcmread(path, stop_before_pixels=True) for path in tmp_path.iterdir())


def test_tissues_have_their_hounsfield_units() -> None:
    phantom = head(3, positive=False)
    index = next(i for i in range(99) if phantom.plan.geometry.height(i) > 75)
    hu, radius = phantom.hounsfield(index), np.sqrt(phantom.spread)
    brain = hu[radius < 0.7]
    assert 25 < np.median(brain) < 40
    assert 0 < np.percentile(brain, 2) < 15  # the ventricles
    assert np.median(hu[hu > 800]) == pytest.approx(1000, abs=20)
    assert np.median(hu[radius > 1.1]) == pytest.approx(-1000, abs=3)


@pytest.mark.parametrize("case", range(4))
def test_truth_is_where_blood_makes_the_same_head_denser_by_what_was_planned(case: int) -> None:
    bloody, clean = head(case), Head(replace(plan_head(0, case, True), bleeds=()), 0)
    bleeds, pixel_area, areas = bloody.plan.bleeds, bloody.plan.geometry.pixel**2, []
    gains = [bloody.hounsfield(i) - clean.hounsfield(i) for i in range(bloody.plan.geometry.slices)]
    for index, gain in enumerate(gains):
        areas.append(bloody.bleed_area(index))
        denser = (gain > (min(bleed.hu for bleed in bleeds) - 33) / 2).sum() * pixel_area
        assert denser == pytest.approx(areas[-1], rel=0.3, abs=15)
        assert clean.bleed_area(index) == 0
    if len(bleeds) == 1:
        widest = int(np.argmax(areas))
        assert np.median(bloody.hounsfield(widest)[gains[widest] > 8]) == pytest.approx(bleeds[0].hu, abs=4)


def test_every_bleed_spans_at_least_three_neighbouring_slices() -> None:
    for case in range(10):
        phantom = head(case)
        areas = [phantom.bleed_area(index) for index in range(phantom.plan.geometry.slices)]
        labels = "".join(map(str, heads.slice_labels(phantom, slice_uids("x", 0, len(areas))).values()))
        assert labels == "".join("1" if area >= heads.POSITIVE_AREA else "0" for area in areas)
        assert "111" in labels
        assert "0" in labels


def test_bleeds_differ_and_neither_anatomy_nor_brightness_gives_the_label_away() -> None:
    bleeds = [bleed for case in range(64) for bleed in plan_head(0, case, True).bleeds]
    assert {bleed.kind for bleed in bleeds} == {"intraparenchymal", "subdural", "epidural", "ventricular"}
    assert sum(bleed.hu < 50 for bleed in bleeds) >= 5  # subtle ones
    assert max(bleed.hu for bleed in bleeds) <= 80
    assert replace(plan_head(0, 5, True), bleeds=()) == plan_head(0, 5, False)
    negative = [plan_head(0, case, False) for case in range(20)]
    assert any(plan.calcifications for plan in negative)
    assert any(plan.falx > 44 for plan in negative)
    assert len({(plan.half_width, plan.turn, plan.shift) for plan in negative}) == 20


def test_default_cohort_has_every_header_habit_in_both_labels() -> None:
    cases = plan_cases(Path("ct"), "scans/scan_{:03d}", 0, (32, 8, 24))
    for positive in (False, True):
        styles = [header_style(case.number) for case in cases if case.positive == positive]
        assert {style.instance_numbers for style in styles} == {"ascending", "descending", "missing"}
        assert {np.sign(style.tilt_degrees) for style in styles} == {-1, 0, 1}
        assert {style.shuffled_names for style in styles} == {style.padded for style in styles} == {False, True}
    assert all(24 <= plan_head(0, case.number, False).geometry.slices <= 40 for case in cases)
