# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""What weights were trained as: training writes it beside them, every run that uses them takes it up."""

from __future__ import annotations

import json
import logging
import sys
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from torch import nn

from scripts.core.errors import InputError
from scripts.core.files import write_whole

SAME_PATCH_UM = 0.05  # relative: magnifications are twice each other
# In the bundle's configs: what a key is where nobody named it, and the same preprocessing read in blocks.
SHIPPED = ("train.json", "inference.json", "streaming.json")
HARMLESS = ("scripts.networks.", "torch.nn.")  # code that may stand beside weights, whoever they are from

Config = Mapping[str, Any]  # keys of a bundle's config, as an override file has them: "network_def#slots": 57

logger = logging.getLogger(__name__)


class Origin(NamedTuple):
    """What is known of the features that a network was trained on.

    Args:
        encoder: its name; "" = not known.
        patch_um: micrometres from patch to patch; 0 = not known.
    """

    encoder: str
    patch_um: float

    def compare(self, encoder: str, patch_um: float) -> None:
        """Refuse features of another encoder; warn of an encoder that is not stated and of another scale."""
        if encoder and self.encoder and encoder.lower() != self.encoder.lower():
            raise InputError(
                f"the features are of the encoder {encoder}, the network was trained on those of {self.encoder}: "
                "give features of that, or say with --encoder_name that it is the same one"
            )
        if self.encoder and not encoder:
            logger.warning(
                "the features do not state their encoder, the network was trained on those of %s; "
                "state theirs with --encoder_name",
                self.encoder,
            )
        if patch_um and self.patch_um and abs(patch_um / self.patch_um - 1) > SAME_PATCH_UM:
            logger.warning(
                "patches are %.4g micrometres apart, those the network was trained on %.4g: it knows another "
                "magnification or size of patches",
                patch_um,
                self.patch_um,
            )


NO_ORIGIN = Origin("", 0.0)


def origin_of_bags(bags: Sequence[Mapping[str, Any]]) -> Origin:
    """Return what all bags of features have in common, as the check before training entered it into each."""
    return Origin(bags[0]["encoder"], bags[0]["patch_um"])


def origin_file(ckpt_path: str | Path) -> Path:
    """Return the file beside weights that describes them."""
    return Path(ckpt_path).with_suffix(".origin.json")


def origin_text(config: Config, origin: Origin = NO_ORIGIN) -> str:
    """Return what the file beside weights holds.

    Args:
        config: the keys of the config that make the network and prepare its input.
        origin: the features it was trained on.
    """
    return json.dumps({**origin._asdict(), "config": config}, indent=4) + "\n"


class RememberTraining:
    """An ignite handler of the validator, behind its saver: describes the weights that were saved, beside them.

    Args:
        ckpt_path: file of the weights.
        keys: of the config that is run: those that make the network and prepare its input. Absent ones are left out.
        bags: the checked bags of features that are trained on; of images none.
    """

    def __init__(self, ckpt_path: str, keys: Sequence[str], bags: Sequence[Mapping[str, Any]] = ()) -> None:
        config = running_config()
        self.ckpt_path = ckpt_path
        self.config = {key: config[key] for key in keys if key in config}
        self.origin = origin_of_bags(bags) if bags else NO_ORIGIN

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.COMPLETED, self.write)

    def write(self) -> None:
        """Write the file; of several processes the first does."""
        if not dist.is_initialized() or dist.get_rank() == 0:
            write_whole(origin_file(self.ckpt_path), origin_text(self.config, self.origin))


def trained_with(ckpt_path: str) -> Origin | None:
    """Return what the weights were trained on; None where nothing describes them."""
    record = _read_record(ckpt_path)
    return None if record is None else record.origin


