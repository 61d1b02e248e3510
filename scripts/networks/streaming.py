# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Prediction for a bag too large for memory: its instances come in blocks, of which little is kept."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from scripts.networks.evidence import Evidence, of_linear, sum_of, without_largest
from scripts.networks.mil import BagPrediction, MILNetwork
from scripts.networks.pooling import InstancePool, Pooled, SmoothAttentionPool, WeightedPool, weighted_sum
from scripts.networks.smooth import Adjacency, adjacency

Blocks = Callable[[], Iterable[Tensor]]  # each call yields the blocks [1, D, n] of the bag [1, D, N] again
EncodedBlocks = Callable[[], Iterator[Tensor]]  # likewise what the encoder makes of them
COLUMNS_AT_ONCE = 2**27  # bytes of projected columns: 33 columns of a million instances


class _Whole:
    """Numbers of all instances [1, C, N], written block by block; each block kept would hold back free memory."""

    def __init__(self, mask: Tensor) -> None:
        self.count, self.end = mask.shape[2], 0
        self.found: Tensor | None = None

    def add(self, part: Tensor) -> None:
        """Write those of the next instances [1, C, n]."""
        if self.found is None:
            self.found = part.new_empty([1, part.shape[1], self.count])
        start, self.end = self.end, self.end + part.shape[2]
        self.found[:, :, start : self.end] = part

    def values(self) -> Tensor:
        assert self.found is not None
        return self.found


@torch.no_grad()
def predict_in_blocks(
    network: MILNetwork, blocks: Blocks, mask: Tensor, coords: Tensor | None = None, at_once: int = COLUMNS_AT_ONCE
) -> BagPrediction:
    """Predict one bag from its blocks, with the result of `network.predict` on the whole bag.

    Attention that scores each instance by itself is summed in one pass, by online softmax. Smooth attention smooths the
    projected columns of all instances, so many of them at a time as take `at_once` bytes, for which it reads the bag
    each time, and once more for the sum; features that the encoder made smaller than the given ones, all of them no
    more than twice these bytes, are kept instead of read again. mask: [1, 1, N] all ones, coords: [1, 1 or 2, N].
    """
    if not isinstance(network, MILNetwork) or network.training or network.slots is not None or network.feature_weights:
        raise ValueError("a bag in blocks needs a MILNetwork in eval mode, without slots and without feature_weights")
    if not bool((mask > 0.5).all()):
        raise ValueError("a bag in blocks has no padding: give a mask of ones")
    aggregator = network.aggregator
    # smooth attention makes one of its own, and holds none while the columns are found
    graph = None if isinstance(aggregator, SmoothAttentionPool) else network.graph(coords, mask)
    if isinstance(aggregator, InstancePool):
        of_each = _Whole(mask)
        for x, _ in _encoded(network, blocks, mask):
            of_each.add(aggregator.columns(x).transpose(1, 2))  # [1, C, n]
        pooled, own = aggregator.pool(of_each.values().transpose(1, 2), None), None
    elif isinstance(aggregator, SmoothAttentionPool):
        pooled, own = _smoothed(network, aggregator, blocks, mask, coords, at_once)
    elif isinstance(aggregator, WeightedPool):
        pooled, own = _one_pass(network, aggregator, blocks, mask)
    else:
        raise ValueError(f"{type(aggregator).__name__} needs the whole bag at once: read it without blocks")
    logits = network.head(pooled.embedding)
    evidence = network.explain(logits, pooled, None)
    if pooled.weights is not None and own is not None:
        evidence = of_linear(own, network.bias(pooled.embedding), pooled.weights, None)
    elif pooled.weights is not None:
        evidence = Evidence(None, None, _without_each(network, blocks, logits, pooled.embedding, pooled.weights, mask))
    graph = network.graph(coords, mask) if graph is None else graph
    return BagPrediction(logits, pooled.scores, pooled.attention, graph, *evidence)


def _encoded(network: MILNetwork, blocks: Blocks, mask: Tensor) -> Iterator[tuple[Tensor, bool]]:
    """Yield the features [1, D', n] of each block, and whether they are smaller than the block."""
    seen = 0
    for block in blocks():
        if block.shape[-1] == 0:
            continue
        seen += block.shape[-1]
        if seen > mask.shape[2]:
            break
        x: Tensor = network.encoder(block, None)
        yield x, x.numel() < block.numel()
    if seen != mask.shape[2]:
        raise ValueError(f"the blocks hold {seen} instances, the mask has {mask.shape[2]}: give the whole bag")


