# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import LoadImage, Orientation
from pydicom.uid import UID, JPEG2000Lossless, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless

from scripts.core.errors import InputError
from scripts.ct.reader import SeriesReader, load_scan, load_series
from scripts.ct.volumes import Series
from tests.ct.series import (
    AXIAL,
    STUDY_UID,
    compress,
    couch,
    phantom,
    ramp,
    sop_uid,
    study,
    tilted,
    write_enhanced,
    write_series,
    write_slice,
    zipped,
)
from tests.shared_data import shared_data

LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])


def refusal(path: Path) -> str:
    """The one line with which this path is refused."""
    with pytest.raises(InputError, match=r".") as caught:
        load_scan(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def truncate(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


# order

FACE_DOWN = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0)
MIRRORED = (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0)  # its normal points to the feet


@pytest.mark.parametrize("orientation", [AXIAL, tilted(20), tilted(-20), FACE_DOWN, MIRRORED])
@pytest.mark.parametrize("step", [5.0, -5.0])
def test_slices_run_from_inferior_to_superior(tmp_path: Path, orientation: tuple[float, ...], step: float) -> None:
    stored = ramp(5)
    names = ["d", "a", "e", "b", "c"]
    write_series(tmp_path, stored, couch(5, step), names, ImageOrientationPatient=list(orientation))
    series = load_series(tmp_path)
    expected = list(range(5)) if step > 0 else [4, 3, 2, 1, 0]
    assert series.sop_instance_uids == [sop_uid(k) for k in expected]
    np.testing.assert_array_equal(series.array, stored[expected].transpose(2, 1, 0))
    assert (np.diff(series.positions) > 0).all()


def test_instance_numbers_do_not_decide(tmp_path: Path) -> None:
    for k, z in enumerate([10.0, 0.0, 5.0]):
        write_slice(
            tmp_path / f"{k}", ramp(1)[0], ImagePositionPatient=[0, 0, z], InstanceNumber=k, SOPInstanceUID=sop_uid(k)
        )
    assert load_series(tmp_path).sop_instance_uids == [sop_uid(1), sop_uid(2), sop_uid(0)]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(5)))
def test_file_names_change_nothing(tmp_path_factory: pytest.TempPathFactory, order: list[int]) -> None:
    stored = ramp(5)
    sorted_, shuffled = (
        load_series(write_series(tmp_path_factory.mktemp("scan"), stored, names=[f"f{k}" for k in names]))
        for names in (range(5), order)
    )
    np.testing.assert_array_equal(shuffled.array, sorted_.array)
    np.testing.assert_array_equal(shuffled.affine, sorted_.affine)
    assert shuffled.sop_instance_uids == sorted_.sop_instance_uids


# geometry


@pytest.mark.parametrize("degrees", [0.0, 18.5, -25.0])
def test_affine_maps_first_and_last_voxel_to_their_patient_position(tmp_path: Path, degrees: float) -> None:
    positions = couch(4)
    orientation = tilted(degrees)
    series = load_series(write_series(tmp_path, ramp(4), positions, ImageOrientationPatient=list(orientation)))
    for k in (0, 3):
        np.testing.assert_allclose((series.affine @ [0, 0, k, 1])[:3], positions[k] * LPS_TO_RAS, atol=1e-6)
    # column 3, row 2 of the first slice: 3 * 0.25 mm along the row, 2 * 0.5 mm down the column
    expected = np.array(positions[0]) + 0.75 * np.array(orientation[:3]) + 1.0 * np.array(orientation[3:])
    np.testing.assert_allclose((series.affine @ [3, 2, 0, 1])[:3], expected * LPS_TO_RAS, atol=1e-6)
    assert series.tilt == pytest.approx(abs(degrees))
    np.testing.assert_allclose(series.spacings, 5.0)
    np.testing.assert_allclose(np.diff(series.positions), 5.0 * np.cos(np.radians(degrees)))


