# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Lets torchvision of the package index be imported beside a torch without CUDA, which lacks two of its operators.

Python imports a sitecustomize that lies on PYTHONPATH before anything else.
"""

import sys
from importlib.abc import MetaPathFinder
from typing import Any


class DefineOperators(MetaPathFinder):
    """A finder that finds nothing: it sees torchvision being asked for, and defines what that will look up."""

    def __init__(self) -> None:
        self.libraries: list[Any] = []

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == "torchvision" and not self.libraries:
            import torch

            library = torch.library.Library("torchvision", "DEF")
            library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            self.libraries.append(library)  # which takes its operators along when it goes


sys.meta_path.insert(0, DefineOperators())
