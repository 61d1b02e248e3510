# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Neighbours within a bag: a chain of slices or a lattice of patches, and the Laplacian of that graph."""

from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor


class Graph(NamedTuple):
    """The symmetric graph of each bag, as a table of at most K neighbours per instance.

    An unused entry holds the instance's own index with weight 0. A chain has K = 2: the one before, the one after.
    """

    neighbours: Tensor  # [B, K, N] int64, indices within the bag
    weights: Tensor  # [B, K, N] float, 0 where there is no neighbour
    chain: bool = False  # whether they are the one before and the one after


class Table(NamedTuple):
    """A sparse matrix [M, M] of all bags of a batch, M = B*N, with K numbers in each row."""

    columns: Tensor  # [M * K] int32, to which column each number belongs
    weights: Tensor  # [M * K] the numbers, row by row
    starts: Tensor  # [M] int32, where each row begins


def no_graph(image: Tensor) -> Graph:
    """Return the graph of a network that uses no neighbours: K = 0. image: [B, ..., N]."""
    empty = torch.zeros([image.shape[0], 0, image.shape[-1]], device=image.device)
    return Graph(empty.long(), empty)


def exporting() -> bool:
    """Return whether the network is being exported or traced: no branch may then depend on a tensor's values."""
    if not torch.jit.is_scripting():
        return torch.compiler.is_exporting() or torch.jit.is_tracing()
    return False


def on_accelerator(x: Tensor) -> bool:
    """Return whether x lies on a GPU or the like, which works while its host goes on."""
    return x.device.type != "cpu"


def readable(x: Tensor) -> bool:
    """Return whether a branch may depend on values of x: to ask an accelerator is to wait for all it has yet to do."""
    return not on_accelerator(x) and not exporting()


def filled(x: Tensor, mask: Optional[Tensor], value: float) -> Tensor:
    """Return x [B, C, N] with this value in padding; without a mask [B, 1, N] nothing is padded."""
    return x if mask is None else x.masked_fill(mask < 0.5, value)


def build_graph(
    coords: Tensor, mask: Optional[Tensor] = None, radius: float = 1.5, spacing: bool = False, edgeless: bool = False
) -> Graph:
    """Build the graph of each bag: a chain from one coordinate per instance, a lattice from two.

    Coords that make no graph are refused where they lie in the host's memory; on an accelerator nothing is checked.

    Args:
        coords: [B, 1, N] order along the slice normal, or [B, 2, N] in units of the patch pitch.
        mask: [B, 1, N], 1 = a real instance; padding has no neighbours.
        radius: Of a lattice, the largest distance of neighbours in pitches: 1.5 gives 8 of them, 1 gives 4.
        spacing: Of a chain, weigh an edge by mean distance / its own distance (coords are millimetres), not by 1.
        edgeless: Of a lattice, accept a bag without any edge; set it where the unit of the coords is certain.
    """
    if coords.dim() != 3:
        raise ValueError(f"coords have {coords.dim()} dimensions: [bags, 1 or 2, instances] is wanted")
    if mask is None:
        mask = torch.ones_like(coords[:, :1])
    if mask.dim() != 3 or mask.shape[2] != coords.shape[2]:
        raise ValueError("the mask does not fit the coords: [bags, 1, instances] is wanted")
    require_coords(coords, mask, spacing)
    real = mask[:, 0] > 0.5  # [B, N]
    if coords.shape[1] == 1:
        return _chain(coords[:, 0].to(torch.promote_types(coords.dtype, torch.float)), real, spacing)
    if coords.shape[1] == 2:
        graph = _lattice(torch.floor(coords + 0.5).long(), real, radius)
        if not edgeless and readable(coords):
            _refuse_edgeless(coords, real, graph.weights)
        return graph
    raise ValueError(f"coords hold {coords.shape[1]} numbers per instance: give 1 (slices) or 2 (patches)")