def test_one_slice_is_a_scan(tmp_path: Path) -> None:
    series = load_series(write_series(tmp_path, ramp(1)))
    assert series.array.shape == (8, 6, 1)
    assert series.affine[2, 2] == 5.0  # its thickness
    assert series.spacings.shape == (0,)
    assert series.warnings == []


def test_real_tilted_scan() -> None:
    series = load_series(shared_data("ct_dicom/ge_head_tilt18"))
    assert series.array.shape == (512, 512, 28)
    assert (np.diff(series.positions) > 0).all()
    assert series.tilt == pytest.approx(18.5, abs=0.01)
    assert series.spacings.min() == pytest.approx(1.14, abs=1e-3)
    assert series.spacings.max() == pytest.approx(7.38, abs=1e-3)
    np.testing.assert_allclose(series.affine[:3, 3], [125.0, 123.5404569, 5.8360586], atol=1e-6)
    np.testing.assert_allclose((series.affine @ [0, 0, 27, 1])[:3], [125.0, 123.5404569, 157.7760586], atol=1e-6)
    assert series.array.min() == -1024.0  # its padding is -1500
    # brain fills the middle of the head: between water and fresh blood
    assert 10 < np.median(series.array[226:286, 226:286, 14]) < 60


# what a folder may hold besides


def test_other_files_are_ignored(tmp_path: Path) -> None:
    write_series(tmp_path, ramp(3))
    (tmp_path / "notes.txt").write_text("not DICOM")
    (tmp_path / "._000.dcm").write_text("a Mac was here")
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "more").mkdir()
    write_slice(tmp_path / "dose", ramp(1)[0], Modality="SR", SeriesInstanceUID="1.2.3", PixelData=None, Rows=None)
    series = load_series(tmp_path)
    assert series.array.shape[2] == 3
    assert series.warnings == []


def test_research_uids_and_missing_thickness_pass_without_a_word(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom does not like to write them
        for k in range(3):
            tags: dict[str, Any] = {"SOPInstanceUID": f"ID_{k}abc", "SeriesInstanceUID": "ID_series"}
            write_slice(tmp_path / f"{k}", ramp(1)[0], ImagePositionPatient=[0, 0, k], SliceThickness=None, **tags)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        series = load_series(tmp_path)
    assert series.sop_instance_uids == ["ID_0abc", "ID_1abc", "ID_2abc"]


# what is lost


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.95])
def test_a_truncated_file_is_left_out_and_named(tmp_path: Path, share: float) -> None:
    folder = write_series(tmp_path / "SECRET", ramp(12))
    truncate(folder / "004.dcm", share)
    series = load_series(folder)
    left = [k for k in range(12) if k != 4]
    assert series.sop_instance_uids == [sop_uid(k) for k in left]
    np.testing.assert_array_equal(series.array, ramp(12)[left].transpose(2, 1, 0))
    assert series.warnings == [
        "004.dcm holds no complete image and is left out",
        "the slices are unevenly spaced, 5.00 to 10.00 mm",
        "10.00 mm between slices 4 and 5, where 5.00 mm is usual: 1 slice may be missing",
    ]
    assert series.files == [f"{k:03d}.dcm" for k in left]


def test_pixels_shorter_than_rows_and_columns_are_truncated(tmp_path: Path) -> None:
    write_series(tmp_path, ramp(12))
    write_slice(tmp_path / "short", ramp(1)[0], PixelData=b"\0" * 94, ImagePositionPatient=[0, 0, 100])
    assert load_series(tmp_path).warnings == ["short holds no complete image and is left out"]


@pytest.mark.parametrize("share", [0.5, 0.95])
def test_one_lost_file_in_ten_is_a_scan_and_two_are_not(tmp_path: Path, share: float) -> None:
    write_series(tmp_path, ramp(10))
    truncate(tmp_path / "004.dcm", share)
    assert load_series(tmp_path).array.shape[2] == 9
    truncate(tmp_path / "006.dcm", share)
    assert refusal(tmp_path) == (
        f"{tmp_path} has lost 2 or more of 10 images (004.dcm holds no complete image): "
        "copy the scan again, or store it uncompressed if its pixels are compressed"
    )


