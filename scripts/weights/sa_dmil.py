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
"""The released weights of SA-DMIL (arXiv 2307.09457) → the network of configs/ct."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scripts.errors import InputError

RELEASED = {  # how the sha256 of the .data file begins
    "baseline": "fc734d204520a3f38b34131edad05c4e742544c3f85205e4cec455d10bfe823d",
    "att_0_5": "bc43e206fdeaead16290d822e33ff07cf5fdccb2dea06aa313592d5b26ef519a",
    "att_0_9": "57ae38f0",  # its beginning is all that is known
}
CHANNELS = (3, 16, 32, 32, 32, 32, 32)  # before the first block and behind each of the six
CONVOLUTIONS = (0, 4, 9, 13, 17, 22)  # their places in SliceCNN.blocks
FEATURES = 6 * 6 * 32  # of a slice, in the order row, column, channel on both sides
HIDDEN_ATTENTION = 64
HIDDEN_HEAD = 128
SETTINGS = {"slots": 57}  # of the network: every scan was filled up to so many slices

Tensors = Mapping[str, np.ndarray]


def released_as(sha256: str) -> str | None:
    """The name of a released checkpoint, by the sha256 of its .data file."""
    return next((name for name, beginning in RELEASED.items() if sha256.startswith(beginning)), None)


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def classes(tensors: Tensors) -> int:
    """Outputs of the head: one logit, or one per class."""
    return 2 if _shape(tensors, "14/bias") == (2,) else 1


def state_dict(tensors: Tensors, one_logit: bool = True) -> dict[str, Tensor]:
    """What the network of configs/ct/train.json loads.

    Where the head has two outputs, the biases of the two differ in sign alone, as training by a softmax leaves them.
    The sigmoid of their difference is that softmax, so with `one_logit` the head becomes class 1 - class 0.
    """
    state = {}
    for block, at in enumerate(CONVOLUTIONS):
        before, after = CHANNELS[block : block + 2]
        side = 5 if block == 0 else 3
        convolution, norm = f"encoder.blocks.{at}", f"encoder.blocks.{at + 2}"
        kernel = _tensor(tensors, f"{2 * block}/kernel", (side, side, before, after))  # row, column, in, out
        state[f"{convolution}.weight"] = kernel.permute(3, 2, 0, 1).contiguous()
        state[f"{convolution}.bias"] = _tensor(tensors, f"{2 * block}/bias", (after,))
        for ours, theirs in (
            ("weight", "gamma"),
            ("bias", "beta"),
            ("running_mean", "moving_mean"),
            ("running_var", "moving_variance"),
        ):
            state[f"{norm}.{ours}"] = _tensor(tensors, f"{2 * block + 1}/{theirs}", (after,))
        state[f"{norm}.num_batches_tracked"] = torch.tensor(0)  # counts for an average that is not used here
    state["aggregator.project.weight"] = _tensor(tensors, "12/v", (FEATURES, HIDDEN_ATTENTION)).t().contiguous()
    state["aggregator.gate.weight"] = _tensor(tensors, "12/u", (FEATURES, HIDDEN_ATTENTION)).t().contiguous()
    state["aggregator.weigh.weight"] = _tensor(tensors, "12/w", (HIDDEN_ATTENTION, 1)).t().contiguous()
    state["head.1.weight"] = _tensor(tensors, "13/kernel", (FEATURES, HIDDEN_HEAD)).t().contiguous()
    state["head.1.bias"] = _tensor(tensors, "13/bias", (HIDDEN_HEAD,))
    outputs = classes(tensors)
    weight = _tensor(tensors, "14/kernel", (HIDDEN_HEAD, outputs)).t().contiguous()
    bias = _tensor(tensors, "14/bias", (outputs,))
    if outputs == 2 and one_logit:
        weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
    state["head.2.weight"], state["head.2.bias"] = weight, bias
    return state


def _tensor(tensors: Tensors, name: str, shape: tuple[int, ...]) -> Tensor:
    found = _shape(tensors, name)
    if found != shape:
        there = "none is there" if found is None else f"{found} is there"
        raise InputError(
            f"layer_with_weights-{name} of the checkpoint should be {shape}, and {there}: "
            "give one of the checkpoints released with SA-DMIL"
        )
    weights = torch.tensor(tensors[_full(name)], dtype=torch.float32)
    if not weights.isfinite().all():
        raise InputError(f"layer_with_weights-{name} of the checkpoint holds NaN or infinite values: download it again")
    return weights


def _shape(tensors: Tensors, name: str) -> tuple[int, ...] | None:
    return tensors[_full(name)].shape if _full(name) in tensors else None


def _full(name: str) -> str:
    return f"layer_with_weights-{name}/.ATTRIBUTES/VARIABLE_VALUE"
