# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""torchmil's state dicts: our network gives what the formulas give with torchmil's own tensors."""

import itertools
import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from scripts.core.errors import InputError
from scripts.networks import MILNetwork
from scripts.weights.torchmil import TorchmilSettings, convert_state
from tests.weights.configured import network

FEATURES, HIDDEN, HEADS, LAYER = 8, 5, 2, "transformer_encoder.layers"
COORDS = torch.tensor([[0, 0, 1, 1, 2, 3, 9], [0, 1, 0, 2, 1, 3, 9]]).float()  # the last has no neighbour
ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu, "gelu": torch.nn.functional.gelu}


def state_of_pool(coef: float | None = 1.7, normalised: tuple[str, ...] = (), **others: nn.Module) -> dict[str, Tensor]:
    """SmABMIL: names as torchmil gives them, random numbers."""
    torch.manual_seed(0)
    pool = nn.ModuleDict({"proj1": nn.Linear(FEATURES, HIDDEN), "proj2": nn.Linear(HIDDEN, 1, bias=False)})
    for name in normalised:
        spectral_norm(pool[name])
    state = nn.ModuleDict({"last_layer": nn.Linear(FEATURES, 1), "pool": pool, **others}).state_dict()
    for name, tensor in state.items():
        if not name.endswith(("._u", "._v")):
            tensor.normal_(std=0.7)
    return {**state} if coef is None else {**state, "pool.sm.sm.coef": torch.tensor(coef)}


def state_of_transformer(coefs: tuple[float | None, ...] = (0.4, 2.5)) -> dict[str, Tensor]:
    """SmTransformerABMIL with a layer for each coefficient."""
    layers, wide = nn.ModuleList(), 4 * FEATURES
    for _ in coefs:
        attention = nn.ModuleDict({"qkv_nn": nn.Linear(FEATURES, 3 * FEATURES, bias=False)})
        mlp = nn.Sequential(nn.Linear(FEATURES, wide), nn.GELU(), nn.Dropout(), nn.Linear(wide, FEATURES))
        norms = {name: nn.LayerNorm(FEATURES) for name in ("norm1", "norm2")}
        layers.append(nn.ModuleDict({"att_module": attention, "mlp_module": mlp, **norms}))
    encoder = nn.ModuleDict({"layers": layers, "norm": nn.LayerNorm(FEATURES)})
    smooth = {f"{LAYER}.{i}.att_module.sm.sm.coef": torch.tensor(c) for i, c in enumerate(coefs) if c is not None}
    return state_of_pool(transformer_encoder=encoder) | smooth


def adjacency() -> Tensor:
    """Ã of 8 neighbours on the lattice; the isolated patch is its own neighbour, as with us (torchmil's has none)."""
    apart = (COORDS[:, :, None] - COORDS[:, None, :]).abs().amax(dim=0)
    a = ((apart > 0) & (apart < 1.5)).double()
    a[a.sum(dim=1) == 0] = torch.eye(len(a)).double()[a.sum(dim=1) == 0]
    scale = a.sum(dim=1).rsqrt()
    return scale[:, None] * a * scale[None, :]


def sm(u: Tensor, coef: float, settings: TorchmilSettings) -> Tensor:
    a = adjacency()
    if settings.mode == "exact":  # γ = coef, L = I - Ã
        return torch.linalg.solve((1 + coef) * torch.eye(len(a)).double() - coef * a, u)
    alpha, g = 1 / (1 + coef), u
    for _ in range(settings.steps):
        g = (1 - alpha) * u + alpha * a @ g
    return g


def weight_of(state: dict[str, Tensor], name: str) -> Tensor:
    if f"{name}.weight" in state:
        return state[f"{name}.weight"]
    at = f"{name}.parametrizations.weight"
    w = state[f"{at}.original"]
    return w / (state[f"{at}.0._u"] @ w @ state[f"{at}.0._v"])


