# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Encoders: from the instances of a bag to their features."""

from collections.abc import Sequence
from typing import NamedTuple, Optional

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, max_pool2d, relu
from torch.utils.checkpoint import checkpoint

from scripts.networks.graph import exporting, on_accelerator


class SliceCNN(nn.Module):
    """The slice network of SA-DMIL (arXiv 2307.09457), one block per entry of `channels`.

    A block is Conv → ReLU → BatchNorm → MaxPool; the first convolution is 5×5 'same', the others 3×3 valid.
    Six blocks on 512×512 slices give 6×6×32 = 1152 features, flattened in the order row, column, channel.

    Args:
        image_size: Rows and columns of a slice.
        in_channels: Windows of a slice.
        channels: Output channels of each block.
        dropout: Probability of dropout after the blocks in `dropout_after`.
        dropout_after: Numbers of blocks, counted from 1.
        momentum: Momentum of the batch statistics; the default is Keras' 0.99, which takes thousands of steps.
        slices_at_once: So many slices go through a block at a time, and training computes again what their gradient
            needs: the same numbers in a fraction of the memory, but in more time. None: all at once in training.
    """

    def __init__(
        self,
        image_size: int = 512,
        in_channels: int = 3,
        channels: Sequence[int] = (16, 32, 32, 32, 32, 32),
        dropout: float = 0.3,
        dropout_after: Sequence[int] = (2, 5, 6),
        momentum: float = 0.01,
        slices_at_once: Optional[int] = None,
    ) -> None:
        super().__init__()
        if slices_at_once is not None and slices_at_once < 1:
            raise ValueError(f"slices_at_once is {slices_at_once}: give 1 or more, or null for all")
        layers: list[nn.Module] = []
        size = image_size
        for block, (before, after) in enumerate(zip([in_channels, *channels[:-1]], channels, strict=True), start=1):
            first = block == 1
            layers += [
                nn.Conv2d(before, after, 5 if first else 3, padding=2 if first else 0),
                nn.ReLU(inplace=True),
                nn.BatchNorm2d(after, eps=1e-3, momentum=momentum),  # eps is Keras' own
                nn.MaxPool2d(2),
            ]
            if block in dropout_after:
                layers.append(nn.Dropout(dropout))
            size = (size if first else size - 2) // 2
        if size < 1:
            raise ValueError(f"{len(channels)} blocks leave nothing of a {image_size}×{image_size} slice: give fewer")
        # as the slices lie below: with either alone, convolutions take twice the time
        self.blocks = nn.Sequential(*layers).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.in_channels, self.image_size = in_channels, image_size
        self.out_features = size * size * channels[-1]
        self.slices_at_once = slices_at_once
        self.in_cache = max(1, (1 << 22) // (channels[0] * image_size**2))  # slices whose first maps take 16 MB

    def forward(self, image: Tensor, mask: Optional[Tensor]) -> Tensor:
        """Return features [B, D, N] of image [B, C, H, W, N]; only real slices are encoded, padding gets 0."""
        b, c, h, w, n = image.shape
        channels, size = self.in_channels, self.image_size
        if c != channels or h != size or w != size:
            raise ValueError(f"slices of {c}×{h}×{w} for a network of {channels}×{size}×{size}: set image_size")
        rows = image.permute(0, 4, 2, 3, 1).reshape(b * n, h, w, c)  # [B*N, H, W, C]
        if mask is None or exporting():  # which slices are real is not known yet
            features = self.encode(rows).view(b, n, -1).transpose(1, 2)  # [B, D, N]
            return features if mask is None else features * mask.to(features.device)
        real = torch.nonzero(mask.flatten() > 0.5)[:, 0]  # [R], found where the mask lies
        real = real.to(rows.device, non_blocking=True)
        found = self.encode(rows.index_select(0, real))  # [R, D]
        features = found.new_zeros([b * n, found.shape[1]]).index_copy(0, real, found)
        return features.view(b, n, -1).transpose(1, 2)  # [B, D, N]

    def encode(self, rows: Tensor) -> Tensor:
        """Return the features [R, D] of slices [R, H, W, C]."""
        slices = rows.permute(0, 3, 1, 2)  # [R, C, H, W]
        if torch.jit.is_scripting() or exporting():
            maps = self.blocks(slices)  # [R, 32, 6, 6]
        elif not self.training:
            # a processor takes as long to get memory of more than 32 MB at once as to compute what lies there
            parts = slices.split(self.slices_at_once or (len(slices) if on_accelerator(slices) else self.in_cache))
            maps = torch.cat([self._pooled_first(part) for part in parts])  # [R, 32, 6, 6]
        else:
            maps = self.blocks(slices) if self.slices_at_once is None else self._in_parts(slices)  # [R, 32, 6, 6]
        return maps.permute(0, 2, 3, 1).flatten(1)  # [R, D]

    @torch.jit.unused
    def _pooled_first(self, maps: Tensor) -> Tensor:
        """Return what the blocks make of maps [R, C, H, W], to the bit: with fixed statistics pooling may go first."""
        convolutions = [layer for layer in self.blocks if isinstance(layer, nn.Conv2d)]
        norms = [layer for layer in self.blocks if isinstance(layer, nn.BatchNorm2d)]
        for conv, norm in zip(convolutions, norms, strict=True):
            # where a normalisation falls, the largest comes of the least
            sign = torch.where(norm.weight < 0, -1.0, 1.0).to(norm.weight)
            kernel, bias = conv.weight * sign.view(-1, 1, 1, 1), conv.bias * sign  # type: ignore[operator]
            largest = max_pool2d(conv2d(maps, kernel, bias, padding=conv.padding), 2)
            maps = norm(relu(largest * sign.view(-1, 1, 1)))
        return maps

    @torch.jit.unused
    def _in_parts(self, maps: Tensor) -> Tensor:
        """Return what the blocks make of maps [R, C, H, W] in training, keeping of each block what it pooled."""
        for layer in self.blocks:
            parts = maps.split(self.slices_at_once or len(maps))
            if isinstance(layer, nn.SyncBatchNorm):
                raise ValueError("slices_at_once takes the statistics of one process: leave out it or SyncBatchNorm")
            if isinstance(layer, nn.Conv2d):
                conv = layer
            elif isinstance(layer, nn.BatchNorm2d) and layer.training:
                maps = _normalised_by_all([_pooled_and_moments(part, conv, layer) for part in parts], layer)
            elif isinstance(layer, nn.BatchNorm2d):  # frozen: with the statistics that it has
                block = nn.Sequential(conv, nn.ReLU(), layer, nn.MaxPool2d(2))
                maps = torch.cat([checkpoint(block, part, use_reentrant=False) for part in parts])
            elif isinstance(layer, nn.Dropout):
                maps = layer(maps)
        return maps


class _Block(NamedTuple):
    """What a block keeps of some slices."""

    pooled: Tensor  # [R, C, H, W]
    mean: Tensor  # [C] of what was pooled
    variance: Tensor  # [C]
    numbers: int  # in a channel, of which these are


def _pooled_and_moments(maps: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> _Block:
    """Pool before the normalisation, and forget what only the gradient needs."""

    def block(maps: Tensor) -> _Block:
        found = relu(conv(maps))  # [R, C, H, W]
        sign = torch.where(norm.weight < 0, -1.0, 1.0).to(found).view(-1, 1, 1)  # as in _pooled_first
        wide = found.to(torch.promote_types(found.dtype, torch.float))
        variance, mean = torch.var_mean(wide, dim=(0, 2, 3), correction=0)  # [C]
        return _Block(sign * max_pool2d(sign * found, 2), mean, variance, found[:, 0].numel())

    kept: _Block = checkpoint(block, maps, use_reentrant=False, preserve_rng_state=False)
    return kept


def _normalised_by_all(blocks: Sequence[_Block], norm: nn.BatchNorm2d) -> Tensor:
    """Normalise by the statistics of all slices together, which the layer remembers as if it had seen them at once."""
    total = sum(block.numbers for block in blocks)
    shares = [block.numbers / total for block in blocks]
    mean = torch.stack([share * block.mean for share, block in zip(shares, blocks, strict=True)]).sum(dim=0)  # [C]
    apart = [block.variance + (block.mean - mean).square() for block in blocks]
    variance = torch.stack([share * each for share, each in zip(shares, apart, strict=True)]).sum(dim=0)  # [C]
    with torch.no_grad():
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked += 1
        norm.running_mean.lerp_(mean, norm.momentum)  # type: ignore[union-attr, arg-type]
        norm.running_var.lerp_(variance * total / (total - 1), norm.momentum)  # type: ignore[union-attr, arg-type]
    scale = norm.weight * torch.rsqrt(variance + norm.eps)  # [C]
    shift = norm.bias - mean * scale  # [C]
    pooled = torch.cat([block.pooled for block in blocks])  # [R, C, H, W]
    return (scale.view(-1, 1, 1) * pooled + shift.view(-1, 1, 1)).to(pooled.dtype)


class Features(nn.Module):
    """Patch features [B, D, N] taken as they are; D must be `in_features`."""

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.in_features = self.out_features = in_features

    def forward(self, image: Tensor, mask: Optional[Tensor]) -> Tensor:
        """Return `image` [B, D, N] itself; no aggregator looks at padding."""
        _require_features(image, self.in_features)
        return image


class FeatureProjection(nn.Module):
    """One linear layer on patch features: relu(W x + b).

    Args:
        in_features: D of a patch.
        out_features: D' of the result.
        dropout: Probability of dropout behind the layer.
    """

    def __init__(self, in_features: int, out_features: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.project = nn.Linear(in_features, out_features)
        self.dropout = nn.Dropout(dropout)
        self.in_features, self.out_features = in_features, out_features

    def forward(self, image: Tensor, mask: Optional[Tensor]) -> Tensor:
        """Project image [B, D, N] to [B, D', N]; padding gets 0."""
        _require_features(image, self.in_features)
        x = self.dropout(torch.relu(self.project(image.transpose(1, 2))))  # [B, N, D']
        x = x.transpose(1, 2)  # [B, D', N]
        return x if mask is None else x * mask.to(x.device)


def _require_features(image: Tensor, in_features: int) -> None:
    if image.shape[1] != in_features:
        raise ValueError(
            f"{image.shape[1]} features per slice or patch for a network of {in_features}: set in_features, or give "
            "features of the encoder it was trained on"
        )
