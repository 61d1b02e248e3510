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
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist
from ignite.engine import Engine, Events

from scripts.errors import InputError
from scripts.files import write_whole

SAME_SCALE = 0.05  # relative: magnifications are twice each other

logger = logging.getLogger(__name__)


class Origin(NamedTuple):
    """What is known of the features that a network was trained on."""

    encoder: str  # "" = not known
    patch_um: float  # micrometres from patch to patch, 0 = not known

    def compare(self, encoder: str, patch_um: float) -> None:
        """Refuses features of another encoder, and warns of what cannot be known or has another scale."""
        if encoder and self.encoder and encoder.lower() != self.encoder.lower():
            raise InputError(
                f"the features are of the encoder {encoder}, the network was trained on those of {self.encoder}: "
                "give features of that, or say with --encoder_name that it is the same one"
            )
        if self.encoder and not encoder:
            logger.warning(
                "the features do not say which encoder they are of, the network was trained on those of %s; "
                "state theirs with --encoder_name",
                self.encoder,
            )
        if patch_um and self.patch_um and abs(patch_um / self.patch_um - 1) > SAME_SCALE:
            logger.warning(
                "patches are %.4g micrometres apart, those the network was trained on %.4g: it knows another "
                "magnification or size of patches",
                patch_um,
                self.patch_um,
            )


def origin_of_bags(bags: Sequence[Mapping[str, Any]]) -> Origin:
    """Of bags that `scripts.data.patches.described` has seen."""
    return Origin(bags[0]["encoder"], bags[0]["patch_um"])


def origin_file(ckpt_path: str | Path) -> Path:
    return Path(ckpt_path).with_suffix(".origin.json")


class RememberTraining:
    """Ignite handler of a validator, behind its saver: writes `model.origin.json` beside the weights that were saved.

    Args:
        ckpt_path: file of the weights.
        bags: what is trained on, as `scripts.data.patches.described` says it.
        class_names: of a network of several classes.
    """

    def __init__(self, ckpt_path: str, bags: Sequence[Mapping[str, Any]], class_names: Sequence[str] | None) -> None:
        self.path = origin_file(ckpt_path)
        classes = class_names and list(map(str, class_names))
        self.origin = {**origin_of_bags(bags)._asdict(), "class_names": classes}

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.COMPLETED, self.write)

    def write(self) -> None:
        if not dist.is_initialized() or dist.get_rank() == 0:
            write_whole(self.path, json.dumps(self.origin, indent=4) + "\n")


def trained_with(ckpt_path: str, class_names: Sequence[str] | None = None) -> Origin | None:
    """What the weights were trained on; None where that is not known, as of converted weights.

    Classes of other names, or in another order, than the weights were trained for are refused.
    """
    path = origin_file(ckpt_path)
    if not path.is_file():
        return None
    try:
        said = json.loads(path.read_text())
        origin, trained_for = Origin(str(said["encoder"]), float(said["patch_um"])), said["class_names"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} does not say what the network was trained on: train again, or remove it") from error
    if trained_for != (class_names and list(map(str, class_names))):
        raise InputError(
            f"the network was trained for {_in_words(trained_for)}, and is asked for {_in_words(class_names)}: "
            "name the override files it was trained with"
        )
    return origin


def _in_words(class_names: Sequence[str] | None) -> str:
    return "the classes " + ", ".join(map(str, class_names)) if class_names else "one label, positive or not"
