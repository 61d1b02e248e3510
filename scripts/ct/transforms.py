# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Turns a head CT in Hounsfield units into a bag: one instance per slice, one channel per window."""

import json
import math
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable, RandomizableTransform, Transform
from monai.transforms.utils import scale_affine
from monai.utils import MetaKeys, convert_to_tensor
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate

from scripts.core.bags import bag_id_of
from scripts.core.errors import InputError
from scripts.ct.plausible import doubt_of_head_ct, few_slices
from scripts.ct.reader import SCAN_META, load_volume, pixel_mm, places


class ScanBagd(MapTransform):
    """A transform that adds what a bag needs besides its image [1, X, Y, N], from the reader's metadata.

    The entries: `coords` [1, N], millimetres above the lowest slice; `mask` [1, N]; `label` [1] and `instance_label`
    [1, N] if given; `source`, its path; `bag_id`, made of that, if none is given; and two texts in JSON, which a batch
    of unequal bags carries unharmed: `instances` has of each slice its `id` (SOPInstanceUID, with "/frame" where it is
    one of many; without UIDs the index), `position_mm` and, of DICOM, `file` and `frame` by which `open_image` finds it
    again; `about` has the scan's `tilt_degrees`, least and largest `spacing_mm`, `warnings`, and what was skipped as
    `set_aside`. Where another reader than ours has read the scan, its affine says where slices lie.

    Args:
        keys: the scan. `instance_label` beside it is a list from inferior to superior, or maps SOPInstanceUID → 0/1.
        allow_missing_keys: whether a bag may lack it.
        require_head_ct: refuse what is hardly a head CT in Hounsfield units, which else is warned of.
    """

    require_head_ct = False  # a class's, as SliceWindowsd.keep_meta

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False, require_head_ct: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        if require_head_ct:
            self.require_head_ct = True

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        item = dict(data)
        for key in self.key_iterator(item):
            image = item[key]
            if not isinstance(image, MetaTensor):
                raise InputError(f"{key} has lost its metadata before ScanBagd: put ScanBagd right after Orientationd")
            meta, source = scan_meta(image), str(image.meta.get("filename_or_obj", "scan"))
            item.setdefault("bag_id", bag_id_of(source))
            item.update(bag_entries(item, _instances(meta), self._about(meta, image, source), source))
            # Not twice, and not all of it can travel in a batch.
            kept = {k: v for k, v in image.meta.items() if k not in SCAN_META}
            item[key] = MetaTensor(image.as_tensor(), meta=kept, applied_operations=image.applied_operations)
        return item

    def _about(self, meta: Mapping[str, Any], image: MetaTensor, source: str) -> dict[str, Any]:
        count = image.shape[-1]
        doubt = doubt_of_head_ct(
            np.asarray(image[0, :, :, count // 2]), pixel_mm(np.asarray(image.affine)), np.asarray(meta["positions_mm"])
        )
        if doubt and self.require_head_ct:
            raise InputError(f"{source} is {doubt}: give a head CT in HU, or leave out require_head_ct")
        spacings = [round(float(spacing), 3) for spacing in meta["spacings"]]
        return {
            "tilt_degrees": round(float(meta["tilt_degrees"]), 2),
            "spacing_mm": [min(spacings), max(spacings)] if spacings else None,
            "warnings": [*([doubt] if doubt else []), *few_slices(count), *meta["warnings"]],
            "set_aside": list(meta["skipped"]),
        }


def scan_meta(image: MetaTensor) -> dict[str, Any]:
    """Return the entries SCAN_META of a scan [1, X, Y, N]; by its affine where `SeriesReader` has not read it."""
    if all(name in image.meta for name in SCAN_META):
        return image.meta
    lists: dict[str, Any] = {name: [] for name in SCAN_META}
    return {**lists, **places(np.asarray(image.affine), image.shape[-1])}


def bag_entries(
    item: Mapping[Hashable, object], instances: list[dict[str, Any]], about: Mapping[str, Any], source: str
) -> dict[Hashable, object]:
    """Return all of a bag but its image, as `ScanBagd` adds it; `item` may hold `label` and `instance_label`.

    A label may be the path of a mask in the scan's geometry, as viewers store one: painted anywhere is positive.
    """
    positions = torch.tensor([instance["position_mm"] for instance in instances], dtype=torch.float64)
    entries: dict[Hashable, object] = {
        "coords": (positions - positions[0]).float()[None],  # [1, N]
        "mask": torch.ones(1, len(instances)),
        "instances": json.dumps(instances),
        "about": json.dumps(about),
        "source": source,
    }
    label, of_slices = item.get("label"), item.get("instance_label")
    if isinstance(label, str):
        of_slices = (load_volume(Path(label)).array > 0).any(axis=(0, 1)).astype(int).tolist()
        label = max(of_slices)
    if label is not None:
        entries["label"] = torch.as_tensor(label, dtype=torch.float32).reshape(1)
    if of_slices is not None:
        ids, name = [instance["id"] for instance in instances], str(item.get("bag_id", source))
        entries["instance_label"] = slice_labels(of_slices, ids, name)
    return entries


def _instances(meta: Mapping[str, Any]) -> list[dict[str, Any]]:
    instances: list[dict[str, Any]] = [
        {"id": index, "position_mm": float(position)} for index, position in enumerate(meta["positions_mm"])
    ]
    columns = zip(instances, meta["sop_instance_uids"], meta["frames"], meta["files"], strict=False)
    for instance, uid, frame, file in columns:  # of DICOM; a volume has none of them
        instance["file"] = file
        if uid:
            instance["id"] = uid if frame is None else f"{uid}/{frame}"
        if frame is not None:
            instance["frame"] = frame
    return instances


def slice_labels(given: object, ids: Sequence[str | int], bag_id: str) -> torch.Tensor:
    """Return the labels [1, N] in the order of the slices, each of which must have one."""
    if isinstance(given, Mapping):
        if lacks := sum(id_ not in given for id_ in ids):
            what = f"{lacks} of its {len(ids)} slices"
            raise InputError(f"instance_label of {bag_id} lacks {what}: label every SOPInstanceUID or none")
        given = [given[id_] for id_ in ids]
    labels = torch.as_tensor(given, dtype=torch.float32).reshape(-1)
    if len(labels) != len(ids):
        raise InputError(f"instance_label of {bag_id} has {len(labels)} entries for {len(ids)} slices: give one each")
    return labels[None]


class SliceWindowsd(MapTransform):
    """A transform from a scan [1, X, Y, N] in HU and LPS axes to float32 [windows, rows, columns, N].

    Args:
        keys: the scan.
        windows: (centre, width) in HU, by default for brain, subdural and soft; each becomes a channel in [0, 1].
        size: rows and columns of the result.
        keep_meta: keep the metadata of the scan, by which viewers know where the input's voxels lay; the affine follows
            the new axes. Without it the result is a plain tensor, as training takes it.
        allow_missing_keys: whether a bag may lack the scan.
    """

    keep_meta = False  # no attribute of an object without it: features and caches of before are found by its pickle

    def __init__(
        self,
        keys: KeysCollection,
        windows: Sequence[tuple[float, float]] = ((40.0, 80.0), (80.0, 200.0), (30.0, 30.0)),
        size: int = 512,
        keep_meta: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.windows = tuple(windows)
        self.size = size
        if keep_meta:
            self.keep_meta = True

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        item = dict(data)
        for key in self.key_iterator(item):
            scan = convert_to_tensor(item[key], dtype=torch.float32, track_meta=False)
            slices = scan[0].permute(2, 1, 0).contiguous()  # [N, rows, columns]
            result = windowed(slices, self.windows, self.size).permute(1, 2, 3, 0)
            item[key] = self._with_meta(result, item[key]) if self.keep_meta else result
        return item

    @staticmethod
    def _with_meta(result: Tensor, scan: Any) -> MetaTensor:
        if not isinstance(scan, MetaTensor):
            raise InputError("the scan has lost its metadata before SliceWindowsd: put it right after ScanBagd")
        rows_first = np.eye(4)[[1, 0, 2, 3]]
        before = scan.shape[2], scan.shape[1], scan.shape[3]
        affine = np.asarray(scan.affine) @ rows_first @ scale_affine(before, result.shape[1:])
        kept = {key: value for key, value in scan.meta.items() if key != MetaKeys.AFFINE}
        return MetaTensor(result, affine=torch.from_numpy(affine), meta=kept)


def windowed(slices: Tensor, windows: Sequence[tuple[float, float]], size: int) -> Tensor:
    """Return the windows [N, windows, size, size] in [0, 1] of float32 slices [N, rows, columns] in HU."""
    lows, widths = torch.tensor([(centre - width / 2, width) for centre, width in windows]).T[..., None, None]
    channels = slices[:, None].sub(lows.to(slices)).div_(widths.to(slices))  # [N, windows, rows, columns]
    channels.clamp_(0, 1)
    if channels.shape[-2:] != (size, size):
        # Smoothed before it shrinks (antialias), or a thin bleed could fall between two pixels.
        channels = interpolate(channels, size=(size, size), mode="bilinear", antialias=True)
    return channels


PER_SLICE = ("image", "coords", "mask", "instance_label")  # entries of a bag with the slices along their last axis


class RandSliceDropd(Randomizable, Transform):
    """A transform that drops some slices of a bag, never two neighbours: a bleed seen twice stays seen.

    Args:
        slice_drop: the largest share of the slices, at most a half; each number of slices up to it is equally likely.
        at_least: slices that always stay.
    """

    def __init__(self, slice_drop: float = 0.1, at_least: int = 8) -> None:
        if not 0 <= slice_drop <= 0.5:
            raise InputError(f"slice_drop is {slice_drop}: give a share from 0 to 0.5")
        self.slice_drop = slice_drop
        self.at_least = at_least
        self.kept = np.arange(0)

    def randomize(self, data: int) -> None:
        """Choose which of so many slices stay."""
        most = max(0, min(int(self.slice_drop * data), data - self.at_least))
        every_other = np.arange(self.R.randint(2), data, 2)
        dropped = self.R.choice(every_other, self.R.randint(most + 1), replace=False)
        self.kept = np.delete(np.arange(data), dropped)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        bag = dict(data)
        count = bag["mask"].shape[-1]
        self.randomize(count)
        if len(self.kept) < count:
            kept = torch.from_numpy(self.kept)
            # Slices lie one behind the other in memory.
            bag.update({key: bag[key].movedim(-1, 0)[kept].movedim(0, -1) for key in PER_SLICE if key in bag})
            instances = json.loads(bag["instances"])
            bag["instances"] = json.dumps([instances[index] for index in self.kept])
        return bag


class RandSliceAffined(RandomizableTransform, MapTransform):
    """A transform that turns, shifts and zooms all slices of a scan [C, rows, columns, N] alike.

    Not MONAI's RandAffined: it interpolates between slices; with the slices as channels it takes twice the time.

    Args:
        keys: the scan.
        degrees: of the turn, at most, to either side.
        shift: of rows and of columns, at most, as a share of the side.
        zoom: at most; 0.1 is from 0.9 to 1.1 times as large.
        prob: of a scan being moved at all.
        allow_missing_keys: whether a bag may lack the scan.
    """

    def __init__(
        self,
        keys: KeysCollection,
        degrees: float = 10.0,
        shift: float = 0.05,
        zoom: float = 0.1,
        prob: float = 0.5,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        self.degrees = degrees
        self.shift = shift
        self.zoom = zoom
        self.outside = 0.0  # the value that comes in from outside; of a scan in HU that of air
        self.to_source = torch.eye(2, 3)  # (x, y, 1) of the new slice → (x, y) of the old; a side runs from -1 to 1

    def randomize(self, data: Any = None) -> None:
        super().randomize(None)
        if self._do_transform:
            angle = math.radians(self.R.uniform(-self.degrees, self.degrees))
            across, down = 2 * self.R.uniform(-self.shift, self.shift, size=2)
            shrunk = 1 / self.R.uniform(1 - self.zoom, 1 + self.zoom)
            cos, sin = shrunk * math.cos(angle), shrunk * math.sin(angle)
            self.to_source = torch.tensor([[cos, -sin, across], [sin, cos, down]], dtype=torch.float32)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        bag = dict(data)
        self.randomize()
        if self._do_transform:
            for key in self.key_iterator(bag):
                image: Tensor = bag[key]
                channels = image.movedim(-1, 0).flatten(0, 1)[None]  # [1, N*C, rows, columns]
                if self.outside:  # grid_sample knows 0 alone
                    channels = channels - self.outside
                grid = affine_grid(self.to_source[None], list(channels.shape), align_corners=False)
                moved = grid_sample(channels, grid, align_corners=False)[0]
                if self.outside:
                    moved += self.outside
                bag[key] = moved.unflatten(0, (-1, len(image))).movedim(0, -1)
        return bag
