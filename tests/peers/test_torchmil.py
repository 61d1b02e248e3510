# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The same results as torchmil 1.0.2 with the same weights; run where torchmil is, by `make bench`."""

import math
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


def ours_of(theirs: nn.Module, settings: TorchmilSettings) -> MILNetwork:
    state, definition = convert_state(theirs.state_dict(), settings)
    network: MILNetwork = built(definition)
    network.load_state_dict(state)
    return network.eval()


def bag() -> tuple[Tensor, Tensor]:
    """x [1, N, D] and the adjacency [1, N, N], as torchmil wants them."""
    x = torch.randn(1, len(PLACES), FEATURES, generator=torch.Generator().manual_seed(1))
    return x, torch.stack([adjacency(torch.tensor(PLACES).t()).float()])


def assert_same(theirs: nn.Module, settings: TorchmilSettings, dense: bool = False) -> None:
    """Logits, scores, and the gradient of both for every parameter and the features."""
    ours = ours_of(theirs, settings)
    x, adj = bag()
    their_x, our_x = x.clone().requires_grad_(), x.transpose(1, 2).clone().requires_grad_()
    logits, scores = theirs(their_x, adj.to_dense() if dense else adj, return_att=True)
    prediction = ours.predict(our_x, torch.tensor(PLACES).t().float()[None])
    close(prediction.logits[:, 0], logits, "logits")
    close(prediction.scores[:, 0], scores, "scores")

    weights = torch.randn(scores.shape, generator=torch.Generator().manual_seed(2))
    (logits.sum() + (weights * scores).sum()).backward()
    (prediction.logits.sum() + (weights * prediction.scores[:, 0]).sum()).backward()
    assert their_x.grad is not None
    assert our_x.grad is not None
    close(our_x.grad.transpose(1, 2), their_x.grad, "gradient of the features")
    their_grads = gradients_by_our_names(theirs, settings)
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        close(parameter.grad, their_grads.pop(name), f"gradient of {name}")
    assert their_grads == {}


def gradients_by_our_names(theirs: nn.Module, settings: TorchmilSettings) -> dict[str, Tensor]:
    """The converter names gradients as it names weights; those of alpha go through the coefficient it stands for."""
    parameters = dict(theirs.named_parameters())
    instead = {name: p.grad for name, p in parameters.items() if p.grad is not None and not name.endswith("coef")}
    grads = convert_state({**theirs.state_dict(), **instead}, settings)[0]
    values = ours_of(theirs, settings).state_dict()
    learned = {name: tensor for name, tensor in grads.items() if not name.endswith((".0._u", ".0._v"))}
    for their_name, coef in parameters.items():
        if their_name.endswith("coef"):
            our_name = next(n for n, v in values.items() if n.endswith("logit") and stands_for(v, coef, settings))
            assert coef.grad is not None
            # coef = exp(-logit) in the approximation and exp(logit) in the exact mode
            learned[our_name] = coef.grad * coef.detach() * (-1 if settings.mode == "approx" else 1)
    return {name: grad for name, grad in learned.items() if settings.alpha is None or not name.endswith("alpha_logit")}


def stands_for(logit: Tensor, coef: Tensor, settings: TorchmilSettings) -> bool:
    """alpha = 1 / (1 + coef) in torchmil's approximation, coef / (1 + coef) in its exact operator."""
    c = coef.item()
    return math.isclose(torch.sigmoid(logit), 1 / (1 + c) if settings.mode == "approx" else c / (1 + c), rel_tol=1e-5)


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


@pytest.mark.parametrize("alpha", [0.2, 0.5, 0.7])
@pytest.mark.parametrize("mode", ["approx", "exact"])
def test_a_fixed_alpha_is_inverted_in_torchmils_approximation(mode: str, alpha: float) -> None:
    theirs = smap(sm_alpha=alpha, sm_mode=mode)
    settings = TorchmilSettings(mode=mode, alpha=alpha)
    ours = ours_of(theirs, settings)
    smooth: Any = ours.aggregator.smooth
    assert float(smooth.alpha) == pytest.approx(1 - alpha if mode == "approx" else alpha)
    assert_same(theirs, settings, dense=mode == "exact")


@pytest.mark.parametrize("steps", [1, 3, 25])
def test_steps(steps: int) -> None:
    assert_same(smap(sm_steps=steps), TorchmilSettings(steps=steps))


@pytest.mark.parametrize("add_input", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("heads", [1, 4])
def test_smtap(heads: int, layers: int, add_input: bool) -> None:
    theirs = smtap(transf_n_layers=layers, transf_n_heads=heads, transf_add_self=add_input)
    assert_same(theirs, TorchmilSettings(heads=heads, add_input=add_input))


@pytest.mark.parametrize("placement", ["early", "mid", "late"])
def test_smtap_with_other_pools(placement: str) -> None:
    theirs = smtap(transf_n_layers=2, pool_sm_where=placement, pool_act="gelu", pool_spectral_norm=True)
    assert_same(theirs, TorchmilSettings(placement=placement, activation="gelu"))


def test_a_difference_is_seen() -> None:
    """The comparison itself: with the wrong placement, alpha or order of the heads it must fail."""
    with pytest.raises(AssertionError, match=r"logits|scores"):
        assert_same(smap(sm_where="early"), TorchmilSettings(placement="mid"))
    with pytest.raises(AssertionError, match=r"logits|scores"):
        assert_same(smap(sm_steps=10), TorchmilSettings(steps=9))
    with pytest.raises(AssertionError, match=r"logits|scores"):
        assert_same(smtap(transf_n_layers=2, transf_n_heads=4), TorchmilSettings(heads=2))
