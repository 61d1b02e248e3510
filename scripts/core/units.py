# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Units as types: the type checker refuses a pitch where level-0 pixels are wanted."""

from typing import NewType

import numpy as np

Level0Pixels = NewType("Level0Pixels", float)  # a length in pixels of the slide's full resolution
MicronsPerPixel = NewType("MicronsPerPixel", float)
Millimetres = NewType("Millimetres", float)

Level0Coords = NewType("Level0Coords", np.ndarray)  # (N, 2) top-left corners x, y in level-0 pixels
PitchCoords = NewType("PitchCoords", np.ndarray)  # (N, 2) x, y in units of the patch pitch: what a network wants
