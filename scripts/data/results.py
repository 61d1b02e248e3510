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
"""What was found in one bag: the record that metrics, files and pictures are made from."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.transforms import Transform


@dataclass(frozen=True)
class BagResult:
    bag_id: str
    source: str
    probability: float  # of the bag being positive
    threshold: float
    scores: np.ndarray  # (N,) of each instance, before the softmax
    attention: np.ndarray  # (N,) sums to 1
    instances: list[dict[str, Any]]  # what each instance is: a slice's UID and position, a patch's place
    label: int | None = None
    truth: np.ndarray | None = None  # (N,) 0 or 1 where it is known

    @property
    def positive(self) -> bool:
        return self.probability > self.threshold

    @property
    def flagged(self) -> np.ndarray:
        """(N,) instances with more than the average attention, in a positive bag; none in a negative one."""
        above = self.attention * len(self.attention) > 1 + 1e-6  # equal attention is not above its average
        return self.positive & (above | (len(self.attention) == 1))


class BagResultd(Transform):
    """What the network said of a bag, without its padding → the key `result`.

    Args:
        threshold: a bag is called positive above this probability.
    """

    def __init__(self, threshold: float = 0.5) -> None:
        self.threshold = threshold

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        real = data["mask"][0] > 0.5  # [N]
        truth = data.get("instance_label")
        label = data.get("label")
        result = BagResult(
            bag_id=data["bag_id"],
            source=data["source"],
            probability=float(torch.sigmoid(data["logits"].float())[0]),
            threshold=self.threshold,
            scores=_numbers(data["scores"], real),
            attention=_numbers(data["attention"], real),
            instances=json.loads(data["instances"]),
            label=None if label is None else int(label[0]),
            truth=None if truth is None else _numbers(truth, real).astype(int),
        )
        return {**data, "result": result}


def _numbers(values: torch.Tensor, real: torch.Tensor) -> np.ndarray:
    return values[0].to(real.device)[real].float().cpu().numpy()
