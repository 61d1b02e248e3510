# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Encoders of tiles: what turns an image of a patch into its features."""

import logging
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal, get_args

import torch
from monai.utils import optional_import
from torch import Tensor, nn
from torch.nn.functional import interpolate

from scripts.core.errors import InputError
from scripts.core.files import sha256_of

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of most encoders, RGB in 0..1
Pooling = Literal["token", "token+mean", "map"]
_OF_TRANSFORMERS = {  # names of the weights of a vision transformer there → in timm; the first that fits, of each name
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.cls_token": "cls_token",
    "encoder.layer.": "blocks.",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "layernorm.": "norm.",
}
_QUERY = "attention.attention.query"

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
        pooling: what is made of tokens [B, T, D], the first one, or it and the mean of those of the image; "map" is the
            mean over an image of features [B, D, H, W]. None: the backbone's answer is the features.
        prefix_tokens: how many tokens are none of the image, such as the class token and registers.
        dimension: number of features there must be.
        sha256: of the file of the weights, which must have it.
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
        pooling: Pooling | None = None,
        prefix_tokens: int = 1,
        dimension: int | None = None,
        sha256: str | None = None,
    ) -> None:
        super().__init__()
        if pooling not in (None, *get_args(Pooling)):
            raise InputError(f"pooling {pooling} is none of {', '.join(get_args(Pooling))} and null; correct it")
        if ckpt_path is not None and not Path(ckpt_path).is_file():
            raise InputError(f"no weights {ckpt_path}: correct the path (--encoder_weights FILE)")
        found = None if ckpt_path is None else sha256_of(ckpt_path)
        if found is not None and sha256 is not None and found != sha256.lower():
            raise InputError(f"{ckpt_path} has the sha256 {found}, not {sha256}: give the file that was meant")
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
        self.name = f"{name} ({f'random, seed {seed}' if found is None else f'sha256 {found[:16]}'})"
        self.size = size
        self.pooling = pooling
        self.prefix_tokens = prefix_tokens
        self.dimension = dimension
        self.weights = "random" if found is None else found[:16]
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, tiles: Tensor) -> Tensor:
        """tiles: [B, 3, H, W] in [0, 1] → [B, D]."""
        if self.size is not None and tiles.shape[2:] != (self.size, self.size):
            tiles = interpolate(tiles, [self.size, self.size], mode="bilinear", antialias=True)
        features = self._pooled(self.backbone((tiles - self.mean) / self.std))
        if self.dimension not in (None, features.shape[1]):
            raise InputError(
                f"{self.name} gave {features.shape[1]} features, not {self.dimension}: give the dimension that its "
                "network and pooling have (--encoder#dimension)"
            )
        return features

    def _pooled(self, given: Any) -> Tensor:
        """What the backbone gave → [B, D]."""
        if isinstance(given, (list, tuple)) and len(given) == 1:  # of timm's features_only
            (given,) = given
        if not isinstance(given, Tensor):
            raise InputError(
                f"{self.name} gave {len(given) if isinstance(given, (list, tuple)) else type(given).__name__} outputs, "
                "not one tensor: choose one, such as --encoder#backbone#out_indices [3], and --encoder#pooling map"
            )
        if given.ndim != {None: given.ndim, "map": 4}.get(self.pooling, 3):
            raise InputError(f"{self.name} gave {list(given.shape)}, which pooling {self.pooling} does not take")
        if self.pooling == "map":
            return given.mean(dim=(2, 3))
        if self.pooling == "token":
            return given[:, 0]
        if self.pooling == "token+mean":
            return torch.cat([given[:, 0], given[:, self.prefix_tokens :].mean(dim=1)], dim=1)
        return given.flatten(1) if given.shape[2:] == (1, 1) else given

    def extra_repr(self) -> str:
        mean, std = (", ".join(f"{value:g}" for value in each.flatten().tolist()) for each in (self.mean, self.std))
        pooled = "" if self.pooling is None else f", pooling={self.pooling} after {self.prefix_tokens}"
        return f"mean=({mean}), std=({std}), size={self.size}{pooled}"


def _load(network: nn.Module, name: str, path: str, leave_out: tuple[str, ...]) -> None:
    content = _content(path)
    for key in ("state_dict", "model"):
        content = content.get(key, content) if isinstance(content, dict) else {}
    kept = {key: it for key, it in content.items() if isinstance(it, Tensor) and not key.startswith(leave_out)}
    if any(_QUERY in key for key in kept):
        kept = named_by_timm(kept)
    try:
        network.load_state_dict(kept)
    except RuntimeError as error:
        told = "; ".join(shorten(line, 120, placeholder=" ...") for line in str(error).split("\n")[1:3])
        scaled = any(key.endswith("ls1.gamma") for key in kept.keys() - network.state_dict().keys())
        remedy = "give --encoder#backbone#init_values 1e-5, as they scale layers" if scaled else "give those of it"
        raise InputError(f"{path} holds weights of another network than {name} ({told}); {remedy}") from error


def _content(path: str) -> Any:
    """Return what a file of weights holds, read without running any code of it."""
    try:
        if path.endswith(".safetensors"):
            load_file, installed = optional_import("safetensors.torch", name="load_file")
            if not installed:
                raise InputError(f"{path} needs safetensors, which is not installed: pip install safetensors")
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # of whichever library, as the file is damaged or something else
        raise InputError(f"{path} holds no weights that torch reads (weights_only); save its state_dict") from error


def named_by_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of a vision transformer of Hugging Face's transformers (ViT, DINOv2) as timm names them.

    Query, key and value are one layer there; the token of masked patches is of training alone.
    """
    named = {}
    for key, tensor in state.items():
        if key == "embeddings.mask_token" or any(f"attention.attention.{part}" in key for part in ("key", "value")):
            continue
        if _QUERY in key:
            parts = [state.get(key.replace("query", part), tensor.new_empty(0)) for part in ("key", "value")]
            key, tensor = key.replace(_QUERY, "attn.qkv"), torch.cat([tensor, *parts])
        for old, new in _OF_TRANSFORMERS.items():
            key = key.replace(old, new)
        named[key] = tensor
    return named


def _randomize(network: nn.Module, seed: int) -> None:
    """Draw weights; vectors other than biases keep what networks start them with."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        if parameter.dim() > 1:
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.data = drawn * (2.0 / parameter[0].numel()) ** 0.5  # features neither vanish nor explode
        elif name.endswith("bias"):
            parameter.data.zero_()


def timm_model(model_name: str, mlp_layer: str | None = None, **settings: Any) -> nn.Module:
    """`timm.create_model` without its weights: they are read from a file, never fetched.

    Args:
        model_name: of the network in timm.
        mlp_layer: name of a class of `timm.layers`, which timm takes as the class itself.
        settings: what else `timm.create_model` takes.
    """
    timm, installed = optional_import("timm")
    if not installed:
        raise InputError(f"the encoder {model_name} needs timm, which is not installed: pip install timm")
    try:
        if mlp_layer is not None:
            settings["mlp_layer"] = getattr(timm.layers, mlp_layer)
        return timm.create_model(model_name, pretrained=False, **settings)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"timm makes no {model_name} of {settings} ({error}); see timm.list_models()") from error
