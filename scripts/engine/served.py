# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""A trained network as MLflow serves it: a bag in, its logits, probability, scores and attention out."""

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mlflow.models import Model, ModelSignature
from mlflow.pyfunc import save_model
from mlflow.types.schema import Array, ColSpec, DataType, Schema
from monai.bundle import ConfigParser
from torch import Tensor

from scripts.engine.evaluator import BagInferer
from scripts.engine.operating_point import operating_file, read_operating_point
from scripts.engine.provenance import origin_file
from scripts.engine.run_record import Record

OPTIONAL = ("coords", "mask")
ANSWER = {"logits": 1, "probability": 0, "scores": 1, "attention": 1}  # name → dimensions


def save_served(path: Path, weights: Path, record: Record, model_id: str, run_id: str) -> None:
    """Save weights as an MLflow model that needs nothing else: with their config, their operating point and this code.

    Args:
        path: folder to be made.
        weights: of the training.
        record: of the training.
        model_id, run_id: of the model and of the training in the store.
    """
    shapes: dict[str, list[int]] = {name: shape for name, shape in record["input"].items() if name != "mask"}
    inputs: list[Any] = [ColSpec(_numbers(len(shape)), name, name not in OPTIONAL) for name, shape in shapes.items()]
    inputs.append(ColSpec(_numbers(2), "mask", False))
    outputs: list[Any] = [ColSpec(_numbers(depth), name) for name, depth in ANSWER.items()]
    outputs.append(ColSpec(DataType.boolean, "positive"))
    instances = 3 if len(shapes["image"]) == 2 else 1  # a slice is large enough as an example
    example = {name: np.zeros([*shape[:-1], instances]) for name, shape in shapes.items()}
    if "coords" in example:
        example["coords"] += np.arange(instances)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        data.mkdir()
        for file, name in ((weights, "model.pt"), (origin_file(weights), "model.origin.json")):
            if file.is_file():
                shutil.copy(file, data / name)
        if operating_file(weights).is_file():
            shutil.copy(operating_file(weights), operating_file(data / "model.pt"))
        (data / "config.json").write_text(json.dumps(record["config"], indent=4))
        save_model(
            path,
            loader_module=__name__,
            data_path=data,
            code_paths=[str(Path(__file__).parents[1])],
            mlflow_model=Model(run_id=run_id, model_id=model_id),
            signature=ModelSignature(Schema(inputs), Schema(outputs)),
            input_example={name: values.tolist() for name, values in example.items()},
            pip_requirements=record["requirements"],
        )


def _numbers(dimensions: int) -> Any:
    """The type of an array in a signature."""
    return Array(_numbers(dimensions - 1)) if dimensions else DataType.double


def _load_pyfunc(path: str) -> "ServedNetwork":
    """Load what `save_served` has saved; MLflow finds it by this name."""
    return ServedNetwork(Path(path))


class ServedNetwork:
    """A network as its training described it, on the CPU.

    Args:
        folder: with model.pt, the files beside it and the config of the training.
    """

    def __init__(self, folder: Path) -> None:
        weights = folder / "model.pt"
        config = ConfigParser(json.loads((folder / "config.json").read_text()))
        point = read_operating_point(str(weights))
        config.update({"threshold": point.threshold, "scaling": list(point.scaling)})
        self.network = config.get_parsed_content("network_def")
        self.network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        self.network.eval()
        self.read = config.get_parsed_content("validate#postprocessing")

    def predict(self, bags: Any, params: object = None) -> list[dict[str, Any]]:
        """Return the answer for each row of a table: a bag's image, and coords and mask where they are given."""
        given: Sequence[dict[str, Any]] = bags.to_dict("records")
        return [self._answer({key: _tensor(value) for key, value in bag.items() if value is not None}) for bag in given]

    @torch.no_grad()
    def _answer(self, bag: dict[str, Tensor]) -> dict[str, Any]:
        image = bag["image"]
        mask = bag.get("mask", torch.ones(1, image.shape[-1]))
        named = {"coords": bag["coords"][None]} if "coords" in bag else {}
        prediction = BagInferer()(image[None], self.network, mask=mask[None], **named)
        instances = json.dumps([{}] * image.shape[-1])
        about = {"bag_id": "", "source": "", "instances": instances, "mask": mask}
        read = self.read({**about, "pred": {key: value[0] for key, value in prediction.items()}})
        result = read["result"]
        return {
            "logits": read["logits"].tolist(),
            "probability": result.probability,
            "positive": result.positive,
            "scores": result.scores.tolist(),
            "attention": result.attention.tolist(),
        }


def _tensor(values: Any) -> Tensor:
    """Numbers in lists or in arrays of arrays, as MLflow hands them over."""
    return torch.tensor(np.array(_lists(values), dtype=np.float32))


def _lists(values: Any) -> Any:
    if isinstance(values, np.ndarray) and values.dtype != object:
        return values
    return [_lists(value) for value in values] if isinstance(values, (list, np.ndarray)) else values
