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
"""One bag too large for memory: its instances come in blocks, and what is kept of each is small."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from scripts.networks.graph import Graph
from scripts.networks.mil import BagPrediction, MILNetwork
from scripts.networks.pooling import InstancePool, Pooled, SmoothAttentionPool, weighted_sum

Blocks = Callable[[], Iterable[Tensor]]  # each call begins anew: [1, D, n], together the bag [1, D, N]


@torch.no_grad()
def predict_in_blocks(network: MILNetwork, blocks: Blocks, mask: Tensor, coords: Tensor | None = None) -> BagPrediction:
    """What `network.predict` says of the whole bag.

    Attention that asks each instance alone is summed in one pass, by online softmax. Smooth attention keeps the
    projected columns of all instances, smooths those, and reads the bag again for the sum; an encoder that makes
    features smaller than the given ones is not asked twice, its features are kept.

    Args:
        blocks: gives the blocks of the bag, as often as it is called.
        mask: [1, 1, N], all ones.
        coords: [1, 1 or 2, N].
    """
    if network.training or network.slots is not None or network.feature_weights:
        raise ValueError("a bag in blocks wants a network in evaluation, without slots and without feature_weights")
    graph = network.graph(coords, mask)
    aggregator = network.aggregator
    if isinstance(aggregator, InstancePool):
        columns = torch.cat([aggregator.columns(x) for x in _encoded(network, blocks)], dim=1)
        pooled = aggregator.pool(columns, mask)
    elif isinstance(aggregator, SmoothAttentionPool):
        pooled = _two_passes(network, aggregator, blocks, mask, graph)
    elif hasattr(aggregator, "columns"):
        pooled = _online(network, blocks, mask, graph)
    else:
        raise ValueError(
            f"{type(aggregator).__name__} needs the whole bag at once: read it without blocks, "
            "or take an aggregator of weighted instances (attention, gated, smooth attention, mean, instance level)"
        )
    return BagPrediction(network.head(pooled.embedding), pooled.scores, pooled.attention, graph)


def _encode(network: MILNetwork, block: Tensor) -> Tensor:
    x: Tensor = network.encoder(block, torch.ones_like(block[:, :1]))
    return x


def _encoded(network: MILNetwork, blocks: Blocks) -> Iterator[Tensor]:
    for block in blocks():
        yield _encode(network, block)  # [1, D', n]


def _online(network: MILNetwork, blocks: Blocks, mask: Tensor, graph: Graph) -> Pooled:
    """z = Σ exp(f - m) x / Σ exp(f - m), m the largest f so far: what was summed shrinks when m grows."""
    scores: list[Tensor] = []
    m = torch.full((), float("-inf"), device=mask.device)
    total, z = torch.zeros_like(m), torch.zeros_like(m)
    aggregator: Any = network.aggregator
    for x in _encoded(network, blocks):
        columns = aggregator.columns(x)  # [1, n, A]
        f = aggregator.attend(columns, torch.ones_like(x[:, :1]), graph).scores  # [1, 1, n]
        before, m = m, torch.maximum(m, f.max())
        total = torch.exp(before - m) * total + torch.exp(f - m).sum()
        z = torch.exp(before - m) * z + weighted_sum(x, torch.exp(f - m))  # [1, D']
        scores.append(f)
    every = torch.cat(scores, dim=2)  # [1, 1, N]
    return Pooled(z / total, every, torch.exp(every - m) / total)


def _two_passes(
    network: MILNetwork, aggregator: SmoothAttentionPool, blocks: Blocks, mask: Tensor, graph: Graph
) -> Pooled:
    """The columns of all instances are smoothed at once; then z = Σ Sm(s) x, block by block."""
    n = mask.shape[2]
    columns = torch.empty(0)
    kept: list[Tensor] = []
    end = 0
    for block in blocks():
        x = _encode(network, block)  # [1, D', n]
        part = aggregator.columns(x)  # [1, n, A]
        if end == 0:
            columns = part.new_empty([1, n, part.shape[2]])
        columns[:, end : end + part.shape[1]] = part
        end += part.shape[1]
        if x.numel() < block.numel():
            kept.append(x)
    attended = aggregator.attend(columns, mask, graph)
    del columns
    z, end = torch.zeros((), device=mask.device), 0
    for x in kept or _encoded(network, blocks):
        start, end = end, end + x.shape[2]
        z = z + weighted_sum(x, attended.weights[..., start:end])  # [1, D']
    return Pooled(z, attended.scores, attended.attention)
