# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""What shows that a scan is hardly a head CT in Hounsfield units: asked of each that is read, and by doctor."""

from collections.abc import Sequence

import numpy as np

from scripts.ct.dicom.hounsfield import SURELY_NOT_AIR_HU, border_hu
from scripts.ct.dicom.series import MAX_LENGTH_MM, MIN_SLICES

BRAIN_HU = (0, 80)
# Of what is not air, as a wide field holds much of it. Each slice of a real head has more, the crown 0.11 and those
# around the middle 0.5 to 0.75; CT in tenths of HU has 0.02.
MIN_BRAIN = 0.1
HEAD_CM2 = (40, 400)  # all but air in the middle slice: from a premature child to a large head in its holder
HEAD_MM = (30, MAX_LENGTH_MM)  # from half a head upwards


def few_slices(count: int) -> list[str]:
    """Return a warning of so few slices that they are a part of a head; none of more."""
    return [f"{count} {'slice' if count == 1 else 'slices'}, few for a head"] if count < MIN_SLICES else []


def doubt_of_head_ct(middle: np.ndarray, pixel_mm: Sequence[float], positions_mm: np.ndarray) -> str:
    """Return why a scan is hardly a head CT in Hounsfield units; "" where nothing speaks against it.

    Args:
        middle: its middle slice, in what should be HU.
        pixel_mm: the sides of a pixel.
        positions_mm: (slices,) from the lowest to the highest.
    """
    found = []
    lowest, border, body = middle.min(), border_hu(middle), middle[middle > SURELY_NOT_AIR_HU]
    brain = np.sum((body > BRAIN_HU[0]) & (body < BRAIN_HU[1])) / max(1, body.size)
    if lowest > SURELY_NOT_AIR_HU:
        found.append(f"no value of the middle slice is below {lowest:.4g}, where air is near -1000")
    elif border > SURELY_NOT_AIR_HU:
        found.append(f"{border:.0f} HU at the border of the middle slice, where air is expected")
    else:
        area = body.size * float(np.prod(pixel_mm)) / 100
        if not HEAD_CM2[0] <= area <= HEAD_CM2[1]:
            found.append(f"the middle slice shows {area:.3g} cm² of a body, where a head has {_from_to(HEAD_CM2)}")
    if brain < MIN_BRAIN:
        found.append(
            f"{brain:.1%} of what is not air in the middle slice is between 0 and 80 HU, where brain is expected"
        )
    if (count := len(positions_mm)) >= MIN_SLICES:  # fewer are warned of
        length = float(np.ptp(positions_mm)) * count / (count - 1)
        if not HEAD_MM[0] <= length <= HEAD_MM[1]:
            found.append(f"it is {length:.3g} mm long, where a head has {_from_to(HEAD_MM)}")
    return f"hardly a head CT in Hounsfield units: {', and '.join(found)}" if found else ""


def _from_to(ends: tuple[float, float]) -> str:
    return f"{ends[0]:g} to {ends[1]:g}"
