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
"""The compositions and bags that the property tests run over."""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from scripts.networks import (
    AttentionPool,
    FeatureProjection,
    GatedAttentionPool,
    MaxPool,
    MeanPool,
    MILNetwork,
    SmoothAttentionPool,
)

FEATURES = 6


def _network(aggregator: nn.Module, spatial_dims: int) -> MILNetwork:
    return MILNetwork(FeatureProjection(FEATURES, 8), aggregator, nn.Linear(8, 1), spatial_dims)


COMPOSITIONS: dict[str, Callable[[], MILNetwork]] = {
    "mean": lambda: _network(MeanPool(), 0),
    "max": lambda: _network(MaxPool(), 0),
    "attention": lambda: _network(AttentionPool(8, 5), 0),
    "gated": lambda: _network(GatedAttentionPool(8, 5), 0),
    "gated, chain": lambda: _network(GatedAttentionPool(8, 5, bias=False), 1),
    "smooth early, chain": lambda: _network(SmoothAttentionPool(8, 5, "early"), 1),
    "smooth mid, chain": lambda: _network(SmoothAttentionPool(8, 5, "mid", alpha=0.7), 1),
    "smooth late, chain": lambda: _network(SmoothAttentionPool(8, 5, "late", alpha=0.9), 1),
    "smooth early, lattice": lambda: _network(SmoothAttentionPool(8, 5, "early"), 2),
    "smooth mid, lattice": lambda: _network(SmoothAttentionPool(8, 5, "mid"), 2),
    "smooth late, lattice": lambda: _network(SmoothAttentionPool(8, 5, "late"), 2),
}


def network(name: str) -> MILNetwork:
    torch.manual_seed(0)
    return COMPOSITIONS[name]().eval()


@st.composite
def bags(draw: st.DrawFn, spatial_dims: int) -> tuple[Tensor, Tensor]:
    """features [D, N] and coords [1 or 2, N] of one bag; on a lattice at least two patches touch."""
    if spatial_dims == 2:
        cells = draw(st.sets(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), max_size=14)) | {(0, 0), (1, 1)}
        coords = torch.tensor(sorted(cells), dtype=torch.float).t()
    else:
        n = draw(st.integers(1, 12))
        coords = torch.arange(n, dtype=torch.float)[None]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return torch.randn(FEATURES, coords.shape[1], generator=generator), coords
