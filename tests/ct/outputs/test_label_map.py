# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The label map read back by nibabel, or by the letter of its format: does it lie where the flagged slices are?"""

import sys
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, LoadImage, LoadImaged, Orientationd

from scripts.core.errors import InputError
from scripts.core.record import BagResult
from scripts.ct.outputs.label_map import EXTENSIONS, LabelMapd, SaveLabelMapd
from scripts.ct.reader import SeriesReader, load_series
from tests.ct.volumes import parse_volume
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
    data: dict[Hashable, Any] = {"bag_result": found, "volume": volume}
    SaveLabelMapd(str(folder), extension)(LabelMapd()(data))
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
def test_the_shear_of_a_real_tilted_scan_survives_and_the_file_is_the_same_at_any_hour(
    extension: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shared_data("ct_dicom/ge_head_tilt18")
    scan = load_series(folder)
    shares = np.linspace(0, 1, scan.array.shape[2]) ** 50  # the highest slices alone are above the average
    found, volume = result(attention=shares / shares.sum()), load(folder, SeriesReader())["volume"]
    contents = set()
    for now in (1e9, 2e9):
        monkeypatch.setattr("time.time", lambda now=now: now)
        marks, affine = save(volume, tmp_path, found, extension)
        contents.add((tmp_path / "scan_7" / f"flagged{extension}").read_bytes())
    assert len(contents) == 1
    np.testing.assert_array_equal(marks, np.broadcast_to(found.flagged, scan.array.shape))
    np.testing.assert_allclose(affine, scan.affine, atol=1e-4)
    assert not save(volume, tmp_path / "negative", result(probability=0.2, attention=shares), extension)[0].any()


@pytest.mark.parametrize("volume", [torch.zeros(1, *SIZE), MetaTensor(torch.zeros(1, *SIZE))])
def test_a_volume_that_nobody_knows_the_place_of_is_refused(volume: torch.Tensor, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="before LabelMapd: copy it right after Orientationd"):
        LabelMapd()({"bag_result": result(), "volume": volume})
    without: dict[Hashable, Any] = {"bag_result": result()}
    assert SaveLabelMapd(str(tmp_path))(LabelMapd()(without)) == without
    assert list(tmp_path.iterdir()) == []


def test_an_extension_that_is_unknown_or_needs_itk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"extension \.vtk is not known: give one of \.nrrd, \.mha, \.nii\.gz, \.nii"):
        SaveLabelMapd("out", ".vtk")
    volume = load(nifti(tmp_path / "scan.nii", "LPS"))["volume"]
    monkeypatch.setitem(sys.modules, "itk", None)
    with pytest.raises(InputError, match="pip install itk-io"):
        save(volume, tmp_path / "mha", result(), ".mha")
    save(volume, tmp_path / "nii", result(), ".nii")
    save(volume, tmp_path / "nrrd", result(), ".nrrd")


def test_itk_finds_in_our_nrrd_what_is_in_it(tmp_path: Path) -> None:
    marks, affine = save(load(nifti(tmp_path / "scan.nii", "PIR"))["volume"], tmp_path, result())
    (path,) = tmp_path.glob("*/flagged.nrrd")
    read = LoadImage(reader="ITKReader")(path)
    np.testing.assert_array_equal(read.numpy(), marks)
    np.testing.assert_allclose(read.affine.numpy(), affine, atol=1e-6)
