# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Who is whose neighbour in a bag: a chain of slices, or a lattice of patches."""

from __future__ import annotations

from typing import List, NamedTuple, Optional, Tuple  # noqa: UP035 - TorchScript reads these

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag


class Graph(NamedTuple):
    """The symmetric graph of each bag, as a table: every instance names at most K neighbours.

    An empty place of the table names the instance itself, with weight 0.
    K = 2 says that the graph is a chain: the one before, and the one after.
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


def exporting() -> bool:
    """The network is being exported or traced: nothing may depend on the values of a tensor."""
    if torch.jit.is_scripting():
        return False
    else:  # noqa: RET505 - TorchScript leaves out this branch alone
        return torch.compiler.is_exporting() or torch.jit.is_tracing()


def build_graph(
    coords: Tensor,
    mask: Optional[Tensor] = None,
    radius: float = 1.5,
    spacing: bool = False,
    edgeless: bool = False,
) -> Graph:
    """One coordinate per instance makes a chain, two make a lattice.

    Args:
        coords: [B, 1, N] order along the slice normal, or [B, 2, N] in units of the patch pitch.
        mask: [B, 1, N], 1 = a real instance; padding has no neighbours.
        radius: on a lattice, how many pitches away a neighbour may be; 1.5 gives the 8 around a patch, 1 gives 4.
        spacing: in a chain, coords are millimetres, and an edge weighs mean distance / its own distance;
            without it every edge weighs 1.
        edgeless: on a lattice, patches of which no two are neighbours are no error: who gives the coords is sure of
            their unit.
    """
    if coords.dim() != 3:
        raise ValueError(f"coords have {coords.dim()} dimensions: [bags, 1 or 2, instances] is wanted")
    if mask is None:
        mask = torch.ones_like(coords[:, :1])
    if mask.dim() != 3 or mask.shape[2] != coords.shape[2]:
        raise ValueError("the mask does not fit the coords: [bags, 1, instances] is wanted")
    real = mask[:, 0] > 0.5  # [B, N]
    if not exporting() and not bool((torch.isfinite(coords) | ~real.unsqueeze(1)).all()):
        raise ValueError("coords hold NaN or infinite values: every real instance needs a place")
    if coords.shape[1] == 1:
        return _chain(coords[:, 0].to(torch.promote_types(coords.dtype, torch.float)), real, spacing)
    if coords.shape[1] == 2:
        graph = _lattice(torch.floor(coords + 0.5).long(), real, radius)
        if not edgeless:
            _refuse_edgeless(coords, real, graph.weights)
        return graph
    raise ValueError(
        f"coords hold {coords.shape[1]} numbers per instance: 1 (order of slices) or 2 (place of patches) are wanted, "
        "[bags, 1 or 2, instances]"
    )


def _chain(position: Tensor, real: Tensor, spacing: bool) -> Graph:
    """Each instance and the next one by position, whatever the distance: a scan without a slice is still a scan."""
    n = position.shape[1]
    order = _order(position.masked_fill(~real, float("inf")))  # [B, N]
    rank = _order(order)  # [B, N]
    steps = torch.tensor([-1, 1], device=position.device)
    at = rank.unsqueeze(1) + steps.view(1, 2, 1)  # [B, 2, N] ranks of the one before and the one after
    count = real.sum(dim=1).view(-1, 1, 1)
    exists = (at >= 0) & (at < count) & real.unsqueeze(1)
    neighbours = torch.gather(order.unsqueeze(1).expand(-1, 2, -1), 2, at.clamp(0, n - 1))
    graph = _table(neighbours, exists)
    if not spacing:
        return graph
    here = position.unsqueeze(1)  # [B, 1, N]
    apart = (torch.gather(here.expand(-1, 2, -1), 2, graph.neighbours) - here).abs()  # [B, 2, N]
    if not exporting() and bool(((apart == 0) & exists).any()):
        raise ValueError("two neighbouring slices have the same position: with spacing, coords must be millimetres")
    mean = (apart * graph.weights).sum(dim=[1, 2]) / graph.weights.sum(dim=[1, 2]).clamp(min=1)  # [B]
    weights = mean.view(-1, 1, 1) / torch.where(exists, apart, torch.ones_like(apart))
    return Graph(graph.neighbours, weights * graph.weights)


def _order(values: Tensor) -> Tensor:
    """Which of the values comes first, second, ...; of equal ones the first. [B, N] → [B, N]."""
    if exporting():
        return torch.sort(values, dim=1)[1]  # ONNX has but one sort, and that is stable
    return torch.argsort(values, dim=1, stable=True)


def _lattice(cell: Tensor, real: Tensor, radius: float) -> Graph:
    """The cells around each instance's own that are taken."""
    n = cell.shape[2]
    rows, columns = _around(radius)
    reach = int(radius)
    padding = ~real.unsqueeze(1)
    low = cell.masked_fill(padding, 2**62).amin(dim=2, keepdim=True) - reach
    cell = (cell - low).masked_fill(padding, 0)  # [B, 2, N] from reach on, so a step to the left never leaves the line
    width = cell[:, 1].max() + reach + 1
    # padding lies behind every cell that is looked for, each in a place of its own
    beyond = width * (cell[:, 0].max() + reach + 1)
    place = torch.arange(n, device=cell.device).expand_as(real)
    key = torch.where(real, cell[:, 0] * width + cell[:, 1], beyond + place)  # [B, N]
    steps = torch.tensor(rows, device=cell.device) * width + torch.tensor(columns, device=cell.device)  # [K]
    wanted = (key.unsqueeze(1) + steps.view(1, -1, 1)).flatten(1)  # [B, K*N]
    if not exporting() and int(beyond) < 64 * n:
        found, exists, alone = _looked_up(key, wanted, place, int(beyond))
    else:
        found, exists, alone = _searched(key, wanted)
    if not exporting() and not bool(alone):
        raise ValueError(
            "two instances of a bag share one place of the patch lattice: "
            "coords must be in units of the distance between neighbouring patches, one bag per slide"
        )
    k = len(rows)
    return _table(found.unflatten(1, [k, n]), exists.unflatten(1, [k, n]) & real.unsqueeze(1))


