# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The cases of torchmil 1.0.2, in the peers' environment. Each function returns what to time, by name."""

import torch
from torch import Tensor, nn
from torchmil.models import SmABMIL, SmTransformerABMIL, TransMIL

from benchmarks.bags import Runs, adjacency, features, runs_of, tissue


def _training(network: nn.Module, n: int, columns: int, mask: Tensor | None, device: str) -> Runs:
    """The adjacency is made beforehand, in float32: its dataset's float64 would not even multiply with the features."""
    network.to(device)
    x = features(n, columns)[None].to(device)  # [1, N, D]
    adj = torch.stack([adjacency(tissue(n)).float()]).coalesce().to(device)  # sparse [1, N, N], as its collate makes it
    label = torch.ones([1], device=device)
    masked = {} if mask is None else {"mask": mask.to(device)}

    def loss() -> Tensor:
        _, losses = network.compute_loss(label, x, adj, **masked)  # type: ignore[operator]
        return sum(losses.values())

    return runs_of(network, lambda: network(x, adj, **masked), loss, device)


def smap(n: int, columns: int = 1024, device: str = "cpu") -> Runs:
    torch.manual_seed(0)
    network = SmABMIL((columns,), att_dim=128, att_act="tanh", sm_alpha="trainable", sm_steps=10, sm_where="early")
    return _training(network, n, columns, None, device)


def smtap(n: int, columns: int = 512, masked: bool = False, device: str = "cpu") -> Runs:
    """With a mask as its collate makes it, or without one, as a single bag may go."""
    torch.manual_seed(0)
    network = SmTransformerABMIL(
        (columns,),
        pool_att_dim=128,
        pool_act="tanh",
        pool_sm_where="early",
        transf_att_dim=columns,
        transf_n_layers=2,
        transf_n_heads=8,
        transf_add_self=False,
    )
    return _training(network, n, columns, torch.ones([1, n], dtype=torch.uint8) if masked else None, device)


def transmil(n: int, columns: int = 512, device: str = "cpu") -> Runs:
    """Nyström's attention, a class token and no graph: what a user of torchmil takes for so many instances."""
    torch.manual_seed(0)
    network = TransMIL((columns,), att_dim=columns).to(device)
    x, label = features(n, columns)[None].to(device), torch.ones([1], device=device)

    def loss() -> Tensor:
        _, losses = network.compute_loss(label, x)
        return sum(losses.values())

    return runs_of(network, lambda: network(x), loss, device)


def cuda_device() -> str | None:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
