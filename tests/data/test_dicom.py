# Copyright (c) 2026 the smooth MIL bundle authors
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import LoadImage, Orientation
from pydicom.dataelem import DataElement

from scripts.data.dicom import SeriesReader, load_nifti, load_scan, load_series
from scripts.errors import InputError
from tests.data.series import AXIAL, SERIES_UID, couch, ramp, sop_uid, tilted, write_series, write_slice
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


# Hounsfield units


@pytest.mark.parametrize("implicit", [False, True])
def test_rescale_gives_hounsfield_units(tmp_path: Path, implicit: bool) -> None:
    write_series(tmp_path, ramp(3), RescaleSlope=2, RescaleIntercept=-100, implicit=implicit)
    array = load_series(tmp_path).array
    assert array.dtype == np.float32
    assert array.shape == (8, 6, 3)  # columns, rows, slices
    # slice 2, row 1, column 3 stores 2*48 + 1*8 + 3 = 107
    assert array[3, 1, 2] == 2 * 107 - 100


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize(
    ("dtype", "stored_padding", "declared_padding", "intercept"),
    [
        (np.int16, -2000, -2000, 0),
        (np.int16, -3024, None, 0),  # padding nobody declared
        (np.int16, -2000, DataElement(0x00280120, "US", 63536), 0),  # declared unsigned, stored signed
        (np.int16, -500, DataElement(0x00280120, "US", 65036), 0),  # the same, and not below air
        (np.uint16, 5000, 5000, -1024),  # looks like bone until the header is asked
    ],
)
def test_padding_becomes_air(
    tmp_path: Path, dtype: type, stored_padding: int, declared_padding: object, intercept: int, implicit: bool
) -> None:
    stored: np.ndarray = ramp(2).astype(dtype)
    stored[:, 0, 0] = stored_padding
    write_series(tmp_path, stored, PixelPaddingValue=declared_padding, RescaleIntercept=intercept, implicit=implicit)
    array = load_series(tmp_path).array
    assert (array[0, 0] == -1024).all()
    np.testing.assert_array_equal(array[1:, 1:], stored[:, 1:, 1:].transpose(2, 1, 0) + float(intercept))


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


