# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Scans, slides and bundles with small networks for the tests of MONAI Label."""

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np

from scripts.studies.runs import BUNDLES
from tests.bundle.commands import write_square_slide
from tests.bundle.test_viewers import write_bundle
from tests.ct.series import couch, tilted, write_series

SCAN, SLIDE = BUNDLES["ct"], BUNDLES["wsi"]
SCANS = ("a", "b", "c", "d", "e", "f")
TILTED = np.array([[0.5, 0, 0, -10], [0, 0.45, 0, 20], [0, 0.15, 5, -30], [0, 0, 0, 1]])
SLICES = 6


def write_studies(folder: Path) -> Path:
    """Six scans under a tilted gantry; every other one has bright slices."""
    folder.mkdir(parents=True)
    for number, name in enumerate(SCANS):
        noise = np.random.default_rng(number).integers(0, 40, (12, 10, SLICES)).astype(np.int16)
        noise[..., 2:4] += 40 * (number % 2)
        nib.Nifti1Image(noise, TILTED).to_filename(folder / f"{name}.nii.gz")
    return folder


def write_mask(folder: Path, name: str, painted: bool) -> Path:
    """A mask as a viewer stores one, with something in the slices 2 and 3, or nothing."""
    marks = np.zeros((12, 10, SLICES), dtype=np.uint8)
    marks[4:6, 4:6, 2:4] = painted
    nib.Nifti1Image(marks, TILTED).to_filename(folder / f"mask_{name}.nii.gz")
    return folder / f"mask_{name}.nii.gz"


def write_dicom(folder: Path) -> Path:
    stored = np.random.default_rng(9).integers(0, 80, (SLICES, 12, 10)).astype(np.int16)
    return write_series(folder, stored, couch(SLICES), ImageOrientationPatient=list(tilted(18)))


def write_slides(folder: Path) -> Path:
    """Features of six slides of 16 patches; in every other one a corner stands out."""
    for number, name in enumerate(SCANS):
        features = np.random.default_rng(number).normal(size=(16, 8)).astype(np.float32)
        features[:4] += 3 * (number % 2)
        (folder / "features").mkdir(parents=True, exist_ok=True)
        write_square_slide(folder / "features" / f"{name}.h5", features)
        shutil.copy(folder / "features" / f"{name}.h5", folder / f"{name}.h5")
    return folder


def write_bundles(folder: Path, *wings: str) -> list[Path]:
    return [write_bundle(folder / BUNDLES[wing], 0.0, wing=wing) for wing in wings]
