# Copyright (c) 2026 the smooth MIL bundle authors
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""From a head CT in Hounsfield units to a bag: one instance per slice, one channel per window."""

from __future__ import annotations

import json
import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from scripts.data.dicom import is_dicom_file, is_nifti
from scripts.errors import InputError

# (centre, width) in HU of the windows in which a reader looks for blood
BRAIN, SUBDURAL, SOFT = (40.0, 80.0), (80.0, 200.0), (30.0, 30.0)


def find_scans(directory: str | os.PathLike) -> list[dict[str, str]]:
    """The scans below a directory, as a datalist: each folder of DICOM slices and each NIfTI file is one."""
    root = Path(directory)
    if not root.is_dir():
        raise InputError(f"{root} is not a folder: give the folder that holds the scans")
    paths = sorted(path for path in root.rglob("*") if is_nifti(path) or (path.is_dir() and _holds_dicom(path)))
    if _holds_dicom(root):
        if paths:
            raise InputError(f"{root} holds DICOM files beside further scans ({paths[0]}): give each scan a folder")
        return [{"image": str(root), "bag_id": root.resolve().name}]
    if not paths:
        raise InputError(f"{root} holds neither DICOM nor NIfTI: give the folder that holds the scans")
    named: dict[str, Path] = {}
    for path in paths:
        bag_id = _bag_id(path.relative_to(root))
        if bag_id in named:
            raise InputError(f"{named[bag_id]} and {path} would both be named {bag_id}: rename one")
        named[bag_id] = path
    return [{"image": str(path), "bag_id": bag_id} for bag_id, path in named.items()]


def _holds_dicom(folder: Path) -> bool:
    return any(map(is_dicom_file, folder.iterdir()))


def _bag_id(relative: Path) -> str:
    name = relative.as_posix().replace("/", "_")
    return name[: name.lower().rindex(".nii")] if is_nifti(relative) else name


class ScanBagd(MapTransform):
    """What a bag needs besides its image, from a scan [1, X, Y, N] that still carries the reader's meta.

    `coords` [1, N], millimetres above the lowest slice, and `mask` [1, N]; `label` [1] where there is one;
    `instance_label` [1, N] where there is one, given as a list from inferior to superior or as a mapping
    SOPInstanceUID -> 0/1; `source`, the path it was read from; `instances`, a JSON list with the `id`
    (SOPInstanceUID, or for NIfTI the index) and `position_mm` of each slice: text, because a batch of unequal bags
    carries text unharmed.
    """

    def __init__(self, keys: KeysCollection = "image", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        item = dict(data)
        for key in self.key_iterator(item):
            image = item[key]
            if not isinstance(image, MetaTensor):
                raise InputError(f"{key} has lost its meta before ScanBagd: put ScanBagd right after Orientationd")
            item.update(_bag_entries(item, image))
        return item


def _bag_entries(item: Mapping[Hashable, object], image: MetaTensor) -> dict[Hashable, object]:
    count = image.shape[-1]
    source = str(image.meta["filename_or_obj"])
    uids: list[str] = list(image.meta["sop_instance_uids"])
    ids: Sequence[str | int] = uids or range(count)
    positions = [float(position) for position in image.meta["positions_mm"]]
    entries: dict[Hashable, object] = {
        "coords": (torch.tensor(positions, dtype=torch.float64) - positions[0]).float()[None],  # [1, N]
        "mask": torch.ones(1, count),
        "instances": json.dumps([{"id": id_, "position_mm": mm} for id_, mm in zip(ids, positions, strict=True)]),
        "source": source,
    }
    if "label" in item:
        entries["label"] = torch.as_tensor(item["label"], dtype=torch.float32).reshape(1)
    if "instance_label" in item:
        name = str(item.get("bag_id", source))
        entries["instance_label"] = _slice_labels(item["instance_label"], ids, name)
    return entries


def _slice_labels(given: object, ids: Sequence[str | int], bag_id: str) -> torch.Tensor:
    """[1, N] in slice order."""
    if isinstance(given, Mapping):
        unlabelled = [id_ for id_ in ids if id_ not in given]
        if unlabelled:
            raise InputError(
                f"instance_label of {bag_id} lacks {len(unlabelled)} of its {len(ids)} slices "
                f"(first {unlabelled[0]}): label every SOPInstanceUID or leave instance_label out"
            )
        given = [given[id_] for id_ in ids]
    labels = torch.as_tensor(given, dtype=torch.float32).reshape(-1)
    if len(labels) != len(ids):
        raise InputError(
            f"instance_label of {bag_id} has {len(labels)} entries for {len(ids)} slices: give one per slice"
        )
    return labels[None]


class SliceWindowsd(MapTransform):
    """A scan [1, X, Y, N] in HU and LPS axes to plain float32 [windows, rows, columns, N], each window in [0, 1]."""

    def __init__(
        self,
        keys: KeysCollection,
        windows: Sequence[tuple[float, float]] = (BRAIN, SUBDURAL, SOFT),
        size: int = 512,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.windows = tuple(windows)
        self.size = size

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self.windowed(torch.as_tensor(item[key]))
        return item

    def windowed(self, image: torch.Tensor) -> torch.Tensor:
        plain = image.as_tensor() if isinstance(image, MetaTensor) else image
        slices = plain[0].permute(2, 1, 0).float()  # [N, rows, columns]
        channels = torch.stack([_window(slices, *window) for window in self.windows], dim=1)  # [N, W, rows, columns]
        if channels.shape[-2:] != (self.size, self.size):
            # Smoothed before it shrinks (antialias), or a thin bleed could fall between two pixels.
            channels = F.interpolate(channels, size=(self.size, self.size), mode="bilinear", antialias=True)
        return channels.permute(1, 2, 3, 0)  # [W, rows, columns, N]


def _window(hounsfield: torch.Tensor, centre: float, width: float) -> torch.Tensor:
    return ((hounsfield - (centre - width / 2)) / width).clamp(0, 1)
