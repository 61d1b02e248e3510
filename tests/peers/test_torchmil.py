# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The same results as torchmil 1.0.2 with the same weights; run where torchmil is, by `make bench`."""

from itertools import product
from pydoc import locate
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.bags import adjacency
from scripts.networks import MILNetwork
from scripts.weights.torchmil import TorchmilSettings, convert_state

peer = pytest.importorskip("torchmil.models", reason="torchmil has an environment of its own: make bench runs this")

FEATURES = 16
HOLES = {(0, 0), (0, 1), (2, 3), (2, 4), (3, 3), (5, 0), (6, 6), (6, 7), (7, 7)}
PLACES = [place for place in product(range(8), range(8)) if place not in HOLES]
COEFS = (0.6, 1.7, 0.9)  # of each Sm, as if trained
TOLERANCE = 1e-5


def built(definition: Any) -> Any:
    """What a network_def of the converter describes; in the bundles MONAI does this."""
    if isinstance(definition, str) and definition.startswith("$"):
        return eval(definition[1:], {"torch": torch})
    if not isinstance(definition, dict):
        return definition
    make: Any = locate(definition["_target_"])
    return make(**{key: built(value) for key, value in definition.items() if not key.startswith("_")})


def trained(network: nn.Module) -> nn.Module:
    """As after some training: no two Sm alike, no bias 0."""
    coefs = iter(COEFS)
    for name, parameter in network.named_parameters():
        if name.endswith("coef"):
            parameter.data.fill_(next(coefs))
        elif name.endswith("bias"):
            parameter.data.normal_(std=0.3)
    return network.eval()


def assert_same(theirs: nn.Module, settings: TorchmilSettings, dense: bool = False) -> MILNetwork:
    """Logits, scores, and the gradient of both for the features; returns ours."""
    state, definition = convert_state(theirs.state_dict(), settings)
    ours: MILNetwork = built(definition)
    ours.load_state_dict(state)
    generator = torch.Generator().manual_seed(1)
    their_x = torch.randn(1, len(PLACES), FEATURES, generator=generator, requires_grad=True)
    our_x = their_x.detach().transpose(1, 2).clone().requires_grad_()
    adj = torch.stack([adjacency(torch.tensor(PLACES).t()).float()])  # [1, N, N]
    logits, scores = theirs(their_x, adj.to_dense() if dense else adj, return_att=True)
    prediction = ours.eval().predict(our_x, torch.tensor(PLACES).t().float()[None])
    close(prediction.logits[:, 0], logits, "logits")
    close(prediction.scores[:, 0], scores, "scores")
    weights = torch.randn(scores.shape, generator=generator)
    (logits.sum() + (weights * scores).sum()).backward()
    (prediction.logits.sum() + (weights * prediction.scores[:, 0]).sum()).backward()
    assert their_x.grad is not None
    assert our_x.grad is not None
    close(our_x.grad.transpose(1, 2), their_x.grad, "gradient of the features")
    return ours


def close(ours: Tensor, theirs: Tensor, what: str) -> None:
    scale = max(1.0, float(theirs.detach().abs().max()))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE * scale, msg=lambda text: f"{what}: {text}")


def smap(**options: Any) -> nn.Module:
    torch.manual_seed(3)
    return trained(peer.SmABMIL((FEATURES,), att_dim=9, **options))


def smtap(**options: Any) -> nn.Module:
    torch.manual_seed(4)
    return trained(peer.SmTransformerABMIL((FEATURES,), pool_att_dim=9, transf_att_dim=FEATURES, **options))


@pytest.mark.parametrize("spectral_norm", [False, True])
@pytest.mark.parametrize("activation", ["tanh", "relu", "gelu"])
@pytest.mark.parametrize("placement", ["early", "mid", "late"])
def test_smap(placement: str, activation: str, spectral_norm: bool) -> None:
    theirs = smap(sm_where=placement, att_act=activation, spectral_norm=spectral_norm)
    assert_same(theirs, TorchmilSettings(placement=placement, activation=activation))


@pytest.mark.parametrize("placement", ["early", "mid", "late"])
@pytest.mark.parametrize("mode", ["approx", "exact"])
def test_alpha_means_the_same_in_both_modes_of_ours(mode: str, placement: str) -> None:
    """torchmil's exact mode takes a dense adjacency alone, and means 1 - alpha of its approximate mode."""
    theirs = smap(sm_where=placement, sm_mode=mode)
    assert_same(theirs, TorchmilSettings(placement=placement, mode=mode), dense=mode == "exact")
    theirs = smap(sm_where=placement, sm_mode=mode, sm_alpha=0.2)
    ours: Any = assert_same(theirs, TorchmilSettings(placement, mode=mode, alpha=0.2), dense=mode == "exact")
    assert float(ours.aggregator.smooth.alpha) == pytest.approx(0.8 if mode == "approx" else 0.2)


@pytest.mark.parametrize("steps", [1, 25])
def test_steps(steps: int) -> None:
    assert_same(smap(sm_steps=steps), TorchmilSettings(steps=steps))


@pytest.mark.parametrize("placement", ["early", "mid", "late"])
@pytest.mark.parametrize(("heads", "layers", "add_input"), [(1, 1, True), (4, 2, False), (4, 2, True)])
def test_smtap(heads: int, layers: int, add_input: bool, placement: str) -> None:
    theirs = smtap(
        transf_n_layers=layers, transf_n_heads=heads, transf_add_self=add_input,
        pool_sm_where=placement, pool_act="gelu", pool_spectral_norm=True,
    )  # fmt: skip
    assert_same(theirs, TorchmilSettings(placement, "gelu", heads=heads, add_input=add_input))


def test_a_difference_is_seen() -> None:
    """The comparison itself: with the wrong placement, alpha or order of the heads it must fail."""
    with pytest.raises(AssertionError, match=r"logits|scores"):
        assert_same(smap(sm_where="early"), TorchmilSettings(placement="mid"))
    with pytest.raises(AssertionError, match=r"logits|scores"):
        assert_same(smtap(transf_n_layers=2, transf_n_heads=4), TorchmilSettings(heads=2))
