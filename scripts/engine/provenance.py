# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""What weights were trained as: training writes it beside them, evaluation, inference and export take it up."""

import json
import logging
import re
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

from scripts import networks
from scripts.core.errors import InputError
from scripts.core.files import write_whole

SAME_PATCH_UM = 0.05  # relative: magnifications are twice each other
SHIPPED = ("train.json", "inference.json")  # in the bundle's configs: what a key is where nobody named it
# The keys that a file beside weights may set, besides those that no shipped config has and that only these refer to.
DESCRIBED = (
    *("image_size", "channels", "batch_norm_momentum", "windows", "in_features", "find"),
    *("class_names", "hierarchy", "negative_class", "network_def", "preprocessing", "score", "score_smoothing"),
    "slices_at_once",
)
# How results are told, and in how much memory: somebody may name another.
FREE = ("negative_class", "score", "score_smoothing", "slices_at_once")
BEFORE_SCORES = {"score": "attention", "score_smoothing": 0}  # of weights that say nothing of it, before 0.8.0
REFERENCE = re.compile(r"@([A-Za-z_]\w*)")

Config = Mapping[str, Any]  # keys of a bundle's config, as an override file has them: "network_def#slots": 57

logger = logging.getLogger(__name__)


class Origin(NamedTuple):
    """What is known of the features that a network was trained on."""

    encoder: str = ""  # its name; "" = not known
    patch_um: float = 0.0  # micrometres from patch to patch; 0 = not known

    def compare(self, encoder: str, patch_um: float) -> None:
        """Refuse features of another encoder; warn of an encoder that is not stated and of another scale."""
        if encoder and self.encoder and encoder.lower() != self.encoder.lower():
            raise InputError(
                f"the features are of the encoder {encoder}, the network was trained on those of {self.encoder}: "
                "give features of that, or say with --encoder_name that it is the same one"
            )
        if self.encoder and not encoder:
            logger.warning(
                f"the features do not state their encoder, the network was trained on those of {self.encoder}; "
                "state theirs with --encoder_name"
            )
        if patch_um and self.patch_um and abs(patch_um / self.patch_um - 1) > SAME_PATCH_UM:
            logger.warning(
                f"patches are {patch_um:.4g} micrometres apart, those the network was trained on {self.patch_um:.4g}: "
                "it knows another magnification or size of patches"
            )


def origin_of_bags(bags: Sequence[Mapping[str, Any]]) -> Origin:
    """Return what all bags of features have in common, as the check before training entered it into each."""
    return Origin(bags[0]["encoder"], bags[0]["patch_um"])


def origin_file(ckpt_path: str | Path) -> Path:
    """Return the file beside weights that describes them."""
    return Path(ckpt_path).with_suffix(".origin.json")


def origin_text(config: Config, origin: Origin | None = None) -> str:
    """Return what the file beside weights holds: keys that make the network and prepare its input, and its features."""
    return json.dumps({**(origin or Origin())._asdict(), "config": config}, indent=4) + "\n"


class RememberTraining:
    """An ignite handler of the validator, behind its saver: describes the weights that were saved, beside them.

    It keeps the keys of DESCRIBED, the shipped preprocessing as null, and the keys that the network refers to.

    Args:
        ckpt_path: file of the weights.
        bundle_root: folder of the bundle.
        bags: the checked bags of features that are trained on; of images none.
    """

    def __init__(self, ckpt_path: str, bundle_root: str, bags: Sequence[Mapping[str, Any]] = ()) -> None:
        config = running_config()
        self.ckpt_path = ckpt_path
        self.origin = origin_of_bags(bags) if bags else Origin()
        keys = [*_references(config), *DESCRIBED] if "network_def" in config else []
        self.config = {key: _plain_value(config, key) for key in dict.fromkeys(keys) if key in config}
        _, shipped = _bundle_configs(bundle_root)
        if shipped and _same(self.config.get("preprocessing"), shipped[0].get("preprocessing")):
            self.config["preprocessing"] = None
        try:
            json.dumps(self.config)
        except TypeError:
            logger.warning("the network is given as an object, which no file describes: name it again at each run")
            self.config = {}

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.COMPLETED, self.write)

    def write(self) -> None:
        """Write the file; of several processes the first does."""
        if not dist.is_initialized() or dist.get_rank() == 0:
            write_whole(origin_file(self.ckpt_path), origin_text(self.config, self.origin))


