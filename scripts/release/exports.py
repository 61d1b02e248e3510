# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""model.ts and model.onnx of a release: exported, the same bytes each time, and asked the same as the network."""

import json
import logging
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from monai.data import save_net_with_metadata
from monai.utils import optional_import
from torch import Tensor

from scripts.core.errors import InputError
from scripts.engine.onnx import asked, export_onnx, largest_difference, quiet

CLOSE = 1e-5  # relative, of logits above 1
START = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can tell: every build tells the same
FOR_ONNX = ("onnx", "onnxscript", "onnxruntime")  # the last one asks the file
# of a TorchScript file: where the code stood that was scripted, paths of this computer; and a hash of all that
NOT_THE_SAME = (".debug_pkl", ".data/serialization_id")
CONSTANTS = re.compile(rb"(?:^  \w+ : Final\[.*\n)+", re.MULTILINE)  # of a class, which torch keeps in a set

logger = logging.getLogger(__name__)


def export_models(network: Any, image: Tensor, folder: Path, extra: Mapping[str, Any]) -> dict[str, float]:
    """Write model.ts and, where its packages are installed, model.onnx; return by how much each differs in `pred`.

    Args:
        network: in evaluation, on the CPU.
        image: an input of a few instances, [1, ..., N].
        folder: of the files.
        extra: content of metadata.json and inference.json, which MONAI keeps in a TorchScript file.
    """
    differences = {"model.ts": export_torchscript(network, image, folder / "model.ts", extra)}
    missing = [package for package in FOR_ONNX if not optional_import(package)[1]]
    if missing:
        logger.warning("no model.onnx, as its export or its check needs %s: pip install them", " and ".join(missing))
        return differences
    with quiet("scripts.engine.onnx"):  # which would name a folder that does not stay
        export_onnx(network, str(folder / "model.onnx"), image)
    ask = asked(folder / "model.onnx")  # whose first output is pred
    return {**differences, "model.onnx": require_close("model.onnx", lambda *bag: ask(*bag)[0], network, image)}


def export_torchscript(network: Any, image: Tensor, path: Path, extra: Mapping[str, Any]) -> float:
    """Write a TorchScript file as MONAI's ckpt_export does, but without times and paths of sources."""
    files = {name: json.dumps(content).encode() for name, content in extra.items() if name != "metadata.json"}
    save_net_with_metadata(
        torch.jit.script(network), str(path), False, meta_values=extra["metadata.json"], more_extra_files=files
    )
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist() if not name.endswith(NOT_THE_SAME)}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in parts.items():
            same = CONSTANTS.sub(_sorted_lines, content) if name.endswith(".py") else content
            archive.writestr(zipfile.ZipInfo(name, START), same)
    return require_close(path.name, torch.jit.load(path), network, image)


def _sorted_lines(found: re.Match[bytes]) -> bytes:
    return b"".join(sorted(found.group().splitlines(keepends=True)))


def require_close(name: str, ask: Callable[..., Tensor], network: Any, image: Tensor) -> float:
    """Return the largest difference in `pred` over bags of several sizes; more than CLOSE is refused."""
    largest = largest_difference(lambda *bag: [ask(*bag)], lambda *bag: [network(*bag)], network, image)
    if not largest <= CLOSE:
        raise InputError(
            f"{name} answers otherwise than model.pt (pred differs by {largest:.1e}, {CLOSE:.0e} is allowed): "
            "nothing is released; report this with the network's model.origin.json"
        )
    return largest