@pytest.mark.parametrize("share", [0.5, 0.95])
def test_all_files_truncated_is_refused(tmp_path: Path, share: float) -> None:
    truncate(write_series(tmp_path, ramp(1)) / "000.dcm", share)
    assert "holds no image that can be read (000.dcm holds no complete image): copy the scan again" in refusal(tmp_path)


# several series


def test_the_head_series_of_a_study_is_read(tmp_path: Path) -> None:
    coronal = [1.0, 0.0, 0.0, 0.0, 0.0, -1.0]
    scout: dict[str, Any] = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "ImageOrientationPatient": coronal}
    study(tmp_path / "1", 1, 2, **scout)
    shown = study(tmp_path / "2", 2, 10, ConvolutionKernel="H30s")
    study(tmp_path / "2", 3, 10, ConvolutionKernel="H60s")
    study(tmp_path / "4", 4, 60, spacing=1.0)
    study(tmp_path / "4", 5, 10, ContrastBolusAgent="ULTRAVIST")
    study(tmp_path / "6", 6, 10, ImageType=["DERIVED", "SECONDARY"], ImageOrientationPatient=coronal)
    series = load_series(tmp_path)
    np.testing.assert_array_equal(series.array, shown.transpose(2, 1, 0))
    assert series.sop_instance_uids == [f"{STUDY_UID}.2.{k + 1}" for k in range(10)]
    assert series.files == [f"2/2-{k:03d}" for k in range(10)]
    assert series.warnings == []
    assert sorted(series.set_aside) == [
        "series 1 (2 slices): localizer",
        "series 3 (10 slices): bone kernel H60s",
        "series 4 (60 slices): its spacing of 1.00 mm is further from 5 mm than series 2",
        "series 5 (10 slices): contrast agent",
        "series 6 (10 slices): not axial, 90 degrees off",
    ]


def test_another_series_can_be_asked_for(tmp_path: Path) -> None:
    study(tmp_path, 1)
    shown = study(tmp_path, 2, ConvolutionKernel="BONE")
    for asked in (2, "2", f"{STUDY_UID}.2"):
        reader = SeriesReader(series=asked)
        array, meta = reader.get_data(reader.read(tmp_path))
        np.testing.assert_array_equal(array, shown.transpose(2, 1, 0))
        assert meta["set_aside"] == ["series 1 (10 slices): another series was asked for"]
    with pytest.raises(InputError, match=r"holds no series 7: name one of series 1 \(10 slices\), series 2"):
        load_series(tmp_path, series="7")


def test_two_studies_are_no_scan(tmp_path: Path) -> None:
    write_series(tmp_path / "a", ramp(3), StudyInstanceUID="1.2.3")
    write_series(tmp_path / "b", ramp(3), StudyInstanceUID="1.2.4")
    assert refusal(tmp_path) == f"{tmp_path} holds 2 studies: give each a folder"


def test_slices_without_a_study_belong_to_the_one_there_is(tmp_path: Path) -> None:
    write_series(tmp_path, ramp(3), StudyInstanceUID="1.2.3")
    write_slice(tmp_path / "last", ramp(1)[0], ImagePositionPatient=[-30, -40, -5])
    assert load_series(tmp_path).array.shape[2] == 4


# other ways to keep the same scan


def same(one: Series, other: Series) -> None:
    np.testing.assert_array_equal(one.array, other.array)
    np.testing.assert_array_equal(one.affine, other.affine)
    np.testing.assert_array_equal(one.positions, other.positions)
    assert one.sop_instance_uids == other.sop_instance_uids
    assert one.warnings == other.warnings
    assert one.set_aside == other.set_aside


