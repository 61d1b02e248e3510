# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""What training wrote beside weights becomes the defaults of a bundle's configs and is told by its metadata."""

import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn

from scripts.core.errors import InputError, input_error_message
from scripts.core.files import sha256_of
from scripts.engine.operating_point import OperatingPoint, operating_file, read_operating_point
from scripts.engine.provenance import DESCRIBED, Origin, origin_file, trained_with

STRUCTURE = ("network_def", "preprocessing")  # by which the override file of a training is recognised
PLACE = re.compile(r"(?:^|[\s'\"(=:,;\[])(?:file:|\.\./|(?:/|~/|[A-Za-z]:[\\/]|\\\\)\w)")  # on somebody's computer
IN_BUNDLE = re.compile(r"@bundle_root \+ '/[\w/.]*'")

Configs = dict[str, dict[str, Any]]  # name of a file → its content


class Weights(NamedTuple):
    """Weights, and what lies beside them."""

    path: Path
    state: Mapping[str, Tensor]
    sha256: str
    origin: Origin
    point: OperatingPoint | None  # None where none was chosen
    beside: Mapping[str, dict[str, Any]]  # name of a file in models → its content


def read_weights(path: Path) -> Weights:
    """Read weights and the files beside them; refuse what is no state dict, or does not belong together."""
    if not path.is_file():
        raise InputError(f"{path} is missing: train first, or give another --weights")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file that is not torch's can fail in any way
        raise InputError(f"{path} holds no weights that can be read: give the model.pt of a training") from error
    if not isinstance(state, Mapping) or not state or not all(isinstance(each, Tensor) for each in state.values()):
        raise InputError(f"{path} holds more than the tensors of one network: give the model.pt of a training")
    if not all(each.isfinite().all() for each in state.values()):
        raise InputError(f"{path} holds NaN or infinite weights: train again")
    sha256, point, beside = sha256_of(path), None, {}
    origin = trained_with(str(path)) or Origin()
    if origin_file(path).is_file():
        beside["model.origin.json"] = json.loads(origin_file(path).read_text())
    if operating_file(path).is_file():
        point = read_operating_point(str(path))
        stored = beside["model.operating_point.json"] = json.loads(operating_file(path).read_text())
        if stored["weights_sha256"] != sha256:
            raise InputError(
                f"{operating_file(path)} was chosen for other weights: choose one by python -m scripts calibrate, "
                "or remove the file for the default"
            )
    for name, content in beside.items():
        require_no_place(name, content)
    return Weights(path, state, sha256, origin, point, beside)


def require_no_place(name: str, content: Any) -> None:
    """Refuse content that names a file or folder of a computer."""
    place = next((text for text in _strings(content) if PLACE.search(IN_BUNDLE.sub("", text))), None)
    if place is not None:
        raise InputError(f"{name} names a place on a computer, {place!r}: take that out, as everybody would read it")


