# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Encoders of tiles: what turns an image of a patch into its features."""

import logging
import pickle
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from monai.utils import optional_import
from torch import Tensor, nn
from torch.nn.functional import interpolate

from scripts.core.errors import InputError
from scripts.core.files import sha256_of

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of most encoders, RGB in 0..1

logger = logging.getLogger(__name__)


class SeededTileCNN(nn.Module):
    """Tiles → features with random weights that depend on the seed alone: nothing to download, nothing learned.

    Mean and spread of random convolutions describe colour and texture; a pretrained encoder describes more.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise([3, 16, 32, 64]):
            layers += [nn.Conv2d(before, after, 5, stride=2, padding=2), nn.ReLU(inplace=True)]
        self.blocks = nn.Sequential(*layers)
        self.name = f"seeded_tile_cnn_{seed}"
        _randomize(self.blocks, seed)

    def forward(self, tiles: Tensor) -> Tensor:
        """tiles: [B, 3, H, W] in [0, 1] → [B, D]."""
        maps = self.blocks(2.0 * tiles - 1.0).flatten(2)  # [B, C, H'*W']
        return torch.cat([maps.mean(dim=2), maps.std(dim=2)], dim=1)


class TileEncoder(nn.Module):
    """A network of normalised images as an encoder of tiles, with weights from a file.

    Args:
        backbone: normalised images [B, 3, H, W] → [B, D]; without one the weights are a whole TorchScript module.
        name: of the network; `self.name` names its weights too.
        ckpt_path: a state dict, or a file that holds one under `state_dict` or `model`; none for random weights.
        leave_out: beginnings of the names of weights that are not wanted, such as those of a classifier.
        mean: of red, green and blue, which the network expects to be subtracted.
        std: which it expects them to be divided by.
        size: side of the images it takes, if tiles are to be resized.
        seed: of random weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module | None,
        name: str,
        ckpt_path: str | None,
        leave_out: Sequence[str] = (),
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        size: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if ckpt_path is not None and not Path(ckpt_path).is_file():
            raise InputError(f"no weights {ckpt_path}: correct the path (--encoder_weights FILE)")
        if backbone is None:
            if ckpt_path is None:
                raise InputError("a TorchScript encoder needs its file: --encoder_weights FILE")
            try:
                backbone = torch.jit.load(ckpt_path, map_location="cpu")
            except (RuntimeError, ValueError) as error:
                raise InputError(f"{ckpt_path} is no TorchScript module; give one that torch.jit.save wrote") from error
        elif ckpt_path is None:
            logger.warning("the encoder's weights are random, good for a trial alone: give some (--encoder_weights)")
            _randomize(backbone, seed)
        else:
            _load(backbone, name, ckpt_path, tuple(leave_out))
        self.backbone = backbone
        self.name = f"{name} ({f'random, seed {seed}' if ckpt_path is None else f'sha256 {sha256_of(ckpt_path)[:16]}'})"
        self.size = size
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, tiles: Tensor) -> Tensor:
        """tiles: [B, 3, H, W] in [0, 1] → [B, D]."""
        if self.size is not None and tiles.shape[2:] != (self.size, self.size):
            tiles = interpolate(tiles, [self.size, self.size], mode="bilinear", antialias=True)
        features: Tensor = self.backbone((tiles - self.mean) / self.std)
        return features.flatten(1) if features.shape[2:] == (1, 1) else features

    def extra_repr(self) -> str:
        mean, std = (", ".join(f"{value:g}" for value in each.flatten().tolist()) for each in (self.mean, self.std))
        return f"mean=({mean}), std=({std}), size={self.size}"


def _load(network: nn.Module, name: str, path: str, leave_out: tuple[str, ...]) -> None:
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(f"{path} holds no weights that torch reads (weights_only); save its state_dict") from error
    for key in ("state_dict", "model"):
        content = content.get(key, content) if isinstance(content, dict) else {}
    kept = {key: it for key, it in content.items() if isinstance(it, Tensor) and not key.startswith(leave_out)}
    try:
        network.load_state_dict(kept)
    except RuntimeError as error:
        first = " ".join(str(error).split("\n")[1].split())[:200]
        raise InputError(f"{path} holds weights of another network than {name} ({first}); give those of it") from error


def _randomize(network: nn.Module, seed: int) -> None:
    """Draw weights; vectors other than biases keep what networks start them with."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        if parameter.dim() > 1:
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.data = drawn * (2.0 / parameter[0].numel()) ** 0.5  # features neither vanish nor explode
        elif name.endswith("bias"):
            parameter.data.zero_()


def timm_model(model_name: str, **settings: Any) -> nn.Module:
    """`timm.create_model` without its weights: they are read from a file, never fetched."""
    timm, installed = optional_import("timm")
    if not installed:
        raise InputError(f"the encoder {model_name} needs timm, which is not installed: pip install timm")
    try:
        return timm.create_model(model_name, pretrained=False, **settings)
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"timm makes no {model_name} of {settings} ({error}); see timm.list_models()") from error
