# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The rows of the tables: each a composition of the bundles' own parts, as it would be typed on the command line."""

from collections.abc import Mapping
from typing import Any

from benchmarks.ledger.learning import System

FEATURES = "$@network_def#encoder.out_features"
ALPHAS = (0.01, 0.1, 0.3, 0.5, 0.9)
LINEAR = {"network_def#head": {"_target_": "torch.nn.Linear", "in_features": FEATURES, "out_features": 1}}
MLP = f"$torch.nn.Sequential(torch.nn.Linear({FEATURES[1:]}, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))"

Keys = Mapping[str, Any]


def pool(name: str, **options: Any) -> dict[str, Any]:
    """The keys of an aggregator."""
    return {"network_def#aggregator": {"_target_": f"scripts.networks.{name}", **options}}


def smooth(**options: Any) -> dict[str, Any]:
    """The keys of smooth attention."""
    return pool("SmoothAttentionPool", in_features=FEATURES, hidden_features=128, **options)


def slice_heads(recipe: Keys) -> dict[str, System]:
    """Heads on the features of slices: every row of the RSNA table that is trained."""

    def on_features(*files: str, **keys: Any) -> System:
        return System("ct", ("on_features.json", *files), {**recipe, **keys})

    gated, smap = ("attention.json",), ("smap.json",)
    instance = {"network_def#head": {"_target_": "torch.nn.Identity"}}
    rows = {
        "mean": on_features(*gated, **pool("MeanPool"), **LINEAR),
        "mean, MLP": on_features(*gated, **pool("MeanPool"), **{"network_def#head": MLP}),
        "max": on_features(*gated, **pool("MaxPool"), **LINEAR),
        "instance max": on_features(*gated, **pool("InstancePool", in_features=FEATURES, pool="max"), **instance),
        "instance mean": on_features(*gated, **pool("InstancePool", in_features=FEATURES, pool="mean"), **instance),
        "attention": on_features(*gated, **pool("AttentionPool", in_features=FEATURES), **LINEAR),
        "gated attention": on_features(*gated),
        "shipped default": on_features(),
    }
    for variant in ("paper", "released", "scale_free"):
        for penalty in ("LS1", "LS2"):
            for alpha in ALPHAS:
                keys = {"loss#variant": variant, "penalty": penalty, "alpha": alpha}
                rows[f"{penalty} {variant}, α {alpha}"] = on_features(**keys)
    for placement in ("early", "mid", "late"):
        for alpha in (0.1, 0.5, 0.9, "trainable"):
            rows[f"SmAP {placement}, α {alpha}"] = on_features(*smap, **smooth(placement=placement, alpha=alpha))
        for steps in (1, 5, 40):
            keys = smooth(placement=placement, alpha=0.9, steps=steps)
            rows[f"SmAP {placement}, α 0.9, T {steps}"] = on_features(*smap, **keys)
        keys = smooth(placement=placement, alpha=0.9, mode="exact")
        rows[f"SmAP {placement}, α 0.9, exact"] = on_features(*smap, **keys)
        if placement != "late":
            keys = smooth(placement=placement, alpha=0.5, spectral_norm=True)
            rows[f"SmAP {placement}, α 0.5, spectral norm"] = on_features(*smap, **keys)
    rows["SmAP as shipped"] = on_features(*smap)
    rows["SmTAP as shipped"] = on_features("smtap.json")
    return rows