def trained_with(ckpt_path: str) -> Origin | None:
    """Return what the weights were trained on; None where nothing describes them."""
    described = _described(ckpt_path)
    return described and described[0]


def running_config() -> ConfigParser:
    """Return the config that is being run, from the caller's frames: MONAI hands it to none of its components."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if isinstance(frame.f_locals.get("self"), ConfigParser):
            return frame.f_locals["self"]
    raise RuntimeError("this is a component of a bundle's config, and no config is being run")


def config_text(key: str) -> str:
    """Return what the running config has under a key, as text; of an object that a program put there its kind.

    Called by a component of that config. What it refers to is in the text by name alone.
    """
    return _text(running_config().get(key))


def config_text_of_all(key: str) -> str:
    """Return that text of a top-level key and of all that it refers to."""
    config = running_config()
    return _text({name: config.get(name) for name in [key, *_references(config, key)]})


def _text(content: Any) -> str:
    return json.dumps(content, default=lambda value: type(value).__name__)


def take_up_training(ckpt_path: str, bundle_root: str, typed: Collection[str] = ()) -> None:
    """Give the config that is being run the network and the preprocessing that the weights were trained with.

    What was left as the bundle ships it is replaced; what somebody named and contradicts the training is refused.
    Weights that nothing describes keep the network of the config. The configs in `bundle_root` say what is shipped;
    keys `typed` on the command line count as named whatever their value.
    """
    described, path = _described(ckpt_path), origin_file(ckpt_path)
    config = running_config()
    if described is None:
        logger.warning("%s is not there: the network of %s is that of the config", path.name, Path(ckpt_path).name)
        return
    _, trained_as = described
    if not trained_as:
        logger.warning("%s describes no network: it is that of the config", path.name)
        return
    of_bundle, shipped = _bundle_configs(bundle_root)
    trained = ConfigParser(deepcopy(shipped[0]) if shipped else {})
    try:
        trained.update(dict(trained_as))
        then_by_key = {key: trained[key] for key in dict.fromkeys(id.split("#")[0] for id in trained_as)}
        then_by_key = {**(BEFORE_SCORES if "score" in trained else {}), **then_by_key}
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise InputError(f"{path} describes a network that this version has no place for ({error})") from error
    _require_harmless(path, then_by_key, shipped, [*of_bundle, config.get()])
    # one of the bundle's own, as streaming.json has it, does what the shipped one does
    own_steps = any(
        _same(each["preprocessing"], config.get("preprocessing")) for each in of_bundle if "preprocessing" in each
    )
    if shipped and then_by_key.get("preprocessing", ...) is None:
        then_by_key["preprocessing"] = (config if own_steps else shipped[-1]).get("preprocessing")
    changes = {}
    for key, then in then_by_key.items():
        now = _plain_value(config, key)
        if _same(then, now):
            continue
        left_alone = key not in config or any(_same(now, each.get(key)) for each in shipped)
        if left_alone and key not in typed:
            changes[key] = then
        elif key not in FREE and not (key == "preprocessing" and own_steps):
            raise InputError(_contradiction(ckpt_path, *next(_config_differences(key, then, now))))
    if changes:
        logger.info("as %s was trained: %s", Path(ckpt_path).name, ", ".join(changes))
        config.update(changes)
        config.parse(reset=True)  # each step of `run` is resolved by itself, so the next one sees what changed


def network_settings(network: nn.Module) -> dict[str, Any]:
    """Return the kind of every module and what no weight shows of ours, such as "aggregator.smooth.exact": false."""
    settings: dict[str, Any] = {}
    for name, module in getattr(network, "module", network).named_modules():  # DDP wraps the network
        own = {} if type(module).__module__.startswith("torch.") else settings_of(module)
        for key, value in {"kind": type(module).__name__, **own}.items():
            settings[f"{name}.{key}".lstrip(".")] = value
    return settings


def settings_of(module: nn.Module) -> dict[str, Any]:
    """Return the plain attributes of a module, such as a placement or a number of slots."""
    own = [name for name in sorted(vars(module)) if not name.startswith("_")]  # the others are derived, or torch's
    return {name: vars(module)[name] for name in own if name != "training" and _is_plain(vars(module)[name])}


def _is_plain(value: object) -> bool:
    return all(map(_is_plain, value)) if isinstance(value, tuple) else isinstance(value, (int, float, str, type(None)))


def _described(ckpt_path: str | Path) -> tuple[Origin, Config] | None:
    """What the file beside weights holds, None without one; the config is empty where a program made the network."""
    path = origin_file(ckpt_path)
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
        return Origin(str(content["encoder"]), float(content["patch_um"])), dict(content["config"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} does not describe how the network was trained: train again, or remove it") from error


def _bundle_configs(bundle_root: str) -> tuple[list[Config], list[Config]]:
    """All config files of the bundle that is run, and those of SHIPPED alone.

    Where `bundle_root` is none they are of the bundle that this code is of. In the sources, and in a process that runs
    both bundles, it is the code of two.
    """
    folder, found = Path(bundle_root) / "configs", {}
    if not (folder / "inference.json").is_file():
        folder = Path(__file__).parents[2] / "configs"
    for path in sorted(folder.glob("*.json")):
        try:
            found[path.name] = _load_config(path)
        except (ValueError, OSError) as error:
            if path.name in SHIPPED:  # others are notes of the user's own, which no run reads
                raise InputError(f"{path} is no JSON that can be read ({error}): restore it") from error
    return list(found.values()), [found[name] for name in SHIPPED if name in found]


def _load_config(path: Path) -> Config:
    """A config file as a parsed config has it, where `@a#b` reads `@a::b`."""
    text = path.read_text()
    keys = json.loads(text)
    if not isinstance(keys, dict):
        raise ValueError("it holds no keys")
    parser = ConfigParser(keys)
    if '"%' not in text:  # a macro would be read from another file
        parser.resolve_macro_and_relative_ids()
    content: Config = parser.get()
    return content


def _references(config: ConfigParser, key: str = "network_def") -> list[str]:
    """The top-level keys that one refers to, and those that these refer to."""
    found = [key]
    for key in found:  # which grows meanwhile
        named = dict.fromkeys(REFERENCE.findall(json.dumps(config[key], default=str)))
        found += [each for each in named if each in config and each not in found]
    return found[1:]


def _plain_value(config: ConfigParser, key: str) -> Any:
    """A key's value, or None; one that is computed of plain values, as class names of a hierarchy, as it comes out."""
    value = deepcopy(config.get(key))
    if isinstance(value, str) and value.startswith("$"):
        result = config.get_parsed_content(key)
        return list(result) if isinstance(result, (list, tuple)) else result
    return value


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


