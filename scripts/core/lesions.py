# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""What an annotation says of a bag: its lesions, and which instances lie in them."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Lesions:
    """The lesions there are to be found in a bag, and the one that each instance lies in."""

    of_instance: np.ndarray  # (N,) 0 = the instance's centre lies in no lesion, k = in the k-th
    count: int
    excluded: tuple[int, ...] = ()  # isolated tumour cells: neither a hit nor a miss
