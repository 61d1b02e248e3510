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
"""What a network was trained on, beside its weights: features of another encoder have the same shape and no meaning."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from scripts.errors import InputError
from scripts.files import write_whole

ORIGIN = "model.json"


def remember_training(ckpt_dir: str, bags: Sequence[Mapping[str, Any]], class_names: Sequence[str] | None) -> None:
    """Writes `ckpt_dir/model.json`; of several processes the first does."""
    if dist.is_initialized() and dist.get_rank() > 0:
        return
    origin = {"encoder": bags[0]["encoder"], "class_names": class_names}
    write_whole(Path(ckpt_dir) / ORIGIN, json.dumps(origin, indent=4) + "\n")


def trained_encoder(ckpt_path: str) -> str:
    """The encoder whose features the weights were trained on; empty where that is not known, as of converted ones."""
    path = Path(ckpt_path).with_name(ORIGIN)
    if not path.is_file():
        return ""
    try:
        return str(json.loads(path.read_text())["encoder"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} does not say what the network was trained on: train again, or remove it") from error
