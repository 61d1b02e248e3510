# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The windows of a scan computed where the network is: until then it stays in HU, one channel instead of three."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.engines import PrepareBatch
from monai.transforms import MapTransform
from monai.utils import convert_to_tensor

from scripts.core.errors import InputError
from scripts.ct.dicom.hounsfield import AIR_HU
from scripts.ct.transforms import RandSliceAffined, SliceWindowsd, windowed
from scripts.engine.batches import collate_bags


class SlicesInHUd(MapTransform):
    """A transform from a scan [1, X, Y, N] in HU and LPS axes to its slices [1, rows, columns, N], still in HU.

    They are int16 where that loses nothing, else float32.

    Args:
        keys: the scan.
        allow_missing_keys: whether a bag may lack the scan.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            scan = convert_to_tensor(item[key], dtype=torch.float32, track_meta=False)
            slices = scan[0].permute(2, 1, 0).contiguous()  # [N, rows, columns]
            whole = slices.to(torch.int16)
            slices = whole if torch.equal(whole.float(), slices) else slices
            item[key] = slices.permute(1, 2, 0)[None]  # [1, rows, columns, N]
        return item


def steps_before_device(steps: Sequence[Callable[..., Any]], windows_on_device: bool) -> list[Callable[..., Any]]:
    """Return the steps of a preprocessing; with `windows_on_device` they leave slices in HU, and move air in."""
    if not windows_on_device:
        return list(steps)
    if not any(isinstance(step, SliceWindowsd) for step in steps):
        raise InputError("windows_on_device is true, and the preprocessing makes no windows: leave the key out")
    for step in steps:
        if isinstance(step, RandSliceAffined):
            step.outside = AIR_HU
    return [SlicesInHUd(step.keys) if isinstance(step, SliceWindowsd) else step for step in steps]


class PrepareScans(PrepareBatch):
    """A batch on its way to the network, of scans in HU with the windows that `SliceWindowsd` makes.

    Args:
        prepare_batch: brings a batch of windows to the device.
        windows: (centre, width) in HU; None = the image has its windows already.
        size: rows and columns of the result.
    """

    def __init__(
        self, prepare_batch: PrepareBatch, windows: Sequence[tuple[float, float]] | None = None, size: int = 512
    ) -> None:
        self.prepare_batch = prepare_batch
        self.windows = windows
        self.size = size

    def __call__(self, batchdata: dict[str, Any], device: Any = None, non_blocking: bool = False, **kwargs: Any) -> Any:
        if self.windows is not None:
            scans, mask = batchdata["image"], batchdata["mask"]
            shape = len(scans), mask.shape[-1], len(self.windows), self.size, self.size
            image = torch.zeros(shape, device=device)  # and 0 it stays where the mask [B, 1, N] is
            for into, scan, there in zip(image, scans, mask, strict=True):
                count = int(there.sum())
                slices = scan.to(device, non_blocking=non_blocking)[0].movedim(-1, 0)[:count]  # [n, rows, columns]
                into[:count] = windowed(slices.float(), self.windows, self.size)
            batchdata = {**batchdata, "image": image.permute(0, 2, 3, 4, 1)}  # [B, windows, rows, columns, N]
        return self.prepare_batch(batchdata, device, non_blocking, **kwargs)


def collate_scans(bags: Sequence[Mapping[Hashable, Any]]) -> dict[Hashable, Any]:
    """Return a batch as `collate_bags` does; scans in HU of unequal rows and columns are a list, for `PrepareScans`."""
    if len({bag["image"].shape[:-1] for bag in bags}) == 1:
        return collate_bags(bags)
    others = [{key: value for key, value in bag.items() if key != "image"} for bag in bags]
    return {**collate_bags(others), "image": [bag["image"] for bag in bags]}