def _require_harmless(path: Path, config: Config, shipped: Sequence[Config], known: Sequence[Any]) -> None:
    """A file beside weights may have come from anywhere: it sets no other keys, and names no code of its own.

    Allowed are the networks of this package and of torch by their exact names, and whatever the bundle or the user
    names for the same keys.
    """
    foreign = next((key for key in config if key in DESCRIBED and not any(key in each for each in known)), None)
    if foreign is not None:
        raise InputError(f"{path} describes weights of another bundle: no config of this one has {foreign}")
    allowed: set[str] = set()
    for each in known:
        for key, value in each.items():
            if key.split("#")[0] in (*DESCRIBED, *config.keys() - each.keys()):
                allowed.update(code_in({key.rpartition("#")[2]: value}))
    for key, value in config.items():
        if key not in DESCRIBED and any(key in each for each in (*shipped, *known[:-1])):
            raise InputError(f"{path} sets {key}, which does not describe a network: remove it from the file")
        strange = next((text for text in code_in(value) if text not in allowed and not _is_network(text)), None)
        if strange is not None:
            raise InputError(
                f"{path} names {strange!r}, which no config of this run does: if you trust it, name the config file "
                "that the network was trained with"
            )


def _is_network(name: str) -> bool:
    """Whether a `_target_` is the exact name of a module of ours or of torch: a longer path may lead anywhere."""
    package, _, kind = name.rpartition(".")
    found = getattr({"scripts.networks": networks, "torch.nn": nn}.get(package), kind, None)
    return isinstance(found, type) and issubclass(found, nn.Module)


def code_in(config: Any) -> Iterator[str]:
    """Everything in a config that MONAI would import, evaluate or read from another file."""
    if isinstance(config, Mapping):
        if "_target_" in config:
            yield str(config["_target_"])
        config = list(config.values())
    if isinstance(config, (list, tuple)):
        for each in config:
            yield from code_in(each)
    elif isinstance(config, str) and config.startswith(("$", "%")):
        yield config
