# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The rows of the tables: each a composition of the bundles' own parts, as it would be typed on the command line."""

from collections.abc import Mapping
from typing import Any

from benchmarks.ledger.learning import System

FEATURES = "$@network_def#encoder.out_features"
ALPHAS = {"LS1": (0.01, 0.1, 0.3, 0.5, 0.9), "LS2": (0.1, 0.5)}
LINEAR = {"network_def#head": {"_target_": "torch.nn.Linear", "in_features": FEATURES, "out_features": 1}}
MLP = f"$torch.nn.Sequential(torch.nn.Linear({FEATURES[1:]}, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))"

Keys = Mapping[str, Any]


def pool(name: str, **options: Any) -> dict[str, Any]:
    """The keys of an aggregator."""
    return {"network_def#aggregator": {"_target_": f"scripts.networks.{name}", **options}}


def smooth(**options: Any) -> dict[str, Any]:
    """The keys of smooth attention."""
    return pool("SmoothAttentionPool", in_features=FEATURES, hidden_features=128, **options)


def on_features(recipe: Keys, *files: str, **keys: Any) -> System:
    """A head on the features of slices."""
    return System("ct", ("on_features.json", *files), {**recipe, **keys})


def pools(recipe: Keys) -> dict[str, System]:
    """The heads that no smoothness enters, and those that are shipped."""
    gated = "attention.json"
    instance = {"network_def#head": {"_target_": "torch.nn.Identity"}}
    return {
        "gated attention": on_features(recipe, gated),
        "shipped default": on_features(recipe),
        "SmAP as shipped": on_features(recipe, "smap.json"),
        "SmTAP as shipped": on_features(recipe, "smtap.json"),
        "attention": on_features(recipe, gated, **pool("AttentionPool", in_features=FEATURES), **LINEAR),
        "mean": on_features(recipe, gated, **pool("MeanPool"), **LINEAR),
        "mean, MLP": on_features(recipe, gated, **pool("MeanPool"), **{"network_def#head": MLP}),
        "max": on_features(recipe, gated, **pool("MaxPool"), **LINEAR),
        **{
            f"instance {which}": on_features(
                recipe, gated, **pool("InstancePool", in_features=FEATURES, pool=which), **instance
            )
            for which in ("max", "mean")
        },
    }


def losses(recipe: Keys) -> dict[str, System]:
    """Gated attention with each smoothness loss."""
    return {
        f"{penalty} {variant}, α {alpha}": on_features(recipe, variant=variant, penalty=penalty, alpha=alpha)
        for variant in ("paper", "released", "scale_free")
        for penalty, alphas in ALPHAS.items()
        for alpha in alphas
    }


def smooth_pools(recipe: Keys) -> dict[str, System]:
    """Smooth attention in its placements, strengths and numbers of steps."""
    rows = {}
    for placement in ("early", "mid", "late"):
        for alpha in (0.1, 0.5, 0.9, "trainable"):
            rows[f"SmAP {placement}, α {alpha}"] = smooth(placement=placement, alpha=alpha)
        if placement == "mid":  # where the shipped network smooths; by default it is 10 steps
            for steps in (1, 5, 40):
                rows[f"SmAP mid, α 0.9, T {steps}"] = smooth(placement=placement, alpha=0.9, steps=steps)
            rows["SmAP mid, α 0.9, exact"] = smooth(placement=placement, alpha=0.9, mode="exact")
        if placement != "late":  # behind which no linear layer stands
            keys = smooth(placement=placement, alpha=0.5, spectral_norm=True)
            rows[f"SmAP {placement}, α 0.5, spectral norm"] = keys
    return {name: on_features(recipe, "smap.json", **keys) for name, keys in rows.items()}


def lattice_pools(recipe: Keys) -> dict[str, System]:
    """Slides: plain attention and smooth attention by placement and strength, as narrow as the heads of scans."""
    training = {"learning_rate": 0.001, "weight_decay": 0.0001, "batch_size": 16, "max_epochs": 25}
    narrow = {f"network_def#{part}": 64 for part in ("encoder#out_features", "head#in_features")}
    keys = {**recipe, **training, **narrow, "network_def#aggregator#in_features": 64}
    rows = {
        "attention": System("wsi", ("attention.json",), keys),
        "gated attention": System("wsi", ("abmil.json",), keys),
        "mean": System("wsi", ("attention.json",), {**keys, **pool("MeanPool")}),
    }
    for placement in ("early", "mid", "late"):
        for alpha in (0.1, 0.5, 0.9, "trainable"):
            own = {"network_def#aggregator#placement": placement, "network_def#aggregator#alpha": alpha}
            rows[f"SmAP {placement}, α {alpha}"] = System("wsi", (), {**keys, **own})
    return rows


def image_heads() -> dict[str, System]:
    """Heads of scans behind the slice network, on small images."""
    keys = {
        "image_size": 128,
        "channels": [16, 32, 32, 32, 32],
        "batch_norm_momentum": 0.1,
        "learning_rate": 0.0005,
        "weight_decay": 0.0001,
        "batch_size": 8,
        "max_epochs": 5,
    }
    return {
        "gated attention": System("ct", ("attention.json",), keys),
        "LS1 paper, α 0.5": System("ct", (), {**keys, "variant": "paper", "penalty": "LS1", "alpha": 0.5}),
        "LS1 scale_free, α 0.5": System("ct", (), {**keys, "variant": "scale_free", "penalty": "LS1", "alpha": 0.5}),
        "SmAP as shipped": System("ct", ("smap.json",), keys),
        "SmTAP as shipped": System("ct", ("smtap.json",), keys),
    }


def abmil_heads(encoder: str, features: int, keys: Keys) -> dict[str, System]:
    """Attention and gated attention behind an encoder of one instance, a text that makes a torch module."""
    whole = {"_target_": "benchmarks.ledger.abmil.PerInstance", "network": f"${encoder}"}
    narrow = {"network_def#aggregator#in_features": features, "network_def#head#in_features": features}
    every = {"network_def#encoder": whole, **narrow, "batch_size": 1, **keys}
    return {
        "attention": System("wsi", ("attention.json",), every),
        "gated attention": System("wsi", ("abmil.json",), every),
    }
