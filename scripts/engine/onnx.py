# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The export of a trained network to an ONNX file, for runtimes without torch."""

import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
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

Ask = Callable[..., Sequence[Tensor]]  # image, coords and mask of a bag → the answers to it

logger = logging.getLogger(__name__)


class _Answer(nn.Module):
    """What a runtime is asked for: `outputs`, the name of each → what of a prediction."""

    def __init__(self, network: Any, image: Tensor) -> None:
        super().__init__()
        self.network = network
        told = network.predict(*example_bag(network, image, image.shape[-1]))
        self.outputs = {**ALWAYS_TOLD, **{name: name for name in TOLD if getattr(told, name) is not None}}

    def forward(self, image: Tensor, coords: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        prediction = self.network.predict(image, coords, mask)
        return tuple(getattr(prediction, name) for name in self.outputs.values())


def example_bag(network: Any, image: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return image, coords and mask of so many instances in the form of the image; patches lie in rows of five."""
    place = torch.arange(count)
    coords = torch.stack([place % 5, place // 5]) if getattr(network, "spatial_dims", 0) == 2 else place[None]
    given = torch.rand(*image.shape[:-1], count, generator=torch.Generator().manual_seed(count))
    return given, coords.float()[None], torch.ones(1, 1, count)


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
    bag = example_bag(network, image, image.shape[-1])
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
        if not optional_import("onnxruntime")[1]:
            logger.warning("%s is written, and was not run: onnxruntime is not installed", path)
            return
        missed = largest_difference(asked(beside), answer, network, image)
        if not missed < 1e-4:
            raise RuntimeError(f"onnxruntime answers otherwise than the network, by {missed}: no file is written")
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


def asked(path: Path) -> Ask:
    """Return what asks an ONNX file about image, coords and mask of a bag, and tells its outputs in their order."""
    onnxruntime, _ = optional_import("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = {given.name for given in session.get_inputs()}

    def ask(*bag: Tensor) -> list[Tensor]:
        given = {name: one.numpy() for name, one in zip(INPUTS, bag, strict=True) if name in names}
        return [torch.from_numpy(got) for got in session.run(None, given)]

    return ask


@torch.no_grad()
def largest_difference(ask: Ask, wanted: Ask, network: Any, image: Tensor) -> float:
    """Return how far answers to bags of several sizes are from those wanted, relative above 1; NaN where one is."""
    found = []
    for n in (1, 2, image.shape[-1], getattr(network, "slots", None) or image.shape[-1] + 3):
        bag = example_bag(network, image, n)
        for got, one in zip(ask(*bag), wanted(*bag), strict=True):
            found.append((got - one).abs().max() / one.abs().max().clamp(min=1))
    return float(torch.stack(found).max())