def _looked_up(key: Tensor, wanted: Tensor, place: Tensor, cells: int) -> Tuple[Tensor, Tensor, Tensor]:  # noqa: UP006
    """Which instance has each wanted key, if one has, and whether no key is had twice: in a table of all cells."""
    n = place.shape[1]
    nobody = torch.full([key.shape[0], cells + n], n, dtype=place.dtype, device=key.device)
    table = nobody.scatter(1, key, place)
    found = torch.gather(table, 1, wanted.clamp(max=cells - 1))
    alone = (torch.gather(table, 1, key) == place).all()
    return found.clamp(max=n - 1), (found < n) & (wanted < cells), alone


def _searched(key: Tensor, wanted: Tensor) -> Tuple[Tensor, Tensor, Tensor]:  # noqa: UP006
    """The same by binary search, for lattices far larger than the bag."""
    taken, order = torch.sort(key, dim=1)
    at = _search(taken, wanted)
    found, exists = torch.gather(order, 1, at), torch.gather(taken, 1, at) == wanted
    return found, exists, (taken[:, 1:] != taken[:, :-1]).all()


def _around(radius: float) -> Tuple[List[int], List[int]]:  # noqa: UP006
    """Rows and columns of the cells at most so far away, but for the cell itself."""
    if radius < 1:
        raise ValueError(f"radius is {radius}: below 1 pitch nobody has a neighbour")
    reach = int(radius)
    rows: List[int] = []  # noqa: UP006
    columns: List[int] = []  # noqa: UP006
    for row in range(-reach, reach + 1):
        for column in range(-reach, reach + 1):
            if 0 < row * row + column * column <= radius * radius:
                rows.append(row)
                columns.append(column)
    return rows, columns


def _search(taken: Tensor, wanted: Tensor) -> Tensor:
    """Where each wanted value stands among the sorted ones, if it is there. [B, N], [B, M] → [B, M]."""
    last = taken.shape[1] - 1
    if not exporting():
        return torch.searchsorted(taken, wanted).clamp(max=last)
    at = torch.zeros_like(wanted)
    for power in range(19, -1, -1):  # ONNX knows no searchsorted; 20 halvings find one among a million
        ahead = (at + 2**power).clamp(max=last)
        at = torch.where(torch.gather(taken, 1, ahead) <= wanted, ahead, at)
    return at


def _table(neighbours: Tensor, exists: Tensor) -> Graph:
    own = torch.arange(neighbours.shape[2], device=neighbours.device).expand_as(neighbours)
    return Graph(torch.where(exists, neighbours, own), exists.to(torch.float))


