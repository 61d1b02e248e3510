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
"""Units as types: the type checker refuses a pitch where level-0 pixels are wanted."""

from __future__ import annotations

from typing import NewType

import numpy as np

Level0Pixels = NewType("Level0Pixels", float)  # a length in pixels of the slide's full resolution
MicronsPerPixel = NewType("MicronsPerPixel", float)
Millimetres = NewType("Millimetres", float)

Level0Coords = NewType("Level0Coords", np.ndarray)  # (N, 2) top-left corners x, y in level-0 pixels
PitchCoords = NewType("PitchCoords", np.ndarray)  # (N, 2) x, y in units of the patch pitch: what a network wants
