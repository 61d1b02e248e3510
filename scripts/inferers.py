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
"""How an evaluator asks a network for more than its logits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from monai.engines import PrepareBatch
from monai.inferers import Inferer
from torch import Tensor

from scripts.errors import InputError
from scripts.networks.mil import BagPrediction
from scripts.networks.streaming import predict_in_blocks


class BagInferer(Inferer):
    """Logits, instance scores and attention as a dictionary, which MONAI's transforms take apart."""

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        inner: Any = getattr(network, "module", network)  # DDP wraps the network, and evaluation needs no DDP
        return _as_dictionary(inner.predict(inputs, *args, **kwargs), inputs.shape[-1])


class PrepareBagInBlocks(PrepareBatch):
    """A batch of one bag whose `image` is a path: its coords and mask go to the device, its features stay."""

    def __call__(
        self, batchdata: Mapping[str, Any], device: Any = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[Sequence[str], Any, tuple[()], dict[str, Tensor]]:
        named = {key: batchdata[key].to(device=device, non_blocking=non_blocking) for key in ("coords", "mask")}
        return batchdata["image"], batchdata.get("label"), (), named


class StreamingInferer(Inferer):
    """The answer of ``BagInferer`` for a bag too large for memory: its features are read in blocks.

    Args:
        read: (path, size) → the blocks [1, D, n] of a bag.
        block_size: instances in memory at a time.
    """

    def __init__(self, read: Callable[[str, int], Iterable[Tensor]], block_size: int = 8192) -> None:
        super().__init__()
        if block_size < 1:
            raise InputError(f"block_size is {block_size}: give 1 or more")
        self.read = read
        self.block_size = block_size

    def __call__(  # type: ignore[override]
        self, inputs: Sequence[str], network: Any, *, coords: Tensor, mask: Tensor
    ) -> dict[str, Tensor]:
        (path,) = inputs

        def blocks() -> Iterator[Tensor]:
            for block in self.read(path, self.block_size):
                yield block.to(mask.device)

        inner: Any = getattr(network, "module", network)
        return _as_dictionary(predict_in_blocks(inner, blocks, mask, coords), mask.shape[2])


def _as_dictionary(prediction: BagPrediction, instances: int) -> dict[str, Tensor]:
    return {
        "logits": prediction.logits,
        "scores": prediction.scores[..., :instances],  # a network of slots says something of the empty ones too
        "attention": prediction.attention[..., :instances],
    }
