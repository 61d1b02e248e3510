# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""What is known of the instances of a bag: which lie in its lesions, and whether that fits its label."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Lesions:
    """The lesions there are to be found in a bag, and the one that each instance lies in."""

    of_instance: np.ndarray  # (N,) 0 = the instance's centre lies in no lesion, k = in the k-th
    count: int
    excluded: tuple[int, ...] = ()  # isolated tumour cells: neither a hit nor a miss


def contradiction(label: object, positive: int, how: str) -> list[str]:
    """Return a warning where a bag's label and those of its patches cannot both be true, else none."""
    if label not in (0, 1) or (positive > 0) == label:
        return []
    return [f"label {label}, though {positive or 'none'} of its patches {'is' if positive < 2 else 'are'} {how}"]
