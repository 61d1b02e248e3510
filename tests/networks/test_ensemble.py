# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""An ensemble of one is its member, of several their mean, and it scripts like any other network."""

from typing import Any

import pytest
import torch
from torch import nn

from scripts.networks import Ensemble
from tests.networks.compositions import FEATURES, NETWORKS, dims_of, network


def bags_for(net: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A batch of a bag of 9 and one of 6 instances, in rows of three."""
    place = torch.arange(9)
    coords = torch.stack([place % 3, place // 3]) if dims_of(net) == 2 else place[None]
    mask = torch.ones(2, 1, 9)
    mask[1, :, 6:] = 0
    return torch.randn(2, FEATURES, 9) * mask, coords.float().expand(2, -1, -1).contiguous(), mask


def ensemble_of(name: str, members: int) -> Ensemble:
    torch.manual_seed(1)
    return Ensemble(NETWORKS[name], members).eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_an_ensemble_of_one_says_what_its_member_says_calibrated(name: str) -> None:
    member: Any = network(name)
    ensemble = ensemble_of(name, 1)
    calibration = {"slope": torch.tensor([2.5]), "intercept": torch.tensor([-0.5])}
    ensemble.load_state_dict({**calibration, **{f"members.0.{k}": v for k, v in member.state_dict().items()}})
    bags = bags_for(member)
    with torch.no_grad():
        one, alone = ensemble.predict(*bags), member.predict(*bags)
        torch.testing.assert_close(ensemble(*bags), 2.5 * alone.logits - 0.5)
    torch.testing.assert_close(one.scores, alone.scores)
    torch.testing.assert_close(one.attention, alone.attention)


def test_several_members_differ_in_weights_alone_and_give_their_mean() -> None:
    ensemble = ensemble_of("smooth early, lattice", 3)
    ensemble.slope.copy_(torch.tensor([1.0, 2.0, 0.5]))
    ensemble.intercept.copy_(torch.tensor([0.0, -1.0, 1.0]))
    for parameter in ensemble.parameters():
        nn.init.normal_(parameter, std=0.3)
    bags = bags_for(ensemble)
    members: list[Any] = list(ensemble.members)
    with torch.no_grad():
        alone = [member.predict(*bags) for member in members]
        whole = ensemble.predict(*bags)
    assert len({float(one.logits[0]) for one in alone}) == 3
    expected = (alone[0].logits + 2 * alone[1].logits - 1 + 0.5 * alone[2].logits + 1) / 3
    torch.testing.assert_close(whole.logits, expected)
    torch.testing.assert_close(whole.attention, sum(one.attention for one in alone) / 3)
    torch.testing.assert_close(whole.attention.sum(dim=2), torch.ones(2, 1))


@pytest.mark.parametrize("name", ["smooth early, spectral norm", "gated, slots"])
def test_it_becomes_torchscript_and_stays_itself(name: str) -> None:
    ensemble = ensemble_of(name, 2)
    before = list(ensemble.members)
    scripted = torch.jit.script(ensemble)
    assert all(one is other for one, other in zip(ensemble.members, before, strict=True))
    bags = bags_for(ensemble)
    with torch.no_grad():
        torch.testing.assert_close(scripted(*bags), ensemble(*bags))
        torch.testing.assert_close(scripted.predict(*bags).scores, ensemble.predict(*bags).scores)
    assert (ensemble.slots, ensemble.spatial_dims) == ((16, 0) if name == "gated, slots" else (None, 2))


def test_of_no_members_there_is_none() -> None:
    with pytest.raises(ValueError, match=r"an ensemble of 0 networks: give 1 or more"):
        ensemble_of("mean", 0)
