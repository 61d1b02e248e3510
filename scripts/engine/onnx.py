# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The export of a trained network to an ONNX file, for runtimes without torch."""

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from ignite.handlers import Checkpoint
from monai.utils import optional_import
from torch import Tensor, nn

from scripts.core.errors import InputError
from scripts.core.files import whole_file
from scripts.core.scoring import TOLD
from scripts.networks import SmoothOperator

INPUTS = ("image", "coords", "mask")
ALWAYS_TOLD = {"pred": "logits", "scores": "scores", "attention": "attention"}  # → what of a prediction

logger = logging.getLogger(__name__)


class _Answer(nn.Module):
    """What a runtime is asked for: `outputs`, the name of each → what of a prediction."""

    def __init__(self, network: Any, image: Tensor) -> None:
        super().__init__()
        self.network = network
        told = network.predict(*self.example(image, image.shape[-1]))
        self.outputs = {**ALWAYS_TOLD, **{name: name for name in TOLD if getattr(told, name) is not None}}

    def forward(self, image: Tensor, coords: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        prediction = self.network.predict(image, coords, mask)
        return tuple(getattr(prediction, name) for name in self.outputs.values())

    def example(self, image: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """A bag of n instances in the form of the image; patches lie in rows of five."""
        place = torch.arange(n)
        coords = torch.stack([place % 5, place // 5]) if getattr(self.network, "spatial_dims", 0) == 2 else place[None]
        return torch.rand(*image.shape[:-1], n), coords.float()[None], torch.ones(1, 1, n)


def export_onnx(network: nn.Module, path: str, image: Tensor, ckpt_path: str | None = None) -> None:
    """Write the network, its graph building included; one bag of any number of instances per call of the file.

    Inputs `image`, `coords` and `mask`, outputs `pred`, `scores`, `attention` and, where the
    network tells them, `instance_logits`, `evidence` and `leave_one_out`. Where onnxruntime is installed, the file is
    asked about bags of other sizes and must answer as the network does.

    Args:
        network: with `predict`, as MILNetwork and HMIL.
        path: of the file.
        image: an example of an input, [1, ..., N] with N of 2 or more.
        ckpt_path: the weights, as training writes them.
    """
    for package in ("onnx", "onnxscript"):
        if not optional_import(package)[1]:
            raise InputError(f"ONNX export needs the package {package}: pip install onnx onnxscript onnxruntime")
    if image.shape[-1] < 2:
        raise InputError("the example of an input holds one instance, and so would every bag: give 2 or more")
    network = copy.deepcopy(network).cpu().float().eval()
    if ckpt_path is not None:
        weights = torch.load(ckpt_path, map_location="cpu", weights_only=True)
        Checkpoint.load_objects({"model": network}, weights)  # as CheckpointLoader does
    for part in network.modules():
        if isinstance(part, SmoothOperator):
            part.settle()
    answer = _Answer(network, image)
    bag = answer.example(image, image.shape[-1])
    last = tuple({one.dim() - 1: torch.export.Dim("instances", min=1, max=2**20 - 1)} for one in bag)
    with warnings.catch_warnings(), torch.no_grad(), quiet("torch.onnx", "onnx_ir", "onnxscript"):
        warnings.simplefilter("ignore")  # of the exporter, about itself
        program = torch.onnx.export(
            answer,
            bag,
            dynamo=True,
            dynamic_shapes=last,
            input_names=INPUTS,
            output_names=list(answer.outputs),
            verbose=False,
        )
    assert program is not None
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # where the code stood that made it: paths of this machine
        node.doc_string = None
    with whole_file(Path(path)) as beside:
        program.save(beside, external_data=False)
        missed = _largest_difference(beside, answer, image)
    if missed is None:
        logger.warning("%s is written, and was not run: onnxruntime is not installed", path)
    else:
        logger.info("%s is written; onnxruntime answers as the network does, to %.0e", path, missed)


@contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Let these loggers tell errors alone."""
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def _largest_difference(path: Path, answer: _Answer, image: Tensor) -> float | None:
    onnxruntime, installed = optional_import("onnxruntime")
    if not installed:
        return None
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names, largest = {given.name for given in session.get_inputs()}, 0.0
    for n in (1, 2, getattr(answer.network, "slots", None) or image.shape[-1] + 3):
        bag = answer.example(image, n)
        given = {name: one.numpy() for name, one in zip(INPUTS, bag, strict=True) if name in names}
        with torch.no_grad():
            wanted = answer(*bag)
        for got, one in zip(session.run(None, given), wanted, strict=True):
            scale = max(1.0, float(one.abs().max()))
            largest = max(largest, float((torch.from_numpy(got) - one).abs().max()) / scale)
    if not largest < 1e-4:
        raise RuntimeError(f"onnxruntime answers otherwise than the network, by {largest}: no file is written")
    return largest
