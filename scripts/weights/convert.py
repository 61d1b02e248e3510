# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m scripts convert`: from a published checkpoint to a `model.pt` of these bundles."""

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
from scripts.core.files import sha256_of, whole_file, writable_folder
from scripts.engine.provenance import origin_file, origin_text
from scripts.weights import sa_dmil, torchmil

STATE_KEYS = ("state_dict", "model_state_dict", "model")  # where a training loop keeps the state dict
SAVE_IT_WITH = "save it with torch.save(model.state_dict(), FILE)"

logger = logging.getLogger(__name__)


def convert_checkpoint(
    checkpoint: Path,
    output: Path,
    kind: str | None = None,
    settings: torchmil.TorchmilSettings | None = None,
    force: bool = False,
) -> None:
    """Read a checkpoint, write `output` and its origin beside it, and of torchmil also the network as .json.

    Args:
        checkpoint: Of SA-DMIL, an .index, its name without .index, or a folder with one; of torchmil, a torch file.
        output: A .pt file, or a folder that exists, for `model.pt` in it.
        kind: "sa-dmil" or "torchmil"; by default it is recognised from the checkpoint.
        settings: Of a torchmil network.
        force: Overwrite what is there.
    """
    if kind not in (None, "sa-dmil", "torchmil"):
        raise InputError(f"--kind {kind!r} is not known: give sa-dmil or torchmil")
    model = output / "model.pt" if output.is_dir() else output
    if model.suffix != ".pt":
        raise InputError(f"{output} is neither a folder nor a .pt file: give models, or models/model.pt")
    index = _find_index(checkpoint)
    is_torchmil = kind == "torchmil" or (kind is None and index is None)
    override = model.with_suffix(".json") if is_torchmil else None
    for path in (model, origin_file(model), override):
        if path is not None and path.exists() and not force:
            raise InputError(f"{path} exists: give another name, or --force to overwrite it")

    if override is None:
        state, config = _read_sa_dmil(index or checkpoint), sa_dmil.SA_DMIL_CONFIG
    else:
        state, network = torchmil.convert_state(_read_state(checkpoint), settings or torchmil.TorchmilSettings())
        config = {"in_features": network["encoder"]["in_features"], "network_def": network}
        logger.info("%s: %s", checkpoint, network["_desc_"])
    writable_folder(model.parent)
    content = io.BytesIO()  # so that the same weights give the same bytes: torch puts the name of a file into it
    torch.save(state, content)
    with ExitStack() as files:  # all of them or none
        files.enter_context(whole_file(model)).write_bytes(content.getvalue())
        files.enter_context(whole_file(origin_file(model))).write_text(origin_text(config), encoding="utf-8")
        if override is not None:
            files.enter_context(whole_file(override)).write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8")
    logger.info("wrote %s%s", model, f", and the network that takes it as {override}" if override else "")


def _find_index(checkpoint: Path) -> Path | None:
    """Return the .index of a TensorFlow checkpoint; None where it is none."""
    if checkpoint.is_dir():
        found = sorted(checkpoint.glob("*.index"))
        if len(found) != 1:
            raise InputError(f"{checkpoint} holds {len(found)} .index files: give one checkpoint by its name")
        return found[0]
    name = checkpoint.name.removesuffix(".index").removesuffix(sa_dmil.DATA_SUFFIX)
    index = checkpoint.with_name(f"{name}.index")
    return index if index.is_file() else None


def _read_sa_dmil(index: Path) -> dict[str, Tensor]:
    """Read the state dict of our network from a TensorFlow checkpoint, with what must be known of it in the log."""
    tensors = sa_dmil.read_tensors(index)
    state = sa_dmil.state_dict(tensors)
    sha256 = sha256_of(sa_dmil.data_path(index))
    name = sa_dmil.released_as(sha256)
    if name is None:
        logger.warning("%s: SA-DMIL, but not one of the three that were released (sha256 %s)", index, sha256)
    else:
        logger.info("%s: SA-DMIL, released as %s (sha256 %s)", index, name, sha256)
    if sa_dmil.head_outputs(tensors) == 2:
        logger.warning(
            "its head gives two logits, of which one is made: the second less the first; "
            "that the second means hemorrhage is inferred, it is documented nowhere"
        )
    logger.warning(
        "research use only: the released weights are badly calibrated outside their data, "
        "the three of them give one and the same head CT far different probabilities"
    )
    return state


def _read_state(path: Path) -> Mapping[str, Tensor]:
    """Read the state dict of a torch file, itself or in what a training loop saved."""
    if not path.is_file():
        raise InputError(f"{path} is missing: give an .index of TensorFlow, or a .pt of torchmil")
    try:
        with warnings.catch_warnings(action="ignore"):  # the one line below says what matters
            loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file that is not torch's can fail in any way
        raise InputError(f"{path} is no torch file, or holds more than tensors: {SAVE_IT_WITH}") from error
    if isinstance(loaded, Mapping):
        loaded = next((loaded[key] for key in STATE_KEYS if isinstance(loaded.get(key), Mapping)), loaded)
    if not isinstance(loaded, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in loaded.items()
    ):
        raise InputError(f"{path} holds no state dict: {SAVE_IT_WITH}")
    return loaded
