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
"""Who is whose neighbour in a bag: a chain of slices, or a lattice of patches."""

from __future__ import annotations

from typing import NamedTuple, Optional

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag


class Graph(NamedTuple):
    """The symmetric graph of each bag, as a table: every instance names at most K neighbours.

    An empty place of the table names the instance itself, with weight 0.
    """

    neighbours: Tensor  # [B, K, N] int64, places within the bag
    weights: Tensor  # [B, K, N] float, 0 where there is no neighbour


def no_graph(mask: Tensor) -> Graph:
    """The graph of a composition that has no neighbours: a table without a row."""
    b, n = mask.shape[0], mask.shape[2]
    return Graph(
        torch.zeros([b, 0, n], dtype=torch.long, device=mask.device),
        torch.zeros([b, 0, n], dtype=torch.float, device=mask.device),
    )


def build_graph(coords: Tensor, mask: Optional[Tensor] = None) -> Graph:
    """One coordinate per instance makes a chain, two make a lattice with 8 neighbours.

    Args:
        coords: [B, 1, N] order along the slice normal, or [B, 2, N] in units of the patch pitch.
        mask: [B, 1, N], 1 = a real instance; padding has no neighbours.
    """
    if mask is None:
        mask = torch.ones_like(coords[:, :1])
    real = mask[:, 0] > 0.5  # [B, N]
    if coords.shape[1] == 1:
        return _chain(coords[:, 0], real)
    if coords.shape[1] == 2:
        graph = _lattice(torch.round(coords).long(), real)
        _refuse_edgeless(coords, real, graph.weights)
        return graph
    raise ValueError(
        f"coords hold {coords.shape[1]} numbers per instance: 1 (order of slices) or 2 (place of patches) are wanted"
    )


def _chain(position: Tensor, real: Tensor) -> Graph:
    """Each instance and the next one by position, whatever the distance: a scan without a slice is still a scan."""
    n = position.shape[1]
    order = torch.argsort(position.masked_fill(~real, float("inf")), dim=1, stable=True)  # [B, N]
    rank = torch.argsort(order, dim=1)  # [B, N]
    steps = torch.tensor([-1, 1], device=position.device)
    at = rank.unsqueeze(1) + steps.view(1, 2, 1)  # [B, 2, N] ranks of the two neighbours
    last = real.sum(dim=1).view(-1, 1, 1)
    exists = (at >= 0) & (at < last) & real.unsqueeze(1)
    wanted = at.clamp(0, n - 1)
    neighbours = torch.gather(order.unsqueeze(1).expand(-1, 2, -1), 2, wanted)
    return _table(neighbours, exists)


def _lattice(cell: Tensor, real: Tensor) -> Graph:
    """The 8 cells around each instance's own, found by binary search among the cells that are taken."""
    n = cell.shape[2]
    low = cell.amin(dim=2, keepdim=True) - 1
    cell = cell - low  # [B, 2, N] from 1 on, so a step to the left never leaves the line
    width = cell[:, 1].amax() + 2
    # padding lies behind every real cell, each in a place of its own
    beyond = width * (cell[:, 0].amax() + 2)
    place = torch.arange(n, device=cell.device).unsqueeze(0)
    key = torch.where(real, cell[:, 0] * width + cell[:, 1], beyond + 2 * place)  # [B, N]
    taken, order = torch.sort(key, dim=1)
    if not torch.jit.is_tracing() and bool((taken[:, 1:] == taken[:, :-1]).any()):
        raise ValueError(
            "two instances of a bag share one place of the patch lattice: "
            "coords must be in units of the distance between neighbouring patches, one bag per slide"
        )
    rows = torch.tensor([-1, -1, -1, 0, 0, 1, 1, 1], device=cell.device)
    columns = torch.tensor([-1, 0, 1, -1, 1, -1, 0, 1], device=cell.device)
    wanted = key.unsqueeze(1) + (rows * width + columns).view(1, 8, 1)  # [B, 8, N]
    found = torch.searchsorted(taken, wanted.flatten(1)).view_as(wanted).clamp(max=n - 1)
    exists = (torch.gather(taken, 1, found.flatten(1)).view_as(wanted) == wanted) & real.unsqueeze(1)
    neighbours = torch.gather(order, 1, found.flatten(1)).view_as(wanted)
    return _table(neighbours, exists)


def _table(neighbours: Tensor, exists: Tensor) -> Graph:
    own = torch.arange(neighbours.shape[2], device=neighbours.device).expand_as(neighbours)
    return Graph(torch.where(exists, neighbours, own), exists.to(torch.float))


def _refuse_edgeless(coords: Tensor, real: Tensor, weights: Tensor) -> None:
    """Coordinates in a wrong unit give no edge, and smoothing would silently do nothing."""
    if torch.jit.is_tracing():
        return
    edgeless = (real.sum(dim=1) > 1) & (weights.sum(dim=[1, 2]) == 0)
    if bool(edgeless.any()):
        bag = int(torch.nonzero(edgeless)[0, 0])
        places = coords[bag][:, real[bag]].t().float()  # [N, 2]
        some = places[:1000]  # enough to tell the pitch
        apart = torch.cdist(some, places)
        nearest = apart.masked_fill(apart == 0, float("inf")).amin(dim=1).median()
        raise ValueError(
            f"not one pair of the {places.shape[0]} instances of bag {bag} are neighbours: coords must be in units of "
            f"the patch pitch, and here the commonest nearest distance is {round(1000 * float(nearest)) / 1000}; "
            "divide the coords by it"
        )


def aggregate(x: Tensor, graph: Graph) -> Tensor:
    """A X: the weighted sum over each instance's neighbours. x: [B, D, N]."""
    b, d, n = x.shape
    bag = torch.arange(b, device=x.device).view(b, 1, 1) * n
    neighbours = (graph.neighbours + bag).transpose(1, 2).flatten(0, 1)  # [B*N, K]
    weights = graph.weights.to(x.dtype).transpose(1, 2).flatten(0, 1)  # [B*N, K]
    rows = x.transpose(1, 2).reshape(b * n, d)  # [B*N, D]
    total = embedding_bag(neighbours, rows, per_sample_weights=weights, mode="sum")  # gathers and sums without a copy
    return total.view(b, n, d).transpose(1, 2)


def laplacian(x: Tensor, graph: Graph) -> Tensor:
    """L X = D X - A X. x: [B, D, N]."""
    degree = graph.weights.to(x.dtype).sum(dim=1, keepdim=True)  # [B, 1, N]
    return degree * x - aggregate(x, graph)


def normalised(graph: Graph) -> Graph:
    """D^-1/2 A D^-1/2. An isolated instance becomes its own neighbour, so that smoothing leaves it unchanged."""
    degree = graph.weights.sum(dim=1)  # [B, N]
    isolated = (degree == 0).to(degree.dtype)
    scale = torch.rsqrt(degree + isolated)  # [B, N]
    at_neighbours = torch.gather(scale.unsqueeze(1).expand_as(graph.weights), 2, graph.neighbours)
    weights = graph.weights * scale.unsqueeze(1) * at_neighbours  # [B, K, N]
    own = torch.cat([isolated.unsqueeze(1), torch.zeros_like(weights[:, 1:])], dim=1)
    return Graph(graph.neighbours, weights + own)  # the empty places of an isolated instance name itself