def test_a_folder_a_zip_and_a_list_of_files_are_one_scan(tmp_path: Path) -> None:
    write_series(tmp_path / "more" / "other", ramp(2), SeriesInstanceUID="1.2.3")
    write_series(tmp_path / "more" / "scan", ramp(9))
    expected = load_series(tmp_path / "more")
    same(load_series(zipped(tmp_path / "more", tmp_path / "scan.zip")), expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["more", "scan.zip"]  # nothing was unpacked
    files = [path for path in (tmp_path / "more").rglob("*") if path.is_file()]
    listed = load_series(*sorted(files, reverse=True))
    same(listed, expected)
    assert listed.files == [f"{k:03d}.dcm" for k in range(9)]  # beside the first in the list
    one_by_one = LoadImage(reader=SeriesReader(), image_only=True)([str(path) for path in files])
    np.testing.assert_array_equal(np.asarray(one_by_one), expected.array)


def test_one_file_of_several_frames_in_any_order(tmp_path: Path) -> None:
    shown, order = phantom(10), [7, 3, 9, 0, 5, 1, 8, 2, 6, 4]
    stored = np.stack([shown[k] + 1000 + place for place, k in enumerate(order)]).astype(np.int16)  # see write_enhanced
    path = write_enhanced(tmp_path / "all", stored, [couch(10)[k] for k in order], SOPInstanceUID=sop_uid(0))
    for scan in (path, tmp_path):
        series = load_series(scan)
        np.testing.assert_array_equal(series.array, shown.transpose(2, 1, 0))
        assert series.frames == [order.index(k) + 1 for k in range(10)]
        assert series.sop_instance_uids == [sop_uid(0)] * 10
        assert series.files == ["all"] * 10
        np.testing.assert_allclose(series.affine[:3, 3], [30, 40, -20])


@pytest.mark.parametrize("syntax", [JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless, RLELossless])
def test_compressed_pixels(tmp_path: Path, syntax: UID) -> None:
    folder = write_series(tmp_path, phantom(3), StudyInstanceUID=STUDY_UID)
    plain = load_series(folder)
    for path in folder.iterdir():
        compress(path, syntax)
        assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == syntax
    same(load_series(folder), plain)


def test_a_compressed_file_of_several_frames(tmp_path: Path) -> None:
    path = write_enhanced(tmp_path / "all", phantom(4) + np.int16(1000), couch(4), SOPInstanceUID=sop_uid(0))
    plain = load_series(path)
    dataset = pydicom.dcmread(path)
    dataset.compress(RLELossless)
    dataset.SOPInstanceUID = sop_uid(0)  # pydicom gives a new one
    dataset.save_as(path)
    same(load_series(path), plain)


def test_a_damaged_compressed_slice_is_left_out(tmp_path: Path) -> None:
    folder = write_series(tmp_path, phantom(10), StudyInstanceUID=STUDY_UID)
    for path in folder.iterdir():
        compress(path, JPEGLosslessSV1)
    dataset = pydicom.dcmread(folder / "004.dcm")
    dataset.BitsAllocated = 32  # over which the codec ends its process
    dataset.save_as(folder / "004.dcm")
    series = load_series(folder)
    assert series.sop_instance_uids == [sop_uid(k) for k in range(10) if k != 4]
    assert series.warnings[0] == "004.dcm holds no complete image and is left out"


def test_the_real_scan_under_any_names_without_numbers_and_zipped(tmp_path: Path) -> None:
    original = shared_data("ct_dicom/ge_head_tilt18")
    expected = load_series(original)
    paths = sorted(original.iterdir())
    shuffled = [*paths[::2], *paths[1::2]][::-1]
    for k, path in enumerate(shuffled):
        (tmp_path / "shuffled" / str(k % 3)).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "shuffled" / str(k % 3) / f"{k:02d}")
        dataset = pydicom.dcmread(path)
        del dataset.InstanceNumber, dataset.SliceLocation, dataset.AcquisitionNumber
        (tmp_path / "numberless").mkdir(exist_ok=True)
        dataset.save_as(tmp_path / "numberless" / f"{k:02d}.dcm")
    zipped(tmp_path / "shuffled", tmp_path / "scan.zip")
    for name in ("shuffled", "numberless", "scan.zip"):
        same(load_series(tmp_path / name), expected)


