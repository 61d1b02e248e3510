# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Small studies of several series."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.ct.series import phantom, write_slice

HEAD = phantom(1, size=16)[0]


def write_series(
    folder: Path,
    uid: str,
    count: int = 10,
    step: float = 5.0,
    patient: str = "P1",
    study: str = "1.9",
    numbers: Sequence[int] | None = None,
    pixels: np.ndarray = HEAD,
    **tags: Any,
) -> list[str]:
    """Axial slices, the lowest first, all with the same pixels; their SOPInstanceUIDs."""
    folder.mkdir(parents=True, exist_ok=True)
    sops = [f"{uid}.{index + 1}" for index in range(count)]
    for index, sop in enumerate(sops):
        own = {
            "SOPInstanceUID": sop,
            "SeriesInstanceUID": uid,
            "StudyInstanceUID": study,
            "PatientID": patient,
            "ImagePositionPatient": [-30.0, -40.0, index * step],
            "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
            "InstanceNumber": None if numbers is None else numbers[index],
        }
        write_slice(folder / f"{uid}_{index:03d}.dcm", pixels, **{**own, **tags})
    return sops
