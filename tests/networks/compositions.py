# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The compositions and bags that the property tests run over."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn

from scripts.networks import (
    HMIL,
    AttentionPool,
    FeatureProjection,
    GatedAttentionPool,
    Graph,
    InstancePool,
    MaxPool,
    MeanPool,
    MILNetwork,
    SmoothAttentionPool,
    SmoothTransformer,
    graph,
    smooth,
)

FEATURES = 6
BRACS = {"benign": ["N", "PB", "UDH"], "atypical": ["FEA", "ADH"], "malignant": ["DCIS", "IC"]}
thorough = settings(max_examples=15, deadline=None, derandomize=True)


@contextmanager
def as_on_an_accelerator() -> Iterator[None]:
    """Let networks go the ways that they go on a GPU: nothing is asked of a tensor, and all columns come at once."""
    with pytest.MonkeyPatch.context() as patched:
        for module in (graph, smooth):
            patched.setattr(module, "on_accelerator", lambda x: True)
        yield


def _network(aggregator: nn.Module, spatial_dims: int, classes: int = 1, **options: Any) -> MILNetwork:
    head = nn.Identity() if isinstance(aggregator, InstancePool) else nn.Linear(8, classes)
    return MILNetwork(FeatureProjection(FEATURES, 8), aggregator, head, spatial_dims, **options)


def _smooth(**options: Any) -> SmoothAttentionPool:
    return SmoothAttentionPool(8, 5, **options)


COMPOSITIONS: dict[str, Callable[[], MILNetwork]] = {
    "mean": lambda: _network(MeanPool(), 0),
    "max": lambda: _network(MaxPool(), 0),
    "instance max, three classes": lambda: _network(InstancePool(8, 3, "max"), 0),
    "instance mean": lambda: _network(InstancePool(8, 1, "mean"), 0),
    "attention, three classes": lambda: _network(AttentionPool(8, 5), 0, classes=3),
    "gated": lambda: _network(GatedAttentionPool(8, 5), 0),
    "gated, chain": lambda: _network(GatedAttentionPool(8, 5, bias=False), 1),
    "gated, slots": lambda: _network(GatedAttentionPool(8, 5, bias=False), 0, slots=16),
    "smooth early, chain": lambda: _network(_smooth(), 1),
    "smooth early, chain, spacing": lambda: _network(_smooth(), 1, spacing=True),
    "smooth mid, chain": lambda: _network(_smooth(placement="mid", alpha=0.7), 1),
    "smooth early, exact chain": lambda: _network(_smooth(mode="exact", alpha=0.9), 1),
    "smooth early, lattice": lambda: _network(_smooth(), 2),
    "smooth early, lattice weighted by features": lambda: _network(_smooth(), 2, feature_weights=True),
    "smooth early, spectral norm": lambda: _network(_smooth(spectral_norm=True, activation="gelu"), 2),
    "smooth late, lattice": lambda: _network(_smooth(placement="late", activation="relu"), 2),
    "smooth early, accelerated": lambda: _network(_smooth(accelerated=True, alpha=0.9), 2),
    "smooth early, exact lattice": lambda: _network(_smooth(mode="exact"), 2, classes=3),
    "smooth transformer, chain": lambda: _network(SmoothTransformer(8, _smooth(), heads=2), 1),
    "smooth transformer, landmarks": lambda: _network(SmoothTransformer(8, _smooth(), heads=2, landmarks=3), 2),
    "smooth transformer, lattice": lambda: _network(
        SmoothTransformer(8, _smooth(placement="late"), heads=4, layers=1, mode="exact", add_input=True), 2
    ),
}
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    **COMPOSITIONS,
    "HMIL": lambda: HMIL(FEATURES, BRACS, embed_features=8, hidden_features=5),
}

OF_INSTANCES = ("scores", "attention", "instance_logits", "evidence", "leave_one_out")


def network(name: str) -> Any:
    """Return a composition with fixed weights, in evaluation mode."""
    torch.manual_seed(0)
    return NETWORKS[name]().eval()


def dims_of(net: Any) -> int:
    """Return how many coordinates an instance of the network has."""
    return max(getattr(net, "spatial_dims", 0), 1)


def outputs(prediction: Any, n: int) -> dict[str, Tensor]:
    """Return what a network predicts, of the first n instances."""
    fields = {name: field for name, field in prediction._asdict().items() if isinstance(field, Tensor)}
    return {name: field[..., :n] if name.endswith(OF_INSTANCES) else field for name, field in fields.items()}


def close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


def dense(graph: Graph) -> Tensor:
    """Return the adjacency matrix [N, N] of a single bag."""
    n = graph.neighbours.shape[2]
    matrix = torch.zeros(n, n, dtype=graph.weights.dtype)
    for neighbours, weights in zip(graph.neighbours[0], graph.weights[0], strict=True):
        matrix[torch.arange(n), neighbours] += weights
    return matrix


@st.composite
def bags(draw: st.DrawFn, spatial_dims: int) -> tuple[Tensor, Tensor]:
    """features [D, N] and coords [1 or 2, N] of one bag; on a lattice at least two patches touch."""
    if spatial_dims == 2:
        cells = draw(st.sets(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), max_size=14)) | {(0, 0), (1, 1)}
        coords = torch.tensor(sorted(cells), dtype=torch.float).t()
    else:
        gaps = draw(st.lists(st.integers(1, 9), max_size=11))  # slices need not lie evenly
        coords = torch.tensor([0, *gaps], dtype=torch.float).cumsum(dim=0)[None]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return torch.randn(FEATURES, coords.shape[1], generator=generator), coords


def padded(all_bags: list[tuple[Tensor, Tensor]], spare: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """One batch [B, D, N], [B, k, N], [B, 1, N] of unequal bags; padding holds nonsense."""
    n = max(x.shape[1] for x, _ in all_bags) + spare
    image = torch.full((len(all_bags), FEATURES, n), 7.0)
    coords = torch.zeros(len(all_bags), all_bags[0][1].shape[0], n)
    mask = torch.zeros(len(all_bags), 1, n)
    for b, (x, c) in enumerate(all_bags):
        image[b, :, : x.shape[1]], coords[b, :, : x.shape[1]], mask[b, :, : x.shape[1]] = x, c, 1
    return image, coords, mask
