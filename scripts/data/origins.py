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
from ignite.engine import Engine, Events

from scripts.errors import InputError
from scripts.files import write_whole


def origin_of(ckpt_path: str | Path) -> Path:
    return Path(ckpt_path).with_suffix(".origin.json")


class RememberTraining:
    """Ignite handler of a validator, behind its saver: writes `model.origin.json` beside the weights that were saved.

    Args:
        ckpt_path: file of the weights.
        bags: what is trained on, with the `encoder` of their features.
        class_names: of a network of several classes.
    """

    def __init__(self, ckpt_path: str, bags: Sequence[Mapping[str, Any]], class_names: Sequence[str] | None) -> None:
        self.path = origin_of(ckpt_path)
        self.origin = {"encoder": bags[0]["encoder"], "class_names": class_names and list(map(str, class_names))}

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.COMPLETED, self.write)

    def write(self) -> None:
        if not dist.is_initialized() or dist.get_rank() == 0:
            write_whole(self.path, json.dumps(self.origin, indent=4) + "\n")


def trained_encoder(ckpt_path: str, class_names: Sequence[str] | None = None) -> str:
    """The encoder whose features the weights were trained on; "" where that is not known, as of converted weights.

    Classes of other names, or in another order, than the weights were trained for are refused.
    """
    path = origin_of(ckpt_path)
    if not path.is_file():
        return ""
    try:
        origin = json.loads(path.read_text())
        encoder, trained_for = str(origin["encoder"]), origin["class_names"] and list(origin["class_names"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} does not say what the network was trained on: train again, or remove it") from error
    if trained_for != (class_names and list(map(str, class_names))):
        raise InputError(
            f"the network was trained for {_in_words(trained_for)}, and is asked for {_in_words(class_names)}: "
            "name the override files it was trained with"
        )
    return encoder


def _in_words(class_names: Sequence[str] | None) -> str:
    return "the classes " + ", ".join(map(str, class_names)) if class_names else "one label, positive or not"
