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
"""Chance in training that keeps a scan a scan: slices stay in order, stay whole, and move all alike.

What is not here: slices read from the top down. These networks answer the same to both orders.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable, RandomizableTransform, Transform
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from scripts.errors import InputError

PER_SLICE = ("image", "coords", "mask", "instance_label")  # entries of a bag with the slices along their last axis


class RandSliceDropd(Randomizable, Transform):
    """Leave out some slices of a bag, or of its slices' features, never two neighbours: a bleed seen twice stays seen.

    Args:
        slice_drop: the largest share of the slices, at most a half; each number of slices up to it is equally likely.
        at_least: slices that always stay.
    """

    def __init__(self, slice_drop: float = 0.1, at_least: int = 8) -> None:
        if not 0 <= slice_drop <= 0.5:
            raise InputError(f"slice_drop is {slice_drop}: give a share from 0 to 0.5")
        self.slice_drop = slice_drop
        self.at_least = at_least
        self.kept = np.arange(0)

    def randomize(self, data: int) -> None:
        """Which of so many slices stay."""
        most = max(0, min(int(self.slice_drop * data), data - self.at_least))
        every_other = np.arange(self.R.randint(2), data, 2)
        dropped = self.R.choice(every_other, self.R.randint(most + 1), replace=False)
        self.kept = np.setdiff1d(np.arange(data), dropped)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        bag = dict(data)
        count = bag["mask"].shape[-1]
        self.randomize(count)
        if len(self.kept) < count:
            kept = torch.from_numpy(self.kept)
            bag.update({key: _slices(bag[key], kept) for key in PER_SLICE if key in bag})
            instances = json.loads(bag["instances"])
            bag["instances"] = json.dumps([instances[index] for index in self.kept])
        return bag


def _slices(values: Tensor, kept: Tensor) -> Tensor:
    return values.movedim(-1, 0)[kept].movedim(0, -1)  # slices lie one behind the other in memory


class RandSliceAffined(RandomizableTransform, MapTransform):
    """One small turn, shift and zoom in the plane for all slices of a scan [C, rows, columns, N]; 0 from outside.

    Not MONAI's RandAffined: it interpolates between slices; with the slices as channels it takes twice the time.

    Args:
        degrees: of the turn, at most, to either side.
        shift: of rows and of columns, at most, as a share of the side.
        zoom: at most; 0.1 is from 0.9 to 1.1 times as large.
        prob: of a scan being moved at all.
    """

    def __init__(
        self,
        keys: KeysCollection,
        degrees: float = 10.0,
        shift: float = 0.05,
        zoom: float = 0.1,
        prob: float = 0.5,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        self.degrees = degrees
        self.shift = shift
        self.zoom = zoom
        self.to_source = torch.eye(2, 3)  # (x, y, 1) of the new slice → (x, y) of the old; a side runs from -1 to 1

    def randomize(self, data: Any = None) -> None:
        super().randomize(None)
        if self._do_transform:
            angle = math.radians(self.R.uniform(-self.degrees, self.degrees))
            across, down = 2 * self.R.uniform(-self.shift, self.shift, size=2)
            shrunk = 1 / self.R.uniform(1 - self.zoom, 1 + self.zoom)
            cos, sin = shrunk * math.cos(angle), shrunk * math.sin(angle)
            self.to_source = torch.tensor([[cos, -sin, across], [sin, cos, down]], dtype=torch.float32)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        bag = dict(data)
        self.randomize()
        if self._do_transform:
            for key in self.key_iterator(bag):
                bag[key] = self.moved(bag[key])
        return bag

    def moved(self, image: Tensor) -> Tensor:
        channels = image.movedim(-1, 0).flatten(0, 1)[None]  # [1, N*C, rows, columns]
        grid = affine_grid(self.to_source[None], list(channels.shape), align_corners=False)
        return grid_sample(channels, grid, align_corners=False)[0].unflatten(0, (-1, len(image))).movedim(0, -1)