def _strings(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from (*_strings(key), *_strings(value))
    elif isinstance(content, (list, tuple)):
        for value in content:
            yield from _strings(value)


def trained_configs(shipped: Configs, folder: Path, weights: Weights) -> Configs:
    """Return all configs with what the weights were trained as for their defaults.

    Args:
        shipped: of the bundle.
        folder: of the bundle.
        weights: as read_weights read them.
    """
    configs = deepcopy(shipped)
    train, inference = configs["train.json"], configs["inference.json"]
    trained = _taken_up(inference, folder, weights)
    for key, value in trained.items():
        if key in train or key not in inference:
            train[key] = value
        if key in configs.get("features.json", {}) and key not in STRUCTURE:
            configs["features.json"][key] = value
    inference.update(trained)
    training = ConfigParser(train)
    for name, override in shipped.items():
        if name not in ("train.json", "inference.json", "features.json") and _was_named(override, shipped, trained):
            for id, value in override.items():
                if id.split("#")[0] not in DESCRIBED and id.split("#")[0] in train:
                    training[id] = value
    if "in_features" in trained and "onnx.json" in configs:  # whose example is a slice
        configs["onnx.json"]["run"][-1]["image"] = "$torch.rand(1, @in_features, 4)"
    return {**configs, "train.json": training.get()}


def _taken_up(config: dict[str, Any], folder: Path, weights: Weights) -> dict[str, Any]:
    """The keys that a run of this config takes up, checked by the very code that does it for a run."""
    take_up = {
        "_target_": "scripts.engine.provenance.take_up_training",
        "ckpt_path": str(weights.path),
        "bundle_root": str(folder),
    }
    parser = ConfigParser({**deepcopy(config), "run": [take_up]})
    parser.parse()
    before = deepcopy(parser.get())
    try:
        parser.get_parsed_content("run::0")
    except RuntimeError as error:  # MONAI wraps what its components raise
        message = input_error_message(error)
        if message is None:
            raise
        raise InputError(message) from error
    return {key: value for key, value in parser.get().items() if key not in before or value != before[key]}


def _was_named(override: Mapping[str, Any], shipped: Configs, trained: Mapping[str, Any]) -> bool:
    """Whether a file that replaces parts of train.json fits what was trained, and what is shipped does not."""
    described = {id: value for id, value in override.items() if id.split("#")[0] in DESCRIBED}
    telling = {id: value for id, value in described.items() if id.split("#")[0] in STRUCTURE} or described
    before, now = ConfigParser(shipped["train.json"]), ConfigParser({**shipped["train.json"], **trained})
    differs = any(_normal(value) != _normal(before.get(id)) for id, value in telling.items())
    return differs and all(_normal(value) == _normal(now.get(id)) for id, value in telling.items())


def _normal(value: Any) -> Any:
    """A value of a config, whatever it was read by: a parsed one says `@a::b` for `@a#b`; notes do not count."""
    if isinstance(value, Mapping):
        return {key: _normal(each) for key, each in value.items() if key != "_desc_"}
    if isinstance(value, (list, tuple)):
        return [_normal(each) for each in value]
    return re.sub(r"(@\w+)::", r"\1#", value) if isinstance(value, str) else value


def fitting_network(configs: Configs, weights: Weights) -> Any:
    """Return the network of inference.json with the weights; those that do not fit are refused."""
    network: nn.Module = ConfigParser(deepcopy(configs["inference.json"])).get_parsed_content("network_def")
    try:
        network.load_state_dict(weights.state)
    except RuntimeError as error:
        described = origin_file(weights.path)
        why = "it belongs to other weights" if described.is_file() else f"{described.name} is missing beside them"
        first = str(error).partition("\n\t")[2].partition("\n")[0].strip() or str(error).splitlines()[0]
        raise InputError(
            f"{weights.path} does not fit the network ({textwrap.shorten(first, 100)}), as {why}: give weights of this "
            f"bundle together with the {described.name} that their training wrote"
        ) from error
    return network.float().eval()


def example_image(configs: Configs, instances: int) -> Tensor:
    """Return an input of the network, [1, ..., instances]: features where the configs say how many, else slices."""
    config = configs["inference.json"]
    size = [config["image_size"]] * 2 if "in_features" not in config else []
    channels = config["in_features"] if "in_features" in config else len(config["windows"])
    return torch.rand(1, channels, *size, instances, generator=torch.Generator().manual_seed(0))


def trained_metadata(
    metadata: Mapping[str, Any], configs: Configs, weights: Weights, classes: int, figures: Mapping[str, float]
) -> dict[str, Any]:
    """Return the metadata of a bundle, with the shapes, classes, operating point and figures of its weights.

    Args:
        metadata: as shipped.
        configs: with the defaults of the weights.
        weights: as read_weights read them.
        classes: number of logits.
        figures: of an evaluation.
    """
    told, config = deepcopy(dict(metadata)), configs["inference.json"]
    image = told["network_data_format"]["inputs"]["image"]
    pred = told["network_data_format"]["outputs"]["pred"]
    shape = example_image(configs, 1).shape
    image["num_channels"], image["spatial_shape"] = shape[1], [*shape[2:-1], "*"]
    if "in_features" in config:
        unit = "slice" if "windows" in config else "patch"
        of = f" of the encoder {weights.origin.encoder}" if weights.origin.encoder else ""
        image.update(format="features", value_range=[], channel_def={"0": f"{unit} features{of}"})
        told["image_classes"] = f"{shape[1]} {unit} features{of}"
    elif [f"{centre:g}/{width:g}" for centre, width in config["windows"]] != [
        text.split()[-1] for text in image["channel_def"].values()
    ]:
        image["channel_def"] = {str(i): f"window {c:g}/{w:g}" for i, (c, w) in enumerate(config["windows"])}
        told["image_classes"] = f"{shape[1]} windows of a head CT in [0, 1]"
    pred["num_channels"] = classes
    if config.get("class_names"):
        names = [str(name) for name in config["class_names"]]
        pred["channel_def"] = {str(index): name for index, name in enumerate(names)}
        told["label_classes"] = f"one label per slide, the name of its class: {', '.join(names)}"
        told["pred_classes"] = "one logit per class"
    elif "class_names" in config:
        told["pred_classes"] = "one logit per slide"
    point = weights.point or OperatingPoint()
    told["operating_point"] = {"threshold": point.threshold, "scaling": list(point.scaling), "origin": point.origin}
    told["score"] = {"name": config["score"], "smoothing": config["score_smoothing"]}
    told["eval_metrics"] = dict(figures)
    return told