def layer_norm(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    return torch.nn.functional.layer_norm(x, (FEATURES,), state[f"{name}.weight"], state[f"{name}.bias"])


def asked(state: dict[str, Tensor], name: str, settings: TorchmilSettings) -> float:
    """The coefficient, trained or made from the fixed alpha as torchmil makes it."""
    if f"{name}.sm.sm.coef" in state:
        return float(state[f"{name}.sm.sm.coef"])
    assert settings.alpha is not None
    return 1 / (1 - settings.alpha) - 1


def pooled_by_formula(x: Tensor, state: dict[str, Tensor], settings: TorchmilSettings) -> tuple[Tensor, Tensor]:
    """Logit and f of each instance. x: [N, D]."""
    coef = asked(state, "pool", settings)
    if settings.placement == "early":
        x = sm(x, coef, settings)
    u = x @ weight_of(state, "pool.proj1").t() + state["pool.proj1.bias"]
    if settings.placement == "mid":
        u = sm(u, coef, settings)
    f = ACTIVATIONS[settings.activation](u) @ weight_of(state, "pool.proj2").t()
    if settings.placement == "late":
        f = sm(f, coef, settings)
    z = (torch.softmax(f, dim=0) * x).sum(dim=0)
    return z @ state["last_layer.weight"].t() + state["last_layer.bias"], f[:, 0]


def transformed_by_formula(x: Tensor, state: dict[str, Tensor], settings: TorchmilSettings, layers: int) -> Tensor:
    y = x
    for layer in range(layers):
        at = f"transformer_encoder.layers.{layer}"
        qkv = layer_norm(y, state, f"{at}.norm1") @ state[f"{at}.att_module.qkv_nn.weight"].t()
        q, k, v = qkv.view(len(x), 3, settings.heads, -1).permute(1, 2, 0, 3)  # [heads, N, D / heads] each
        attended = torch.softmax(q @ k.mT / math.sqrt(q.shape[2]), dim=2) @ v
        attended = attended.transpose(0, 1).flatten(1)  # [N, D]
        y = y + sm(attended, asked(state, f"{at}.att_module", settings), settings)
        hidden = layer_norm(y, state, f"{at}.norm2") @ state[f"{at}.mlp_module.0.weight"].t()
        hidden = torch.nn.functional.gelu(hidden + state[f"{at}.mlp_module.0.bias"])
        y = y + hidden @ state[f"{at}.mlp_module.3.weight"].t() + state[f"{at}.mlp_module.3.bias"]
        if settings.add_input:
            y = y + x
    return layer_norm(y, state, "transformer_encoder.norm")


def converted(theirs: dict[str, Tensor], settings: TorchmilSettings) -> MILNetwork:
    state, definition = convert_state(theirs, settings)
    return network("wsi", state, network_def=json.loads(json.dumps(definition)))


def assert_same(theirs: dict[str, Tensor], settings: TorchmilSettings, layers: int = 0) -> None:
    made = converted(theirs, settings)
    exact = {name: tensor.double() for name, tensor in theirs.items()}
    x_given = torch.randn(COORDS.shape[1], FEATURES, generator=torch.Generator().manual_seed(1))
    x = x_given.double()
    if layers:
        x = transformed_by_formula(x, exact, settings, layers)
    logit, f = pooled_by_formula(x, exact, settings)
    with torch.no_grad():
        predicted = made.predict(x_given.t()[None], COORDS[None])
    torch.testing.assert_close(predicted.logits[0].double(), logit, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(predicted.scores[0, 0].double(), f, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("placement", "mode", "fixed"), itertools.product(("early", "mid", "late"), ("approx", "exact"), (False, True))
)
def test_the_pool_gives_what_torchmil_gives(placement: str, mode: str, fixed: bool) -> None:
    """A fixed alpha is inverted in torchmil's approximation."""
    settings = TorchmilSettings(placement=placement, mode=mode, alpha=0.2 if fixed else None)
    theirs = state_of_pool(coef=None if fixed else 1.7)
    assert_same(theirs, settings)
    smooth: Any = converted(theirs, settings).aggregator.smooth
    assert ("alpha_logit" in dict(smooth.named_parameters())) == (not fixed)
    if fixed:
        assert float(smooth.alpha) == pytest.approx(0.8 if mode == "approx" else 0.2)


def test_activation_steps_and_spectral_normalisation_are_those_given() -> None:
    for activation in ACTIVATIONS:
        assert_same(state_of_pool(), TorchmilSettings(activation=activation, steps=3))
    assert_same(state_of_pool(normalised=("proj1", "proj2")), TorchmilSettings(placement="early"))
    assert_same(state_of_pool(normalised=("proj2",)), TorchmilSettings(placement="mid"))


def test_the_transformer_gives_what_torchmil_gives_with_trained_and_fixed_alphas() -> None:
    for mode, add_input in (("approx", True), ("exact", False)):
        assert_same(state_of_transformer(), TorchmilSettings(heads=HEADS, mode=mode, add_input=add_input), layers=2)
    theirs, settings = state_of_transformer(coefs=(None,)), TorchmilSettings(heads=HEADS, alpha=0.2)
    assert_same(theirs, settings, layers=1)
    _, definition = convert_state(theirs, settings)
    assert (definition["aggregator"]["alpha"], definition["aggregator"]["pool"]["alpha"]) == (0.8, "trainable")


def test_a_wrapper_and_the_loss_are_left_out_and_what_is_written_is_float32_and_shares_no_memory() -> None:
    theirs = {**state_of_pool(), "criterion.pos_weight": torch.tensor(2.0)}  # the loss is part of torchmil's network
    wanted, definition = convert_state(theirs, TorchmilSettings())
    for wrapper in ("module.", "net.model."):
        wrapped = {wrapper + name: tensor.double() for name, tensor in theirs.items()}
        found, other = convert_state(wrapped, TorchmilSettings())
        assert other == definition
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)  # of one type
        # a view of a large tensor would be saved with all of it
        assert all(tensor.untyped_storage().nbytes() == 4 * tensor.numel() for tensor in found.values())


POOL, TRANSFORMER = state_of_pool(), state_of_transformer()
WITHOUT_MLP = {name: tensor for name, tensor in TRANSFORMER.items() if f"{LAYER}.1.mlp" not in name}


@pytest.mark.parametrize(
    ("theirs", "settings", "message"),
    [
        ({}, {}, "holds no tensor `last_layer.weight`: give the state dict of torchmil's"),
        (POOL | {"feat_ext.0.weight": torch.zeros(1)}, {}, "`feat_ext.0.weight`, .* without a feature extractor"),
        (TRANSFORMER | {f"{LAYER}.0.att_proj.weight": torch.zeros(1)}, {}, "transf_att_dim = the number of features"),
        (WITHOUT_MLP, {}, f"no tensor `{LAYER}.1.mlp_module.0.weight`: .* transf_use_mlp"),
        (POOL | {"last_layer.weight": torch.zeros(2, FEATURES)}, {}, r"of the shape \(2, 8\) instead of \(1, 8\)"),
        (state_of_pool(coef=None), {}, "holds no trained alpha `pool.sm.sm.coef`: give .* --alpha 0.5"),
        (state_of_transformer(coefs=(0.4, None)), {}, f"no trained alpha `{LAYER}.1.att_module.sm.sm.coef`"),
        (POOL, {"alpha": 0.5}, "every alpha .* was trained, .*: leave out --alpha"),
        (state_of_pool(coef=-0.5), {}, "`pool.sm.sm.coef` is -0.5, which makes an alpha outside of 0 and 1"),
        (state_of_pool(coef=math.nan), {}, "`pool.sm.sm.coef` of the checkpoint holds NaN or infinite values"),
        (state_of_pool(normalised=("proj2",)), {}, "proj2 is that of mid, not of early: give --placement"),
        (TRANSFORMER, {"heads": 3}, "8 features cannot be shared among 3 heads: give --heads"),
        (POOL, {"placement": "none"}, "--placement 'none' is not known: give early, mid, late"),
        (POOL, {"steps": 0}, "--steps 0 is no whole number above 0"),
        (POOL, {"alpha": 1.0}, "--alpha 1.0 does not lie between 0 and 1: give the sm_alpha"),
        (POOL, {"add_input": "no"}, "--add_input 'no' .*: give --add_input or --noadd_input"),
    ],
)
def test_what_cannot_be_converted_is_refused(theirs: dict[str, Tensor], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        convert_state(theirs, TorchmilSettings(**{"heads": HEADS, **settings}))
    assert "\n" not in str(error.value)
