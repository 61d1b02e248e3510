# Copyright (c) 2026 the smooth MIL bundle authors
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""Encoders of tiles from a package that is installed by who wants it."""

from __future__ import annotations

from typing import Any

from monai.utils import optional_import
from torch import nn

from scripts.errors import InputError


def timm_model(model_name: str, **settings: Any) -> nn.Module:
    """`timm.create_model` without its weights: they are read from a file, never fetched."""
    timm, installed = optional_import("timm")
    if not installed:
        raise InputError(f"the encoder {model_name} needs timm, which is not installed: pip install timm")
    try:
        model: nn.Module = timm.create_model(model_name, pretrained=False, **settings)
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"timm makes no {model_name} of {settings} ({error}); see timm.list_models()") from error
    return model
