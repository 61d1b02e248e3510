# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Losses of the papers. They import torch and the networks alone."""

from scripts.losses.hierarchical import HierarchicalLoss, bag_alignment, instance_alignment, supervised_contrast
from scripts.losses.smoothness import BagCrossEntropy, SmoothMILLoss, ls1, ls2, scale_free

__all__ = [
    "BagCrossEntropy",
    "HierarchicalLoss",
    "SmoothMILLoss",
    "bag_alignment",
    "instance_alignment",
    "ls1",
    "ls2",
    "scale_free",
    "supervised_contrast",
]
