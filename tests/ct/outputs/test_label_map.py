# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The label map read back by nibabel, or by the letter of its format: does it lie where the flagged slices are?"""

import sys
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, LoadImaged, Orientationd, SaveImaged

from scripts.core.errors import InputError
from scripts.core.record import BagResult
from scripts.ct.outputs.label_map import EXTENSIONS, SaveLabelMapd
from scripts.ct.reader import SeriesReader
from tests.ct.series import write_series
from tests.ct.volumes import LPS_TO_RAS, parse_volume
from tests.shared_data import shared_data

SIZE = (5, 4, 6)  # no two axes alike
SHARES = np.array([0.05, 0.3, 0.05, 0.25, 0.05, 0.3])  # three of six slices are above the average
FLAGGED = (1, 3, 5)
# A gantry tilted by 18 degrees.
SHEARED = np.array([[0.5, 0, 0, -10], [0, 0.45, 0, 20], [0, 0.15, 5, -30], [0, 0, 0, 1]])


def result(probability: float = 0.8, attention: np.ndarray = SHARES) -> BagResult:
    instances = [{"id": index} for index in range(len(attention))]
    return BagResult("scan_7", "scans/7", probability, 0.5, attention, attention, instances)


def load(path: Path, reader: Any = "NibabelReader") -> dict[Hashable, Any]:
    """As the pipeline does it: the scan in LPS axes, slices from inferior to superior."""
    read = LoadImaged("volume", reader=reader, ensure_channel_first=True)
    loaded: dict[Hashable, Any] = Compose([read, Orientationd("volume", axcodes="LPS", labels=None)])({"volume": path})
    return loaded


def nifti(path: Path, axes: str) -> Path:
    """A scan whose voxels hold the number of their slice, counted upwards, stored along these axes."""
    upright = nib.Nifti1Image(np.broadcast_to(np.arange(SIZE[2], dtype=np.int16), SIZE), SHEARED)
    turn = nib.orientations.ornt_transform(*map(nib.orientations.axcodes2ornt, (("R", "A", "S"), tuple(axes))))
    upright.as_reoriented(turn).to_filename(path)
    return path


