# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import nibabel as nib
import nrrd
import numpy as np
import pytest

from scripts.core.errors import InputError
from scripts.ct.reader import load_series
from scripts.ct.volumes import load_volume
from tests.ct.series import ramp, tilted, write_series

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def refusal(path: Path) -> str:
    """The one line with which this path is refused."""
    with pytest.raises(InputError, match=r".") as caught:
        load_volume(path)
    message = str(caught.value)
    assert message.startswith(f"{path} ")
    assert "\n" not in message
    return message


def truncate(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


def volume(shape: tuple[int, ...] = (5, 4, 3)) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def save_nifti(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_slices_run_upwards_however_they_were_stored(tmp_path: Path, suffix: str) -> None:
    downwards = np.diag([1.0, 1.0, -3.0, 1.0])
    downwards[2, 3] = 7.0
    series = load_volume(save_nifti(tmp_path / f"scan{suffix}", volume(), downwards))
    np.testing.assert_array_equal(series.array, volume()[:, :, ::-1])
    np.testing.assert_allclose(series.positions, [1.0, 4.0, 7.0])
    np.testing.assert_allclose(series.spacings, [3.0, 3.0])
    assert series.sop_instance_uids == []
    np.testing.assert_array_equal(series.stored_affine, downwards)  # for those who write beside the file
    assert series.stored_shape == (5, 4, 3)


def test_nifti_padding_becomes_air(tmp_path: Path) -> None:
    array = volume()
    array[0, 0] = [-3024, np.nan, -1000]
    series = load_volume(save_nifti(tmp_path / "scan.nii", array, np.eye(4)))
    np.testing.assert_array_equal(series.array[0, 0], [-1024, -1024, -1000])


def test_nifti_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "scan.nii.gz").write_text("not NIfTI")
    assert "cannot be read as NIfTI" in refusal(tmp_path / "scan.nii.gz")


def test_truncated_nifti(tmp_path: Path) -> None:
    truncate(save_nifti(tmp_path / "scan.nii.gz", volume((9, 9, 9)), np.eye(4)), 0.6)
    assert "cannot be read as NIfTI" in refusal(tmp_path / "scan.nii.gz")


def test_nifti_with_time(tmp_path: Path) -> None:
    assert "(2, 2, 2, 3)" in refusal(save_nifti(tmp_path / "scan.nii", volume((2, 2, 2, 3)), np.eye(4)))


def test_a_nifti_without_a_place_is_refused(tmp_path: Path) -> None:
    image = nib.Nifti1Image(volume(), np.eye(4))
    image.header.set_sform(np.zeros((4, 4)), code=1)
    image.to_filename(tmp_path / "scan.nii")
    content = bytearray((tmp_path / "scan.nii").read_bytes())
    content[280:328] = b"\0" * 48  # its sform
    (tmp_path / "scan.nii").write_bytes(content)
    assert "does not say where its voxels lie" in refusal(tmp_path / "scan.nii")


def test_an_absurd_nifti_is_refused_without_a_word_more(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = save_nifti(tmp_path / "scan.nii", volume(), np.eye(4))
    content = bytearray(path.read_bytes())
    content[40:56] = struct.pack("<8h", 3, 32767, 32767, 32767, 1, 1, 1, 1)
    path.write_bytes(content)
    assert "cannot be read as NIfTI" in refusal(path)
    (tmp_path / "scan.nii.gz").write_bytes(gzip.compress(bytes(content)))
    assert "cannot be read as NIfTI" in refusal(tmp_path / "scan.nii.gz")
    assert capfd.readouterr() == ("", "")


# NRRD


def save_nrrd(
    path: Path, array: np.ndarray, affine: np.ndarray, space: str | None = "right-anterior-superior", **more: Any
) -> Path:
    """affine: voxel to `space`."""
    header = {"space": space, "space directions": affine[:3, :3].T, "space origin": affine[:3, 3], **more}
    nrrd.write(str(path), array, {key: value for key, value in header.items() if value is not None})
    return path


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2", "ASCII"])
@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("right-anterior-superior", (1, 1, 1)),
        ("left-posterior-superior", (-1, -1, 1)),
        ("left-anterior-superior", (-1, 1, 1)),
        ("LPS", (-1, -1, 1)),
    ],
)
def test_nrrd_and_nifti_of_one_scan_are_one(tmp_path: Path, encoding: str, space: str, signs: tuple[int, ...]) -> None:
    degrees = np.radians(15)
    affine = np.array([[0, 0.5, 0, -3], [-0.5, 0, 0, 8], [0, 0, -5, 60], [0, 0, 0, 1.0]])  # in RAS, its axes swapped
    turn = np.array(
        [
            [1, 0, 0, 0],
            [0, np.cos(degrees), -np.sin(degrees), 0],
            [0, np.sin(degrees), np.cos(degrees), 0],
            [0, 0, 0, 1],
        ]
    )
    affine = turn @ affine
    array = volume((5, 4, 3)) - 20
    expected = load_volume(save_nifti(tmp_path / "scan.nii", array, affine))
    in_space = np.diag([*signs, 1.0]) @ affine
    series = load_volume(save_nrrd(tmp_path / "scan.nrrd", array.astype(np.int16), in_space, space, encoding=encoding))
    np.testing.assert_array_equal(series.array, expected.array)
    np.testing.assert_allclose(series.affine, expected.affine, atol=1e-5)  # NIfTI keeps its affine in float32
    np.testing.assert_allclose(series.positions, expected.positions, atol=1e-4)
    np.testing.assert_allclose(series.spacings, expected.spacings, atol=1e-5)
    assert series.tilt == pytest.approx(15, abs=1e-4) == expected.tilt
    assert series.sop_instance_uids == series.files == series.warnings == []