# what is refused


def test_missing_path(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "nowhere")
    assert "does not exist" in refusal(tmp_path / "nowhere.nii.gz")


def test_empty_folder(tmp_path: Path) -> None:
    assert "is empty" in refusal(tmp_path)


def test_folder_without_dicom(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not DICOM")
    assert "holds no DICOM images" in refusal(tmp_path)


def test_a_file_that_is_none_of_them(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not DICOM")
    assert "notes.txt holds no DICOM, NIfTI or NRRD image" in refusal(tmp_path / "notes.txt")
    (tmp_path / "scan.zip").write_text("not a zip")
    assert "scan.zip holds no DICOM, NIfTI or NRRD image" in refusal(tmp_path / "scan.zip")


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"Modality": "MR"}, "Modality MR"),
        ({"Modality": None}, "Modality missing"),
        ({"ImagePositionPatient": None}, "no usable ImagePositionPatient"),
        ({"ImageOrientationPatient": None}, "no usable ImageOrientationPatient"),
        ({"PixelSpacing": None}, "no usable PixelSpacing"),
        ({"ImageOrientationPatient": [1.0, 0, 0, 0, 0, -1.0]}, "not axial, 90 degrees off"),
    ],
)
def test_a_folder_without_an_axial_ct(tmp_path: Path, tags: dict[str, Any], reason: str) -> None:
    listed = f"a series without a number (2 slices): {reason}"
    message = refusal(write_series(tmp_path, ramp(2), **tags))
    assert message == f"{tmp_path} holds no axial CT series that can be read ({listed}): give one"


def test_frames_without_positions(tmp_path: Path) -> None:
    write_slice(tmp_path / "all", ramp(1)[0], NumberOfFrames=2, PixelData=ramp(2).tobytes())
    assert "no usable ImagePositionPatient" in refusal(tmp_path)


# as MONAI's reader


def test_reader_feeds_load_image(tmp_path: Path) -> None:
    folder = write_series(tmp_path, ramp(4), couch(4), ImageOrientationPatient=list(tilted(15)))
    image = LoadImage(reader=SeriesReader(), image_only=True, ensure_channel_first=True)(folder)
    assert isinstance(image, MetaTensor)
    assert image.shape == (1, 8, 6, 4)
    assert image.meta["sop_instance_uids"] == [sop_uid(k) for k in range(4)]
    assert image.meta["tilt_degrees"] == pytest.approx(15)
    turned = Orientation(axcodes="LPS", labels=None)(image)
    np.testing.assert_array_equal(turned.numpy(), image.numpy())  # DICOM of a supine patient is LPS already


def test_orientation_never_reverses_the_slices(tmp_path: Path) -> None:
    stored = ramp(3)
    folder = write_series(tmp_path, stored, couch(3, step=-5.0), ImageOrientationPatient=list(FACE_DOWN))
    load = LoadImage(reader=SeriesReader(), image_only=True, ensure_channel_first=True)
    turned = Orientation(axcodes="LPS", labels=None)(load(folder))
    np.testing.assert_array_equal(turned[0].numpy(), stored[::-1, ::-1, ::-1].transpose(2, 1, 0))


def test_errors_travel_through_load_image(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is empty"):
        LoadImage(reader=SeriesReader())(tmp_path)


def test_many_volumes_are_not_one_image(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a.nii and 1 more paths given as one image: give one volume"):
        LoadImage(reader=SeriesReader())([tmp_path / "a.nii", tmp_path / "b.nii"])


def test_the_reader_logs_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_series(tmp_path, ramp(12))
    truncate(tmp_path / "004.dcm", 0.5)
    caplog.clear()
    with caplog.at_level(logging.DEBUG):
        assert len(load_series(tmp_path).warnings) == 3
    assert caplog.messages == []


def test_meta_names_no_patient(tmp_path: Path) -> None:
    reader = SeriesReader()
    _, meta = reader.get_data(reader.read(str(write_series(tmp_path, ramp(2)))))
    assert "secret" not in repr(meta).lower()
