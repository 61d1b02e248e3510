# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The cases of ours. Each function makes the bag and the network and returns what to time, by name."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from benchmarks.bags import Runs, adjacency, features, runs_of, tissue
from benchmarks.measure import in_turns
from scripts.networks import (
    AttentionPool,
    FeatureProjection,
    Features,
    MILNetwork,
    SmoothAttentionPool,
    SmoothOperator,
    SmoothTransformer,
    build_graph,
)


def noise(n: int, columns: int, device: str) -> tuple[Tensor, Tensor]:
    """image [1, D, N] in memory as the readers give it, and coords [1, 2, N]."""
    return features(n, columns).t().contiguous()[None].to(device), tissue(n).float()[None].to(device)


def training(network: MILNetwork, image: Tensor, coords: Tensor, autocast: str | None = None) -> Runs:
    """The graph is built within each of them: it is a part of the network."""
    network.to(image.device)
    label = torch.ones([1, 1], device=image.device)

    def loss() -> Tensor:
        return binary_cross_entropy_with_logits(network(image, coords).logits, label)

    return runs_of(network, lambda: network(image, coords), loss, image.device.type, autocast)


def smap_network(columns: int) -> MILNetwork:
    torch.manual_seed(0)
    pool = SmoothAttentionPool(columns, 128, placement="early", alpha="trainable", steps=10)
    return MILNetwork(Features(columns), pool, nn.Linear(columns, 1), 2)


def smap(n: int, columns: int = 1024, device: str = "cpu") -> Runs:
    return training(smap_network(columns), *noise(n, columns, device))


def smap_of_many(n: int, columns: int = 1536, device: str = "cpu") -> Runs:
    """Of a bag that is made where it is used; and the bag copied, which is less than anything can do with it."""
    image = torch.randn(1, columns, n, device=device)
    runs = training(smap_network(columns), image, tissue(n).float()[None].to(device))
    return {**runs, "copy": image.clone}


def attention_pool(n: int, columns: int = 1024, device: str = "cpu") -> Runs:
    """The same network without smoothing."""
    torch.manual_seed(0)
    pool = AttentionPool(columns, 128)
    return training(MILNetwork(Features(columns), pool, nn.Linear(columns, 1), 0), *noise(n, columns, device))


def evidence(n: int, columns: int = 1024, projected: bool = True, hidden: bool = False, device: str = "cpu") -> Runs:
    """Inference of SmAP, by default that of slides; beside it what of it makes logits, scores and attention alone."""
    torch.manual_seed(0)
    width = 256 if projected else columns
    encoder = FeatureProjection(columns, width) if projected else Features(columns)
    head = nn.Sequential(nn.Linear(width, 128), nn.ReLU(), nn.Linear(128, 1)) if hidden else nn.Linear(width, 1)
    network = MILNetwork(encoder, SmoothAttentionPool(width, 128), head, 2).eval().to(device)
    image, coords = noise(n, columns, device)
    mask = torch.ones_like(coords[:, :1])

    @torch.no_grad()
    def with_evidence() -> object:
        return network.predict(image, coords, mask)

    @torch.no_grad()
    def without() -> object:
        graph = network.graph(coords, mask)
        pooled = network.aggregator(network.encoder(image, mask), mask, graph)
        return network.head(pooled.embedding), pooled.scores, pooled.attention

    return {"with evidence": with_evidence, "without": without}


def evidence_in_turns(n: int, turns: int, **options: Any) -> list[dict[str, float]]:
    """Seconds of both ways of `evidence`, one after the other, so that other work on the machine meets both alike."""
    return in_turns(evidence(n, **options), turns)


def smtap_network(columns: int) -> MILNetwork:
    torch.manual_seed(0)
    pool = SmoothAttentionPool(columns, 128, placement="early", alpha="trainable", steps=10)
    aggregator = SmoothTransformer(columns, pool=pool, heads=8, layers=2)
    return MILNetwork(Features(columns), aggregator, nn.Linear(columns, 1), 2)


def smtap(n: int, columns: int = 512, device: str = "cpu", autocast: str | None = None) -> Runs:
    return training(smtap_network(columns), *noise(n, columns, device), autocast)


def smtap_operations(n: int, columns: int, layers: int = 2, expansion: int = 4) -> dict[str, float]:
    """Of the matrix products alone. Backward, a linear layer costs twice its forward pass; attention, which keeps no
    N×N table, makes five products where it made two."""
    attention = 2 * n * n * columns * layers  # one product
    linear = 2 * n * columns * columns * (3 + 2 * expansion) * layers
    return {"step": 7 * attention + 3 * linear, "forward": 2 * attention + linear}


def matmul(n: int) -> Runs:
    """What torch itself reaches in float32: the bound of whatever is made of matrix products."""
    a, b = torch.randn(2, n, n)
    return {"multiply": lambda: a @ b}


def exact(n: int, columns: int = 128, alpha: float = 0.9, mode: str = "exact", device: str = "cpu") -> Runs:
    """On a graph that is already there."""
    x, coords = noise(n, columns, device)
    operator, graph = SmoothOperator(alpha, mode=mode).to(device), build_graph(coords)
    return {"forward": torch.no_grad()(lambda: operator(x, graph))}


def exact_chain(n: int, columns: int = 128, alpha: float = 0.9, mode: str = "exact", device: str = "cpu") -> Runs:
    x = features(n, columns).t().contiguous()[None].to(device)
    operator = SmoothOperator(alpha, mode=mode).to(device)
    graph = build_graph(torch.arange(n, device=device).float()[None, None])
    return {"forward": torch.no_grad()(lambda: operator(x, graph))}


def graph(n: int, device: str = "cpu") -> Runs:
    coords = tissue(n).float()[None].to(device)
    return {"build": lambda: build_graph(coords)}


def sort(n: int, device: str = "cpu") -> Runs:
    """Whole numbers in no order: what finding neighbours can hardly do without."""
    numbers = torch.randperm(n, generator=torch.Generator().manual_seed(0)).to(device)
    return {"sort": lambda: numbers.sort()}


def errors(n: int, columns: int, alphas: Sequence[float], steps: int) -> list[dict[str, float]]:
    """‖G - G*‖ / ‖G*‖ of the three ways to smooth white noise, for each alpha; G* by a sparse solve in float64."""
    from scipy.sparse import coo_array, eye_array
    from scipy.sparse.linalg import splu

    coords, u = tissue(n), features(n, columns)
    pairs, weights = adjacency(coords).indices().numpy(), adjacency(coords).values().numpy()
    neighbours = coo_array((weights, (pairs[0], pairs[1])), shape=(n, n)).tocsc()
    lattice = build_graph(coords.float()[None])
    rows = []
    for alpha in alphas:
        solve = splu((eye_array(n, format="csc") - alpha * neighbours).tocsc()).solve
        wanted = torch.from_numpy((1 - alpha) * solve(u.double().numpy()))
        operators = {
            "exact": SmoothOperator(alpha, mode="exact"),
            "recursion": SmoothOperator(alpha, steps=steps),
            "chebyshev": SmoothOperator(alpha, steps=steps, accelerated=True),
        }
        got = {name: operator(u.t()[None], lattice)[0].t().double() for name, operator in operators.items()}
        rows.append({name: float((g - wanted).norm() / wanted.norm()) for name, g in got.items()})
    return rows


def cuda_device() -> str | None:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
