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

from collections.abc import Callable
from typing import Any

from monai.inferers import Inferer
from torch import Tensor


class BagInferer(Inferer):
    """Logits, instance scores and attention as a dictionary, which MONAI's transforms take apart."""

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        inner: Any = getattr(network, "module", network)  # DDP wraps the network, and evaluation needs no DDP
        prediction = inner.predict(inputs, *args, **kwargs)
        n = inputs.shape[-1]  # a network of slots says something of the empty ones too
        return {
            "logits": prediction.logits,
            "scores": prediction.scores[..., :n],
            "attention": prediction.attention[..., :n],
        }