def require_coords(coords: Tensor, mask: Optional[Tensor], spacing: bool = False) -> None:
    """Refuse coords [B, 1 or 2, N] in the host's memory of which a real instance has none, or two slices the same."""
    if not readable(coords) or not (mask is None or readable(mask)):
        return
    known = torch.isfinite(coords).all(dim=1, keepdim=True)  # [B, 1, N]
    if not bool((known if mask is None else known | (mask < 0.5)).all()):
        raise ValueError("coords hold NaN or infinite values: every real instance needs coordinates")
    if spacing and coords.shape[1] == 1:
        places = torch.sort(filled(coords, mask, float("inf")), dim=2)[0]  # [B, 1, N], padding behind
        if bool(((places[..., 1:] == places[..., :-1]) & torch.isfinite(places[..., 1:])).any()):
            raise ValueError("two neighbouring slices have the same position: with spacing, coords must be millimetres")


def _chain(position: Tensor, real: Tensor, spacing: bool) -> Graph:
    """Join each instance to the next one by position, at any distance: a missing slice does not cut a scan in two."""
    n = position.shape[1]
    last = position.masked_fill(~real, float("inf"))
    # ONNX has but one sort, and that is stable
    order = torch.sort(last, dim=1)[1] if exporting() else torch.argsort(last, dim=1, stable=True)  # [B, N]
    rank = torch.sort(order, dim=1)[1]  # [B, N]
    at = torch.stack([rank - 1, rank + 1], dim=1)  # [B, 2, N] ranks of the one before and the one after
    count = real.sum(dim=1).view(-1, 1, 1)
    exists = (at >= 0) & (at < count) & real.unsqueeze(1)
    neighbours = torch.gather(order.unsqueeze(1).expand(-1, 2, -1), 2, at.clamp(0, n - 1))
    graph = _graph_of(neighbours, exists, True)
    if not spacing:
        return graph
    here = position.unsqueeze(1)  # [B, 1, N]
    apart = (torch.gather(here.expand(-1, 2, -1), 2, graph.neighbours) - here).abs()  # [B, 2, N]
    mean = (apart * graph.weights).sum(dim=[1, 2]) / graph.weights.sum(dim=[1, 2]).clamp(min=1)  # [B]
    weights = mean.view(-1, 1, 1) / torch.where(exists, apart, torch.ones_like(apart))
    return Graph(graph.neighbours, weights * graph.weights, True)


def _lattice(cell: Tensor, real: Tensor, radius: float) -> Graph:
    """Join patches at most `radius` cells apart. cell: [B, 2, N] whole numbers, real: [B, N]."""
    n, reach = cell.shape[2], int(radius)
    offsets = torch.tensor(_offsets(radius)).to(cell.device, non_blocking=True)  # [K, 2]
    padding = ~real.unsqueeze(1)
    low = cell.masked_fill(padding, 2**62).amin(dim=2, keepdim=True) - reach
    cell = (cell - low).masked_fill(padding, 0)  # [B, 2, N] at least reach: a step to the left stays in its row
    width = cell[:, 1].max() + reach + 1
    beyond = width * (cell[:, 0].max() + reach + 1)  # padding gets keys of its own behind every real cell
    index = torch.arange(n, device=cell.device).expand_as(real)
    key = torch.where(real, cell[:, 0] * width + cell[:, 1], beyond + index)  # [B, N]
    steps = offsets[:, 0] * width + offsets[:, 1]  # [K]
    by_table = readable(beyond) and int(beyond) < min(64 * n, 1 << 24)  # of 8 bytes each
    taken, order = _table_of_cells(key, index, int(beyond)) if by_table else torch.sort(key, dim=1)
    unique = torch.gather(taken, 1, key) == index if by_table else taken[:, 1:] != taken[:, :-1]
    if readable(unique) and not bool(unique.all()):
        raise ValueError("two instances of a bag share one cell: coords must be in units of the patch pitch")
    parts: list[Graph] = []
    for some in steps.split(_so_many(key, steps.shape[0])):
        wanted = (key.unsqueeze(1) + some.view(1, -1, 1)).flatten(1)  # [B, k*N]
        found, exists = _find_by_table(taken, wanted, n) if by_table else _find_by_search(taken, order, wanted)
        shape = [some.shape[0], n]
        parts.append(_graph_of(found.unflatten(1, shape), exists.unflatten(1, shape) & real.unsqueeze(1), False))
    return _side_by_side(parts)


