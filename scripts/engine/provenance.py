# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Of what network weights are and what it was trained on, beside them: they fit others, and mean nothing there."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist
from ignite.engine import Engine, Events
from torch import nn

from scripts.core.errors import InputError
from scripts.core.files import write_whole

SAME_SCALE = 0.05  # relative: magnifications are twice each other

Settings = Mapping[str, Any]  # of a network, what no weight shows, as "aggregator.smooth.exact": false

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


NOT_KNOWN = Origin("", 0.0)


def origin_of_bags(bags: Sequence[Mapping[str, Any]]) -> Origin:
    """Of bags that `scripts.wsi.reader.described` has seen."""
    return Origin(bags[0]["encoder"], bags[0]["patch_um"])


def origin_file(ckpt_path: str | Path) -> Path:
    return Path(ckpt_path).with_suffix(".origin.json")


def settings_of(module: nn.Module) -> dict[str, Any]:
    """What no weight of a module shows: a placement, a number of slots."""
    known = {name: value for name, value in sorted(vars(module).items()) if _is_plain(value)}
    # what begins with _ is derived, or torch's own
    return {name: value for name, value in known.items() if not name.startswith("_") and name != "training"}


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return isinstance(value, (bool, int, float, str, type(None)))


def network_settings(network: nn.Module) -> Settings:
    """The kind of every module, and what each is set to; of torch's own the kind alone.

    A rate of dropout or a momentum may differ when the weights are used.
    """
    network = getattr(network, "module", network)  # DDP wraps the network
    modules = dict(network.named_modules())
    kinds = {_joined(name, "kind"): type(module).__name__ for name, module in modules.items()}
    ours = {name: module for name, module in modules.items() if not type(module).__module__.startswith("torch.")}
    settings = {_joined(at, name): value for at, module in ours.items() for name, value in settings_of(module).items()}
    as_read: Settings = json.loads(json.dumps({**kinds, **settings}))
    return as_read


def _joined(module: str, name: str) -> str:
    return f"{module}.{name}" if module else name


def origin_text(settings: Settings, origin: Origin = NOT_KNOWN, class_names: Sequence[str] | None = None) -> str:
    """What stands beside the weights: of what network they are, and what it was trained on."""
    classes = class_names and list(map(str, class_names))
    return json.dumps({**origin._asdict(), "class_names": classes, "network": settings}, indent=4) + "\n"


class RememberTraining:
    """Ignite handler of a validator, behind its saver: writes `model.origin.json` beside the weights that were saved.

    Args:
        ckpt_path: file of the weights.
        network: that they are of.
        bags: of features, what is trained on, as `scripts.wsi.reader.described` says it.
        class_names: of a network of several classes.
    """

    def __init__(
        self,
        ckpt_path: str,
        network: nn.Module,
        bags: Sequence[Mapping[str, Any]] = (),
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.ckpt_path = ckpt_path
        self.settings = network_settings(network)
        self.origin = origin_of_bags(bags) if bags else NOT_KNOWN
        self.class_names = class_names

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.COMPLETED, self.write)

    def write(self) -> None:
        if not dist.is_initialized() or dist.get_rank() == 0:
            write_whole(origin_file(self.ckpt_path), origin_text(self.settings, self.origin, self.class_names))


def trained_with(ckpt_path: str, class_names: Sequence[str] | None = None) -> Origin | None:
    """What the weights were trained on; None where nothing is said of them.

    Classes of other names, or in another order, than the weights were trained for are refused.
    """
    said = _read(ckpt_path)
    if said is None:
        return None
    if said.class_names != (class_names and list(map(str, class_names))):
        raise InputError(
            f"the network was trained for {_in_words(said.class_names)}, and is asked for {_in_words(class_names)}: "
            "name the override files it was trained with"
        )
    return said.origin


def require_network(ckpt_path: str, network: nn.Module) -> None:
    """Refuses a network that the weights may fit but that is another than the one they were trained in."""
    said = _read(ckpt_path)
    if said is None:
        logger.warning(
            "nobody can tell how %s was trained: %s is not beside it", Path(ckpt_path).name, origin_file(ckpt_path).name
        )
        return
    asked = network_settings(network)
    for name, value in said.network.items():
        was, now = json.dumps(value), json.dumps(asked[name]) if name in asked else "none"
        if was != now:
            raise InputError(
                f"{ckpt_path} is of a network with {name} {was}, the one asked for has {now}: "
                "give the override files and keys it was trained with "
                f"(if you mean it, take that line out of {origin_file(ckpt_path)})"
            )


class _Said(NamedTuple):
    origin: Origin
    class_names: list[str] | None
    network: Settings


def _read(ckpt_path: str | Path) -> _Said | None:
    path = origin_file(ckpt_path)
    if not path.is_file():
        return None
    try:
        said = json.loads(path.read_text())
        origin = Origin(str(said["encoder"]), float(said["patch_um"]))
        return _Said(origin, said["class_names"], dict(said["network"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} does not say what the network was trained on: train again, or remove it") from error


def _in_words(class_names: Sequence[str] | None) -> str:
    return "the classes " + ", ".join(map(str, class_names)) if class_names else "one label, positive or not"
