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

import hashlib
import json
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.transforms import Transform

from scripts.errors import InputError


class Model(NamedTuple):
    """Which network said it."""

    name: str
    version: str
    sha256: str  # of the file of its weights


@dataclass(frozen=True)
class BagResult:
    bag_id: str
    source: str  # the user's own path
    probability: float  # of the bag being positive
    threshold: float
    scores: np.ndarray  # (N,) of each instance, before the softmax
    attention: np.ndarray  # (N,) sums to 1
    instances: list[dict[str, Any]]  # what each instance is: a slice's UID and position, a patch's place
    label: int | None = None
    truth: np.ndarray | None = None  # (N,) 0 or 1 where it is known
    threshold_origin: str = ""  # who chose it, and on what
    model: Model | None = None
    about: dict[str, Any] = field(default_factory=dict)  # of the bag: a scan's tilt, spacings, warnings
    slots: int | None = None  # instances the average attention is taken over; None = the real ones

    @property
    def positive(self) -> bool:
        return self.probability > self.threshold

    @property
    def flagged(self) -> np.ndarray:
        """(N,) instances with more than the average attention, in a positive bag; none in a negative one."""
        above = self.times_average > 1 + 1e-6  # equal attention is not above its average
        return self.positive & (above | (len(self.attention) == 1))

    @property
    def times_average(self) -> np.ndarray:
        """(N,) attention as a multiple of its average."""
        return self.attention * (self.slots or len(self.attention))


class BagResultd(Transform):
    """What the network said of a bag, without its padding → the key `result`.

    Args:
        threshold: a bag is called positive above this probability.
        slots: instances over which the average attention is taken, for a network of slots.
    """

    def __init__(self, threshold: float = 0.5, slots: int | None = None) -> None:
        self.threshold = threshold
        self.slots = slots

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
            about=json.loads(data.get("about", "{}")),
            slots=self.slots,
        )
        return {**data, "result": result}


class SignResultd(Transform):
    """Says in the `result` which network it is from, and where its threshold comes from."""

    def __init__(self, model: ModelCard, threshold_origin: str) -> None:
        self.model = model
        self.threshold_origin = threshold_origin

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        signed = replace(data["result"], model=self.model.read(), threshold_origin=self.threshold_origin)
        return {**data, "result": signed}


class ModelCard:
    """Which network a bundle runs, read from its metadata and its weights when first asked for.

    Args:
        bundle_root: folder of the bundle.
        ckpt_path: file of the weights.
    """

    def __init__(self, bundle_root: str, ckpt_path: str) -> None:
        self.metadata = Path(bundle_root) / "configs" / "metadata.json"
        self.weights = Path(ckpt_path)
        self._model: Model | None = None

    def read(self) -> Model:
        """With an empty sha256 as long as there are no weights: configs are looked at before a network is trained."""
        if self._model is None or not self._model.sha256:
            self._model = Model(*self._name_and_version(), self._sha256())
        return self._model

    def _name_and_version(self) -> tuple[str, str]:
        try:
            metadata = json.loads(self.metadata.read_text())
        except OSError as error:
            raise InputError(
                f"{self.metadata} cannot be read ({error.strerror}): give the bundle's folder as --bundle_root"
            ) from error
        return metadata["name"], metadata["version"]

    def _sha256(self) -> str:
        if not self.weights.is_file():
            return ""
        with self.weights.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def _numbers(values: torch.Tensor, real: torch.Tensor) -> np.ndarray:
    return values[0].to(real.device)[real].float().cpu().numpy()
