# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""A slide for all who draw or export one."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.wsi.outputs.slide_results import SCAN_MPP, SCAN_SIZE


@pytest.fixture(scope="session")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one slide, two levels, whose suffix is in capitals as some scanners write it."""
    pixels = np.random.default_rng(0).integers(0, 256, (SCAN_SIZE[1] // 8, SCAN_SIZE[0] // 8, 3), dtype=np.uint8)
    full = pixels.repeat(8, axis=0).repeat(8, axis=1)
    path = tmp_path_factory.mktemp("slides") / "batch 2" / "slide 7.TIFF"
    path.parent.mkdir()
    with tifffile.TiffWriter(path) as tiff:
        for level, image in enumerate([full, np.asarray(Image.fromarray(full).reduce(4))]):
            tiff.write(
                image, tile=(256, 256), photometric="rgb", subfiletype=int(level > 0),
                resolution=(1e4 / SCAN_MPP / 4**level,) * 2, resolutionunit="CENTIMETER", metadata=None,
            )  # fmt: skip
    return path