def _so_many(of_each: Tensor, k: int) -> int:
    """Return how many neighbours to look at together: all of a small bag, few of one whose temporaries fill memory."""
    return k if exporting() or on_accelerator(of_each) else min(k, max(1, (1 << 20) // max(1, of_each.numel())))


def _side_by_side(parts: list[Graph]) -> Graph:
    """Return the graph whose neighbours were found part by part; it takes them out of the list, to hold none twice."""
    if len(parts) == 1:
        return parts[0]
    first, end = parts[0], 0
    for part in parts:
        end += part.neighbours.shape[1]
    b, _, n = first.neighbours.shape
    neighbours, weights = first.neighbours.new_empty([b, end, n]), first.weights.new_empty([b, end, n])
    while len(parts) > 0:
        part = parts.pop()
        start = end - part.neighbours.shape[1]
        neighbours[:, start:end], weights[:, start:end] = part.neighbours, part.weights
        end = start
    return Graph(neighbours, weights, first.chain)


def _table_of_cells(key: Tensor, index: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Return which instance is in each of all cells, n in an empty one; and the keys."""
    b, n = key.shape
    table = torch.full([b, cells + n], n, dtype=index.dtype, device=key.device)
    return table.scatter_(1, key, index), key


def _find_by_table(table: Tensor, wanted: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Find by a table of all cells: the instance of each wanted key, and whether there is one."""
    cells = table.shape[1] - n
    found = torch.gather(table, 1, wanted.clamp(max=cells - 1))
    return found.clamp(max=n - 1), (found < n) & (wanted < cells)


def _find_by_search(taken: Tensor, order: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Find the same among sorted keys, for lattices far larger than the bag."""
    last = taken.shape[1] - 1
    if exporting():  # ONNX knows no searchsorted; 20 halvings find one among a million
        at = torch.zeros_like(wanted)
        for power in range(19, -1, -1):
            ahead = (at + 2**power).clamp(max=last)
            at = torch.where(torch.gather(taken, 1, ahead) <= wanted, ahead, at)
    else:
        at = torch.searchsorted(taken, wanted).clamp(max=last)
    return torch.gather(order, 1, at), torch.gather(taken, 1, at) == wanted


def _offsets(radius: float) -> list[list[int]]:
    """Return [row, column] of the cells within `radius` of the cell [0, 0], without itself."""
    if radius < 1:
        raise ValueError(f"radius is {radius}: below 1 pitch no patch has a neighbour")
    reach = int(radius)
    offsets: list[list[int]] = []
    for row in range(-reach, reach + 1):
        for column in range(-reach, reach + 1):
            if 0 < row * row + column * column <= radius * radius:
                offsets.append([row, column])
    return offsets


def _graph_of(neighbours: Tensor, exists: Tensor, chain: bool) -> Graph:
    own = torch.arange(neighbours.shape[2], device=neighbours.device).expand_as(neighbours)
    return Graph(torch.where(exists, neighbours, own), exists.to(torch.float), chain)


def _refuse_edgeless(coords: Tensor, real: Tensor, weights: Tensor) -> None:
    """Refuse bags without an edge: coordinates in a wrong unit give none, and smoothing would silently do nothing."""
    edgeless = (real.sum(dim=1) > 1) & (weights.sum(dim=[1, 2]) == 0)
    if bool(edgeless.any()):
        bag = int(torch.nonzero(edgeless)[0, 0])
        points = coords[bag][:, real[bag]].t().float()  # [N, 2]
        apart = torch.cdist(points[:1000], points, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = apart.masked_fill(apart == 0, float("inf")).amin(dim=1).median()
        raise ValueError(
            f"not one pair of the {points.shape[0]} instances of bag {bag} are neighbours: coords must be in units of "
            f"the patch pitch, the median nearest distance is "
            f"{round(1000 * float(nearest)) / 1000}; divide the coords by it"
        )


def weighted_by_features(graph: Graph, x: Tensor) -> Graph:
    """Multiply each edge by exp(-|x_i - x_j| / D): neighbours with similar features weigh more. x: [B, D, N]."""
    similarity: list[Tensor] = []
    for k in range(graph.neighbours.shape[1]):
        other = torch.gather(x.detach(), 2, graph.neighbours[:, k : k + 1].expand_as(x))  # [B, D, N]
        similarity.append(torch.exp(-torch.linalg.vector_norm(x.detach() - other, dim=1) / x.shape[1]))  # [B, N]
    return Graph(graph.neighbours, graph.weights * torch.stack(similarity, dim=1), graph.chain)


def rows_of(x: Tensor) -> Tensor:
    """Reshape [B, D, N] to [B*N, D], without a copy where the features of an instance are contiguous."""
    return x.transpose(1, 2).flatten(0, 1)


def table_of(graph: Graph) -> Table:
    """Return the weights of all bags as one matrix."""
    b, _, n = graph.neighbours.shape
    columns = graph.neighbours
    if b > 1:
        columns = columns + torch.arange(b, device=columns.device).view(b, 1, 1) * n
    return table(rows_of(columns), rows_of(graph.weights))


def table(columns: Tensor, weights: Tensor) -> Table:
    """Return the matrix with these numbers [M, K] in these columns [M, K]."""
    m, k = columns.shape
    starts = torch.arange(0, m * k, k, device=columns.device, dtype=torch.int32)
    return Table(columns.int().flatten(), weights.flatten(), starts)


def product(a: Table, rows: Tensor) -> Tensor:
    """Return A X, for a graph's A the weighted sum over neighbours. rows: [M, D] → [M, D]."""
    if exporting():  # to ONNX an embedding bag is a loop
        m = rows.shape[0]
        around = rows.index_select(0, a.columns.long()).view(m, -1, rows.shape[1])  # [M, K, D]
        return (around * a.weights.view(m, -1, 1)).sum(dim=1)
    # gathers and sums without a copy; torch.nn.functional's makes the starts of the rows anew
    return torch.embedding_bag(rows, a.columns, a.starts, False, 0, False, a.weights, False)[0]


class _Product(torch.autograd.Function):
    """The product with a symmetric matrix, whose gradient is the same product; torch's own waits for a GPU."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, *a: Tensor) -> Tensor:
        ctx.save_for_backward(*a)
        return product(Table(*a), rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Optional[Tensor], ...]:
        return _Product.apply(grad, *ctx.saved_tensors), None, None, None


def laplacian(x: Tensor, graph: Graph) -> Tensor:
    """Return L X = D X - A X. x: [B, D, N]."""
    if graph.neighbours.shape[1] == 0:
        raise ValueError("the network uses no neighbours: give it spatial_dims 1 (slices) or 2 (patches)")
    b, d, n = x.shape
    degree = graph.weights.to(x.dtype).sum(dim=1, keepdim=True)  # [B, 1, N]
    dx = degree * x  # [B, D, N]
    a = table_of(Graph(graph.neighbours, graph.weights.to(x.dtype)))
    ax: Tensor = _Product.apply(rows_of(x), *a).view(b, n, d).transpose(1, 2)  # [B, D, N]
    return dx - ax


def normalised(graph: Graph, dtype: torch.dtype) -> Graph:
    """Return Ã = D^-1/2 A D^-1/2; an isolated instance becomes its own neighbour, so that Sm leaves it unchanged.

    It is found in float64, as 1 / (1 - α) times the error of a weight is that of Sm, and told in `dtype`.
    """
    degree = graph.weights.sum(dim=1, dtype=torch.double)  # [B, N]
    isolated = (degree == 0).to(degree.dtype)
    scale = torch.rsqrt(degree + isolated)  # [B, N]
    some = _so_many(degree, graph.weights.shape[1])
    parts: list[Graph] = []
    for first in range(0, graph.weights.shape[1], some):
        neighbours = graph.neighbours[:, first : first + some]  # [B, k, N]
        at_neighbours = torch.gather(scale.unsqueeze(1).expand_as(neighbours), 2, neighbours)
        weights = graph.weights[:, first : first + some] * scale.unsqueeze(1) * at_neighbours  # [B, k, N]
        if first == 0:
            weights = torch.cat([weights[:, :1] + isolated.unsqueeze(1), weights[:, 1:]], dim=1)
        weights = weights.to(dtype)
        itself = torch.arange(degree.shape[1], device=degree.device).expand_as(neighbours)
        neighbours = torch.where(isolated.unsqueeze(1) > 0, itself, neighbours).int()  # as in a table: half the memory
        parts.append(Graph(neighbours, weights, graph.chain))
    return _side_by_side(parts)
