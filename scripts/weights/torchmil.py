# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""State dicts of torchmil 1.0.2, SmABMIL and SmTransformerABMIL: their weights in our network, and its definition."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scripts.core.errors import InputError

CHOICES = {"placement": ("early", "mid", "late"), "activation": ("tanh", "relu", "gelu"), "mode": ("approx", "exact")}
NORMALISED = {"early": ["proj1", "proj2"], "mid": ["proj2"]}  # layers under their spectral_norm, by placement
POOL_COEF = "pool.sm.sm.coef"
LAYER_COEF = "transformer_encoder.layers.{}.att_module.sm.sm.coef"
MLP_RATIO = 4

State = Mapping[str, Tensor]
TensorMapping = tuple[str, str, tuple[int, ...]]  # their name, our name, shape


@dataclass(frozen=True)
class TorchmilSettings:
    """Arguments of a torchmil network that its state dict does not hold; the defaults are torchmil's.

    All smooth operators of a network share mode and steps, and alpha where it was fixed.
    """

    placement: str = "early"  # sm_where
    activation: str = "tanh"  # att_act
    mode: str = "approx"  # sm_mode
    steps: int = 10  # sm_steps
    alpha: float | None = None  # sm_alpha as torchmil was given it, where it was not trained
    heads: int = 4  # transf_n_heads
    add_input: bool = True  # transf_add_self

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise InputError(f"--{name} {getattr(self, name)!r} is not known: give {', '.join(choices)}")
        for name in ("steps", "heads"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise InputError(f"--{name} {getattr(self, name)!r} is no whole number above 0: give one")
        if self.alpha is not None and not (type(self.alpha) is float and 0 < self.alpha < 1):
            raise InputError(f"--alpha {self.alpha!r} does not lie between 0 and 1: give the sm_alpha of the training")
        if type(self.add_input) is not bool:
            raise InputError(f"--add_input {self.add_input!r} is no truth value: give --add_input or --noadd_input")


def convert_state(state: State, settings: TorchmilSettings) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return our state dict, and the `network_def` that takes it."""
    theirs = _without_wrapper(state)
    features, hidden = (_found(theirs, name).shape[-1:].numel() for name in ("last_layer.weight", "pool.proj1.bias"))
    layers = len({found[1] for name in theirs if (found := re.match(r"transformer_encoder\.layers\.(\d+)\.", name))})
    if layers and features % settings.heads:
        raise InputError(f"{features} features cannot be shared among {settings.heads} heads: give --heads")
    normalised = _normalised_layers(theirs, settings)
    mapping = list(_tensor_mapping(features, hidden, layers, normalised))
    coefs = {POOL_COEF: f"{'aggregator.pool' if layers else 'aggregator'}.smooth.alpha_logit"}
    coefs |= {LAYER_COEF.format(layer): f"aggregator.layers.{layer}.smooth.alpha_logit" for layer in range(layers)}
    unknown = sorted(theirs.keys() - {name for name, _, _ in mapping} - coefs.keys())
    if unknown:
        raise _not_of_torchmil(f"`{unknown[0]}`, for which our networks have no place")
    if settings.alpha is not None and coefs.keys() <= theirs.keys():
        raise InputError("every alpha of this network was trained, and is in the checkpoint: leave out --alpha")
    ours = {our_name: _copy_of(theirs, their_name, shape) for their_name, our_name, shape in mapping}
    ours |= {our_name: _alpha_logit(theirs, their_name, settings) for their_name, our_name in coefs.items()}

    smooth = {"steps": settings.steps, "mode": settings.mode}
    aggregator: dict[str, Any] = {
        "_target_": "scripts.networks.SmoothAttentionPool",
        "in_features": features,
        "hidden_features": hidden,
        "placement": settings.placement,
        "alpha": _alpha_argument(theirs, POOL_COEF, settings),
        **smooth,
        "spectral_norm": bool(normalised),
        "activation": settings.activation,
    }
    if layers:
        aggregator = {
            "_target_": "scripts.networks.SmoothTransformer",
            "features": features,
            "heads": settings.heads,
            "layers": layers,
            "mlp_ratio": MLP_RATIO,
            "alpha": _alpha_argument(theirs, LAYER_COEF.format(0), settings),
            **smooth,
            "add_input": settings.add_input,
            "pool": aggregator,
        }
    return ours, {
        "_target_": "scripts.networks.MILNetwork",
        "_desc_": f"{'SmTransformerABMIL' if layers else 'SmABMIL'} of torchmil",
        "encoder": {"_target_": "scripts.networks.Features", "in_features": features},
        "aggregator": aggregator,
        "head": f"$torch.nn.Linear({features}, 1)",
        "spatial_dims": 2,
    }


def _tensor_mapping(features: int, hidden: int, layers: int, normalised: list[str]) -> Iterator[TensorMapping]:
    pool = "aggregator.pool" if layers else "aggregator"
    yield from _layer("last_layer", "head", (1, features))
    yield "pool.proj1.bias", f"{pool}.project.bias", (hidden,)
    for theirs, ours, shape in (("proj1", "project", (hidden, features)), ("proj2", "weigh", (1, hidden))):
        if theirs in normalised:
            there, here = f"pool.{theirs}.parametrizations.weight", f"{pool}.{ours}.parametrizations.weight"
            yield f"{there}.original", f"{here}.original", shape
            yield f"{there}.0._u", f"{here}.0._u", shape[:1]  # singular vectors of the largest singular value
            yield f"{there}.0._v", f"{here}.0._v", shape[1:]
        else:
            yield f"pool.{theirs}.weight", f"{pool}.{ours}.weight", shape
    for layer in range(layers):
        there, here = f"transformer_encoder.layers.{layer}", f"aggregator.layers.{layer}"
        yield from _layer(f"{there}.norm1", f"{here}.norm1", (features,))
        yield f"{there}.att_module.qkv_nn.weight", f"{here}.qkv.weight", (3 * features, features)
        yield from _layer(f"{there}.norm2", f"{here}.norm2", (features,))
        yield from _layer(f"{there}.mlp_module.0", f"{here}.mlp.0", (MLP_RATIO * features, features))
        yield from _layer(f"{there}.mlp_module.3", f"{here}.mlp.3", (features, MLP_RATIO * features))
    if layers:
        yield from _layer("transformer_encoder.norm", "aggregator.norm", (features,))


def _layer(theirs: str, ours: str, shape: tuple[int, ...]) -> Iterator[TensorMapping]:
    yield f"{theirs}.weight", f"{ours}.weight", shape
    yield f"{theirs}.bias", f"{ours}.bias", shape[:1]


def _without_wrapper(state: State) -> State:
    """Remove what a wrapper puts before every name, such as `module.` or `model.`, and the loss."""
    wrapper = next((name.removesuffix("last_layer.weight") for name in state if name.endswith("last_layer.weight")), "")
    names = {name: name.removeprefix(wrapper) for name in state}
    return {ours: state[name] for name, ours in names.items() if not ours.startswith("criterion.")}


def _normalised_layers(theirs: State, settings: TorchmilSettings) -> list[str]:
    """Return the linear layers of the pool under spectral normalisation, which must be those of the placement."""
    found = [layer for layer in ("proj1", "proj2") if f"pool.{layer}.parametrizations.weight.original" in theirs]
    if found and found != NORMALISED.get(settings.placement):
        fitting = " or ".join(name for name, layers in NORMALISED.items() if layers == found) or "no placement"
        what = f"spectral normalisation of {' and '.join(found)} is that of {fitting}, not of {settings.placement}"
        raise InputError(f"{what}: give --placement as in the training")
    return found


def _found(theirs: State, name: str) -> Tensor:
    if name not in theirs:
        raise _not_of_torchmil(f"no tensor `{name}`")
    return theirs[name].detach()


def _copy_of(theirs: State, name: str, shape: tuple[int, ...]) -> Tensor:
    tensor = _found(theirs, name)
    if tensor.shape != shape:
        raise _not_of_torchmil(f"`{name}` of the shape {tuple(tensor.shape)} instead of {shape}")
    if not tensor.isfinite().all():
        raise InputError(f"`{name}` of the checkpoint holds NaN or infinite values: give one whose training went well")
    return tensor.float().clone()


def _not_of_torchmil(what: str) -> InputError:
    return InputError(
        f"the checkpoint holds {what}: give the state dict of torchmil's SmABMIL or SmTransformerABMIL, without a "
        "feature extractor, with transf_att_dim = the number of features, and with transf_use_mlp"
    )


def _alpha_logit(theirs: State, name: str, settings: TorchmilSettings) -> Tensor:
    """Return the logit of 1 / (1 + coef), torchmil's alpha in its approximation, or of coef / (1 + coef) if exact."""
    if name in theirs:
        coef = float(_copy_of(theirs, name, ()))
    elif settings.alpha is not None:
        coef = settings.alpha / (1 - settings.alpha)
    else:
        raise InputError(f"the checkpoint holds no trained alpha `{name}`: give its sm_alpha, such as --alpha 0.5")
    if not 0 < coef < math.inf:
        raise InputError(f"`{name}` is {coef}, which makes an alpha outside of 0 and 1: these weights do not smooth")
    return torch.tensor(-math.log(coef) if settings.mode == "approx" else math.log(coef))


def _alpha_argument(theirs: State, name: str, settings: TorchmilSettings) -> float | str:
    """Return alpha as an argument of our operator: a fixed one means 1 - alpha in torchmil's approximation."""
    if name in theirs or settings.alpha is None:
        return "trainable"
    return round(1 - settings.alpha, 12) if settings.mode == "approx" else settings.alpha
