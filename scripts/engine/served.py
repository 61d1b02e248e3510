# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""A trained network as MLflow serves it: a bag in, its logits, probability, scores and attention out."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mlflow.models import Model, ModelSignature
from mlflow.pyfunc import save_model
from mlflow.types.schema import Schema, TensorSpec
from monai.bundle import ConfigParser

from scripts.engine.operating_point import operating_file, read_operating_point
from scripts.engine.provenance import origin_file
from scripts.engine.run_record import Record

OUTPUTS: list[Any] = [
    *(TensorSpec(np.dtype("float32"), (-1,), name) for name in ("logits", "scores", "attention")),
    TensorSpec(np.dtype("float64"), (1,), "probability"),
    TensorSpec(np.dtype("bool"), (1,), "positive"),
]


def save_served(path: Path, weights: Path, record: Record, model_id: str, run_id: str) -> None:
    """Save weights as an MLflow model that needs nothing else: with their config, their operating point and this code.

    Args:
        path: folder to be made.
        weights: of the training.
        record: of the training.
        model_id, run_id: of the model and of the training in the store.
    """
    shapes: dict[str, list[int]] = record["input"]
    inputs: list[Any] = [TensorSpec(np.dtype("float32"), (*shape[:-1], -1), name) for name, shape in shapes.items()]
    instances = 3 if len(shapes["image"]) == 2 else 1  # a slice is large enough as an example
    example = {name: np.zeros([*shape[:-1], instances], dtype="float32") for name, shape in shapes.items()}
    if "coords" in example:
        example["coords"] += np.arange(instances, dtype="float32")
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        data.mkdir()
        for beside in (Path, origin_file, operating_file):
            if beside(weights).is_file():
                shutil.copy(beside(weights), beside(data / "model.pt"))
        (data / "config.json").write_text(json.dumps(record["config"], indent=4))
        save_model(
            path,
            loader_module=__name__,
            data_path=data,
            code_paths=[str(Path(__file__).parents[1])],
            mlflow_model=Model(run_id=run_id, model_id=model_id),
            signature=ModelSignature(Schema(inputs), Schema(OUTPUTS)),
            input_example=example,
            pip_requirements=record["requirements"],
        )


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
        self.infer = config.get_parsed_content("validate#inferer")
        self.read = config.get_parsed_content("validate#postprocessing")

    @torch.no_grad()
    def predict(self, bag: Mapping[str, np.ndarray], params: object = None) -> dict[str, Any]:
        """Return the answer for one bag, of arrays as a bag has them in training, without padding."""
        batch = {name: torch.tensor(bag[name])[None] for name in ("image", "coords") if name in bag}
        image = batch.pop("image")
        mask = torch.ones(1, 1, image.shape[-1])
        (told,) = self.infer(image, self.network, **batch, mask=mask)
        about = {"bag_id": "", "source": "", "instances": json.dumps([{}] * image.shape[-1]), "mask": mask[0]}
        read = self.read({**about, **told})
        result = read["bag_result"]
        return {
            "logits": read["logits"].numpy(),
            "probability": result.probability,
            "positive": result.positive,
            "scores": result.scores,
            "attention": result.attention,
        }