def running_config() -> ConfigParser:
    """Return the config that is being run, from the caller's frames: MONAI hands it to none of its components."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if isinstance(frame.f_locals.get("self"), ConfigParser):
            return frame.f_locals["self"]
    raise RuntimeError("this is a component of a bundle's config, and no config is being run")


def take_up_training(ckpt_path: str, bundle_root: str, typed: Collection[str] = ()) -> None:
    """Give the config that is being run the network and the preprocessing that the weights were trained with.

    What was left as the bundle ships it is replaced; what somebody named and contradicts the training is refused.
    Weights that nothing describes keep the network of the config.

    Args:
        ckpt_path: file of the weights.
        bundle_root: folder of the bundle, whose configs say what is shipped.
        typed: keys given on the command line, which count as named whatever their value.
    """
    record = _read_record(ckpt_path)
    if record is None or not record.config:
        why = "is of an older version and describes no network" if record else "is not there"
        name = origin_file(ckpt_path).name
        logger.warning("%s %s: the network of %s is taken from the config", name, why, Path(ckpt_path).name)
        return
    config = running_config()
    known = {path.name: _load_config(path) for path in sorted(Path(bundle_root, "configs").glob("*.json"))}
    shipped = [known[name] for name in SHIPPED if name in known]
    if not shipped:
        raise InputError(f"{bundle_root}/configs holds no {SHIPPED[0]}: give the bundle's --bundle_root")
    _require_known_code(origin_file(ckpt_path), record.config, [*known.values(), config.get()])
    trained = ConfigParser(deepcopy(shipped[0]))
    trained.update(dict(record.config))
    changes = {}
    for key in dict.fromkeys(id.split("#")[0] for id in record.config):
        now, then = config.get(key), trained[key]
        if _same(then, now):
            continue
        left_alone = key not in config or any(key in each and _same(now, each[key]) for each in shipped)
        if key in typed or not left_alone:
            raise InputError(_contradiction(ckpt_path, *next(_config_differences(key, then, now))))
        if not _same(then, shipped[0].get(key)):  # else the same in training's words, as a scan kept for the picture
            changes[key] = then
    if changes:
        config.update(changes)
        config.parse(reset=True)  # each step of `run` is resolved by itself, so the next one sees what changed


def network_settings(network: nn.Module) -> dict[str, Any]:
    """Return the kind of every module and what no weight shows of ours, such as "aggregator.smooth.exact": false."""
    network = getattr(network, "module", network)  # DDP wraps the network
    settings: dict[str, Any] = {}
    for name, module in network.named_modules():
        own = {} if type(module).__module__.startswith("torch.") else settings_of(module)
        named = {"kind": type(module).__name__, **own}
        settings |= {f"{name}.{key}".lstrip("."): value for key, value in named.items()}
    return settings


def settings_of(module: nn.Module) -> dict[str, Any]:
    """Return the plain attributes of a module, such as a placement or a number of slots."""
    known = {name: value for name, value in sorted(vars(module).items()) if _is_plain(value)}
    # what begins with _ is derived, or torch's own
    return {name: value for name, value in known.items() if not name.startswith("_") and name != "training"}


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return isinstance(value, (bool, int, float, str, type(None)))


class _Record(NamedTuple):
    origin: Origin
    config: Config  # empty in those of 0.4.0


def _read_record(ckpt_path: str | Path) -> _Record | None:
    path = origin_file(ckpt_path)
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
        origin = Origin(str(content["encoder"]), float(content["patch_um"]))
        return _Record(origin, dict(content.get("config", {})))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} does not describe how the network was trained: train again, or remove it") from error


def _load_config(path: Path) -> dict[str, Any]:
    """A config file as a parsed config has it, where `@a#b` reads `@a::b`."""
    parser = ConfigParser(json.loads(path.read_text()))
    parser.resolve_macro_and_relative_ids()
    content: dict[str, Any] = parser.get()
    return content


def _same(one: Any, other: Any) -> bool:
    return next(_config_differences("", one, other), None) is None


def _config_differences(id: str, one: Any, other: Any) -> Iterator[tuple[str, Any, Any]]:
    """The parts of two configs that differ, each with its id and both values; descriptions do not count."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys([*one, *other]):
            if key != "_desc_":
                yield from _config_differences(f"{id}#{key}", one.get(key), other.get(key))
    elif isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        for index, (mine, yours) in enumerate(zip(one, other, strict=True)):
            yield from _config_differences(f"{id}#{index}", mine, yours)
    elif one != other:
        yield id, one, other


def _contradiction(ckpt_path: str, id: str, then: Any, now: Any) -> str:
    was, asked = (textwrap.shorten(json.dumps(value), 200) for value in (then, now))
    return (
        f"{ckpt_path} was trained with {id} {was}, this run names {asked}: leave out the file or key that names it, "
        f"or give other weights ({origin_file(ckpt_path).name} describes these)"
    )


def _require_known_code(path: Path, config: Config, known: Sequence[Any]) -> None:
    """A file beside weights may have come from anywhere: it may name only code that the bundle or the user names."""
    allowed = {text for each in known for text in _code(each)}
    strange = next((text for text in _code(config) if text not in allowed and not text.startswith(HARMLESS)), None)
    if strange is not None:
        raise InputError(
            f"{path} names {strange!r}, which no config of this run does: if you trust it, name the config file that "
            "the network was trained with"
        )


def _code(config: Any) -> Iterator[str]:
    """Everything in a config that MONAI would import, evaluate or read from another file."""
    if isinstance(config, Mapping):
        if "_target_" in config:
            yield str(config["_target_"])
        config = list(config.values())
    if isinstance(config, (list, tuple)):
        for each in config:
            yield from _code(each)
    elif isinstance(config, str) and config.startswith(("$", "%")):
        yield config