def save(volume: Any, folder: Path, found: BagResult, extension: str = ".nrrd") -> tuple[np.ndarray, np.ndarray]:
    """The marks and their affine, voxel -> RAS, as they stand in the file."""
    data: dict[Hashable, Any] = {"result": found, "volume": volume}
    assert SaveLabelMapd(str(folder), extension)(data) == data
    (file,) = (folder / found.bag_id).iterdir()
    assert file.name == f"flagged{extension}"
    if not extension.startswith(".nii"):
        return parse_volume(file)
    image: Any = nib.load(file)
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 1)
    return np.asarray(image.dataobj), image.affine


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("axes", ["LPS", "PIR", "SRA"])
def test_it_has_the_axes_the_shape_and_the_place_of_the_file(axes: str, extension: str, tmp_path: Path) -> None:
    scan: Any = nib.load(nifti(tmp_path / "scan.nii", axes))
    for reader in ("NibabelReader", SeriesReader()):
        folder = tmp_path / type(reader).__name__
        marks, affine = save(load(tmp_path / "scan.nii", reader)["volume"], folder, result(), extension)
        assert marks.dtype == np.uint8
        np.testing.assert_array_equal(marks, np.isin(scan.get_fdata(), FLAGGED))
        np.testing.assert_allclose(affine, scan.affine, atol=1e-5)


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_the_shear_of_a_real_tilted_scan_survives(extension: str, tmp_path: Path) -> None:
    folder = shared_data("ct_dicom/ge_head_tilt18")
    headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in folder.glob("*.dcm")]
    headers.sort(key=lambda header: header.ImagePositionPatient[2])
    far = np.array([headers[0].Columns, headers[0].Rows, len(headers)]) - 1
    shares = np.array([0.1 / far[2]] * far[2] + [0.9])

    marks, affine = save(load(folder, SeriesReader())["volume"], tmp_path, result(attention=shares), extension)
    expected = np.zeros(far + 1, np.uint8)
    expected[..., -1] = 1
    np.testing.assert_array_equal(marks, expected)
    cosines = np.array(headers[0].ImageOrientationPatient, dtype=float).reshape(2, 3)
    across = (far[:2] * np.flip(np.array(headers[0].PixelSpacing, dtype=float))) @ cosines
    for z in (0, far[2]):
        for x_y, offset in ((np.zeros(2), 0.0), (far[:2], across)):
            lps = np.array(headers[z].ImagePositionPatient, dtype=float) + offset
            np.testing.assert_allclose(affine @ [*x_y, z, 1], LPS_TO_RAS @ [*lps, 1], atol=1e-3)


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize(("row", "column"), [(1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0)])
def test_negated_cosines_mirror_nothing(row: float, column: float, extension: str, tmp_path: Path) -> None:
    stored = np.zeros((SIZE[2], 20, 7), np.int16)  # no two axes alike
    scan = write_series(tmp_path / "dicom", stored, ImageOrientationPatient=[row, 0.0, 0.0, 0.0, column, 0.0])
    marks, affine = save(load(scan, SeriesReader())["volume"], tmp_path / "out", result(), extension)
    for index in FLAGGED:
        first = pydicom.dcmread(scan / f"{index:03d}.dcm")
        down, across = map(float, first.PixelSpacing)
        for x, y in ((0, 0), (6, 19)):
            lps = np.add(first.ImagePositionPatient, [row * across * x, column * down * y, 0])
            voxel = np.linalg.inv(affine) @ LPS_TO_RAS @ [*lps, 1]
            np.testing.assert_allclose(voxel, np.rint(voxel), atol=1e-4)
            assert marks[tuple(np.rint(voxel)[:3].astype(int))] == 1
    assert marks.sum() == len(FLAGGED) * 20 * 7


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_a_second_run_gives_the_same_file_and_a_negative_scan_no_mark(
    extension: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = load(nifti(tmp_path / "scan.nii", "LPS"))["volume"]
    assert not save(volume, tmp_path / "negative", result(probability=0.2), extension)[0].any()
    save(volume, tmp_path / "one", result(), extension)
    monkeypatch.setattr("time.time", lambda: 2e9)
    save(volume, tmp_path / "two", result(), extension)
    one, two = ((tmp_path / run / "scan_7" / f"flagged{extension}").read_bytes() for run in ("one", "two"))
    assert one == two


@pytest.mark.parametrize("volume", [torch.zeros(1, *SIZE), MetaTensor(torch.zeros(1, *SIZE))])
def test_a_volume_that_nobody_knows_the_place_of_is_refused(volume: torch.Tensor, tmp_path: Path) -> None:
    save = SaveLabelMapd(str(tmp_path))
    assert isinstance(save, SaveImaged)  # which MONAI Label takes out
    with pytest.raises(InputError, match="before SaveLabelMapd: copy it right after Orientationd"):
        save({"result": result(), "volume": volume})
    without: dict[Hashable, Any] = {"result": result()}
    assert save(without) == without
    assert list(tmp_path.iterdir()) == []


def test_without_itk_nifti_alone_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = load(nifti(tmp_path / "scan.nii", "LPS"))["volume"]
    monkeypatch.setitem(sys.modules, "itk", None)
    with pytest.raises(InputError, match="pip install itk-io"):
        save(volume, tmp_path / "mha", result(), ".mha")
    save(volume, tmp_path / "nii", result(), ".nii")


def test_an_unknown_extension_is_refused_before_any_scan_is_read() -> None:
    with pytest.raises(InputError, match=r"extension \.vtk is not known: give one of \.nrrd, \.mha, \.nii\.gz, \.nii"):
        SaveLabelMapd("out", ".vtk")
