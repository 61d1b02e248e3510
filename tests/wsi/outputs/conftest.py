# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""A slide for all who draw or export one."""

from pathlib import Path

import numpy as np
import pytest

from tests.wsi.outputs.slide_results import SCAN_MPP, SCAN_SIZE
from tests.wsi.slide_files import write_slide


@pytest.fixture(scope="session")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide in a folder, whose suffix is in capitals as some scanners write it."""
    pixels = np.random.default_rng(0).integers(0, 256, (SCAN_SIZE[1] // 8, SCAN_SIZE[0] // 8, 3), dtype=np.uint8)
    folder = tmp_path_factory.mktemp("slides") / "batch 2"
    return write_slide(folder / "slide 7.TIFF", pixels.repeat(8, axis=0).repeat(8, axis=1), SCAN_MPP)
