# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Windows that are made where the network is are those that the loader makes, whatever else is in the batch."""

import csv
import sqlite3
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.engines import PrepareBatchExtraInput
from monai.transforms import Compose, RandFlipd
from torch import Tensor

from scripts.core.errors import InputError
from scripts.ct.dicom.hounsfield import AIR_HU
from scripts.ct.on_device import PrepareScans, SlicesInHUd, collate_scans, steps_before_device
from scripts.ct.transforms import RandSliceAffined, SliceWindowsd
from tests.bundle.commands import run_here, write_cohort

WINDOWS = [(40.0, 80.0), (80.0, 200.0), (30.0, 30.0)]
SIZE = 24
NAMED = PrepareBatchExtraInput({"coords": "coords", "mask": "mask"})

Bag = dict[Hashable, Any]


def scan(columns: int, rows: int, count: int, step: float = 1.0) -> Bag:
    """Values from air to bone [1, X, Y, N], all multiples of a step."""
    made = torch.Generator().manual_seed(count)
    hounsfield = (torch.randn(1, columns, rows, count, generator=made) * 100 + 30).div(step).round().mul(step)
    hounsfield[..., 0] = 2000
    return {"image": hounsfield, "mask": torch.ones(1, count), "coords": torch.arange(count)[None] * 5.0,
            "label": torch.ones(1), "bag_id": str(count)}  # fmt: skip


def of_loader(bags: list[Bag]) -> Any:
    windows = SliceWindowsd("image", WINDOWS, SIZE)
    return NAMED(collate_scans([windows(bag) for bag in bags]))  # type: ignore[arg-type]


def of_device(bags: list[Bag]) -> Any:
    batch = collate_scans([SlicesInHUd("image")(bag) for bag in bags])
    return PrepareScans(NAMED, WINDOWS, SIZE)(batch, torch.device("cpu"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "bags",
    [
        [scan(24, 24, 5)],
        [scan(24, 24, 5), scan(24, 24, 3), scan(24, 24, 7)],  # padded before
        [scan(40, 31, 4), scan(40, 31, 6)],  # resized
        [scan(24, 24, 5), scan(40, 31, 3), scan(17, 20, 8, step=0.25)],  # of unequal sizes, one not in whole numbers
    ],
)
def test_windows_made_on_the_device_are_those_of_the_loader(bags: list[Bag]) -> None:
    (image, label, _, named), (wanted, wanted_label, _, wanted_named) = of_device(bags), of_loader(bags)
    torch.testing.assert_close(image, wanted, atol=1e-6, rtol=0)
    assert torch.equal(label, wanted_label)
    for key in ("coords", "mask"):
        assert torch.equal(named[key], wanted_named[key])
    for k, bag in enumerate(bags):  # what is beside a bag changes nothing, and behind it there is nothing
        count = bag["mask"].shape[1]
        torch.testing.assert_close(image[k, ..., :count], of_device([bag])[0][0], atol=1e-6, rtol=0)
        assert not image[k, ..., count:].any()


def test_a_scan_is_held_as_whole_numbers_where_that_loses_nothing() -> None:
    steps = SlicesInHUd("image")
    given = scan(7, 9, 4)["image"]
    slices = steps({"image": given})["image"]
    assert (slices.dtype, slices.shape) == (torch.int16, (1, 9, 7, 4))
    assert torch.equal(slices.float(), given.permute(0, 2, 1, 3))
    for value in (0.5, 40_000.0, torch.nan):
        given[0, 3, 2, 1] = value
        slices = steps({"image": given})["image"]
        assert slices.dtype == torch.float32
        torch.testing.assert_close(slices, given.permute(0, 2, 1, 3), rtol=0, atol=0, equal_nan=True)


def test_a_scan_that_was_moved_in_hounsfield_units_has_nearly_the_windows_that_were_moved() -> None:
    """Apart from the edges of bone and air, where a window is no longer linear."""
    away = torch.linspace(-1, 1, 256).square()
    radius = (away[:, None] + away[None]).sqrt()[None, :, :, None].expand(1, 256, 256, 3)
    head = torch.where(radius < 0.7, 30.0 + 20 * radius, 1000.0)
    head[radius > 0.8] = AIR_HU
    augmentation: dict[str, Any] = {"degrees": 10, "shift": 0.2, "zoom": 0.1, "prob": 1.0}
    moved: list[Tensor] = []
    windows = SliceWindowsd("image", WINDOWS, 256)
    for on_device in (False, True):
        chance = [RandFlipd("image", 1.0, 1), RandSliceAffined("image", **augmentation)]
        steps = Compose(steps_before_device([windows, *chance], on_device))
        steps.set_random_state(3)
        moved.append(steps({"image": head})["image"])
    air = steps({"image": torch.full_like(head, AIR_HU)})["image"]
    torch.testing.assert_close(air, torch.full_like(air, AIR_HU))  # and nothing else comes in from outside
    image, *_ = PrepareScans(NAMED, WINDOWS, 256)(
        {"image": moved[1][None], "mask": torch.ones(1, 1, 3), "coords": torch.ones(1, 1, 3)}
    )
    difference = (image[0] - moved[0]).abs()
    assert difference.mean() < 0.005
    assert (difference > 1e-3).float().mean() < 0.05  # the edges of the skull
    blank = windows({"image": head})["image"]
    assert (blank.flip(2) - moved[0]).abs().mean() > 0.05  # it was moved


def test_what_makes_no_windows_cannot_leave_them_to_the_device() -> None:
    steps = [SliceWindowsd("image", WINDOWS, SIZE), RandFlipd("image")]
    assert steps_before_device(steps, False) == steps
    in_hu, flip = steps_before_device(steps, True)
    assert isinstance(in_hu, SlicesInHUd)
    assert flip is steps[1]
    with pytest.raises(InputError, match="windows_on_device is true, and the preprocessing makes no windows"):
        steps_before_device([RandFlipd("image")], True)


@pytest.mark.slow
def test_a_training_and_an_evaluation_find_the_same_by_either_way(tmp_path: Path) -> None:
    data = write_cohort(tmp_path, "ct")
    found = []
    for on_device in (False, True):
        out = str(tmp_path / str(on_device))
        keys: dict[str, Any] = {
            "dataset_dir": str(data), "ckpt_dir": out, "output_dir": out, "windows_on_device": on_device,
            "image_size": 32, "channels": [8, 8], "num_workers": 0, "device": torch.device("cpu"),
        }  # fmt: skip
        still = {"slice_drop": 0, "augmentation#1#prob": 0, "augmentation#2#prob": 0}
        run_here("ct", ["train"], **keys, **still, max_epochs=2, learning_rate=0.001, batch_size=2)
        with sqlite3.connect(tmp_path / str(on_device) / "mlruns.db") as db:
            losses = [
                value for (value,) in db.execute("select value from metrics where key like '%loss' order by key, step")
            ]
        run_here("ct", ["train", "evaluate"], **keys, faithfulness=True, threshold=0.0)
        with (tmp_path / str(on_device) / "summary.csv").open() as file:
            rows = [
                {key: float(value) for key, value in row.items() if _is_number(value)} for row in csv.DictReader(file)
            ]
        found.append((losses, rows))
    assert len(found[0][0]) >= 4
    assert found[1][0] == pytest.approx(found[0][0], abs=1e-5)
    assert any("faithful" in key or "deletion" in key for key in found[0][1][0])
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert other == pytest.approx(one, abs=1e-4)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
