# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""One and the same for both sides: a bag, a blob of tissue on the patch lattice with random features; what is timed."""

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

SEED = 0

Runs = dict[str, Callable[[], object]]  # what to time, by name


def tissue(n: int) -> Tensor:
    """n patches with a ragged outline and holes, row by row as a slide is read. [2, n], whole numbers."""
    side = math.ceil(math.sqrt(2.5 * n))
    line = torch.linspace(-1, 1, side, dtype=torch.double)
    y, x = torch.meshgrid(line, line, indexing="ij")
    angle = torch.atan2(y, x)
    outline = torch.hypot(x, y) - 0.10 * torch.cos(3 * angle + 1) - 0.06 * torch.cos(8 * angle)
    holes = 0.3 * (torch.cos(11 * x + 1) * torch.cos(9 * y) > 0.75)
    taken = torch.topk((outline + holes).flatten(), n, largest=False).indices.sort().values
    return torch.stack([taken // side, taken % side])


def features(n: int, columns: int) -> Tensor:
    """[n, columns], float32."""
    return torch.randn(n, columns, generator=torch.Generator().manual_seed(SEED))


def edges(coords: Tensor) -> Tensor:
    """Each pair of touching patches, both ways. [2, n] → [2, E]. Written without the code that is measured."""
    n = coords.shape[1]
    taken = torch.full([int(coords[0].max()) + 3, int(coords[1].max()) + 3], -1)  # an empty line on every side
    row, column = coords[0] + 1, coords[1] + 1
    taken[row, column] = torch.arange(n)
    pairs = []
    for down, right in [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]:
        other = taken[row + down, column + right]
        there = other >= 0
        pairs.append(torch.stack([torch.arange(n)[there], other[there]]))
    return torch.cat(pairs, dim=1)


def adjacency(coords: Tensor) -> Tensor:
    """D^-1/2 A D^-1/2, sparse [n, n] in float64; an isolated patch has an empty row."""
    pairs, n = edges(coords), coords.shape[1]
    degree = torch.bincount(pairs[0], minlength=n).double()
    weights = torch.rsqrt(degree[pairs[0]] * degree[pairs[1]])
    return torch.sparse_coo_tensor(pairs, weights, (n, n), check_invariants=True).coalesce()


def runs_of(
    network: nn.Module,
    answer: Callable[[], object],
    loss: Callable[[], Tensor],
    device: str = "cpu",
    autocast: str | None = None,
) -> Runs:
    """A training step, with and without the optimizer's, and a forward pass of a network in its place."""
    mixed = torch.autocast(device, getattr(torch, autocast or "bfloat16"), enabled=autocast is not None)

    @cache  # torch.optim takes seconds to load, and the other two need none
    def optimizer() -> torch.optim.Optimizer:
        return torch.optim.Adam(network.parameters(), lr=1e-4)

    def step() -> None:
        network.zero_grad()
        network.train()
        with mixed:
            value = loss()
        value.backward()

    def step_and_update() -> None:
        step()
        optimizer().step()

    @torch.no_grad()
    def forward() -> object:
        network.eval()
        with mixed:
            return answer()

    return {"step": step, "step, Adam": step_and_update, "forward": forward}