def _refuse_edgeless(coords: Tensor, real: Tensor, weights: Tensor) -> None:
    """Coordinates in a wrong unit give no edge, and smoothing would silently do nothing."""
    if exporting():
        return
    edgeless = (real.sum(dim=1) > 1) & (weights.sum(dim=[1, 2]) == 0)
    if bool(edgeless.any()):
        bag = int(torch.nonzero(edgeless)[0, 0])
        places = coords[bag][:, real[bag]].t().float()  # [N, 2]
        some = places[:1000]  # enough to tell the pitch
        apart = torch.cdist(some, places, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = apart.masked_fill(apart == 0, float("inf")).amin(dim=1).median()
        raise ValueError(
            f"not one pair of the {places.shape[0]} instances of bag {bag} are neighbours: coords must be in units of "
            f"the patch pitch, and here the commonest nearest distance is {round(1000 * float(nearest)) / 1000}; "
            "divide the coords by it"
        )


def weighted_by_features(graph: Graph, x: Tensor) -> Graph:
    """An edge weighs exp(-|x_i - x_j| / D): the more alike two neighbours are, the more. x: [B, D, N]."""
    likeness: List[Tensor] = []  # noqa: UP006
    for k in range(graph.neighbours.shape[1]):
        other = torch.gather(x.detach(), 2, graph.neighbours[:, k : k + 1].expand_as(x))  # [B, D, N]
        likeness.append(torch.exp(-torch.linalg.vector_norm(x.detach() - other, dim=1) / x.shape[1]))  # [B, N]
    return Graph(graph.neighbours, graph.weights * torch.stack(likeness, dim=1))


def rows_of(x: Tensor) -> Tensor:
    """[B, D, N] → [B*N, D], without a copy where the features of an instance already lie side by side."""
    return x.transpose(1, 2).flatten(0, 1)


def table_of(graph: Graph) -> Tuple[Tensor, Tensor]:  # noqa: UP006
    """The neighbours and weights of all bags in one table, [B*N, K] each."""
    b, _, n = graph.neighbours.shape
    bag = torch.arange(b, device=graph.neighbours.device).view(b, 1, 1) * n
    return rows_of(graph.neighbours + bag).contiguous(), rows_of(graph.weights).contiguous()


def spread(rows: Tensor, neighbours: Tensor, weights: Tensor) -> Tensor:
    """A X: the weighted sum over each instance's neighbours. rows: [M, D], neighbours and weights: [M, K] → [M, D]."""
    if exporting():  # to ONNX an embedding bag is a loop
        m, k = neighbours.shape
        around = rows.index_select(0, neighbours.long().flatten()).view(m, k, -1)  # [M, K, D]
        return (around * weights.unsqueeze(2)).sum(dim=1)
    return embedding_bag(neighbours, rows, per_sample_weights=weights, mode="sum")  # gathers and sums without a copy


def aggregate(x: Tensor, graph: Graph) -> Tensor:
    """A X. x: [B, D, N]."""
    b, d, n = x.shape
    neighbours, weights = table_of(graph)
    return spread(rows_of(x), neighbours, weights.to(x.dtype)).view(b, n, d).transpose(1, 2)


def laplacian(x: Tensor, graph: Graph) -> Tensor:
    """L X = D X - A X. x: [B, D, N]."""
    if graph.neighbours.shape[1] == 0:
        raise ValueError("the network knows no neighbours: give it spatial_dims 1 (slices) or 2 (patches)")
    degree = graph.weights.to(x.dtype).sum(dim=1, keepdim=True)  # [B, 1, N]
    return degree * x - aggregate(x, graph)


def normalised(graph: Graph) -> Graph:
    """D^-1/2 A D^-1/2. An isolated instance becomes its own neighbour, so that smoothing leaves it unchanged."""
    degree = graph.weights.sum(dim=1)  # [B, N]
    isolated = (degree == 0).to(degree.dtype)
    scale = torch.rsqrt(degree + isolated)  # [B, N]
    at_neighbours = torch.gather(scale.unsqueeze(1).expand_as(graph.weights), 2, graph.neighbours)
    weights = graph.weights * scale.unsqueeze(1) * at_neighbours  # [B, K, N]
    itself = torch.arange(degree.shape[1], device=degree.device).expand_as(graph.neighbours)
    neighbours = torch.where(isolated.unsqueeze(1) > 0, itself, graph.neighbours)
    own = torch.cat([isolated.unsqueeze(1), torch.zeros_like(weights[:, 1:])], dim=1)
    return Graph(neighbours, weights + own)