def test_uneven_spacing_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    positions = [(0.0, 0.0, z) for z in (0.0, 4.0, 8.0, 15.0)]
    with caplog.at_level(logging.WARNING):
        series = load_series(write_series(tmp_path / "uneven", ramp(4), positions))
    assert series.warnings == ["the slices are unevenly spaced, 4.00 to 7.00 mm"]
    assert series.warnings[0] in caplog.messages
    nearly_even = [(0.0, 0.0, z) for z in (0.0, 4.0, 10.0)]
    assert load_series(write_series(tmp_path / "even", ramp(3), nearly_even)).warnings == []


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


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.95])
def test_a_truncated_file_is_left_out_and_named(tmp_path: Path, share: float, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_series(tmp_path / "SECRET", ramp(12))
    truncate(folder / "004.dcm", share)
    with caplog.at_level(logging.WARNING):
        series = load_series(folder)
    assert series.sop_instance_uids == [sop_uid(k) for k in range(12) if k != 4]
    assert series.warnings[0] == "004.dcm holds no complete image and is left out"
    assert series.warnings[0] in caplog.messages
    assert "SECRET" not in caplog.text


def test_pixels_shorter_than_rows_and_columns_are_truncated(tmp_path: Path) -> None:
    write_series(tmp_path, ramp(12))
    write_slice(tmp_path / "short", ramp(1)[0], PixelData=b"\0" * 94, ImagePositionPatient=[0, 0, 100])
    assert load_series(tmp_path).warnings[0].startswith("short holds no complete image")


def test_too_many_truncated_files_are_refused(tmp_path: Path) -> None:
    write_series(tmp_path, ramp(12))
    truncate(tmp_path / "004.dcm", 0.5)
    truncate(tmp_path / "005.dcm", 0.5)
    assert "only 10 complete images in 12 files (not 004.dcm)" in refusal(tmp_path)


def test_all_files_truncated_is_refused(tmp_path: Path) -> None:
    truncate(write_series(tmp_path, ramp(1)) / "000.dcm", 0.5)
    assert "only 0 complete images in 1 files" in refusal(tmp_path)


# what is refused


def test_missing_path(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "nowhere")


def test_empty_folder(tmp_path: Path) -> None:
    assert "is empty" in refusal(tmp_path)


def test_folder_without_dicom(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not DICOM")
    assert "holds no DICOM images" in refusal(tmp_path)


def test_a_file_that_is_no_nifti(tmp_path: Path) -> None:
    write_slice(tmp_path / "one.dcm", ramp(1)[0])
    assert "give the folder that holds the series" in refusal(tmp_path / "one.dcm")


def test_two_series(tmp_path: Path) -> None:
    write_series(tmp_path, ramp(4))
    for k in range(2):
        write_slice(tmp_path / f"bone{k}", ramp(1)[0], SeriesInstanceUID="1.2.3", ImagePositionPatient=[0, 0, k])
    message = refusal(tmp_path)
    assert "1.2.3 (2 slices)" in message
    assert f"{SERIES_UID} (4 slices)" in message
    assert "keep one per folder" in message


def test_other_modality(tmp_path: Path) -> None:
    assert "has Modality MR" in refusal(write_series(tmp_path, ramp(2), Modality="MR"))


def test_missing_modality(tmp_path: Path) -> None:
    assert "has Modality missing" in refusal(write_series(tmp_path, ramp(2), Modality=None))


def test_differing_size(tmp_path: Path) -> None:
    write_series(tmp_path, ramp(2))
    write_slice(tmp_path / "wide", ramp(1, 6, 10)[0], ImagePositionPatient=[0, 0, 99])
    message = refusal(tmp_path)
    assert "mixes Rows x Columns 6 x 8 (000.dcm) and 6 x 10 (wide)" in message


@pytest.mark.parametrize(
    ("tags", "what"),
    [
        ({"ImageOrientationPatient": list(tilted(10))}, "orientation"),
        ({"PixelSpacing": [0.5, 0.3]}, "pixel_spacing"),
    ],
)
def test_differing_geometry(tmp_path: Path, tags: dict[str, Any], what: str) -> None:
    write_series(tmp_path, ramp(2))
    write_slice(tmp_path / "other", ramp(1)[0], ImagePositionPatient=[0, 0, 99], **tags)
    assert f"mixes slices of different {what} (000.dcm, other)" in refusal(tmp_path)


@pytest.mark.parametrize("keyword", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
def test_missing_geometry(tmp_path: Path, keyword: str) -> None:
    assert f"has no usable {keyword}" in refusal(write_series(tmp_path, ramp(2), **{keyword: None}))


def test_multi_frame(tmp_path: Path) -> None:
    write_slice(tmp_path / "enhanced", ramp(1)[0], NumberOfFrames=2, PixelData=ramp(2).tobytes())
    assert "is multi-frame" in refusal(tmp_path)


def test_duplicate_positions(tmp_path: Path) -> None:
    write_series(tmp_path, ramp(3))
    write_slice(tmp_path / "again", ramp(1)[0], ImagePositionPatient=list(couch(3)[1]))
    message = refusal(tmp_path)
    assert "two slices at one position" in message
    assert "001.dcm" in message
    assert "again" in message


@pytest.mark.parametrize("orientation", [(1.0, 0, 0, 0, 0, -1.0), (0, 1.0, 0, 0, 0, -1.0), tilted(50)])
def test_other_planes(tmp_path: Path, orientation: tuple[float, ...]) -> None:
    assert "is not axial" in refusal(write_series(tmp_path, ramp(2), ImageOrientationPatient=list(orientation)))


# NIfTI


def volume(shape: tuple[int, ...] = (5, 4, 3)) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def save_nifti(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_slices_run_upwards_however_they_were_stored(tmp_path: Path, suffix: str) -> None:
    downwards = np.diag([1.0, 1.0, -3.0, 1.0])
    downwards[2, 3] = 7.0
    series = load_nifti(save_nifti(tmp_path / f"scan{suffix}", volume(), downwards))
    np.testing.assert_array_equal(series.array, volume()[:, :, ::-1])
    np.testing.assert_allclose(series.positions, [1.0, 4.0, 7.0])
    np.testing.assert_allclose(series.spacings, [3.0, 3.0])
    assert series.sop_instance_uids == []


def test_nifti_padding_becomes_air(tmp_path: Path) -> None:
    array = volume()
    array[0, 0] = [-3024, np.nan, -1000]
    series = load_nifti(save_nifti(tmp_path / "scan.nii", array, np.eye(4)))
    np.testing.assert_array_equal(series.array[0, 0], [-1024, -1024, -1000])


def test_nifti_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "scan.nii.gz").write_text("not NIfTI")
    assert "cannot be read as NIfTI" in refusal(tmp_path / "scan.nii.gz")


def test_truncated_nifti(tmp_path: Path) -> None:
    truncate(save_nifti(tmp_path / "scan.nii.gz", volume((9, 9, 9)), np.eye(4)), 0.6)
    assert "cannot be read as NIfTI" in refusal(tmp_path / "scan.nii.gz")


def test_nifti_with_time(tmp_path: Path) -> None:
    assert "(2, 2, 2, 3)" in refusal(save_nifti(tmp_path / "scan.nii", volume((2, 2, 2, 3)), np.eye(4)))


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


def test_many_paths_are_not_one_image(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 more paths given as one image"):
        LoadImage(reader=SeriesReader())([tmp_path / "a", tmp_path / "b"])


def test_meta_names_no_patient(tmp_path: Path) -> None:
    reader = SeriesReader()
    _, meta = reader.get_data(reader.read(str(write_series(tmp_path, ramp(2)))))
    assert "secret" not in repr(meta).lower()