def test_nrrd_and_dicom_of_one_scan_are_one(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "dicom", ramp(4) - np.int16(20), ImageOrientationPatient=list(tilted(15)))
    dicom = load_series(folder)
    series = load_volume(
        save_nrrd(tmp_path / "scan.nrrd", dicom.array, LPS @ dicom.affine, "left-posterior-superior", encoding="gzip")
    )
    np.testing.assert_array_equal(series.array, dicom.array[::-1, ::-1])  # volumes run to the right and to the front
    corner = np.array([7, 5, 2, 1])
    np.testing.assert_allclose(series.affine @ corner, dicom.affine @ [0, 0, 2, 1], atol=1e-9)
    np.testing.assert_allclose(series.positions, dicom.positions, atol=1e-9)


@pytest.mark.parametrize(
    "more",
    [
        {"space": None, "space directions": None, "space origin": None},
        {"space": "scanner-xyz"},
        {"space origin": None},
        {"space directions": np.zeros((3, 3))},
    ],
)
def test_nrrd_without_a_place(tmp_path: Path, more: dict[str, Any]) -> None:
    path = save_nrrd(tmp_path / "scan.nrrd", volume(), np.eye(4), **more)
    assert "does not say where its voxels lie: convert it again with its orientation" in refusal(path)


def test_nrrd_of_four_axes(tmp_path: Path) -> None:
    directions = np.vstack([np.full(3, np.nan), np.eye(3)])
    more: dict[str, Any] = {"space directions": directions}
    path = save_nrrd(tmp_path / "scan.nrrd", volume((2, 3, 3, 3)), np.eye(4), **more)
    assert "(2, 3, 3, 3)" in refusal(path)


@pytest.mark.parametrize("encoding", ["raw", "gzip"])
def test_damaged_nrrd(tmp_path: Path, encoding: str) -> None:
    path = save_nrrd(tmp_path / "scan.nrrd", volume((9, 9, 9)), np.eye(4), encoding=encoding)
    truncate(path, 0.8)
    assert "cannot be read as NRRD: it is damaged or not NRRD, copy or convert it again" in refusal(path)
    path.write_text("not NRRD")
    assert "cannot be read as NRRD" in refusal(path)


@pytest.mark.parametrize("line", ["data file: ../../secret.raw", "line skip: 99999999999", "byteskip: 5"])
def test_nrrd_that_leads_elsewhere(tmp_path: Path, line: str) -> None:
    path = save_nrrd(tmp_path / "scan.nrrd", volume(), np.eye(4), encoding="raw")
    path.write_bytes(path.read_bytes().replace(b"endian: little", b"endian: little\n" + line.encode()))
    assert refusal(path) == f"{path} keeps its voxels elsewhere: save it as one plain .nrrd file"