def _one_pass(network: MILNetwork, pool: WeightedPool, blocks: Blocks, mask: Tensor) -> tuple[Pooled, Tensor | None]:
    """Sum z = Σ exp(f - m) x / Σ exp(f - m) with m the largest f so far; a larger m scales down what was summed."""
    every, own = _Whole(mask), _Whole(mask)
    m = torch.full((), float("-inf"), device=mask.device)
    total, z = torch.zeros_like(m), torch.zeros_like(m)
    for x, _ in _encoded(network, blocks, mask):
        f = pool.columns(x).transpose(1, 2).float()  # [1, 1, n]
        every.add(f)
        if network.linear:
            own.add(network.of_each(x))
        before, m = m, torch.maximum(m, f.max())
        kept = torch.exp(before - m) * total
        total = kept + torch.exp(f - m).sum()
        z = kept / total * z + weighted_sum(x, torch.exp(f - m) / total).float()  # [1, D'], always a mean: no overflow
    f = every.values()  # [1, 1, N]
    s = torch.exp(f - m) / total  # [1, 1, N]
    return Pooled(z, f, s, weights=s), own.found


def _smoothed(
    network: MILNetwork, pool: SmoothAttentionPool, blocks: Blocks, mask: Tensor, coords: Tensor | None, at_once: int
) -> tuple[Pooled, Tensor | None]:
    """Find f from columns smoothed over all instances, then sum z = Σ Sm(s) x block by block."""
    features = _read_again(network, blocks, mask, 2 * at_once)
    a = adjacency(network.graph(coords, mask), pool.project.weight)  # Ã
    c = pool.smooth.factors(pool.project.weight, a.chain)
    if pool.placement == "late":
        of_each = _Whole(mask)
        for x in features():
            of_each.add(pool.scores(pool.columns(x), pool.project.bias, pool.weigh.weight, a, c))
        f = of_each.values()  # [1, 1, N]
    else:
        f = _of_columns(pool, features, mask, a, c, at_once)  # [1, 1, N]
    attended, own = pool.weighted(f, None, a, c), _Whole(mask)
    del a
    z, end = torch.zeros((), device=mask.device), 0
    for x in features():
        if network.linear:
            own.add(network.of_each(x))
        start, end = end, end + x.shape[2]
        z = z + weighted_sum(x, attended.weights[..., start:end]).float()  # [1, D']
    return Pooled(z, attended.scores, attended.attention, weights=attended.weights), own.found


def _of_columns(
    pool: SmoothAttentionPool, features: EncodedBlocks, mask: Tensor, a: Adjacency, c: Tensor, at_once: int
) -> Tensor:
    """Return f = Σ_j w_j act(Sm(X W_j) + b_j) [1, 1, N], a sum over columns j, of which a few are held at a time."""
    project, bias, weights = pool.project.weight, pool.project.bias, pool.weigh.weight  # [A, D'], [A], [1, A]
    f = torch.zeros_like(mask)
    held = max(1, at_once // (project.element_size() * mask.shape[2]))
    smoothed = min(max(1, held // 12), 32)  # at a time, as smoothing takes its columns several times over
    for some in torch.arange(len(project), device=project.device).split(held):
        columns = _Whole(mask)
        for x in features():
            columns.add(torch.matmul(project[some], x))  # [1, g, n]
        for few, xw in zip(some.split(smoothed), columns.values().split(smoothed, dim=1), strict=True):
            f += pool.scores(xw.transpose(1, 2), bias[few], weights[:, few], a, c)
        del columns, xw  # a view would hold these while the next ones are found
    return f


def _read_again(network: MILNetwork, blocks: Blocks, mask: Tensor, most: int) -> EncodedBlocks:
    """Return what yields the features [1, D', n] of each block, kept if all take no more than `most` bytes."""
    kept: list[Tensor] = []

    def features() -> Iterator[Tensor]:
        if kept:
            yield from kept
            return
        for x, smaller in _encoded(network, blocks, mask):
            if smaller and x[0, :, 0].nbytes * mask.shape[2] <= most:
                kept.append(x)
            yield x

    return features


def _without_each(
    network: MILNetwork, blocks: Blocks, logits: Tensor, z: Tensor, weights: Tensor, mask: Tensor
) -> Tensor:
    """Read the bag twice more: behind a head that is not linear, the answer without an instance needs its features."""
    w, end = without_largest(weights), 0
    others = torch.zeros_like(z, dtype=torch.double)
    for x, _ in _encoded(network, blocks, mask):
        start, end = end, end + x.shape[2]
        others = others + weighted_sum(x.double(), w[..., start:end])  # [1, D']
    left_out, of = _Whole(mask), sum_of(z, others, weights)
    for x, _ in _encoded(network, blocks, mask):
        left_out.add(network.left_out_of_sum(logits, of, x, left_out.end))
    return left_out.values()
