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
"""Small studies of several series."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.data.series import phantom, write_slice

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
