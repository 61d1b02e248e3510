# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Networks: encoders, aggregators and their compositions. They import torch alone."""

from scripts.networks.encoders import FeatureProjection, Features, SliceCNN
from scripts.networks.ensemble import Ensemble
from scripts.networks.graph import Graph, build_graph
from scripts.networks.hmil import HMIL
from scripts.networks.mil import BagPrediction, MILNetwork
from scripts.networks.pooling import (
    AttentionPool,
    GatedAttentionPool,
    InstancePool,
    MaxPool,
    MeanPool,
    Pooled,
    SmoothAttentionPool,
)
from scripts.networks.smooth import SmoothOperator
from scripts.networks.transformer import SmoothTransformer

__all__ = [
    "HMIL",
    "AttentionPool",
    "BagPrediction",
    "Ensemble",
    "FeatureProjection",
    "Features",
    "GatedAttentionPool",
    "Graph",
    "InstancePool",
    "MILNetwork",
    "MaxPool",
    "MeanPool",
    "Pooled",
    "SliceCNN",
    "SmoothAttentionPool",
    "SmoothOperator",
    "SmoothTransformer",
    "build_graph",
]
