# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Prediction for a bag too large for memory: its instances come in blocks, of which little is kept."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from scripts.networks.evidence import Evidence, Sum, largest_of, of_linear
from scripts.networks.graph import Graph
from scripts.networks.mil import BagPrediction, MILNetwork
from scripts.networks.pooling import InstancePool, Pooled, SmoothAttentionPool, WeightedPool, weighted_sum

Blocks = Callable[[], Iterable[Tensor]]  # each call yields the blocks [1, D, n] of the bag [1, D, N] again


@torch.no_grad()
def predict_in_blocks(network: MILNetwork, blocks: Blocks, mask: Tensor, coords: Tensor | None = None) -> BagPrediction:
    """Predict one bag from its blocks, with the result of `network.predict` on the whole bag.

    Attention that scores each instance by itself is summed in one pass, by online softmax. Smooth attention keeps the
    projected columns of all instances, smooths those, and reads the bag again for the sum; features that the encoder
    made smaller than the given ones are kept instead of read again. mask: [1, 1, N] all ones, coords: [1, 1 or 2, N].
    """
    if not isinstance(network, MILNetwork) or network.training or network.slots is not None or network.feature_weights:
        raise ValueError("a bag in blocks needs a MILNetwork in eval mode, without slots and without feature_weights")
    if not bool((mask > 0.5).all()):
        raise ValueError("a bag in blocks has no padding: give a mask of ones")
    graph = network.graph(coords, mask)
    aggregator = network.aggregator
    if isinstance(aggregator, InstancePool):
        columns = torch.cat([aggregator.columns(x) for x, _ in _encoded(network, blocks, mask)], dim=1)
        pooled, own = aggregator.pool(columns, mask), None
    elif isinstance(aggregator, SmoothAttentionPool):
        pooled, own = _two_passes(network, aggregator, blocks, mask, graph)
    elif isinstance(aggregator, WeightedPool):
        pooled, own = _one_pass(network, aggregator, blocks, mask)
    else:
        raise ValueError(f"{type(aggregator).__name__} needs the whole bag at once: read it without blocks")
    logits = network.head(pooled.embedding)
    evidence = network.explain(logits, pooled, mask)
    if pooled.weights is not None and own is not None:
        evidence = of_linear(own, network.bias(pooled.embedding), pooled.weights, mask)
    elif pooled.weights is not None:
        evidence = Evidence(None, None, _without_each(network, blocks, logits, pooled.embedding, pooled.weights, mask))
    return BagPrediction(logits, pooled.scores, pooled.attention, graph, *evidence)


def _encoded(network: MILNetwork, blocks: Blocks, mask: Tensor) -> Iterator[tuple[Tensor, bool]]:
    """Yield the features [1, D', n] of each block, and whether they are smaller than the block."""
    seen = 0
    for block in blocks():
        if block.shape[-1] == 0:
            continue
        seen += block.shape[-1]
        x: Tensor = network.encoder(block, torch.ones_like(block[:, :1]))
        yield x, x.numel() < block.numel()
    if seen != mask.shape[2]:
        raise ValueError(f"the blocks hold {seen} instances, the mask has {mask.shape[2]}: give the whole bag")


def _one_pass(network: MILNetwork, pool: WeightedPool, blocks: Blocks, mask: Tensor) -> tuple[Pooled, Tensor | None]:
    """Sum z = Σ exp(f - m) x / Σ exp(f - m) with m the largest f so far; a larger m scales down what was summed."""
    scores: list[Tensor] = []
    own: list[Tensor] = []
    m = torch.full((), float("-inf"), device=mask.device)
    total, z = torch.zeros_like(m), torch.zeros_like(m)
    for x, _ in _encoded(network, blocks, mask):
        f = pool.columns(x).transpose(1, 2).float()  # [1, 1, n]
        scores.append(f)
        own += [network.of_each(x)] if network.linear else []
        before, m = m, torch.maximum(m, f.max())
        kept = torch.exp(before - m) * total
        total = kept + torch.exp(f - m).sum()
        z = kept / total * z + weighted_sum(x, torch.exp(f - m) / total).float()  # [1, D'], always a mean: no overflow
    every = torch.cat(scores, dim=2)  # [1, 1, N]
    s = torch.exp(every - m) / total  # [1, 1, N]
    return Pooled(z, every, s, weights=s), _joined(own)


def _two_passes(
    network: MILNetwork, pool: SmoothAttentionPool, blocks: Blocks, mask: Tensor, graph: Graph
) -> tuple[Pooled, Tensor | None]:
    """Smooth the columns of all instances at once, then sum z = Σ Sm(s) x block by block."""
    parts: list[Tensor] = []
    own: list[Tensor] = []
    kept: list[Tensor] = []
    for x, smaller in _encoded(network, blocks, mask):
        parts.append(pool.columns(x))  # [1, n, A]
        own += [network.of_each(x)] if network.linear else []
        if smaller:
            kept.append(x)
    columns = torch.cat(parts, dim=1)  # [1, N, A]
    parts.clear()  # smoothing takes memory of its own
    attended = pool.attend(columns, mask, graph)
    del columns
    z, end = torch.zeros((), device=mask.device), 0
    for x in kept or (x for x, _ in _encoded(network, blocks, mask)):
        start, end = end, end + x.shape[2]
        z = z + weighted_sum(x, attended.weights[..., start:end]).float()  # [1, D']
    return Pooled(z, attended.scores, attended.attention, weights=attended.weights), _joined(own)


def _joined(parts: list[Tensor]) -> Tensor | None:
    return torch.cat(parts, dim=2) if parts else None


def _without_each(
    network: MILNetwork, blocks: Blocks, logits: Tensor, z: Tensor, weights: Tensor, mask: Tensor
) -> Tensor:
    """Read the bag twice more: behind a head that is not linear, the answer without an instance needs its features."""
    largest = largest_of(weights)
    w, end = weights.double().masked_fill(largest, 0.0), 0
    others = torch.zeros_like(z, dtype=torch.double)
    for x, _ in _encoded(network, blocks, mask):
        start, end = end, end + x.shape[2]
        others = others + weighted_sum(x.double(), w[..., start:end])  # [1, D']
    parts: list[Tensor] = []
    end = 0
    for x, _ in _encoded(network, blocks, mask):
        start, end = end, end + x.shape[2]
        parts.append(network.left_out_of_sum(logits, Sum(z, others, largest, weights), x, start))
    return torch.cat(parts, dim=2)
