# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""From a feature file to a prediction: in blocks, with the whole bag read, and with the bag already in memory."""

from pathlib import Path

import torch
from monai.transforms import Compose, LoadImaged
from torch import Tensor, nn

from benchmarks.bags import Runs, features, tissue
from scripts.core.units import Level0Coords, Level0Pixels
from scripts.engine.batches import one_bag
from scripts.engine.evaluator import BagInferer, StreamingInferer
from scripts.networks import Features, MILNetwork, SmoothAttentionPool
from scripts.wsi.features.smooth_mil import PatchFeatures, write_features
from scripts.wsi.reader import FeatureReader, opened_blocks
from scripts.wsi.transforms import PatchBagd, PatchBlocksd

PITCH = 256


def _file(folder: str, n: int, columns: int) -> str:
    """Return a slide of n patches, written on first use."""
    path = Path(folder) / f"{n}x{columns}.h5"
    if not path.exists():
        slide = PatchFeatures(
            features=features(n, columns).numpy(),
            coords=Level0Coords(PITCH * tissue(n).t().numpy()),
            pitch=Level0Pixels(PITCH),
            tile=Level0Pixels(PITCH),
            mpp=None,
            encoder="noise",
            slide_id=path.stem,
            slide_size=(PITCH * n, PITCH * n),
        )
        write_features(path, slide)
    return str(path)


def _network(columns: int) -> MILNetwork:
    """SmAP on the features themselves: its two passes read the file twice."""
    torch.manual_seed(0)
    return MILNetwork(Features(columns), SmoothAttentionPool(columns, 128), nn.Linear(columns, 1), 2).eval()


def in_blocks(n: int, folder: str, columns: int) -> Runs:
    network, infer = _network(columns), StreamingInferer(opened_blocks)
    bag = one_bag([PatchBlocksd()({"image": _file(folder, n, columns)})])

    def predict() -> dict[str, Tensor]:
        return infer(bag["image"], network, coords=bag["coords"], mask=bag["mask"])[0]["pred"]

    return {"predict": predict}


def at_once(n: int, folder: str, columns: int) -> Runs:
    path, network, read = _file(folder, n, columns), _network(columns), _read_whole()

    def predict() -> dict[str, Tensor]:
        return _predict(network, one_bag([read({"image": path})]))

    return {"predict": predict}


def in_memory(n: int, folder: str, columns: int) -> Runs:
    network, bag = _network(columns), one_bag([_read_whole()({"image": _file(folder, n, columns)})])
    return {"predict": lambda: _predict(network, bag)}


def _read_whole() -> Compose:
    return Compose([LoadImaged("image", reader=FeatureReader), PatchBagd()])


@torch.no_grad()
def _predict(network: MILNetwork, bag: dict) -> dict[str, Tensor]:
    return BagInferer()(bag["image"], network, coords=bag["coords"], mask=bag["mask"])[0]["pred"]
