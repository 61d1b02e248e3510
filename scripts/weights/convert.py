# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m scripts convert`: published weights → a `model.pt` of ours."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scripts.core.errors import InputError
from scripts.core.files import whole_file, writable_folder
from scripts.engine.provenance import Config, origin_file, origin_text
from scripts.weights import sa_dmil, torchmil
from scripts.weights.sa_dmil import DATA_SUFFIX, data_path, read_tensors

SA_DMIL, TORCHMIL = "sa-dmil", "torchmil"
STATE_KEYS = ("state_dict", "model_state_dict", "model")  # where a training loop keeps the state dict

logger = logging.getLogger(__name__)


def convert(
    checkpoint: Path,
    output: Path,
    kind: str | None = None,
    settings: torchmil.Settings | None = None,
    force: bool = False,
) -> None:
    """Read a checkpoint and write `output`, and what network it is of beside it; torchmil's also as .json to run.

    Args:
        checkpoint: of SA-DMIL, an .index, its name without .index, or a folder with one; of torchmil, a torch file.
        output: a .pt file, or a folder that exists: `model.pt` in it.
        kind: "sa-dmil" or "torchmil"; by default it is seen from the checkpoint.
        settings: of a torchmil network.
        force: overwrite what is there.
    """
    if kind not in (None, SA_DMIL, TORCHMIL):
        raise InputError(f"--kind {kind!r} is not known: give {SA_DMIL} or {TORCHMIL}")
    output = _model_path(output)
    network_path = output.with_suffix(".json")
    index = _index(checkpoint)
    of_torchmil = kind == TORCHMIL or (kind is None and index is None)
    others = [network_path] if of_torchmil else []
    _refuse_overwriting([output, origin_file(output), *others], force)

    if of_torchmil:
        state, network = torchmil.converted(_torch_state(checkpoint), settings or torchmil.Settings())
        logger.info("%s: %s", checkpoint, network["_desc_"])
        _write(output, state, {"in_features": network["encoder"]["in_features"], "network_def": network}, network_path)
        logger.info("wrote %s, and the network that takes it as %s", output, network_path)
    else:
        _write(output, _sa_dmil_state(index or checkpoint), sa_dmil.NETWORK)
        logger.info("wrote %s", output)


def _sa_dmil_state(index: Path) -> dict[str, Tensor]:
    tensors = read_tensors(index)
    state = sa_dmil.state_dict(tensors)
    sha256 = sa_dmil.sha256_of(data_path(index))
    name = sa_dmil.released_as(sha256)
    if name is None:
        logger.warning("%s: SA-DMIL, but not one of the three that were released (sha256 %s)", index, sha256)
    else:
        logger.info("%s: SA-DMIL, released as %s (sha256 %s)", index, name, sha256)
    if sa_dmil.classes(tensors) == 2:
        logger.warning(
            "its head gives two logits, of which one is made: the second less the first; "
            "that the second means hemorrhage is inferred, nobody has written it"
        )
    logger.warning(
        "research use only: the released weights are badly calibrated outside their data, "
        "the three of them give one and the same head CT far different probabilities"
    )
    return state


# --- reading


def _index(checkpoint: Path) -> Path | None:
    """The .index that is meant, if a TensorFlow checkpoint is."""
    if checkpoint.is_dir():
        found = sorted(checkpoint.glob("*.index"))
        if len(found) != 1:
            there = f"holds {len(found)} .index files" if found else "holds no .index file"
            raise InputError(f"{checkpoint} {there}: give one checkpoint by its name")
        return found[0]
    name = checkpoint.name.removesuffix(".index").removesuffix(DATA_SUFFIX)
    index = checkpoint.with_name(f"{name}.index")
    return index if index.is_file() else None


def _torch_state(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise InputError(f"{path} is missing: give an .index of TensorFlow, or a .pt of torchmil")
    try:
        with warnings.catch_warnings(action="ignore"):  # the one line below says what matters
            loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file that is none of torch's can fail in any way
        raise InputError(
            f"{path} is no torch file, or holds more than tensors: save it with torch.save(model.state_dict(), FILE)"
        ) from error
    for key in STATE_KEYS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    if not isinstance(loaded, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in loaded.items()
    ):
        raise InputError(f"{path} holds no state dict: save it with torch.save(model.state_dict(), FILE)")
    return loaded


# --- writing


def _model_path(output: Path) -> Path:
    path = output / "model.pt" if output.is_dir() else output
    if path.suffix != ".pt":
        raise InputError(f"{output} is neither a folder nor a .pt file: give models, or models/model.pt")
    return path


def _refuse_overwriting(paths: list[Path], force: bool) -> None:
    for path in paths:
        if path.exists() and not force:
            raise InputError(f"{path} exists: give another name, or --force to overwrite it")


def _write(output: Path, state: dict[str, Tensor], config: Config, network_path: Path | None = None) -> None:
    writable_folder(output.parent)
    model = io.BytesIO()  # so that the same weights make the same bytes: a file would be named within itself
    torch.save(state, model)
    with ExitStack() as files:  # all are there at the end, or none
        files.enter_context(whole_file(output)).write_bytes(model.getvalue())
        files.enter_context(whole_file(origin_file(output))).write_text(origin_text(config), encoding="utf-8")
        if network_path is not None:
            override = json.dumps(config, indent=4) + "\n"
            files.enter_context(whole_file(network_path)).write_text(override, encoding="utf-8")
