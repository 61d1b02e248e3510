# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import math
from collections.abc import Hashable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import DataLoader, Dataset
from monai.transforms import Compose
from monai.utils import set_determinism

from scripts.core.errors import InputError
from scripts.ct.transforms import RandSliceAffined, RandSliceDropd

SIDE = 33
CENTRE = SIDE // 2


def bag_of(count: int, labelled: bool = True) -> dict[Hashable, Any]:
    """Everything that belongs to slice k holds the number k."""
    numbers = torch.arange(float(count))
    bag: dict[Hashable, Any] = {
        "image": numbers.expand(3, 2, 2, count),
        "coords": 5 * numbers[None],
        "mask": torch.ones(1, count),
        "instances": json.dumps([{"id": f"uid.{k}", "position_mm": 5.0 * k} for k in range(count)]),
        "label": torch.ones(1),
        "source": "scan",
    }
    return {**bag, "instance_label": numbers[None]} if labelled else bag


def kept(bag: dict[Hashable, Any]) -> list[int]:
    return [int(number) for number in bag["image"][0, 0, 0]]


def moving(seed: int = 0, **settings: Any) -> RandSliceAffined:
    still = {"degrees": 0, "shift": 0, "zoom": 0, "prob": 1.0}
    transform = RandSliceAffined("image", **{**still, **settings})
    transform.set_random_state(seed)
    return transform


def blob(row: float, column: float) -> torch.Tensor:
    """One slice [1, SIDE, SIDE, 1] with a round spot there."""
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    return torch.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 8.0)[None, :, :, None]


def place(image: torch.Tensor) -> np.ndarray:
    """Row and column of the spot, from the centre of the slice."""
    weights = image[0, :, :, 0].numpy()
    rows, columns = np.indices(weights.shape)
    return np.array([(weights * rows).sum(), (weights * columns).sum()]) / weights.sum() - CENTRE


# leaving slices out


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 60), share=st.floats(0, 0.5), at_least=st.integers(1, 20), seed=st.integers(0, 99))
def test_slices_stay_in_step_and_in_order(count: int, share: float, at_least: int, seed: int) -> None:
    drop = RandSliceDropd(share, at_least)
    drop.set_random_state(seed)
    bag = drop(bag_of(count))
    left = kept(bag)
    assert left == sorted(set(left))
    assert len(left) >= max(min(at_least, count), count - int(share * count))
    gone = set(range(count)) - set(left)
    assert not any(k + 1 in gone for k in gone)
    assert bag["image"].shape == (3, 2, 2, len(left))
    assert bag["coords"][0].tolist() == [5 * k for k in left]
    assert bag["mask"].tolist() == [[1] * len(left)]
    assert bag["instance_label"][0].tolist() == left
    assert json.loads(bag["instances"]) == [{"id": f"uid.{k}", "position_mm": 5.0 * k} for k in left]
    assert (bag["label"].item(), bag["source"]) == (1, "scan")


def test_every_number_of_slices_and_every_slice_goes_sometimes() -> None:
    drop = RandSliceDropd(0.2, at_least=3)
    drop.set_random_state(0)
    left = [kept(drop(bag_of(10, labelled=False))) for _ in range(400)]
    share = [sum(len(slices) == count for slices in left) / 400 for count in (8, 9, 10)]
    assert share == pytest.approx([1 / 3] * 3, abs=0.08)
    gone = np.array([sum(k not in slices for slices in left) for k in range(10)]) / 400
    assert gone == pytest.approx(np.full(10, 0.1), abs=0.05)


def test_features_of_slices_are_left_out_too() -> None:
    drop = RandSliceDropd(0.5, at_least=1)
    drop.set_random_state(1)
    bag = drop({**bag_of(12), "image": torch.arange(12.0).expand(7, 12)})
    assert bag["image"].shape[1] < 12
    assert torch.equal(bag["image"], bag["instance_label"].expand(7, -1))


def test_a_bag_given_is_not_changed() -> None:
    drop = RandSliceDropd(0.5, at_least=1)
    given, before = bag_of(12), bag_of(12)
    for _ in range(5):
        drop(given)
    assert all(torch.equal(given[key], before[key]) for key in ("image", "coords", "mask", "instance_label"))
    assert given["instances"] == before["instances"]


@pytest.mark.parametrize("share", [-0.1, 0.6])
def test_a_share_that_would_take_neighbours_is_refused(share: float) -> None:
    with pytest.raises(InputError, match=rf"slice_drop is {share}: give a share from 0 to 0\.5"):
        RandSliceDropd(share)


# moving slices


@pytest.mark.parametrize("seed", range(4))
def test_all_slices_and_windows_move_alike_and_are_never_mixed(seed: int) -> None:
    turn = moving(seed, degrees=20, shift=0.1, zoom=0.2)
    scan = torch.rand(3, SIDE, SIDE, 5, generator=torch.Generator().manual_seed(seed))
    scan[..., 2] = 0
    moved = turn({"image": scan})["image"]
    assert moved.shape == scan.shape
    assert not torch.equal(moved, scan)
    assert (moved[..., 2] == 0).all()
    for window in range(3):
        for k in range(5):
            alone = turn.moved(scan[window : window + 1, ..., k : k + 1])
            torch.testing.assert_close(moved[window : window + 1, ..., k : k + 1], alone)


def test_values_stay_between_the_lowest_and_the_highest_and_nothing_comes_in_from_outside() -> None:
    moved = moving(3, shift=0.3)({"image": torch.ones(1, SIDE, SIDE, 2)})["image"]
    assert moved.min() == 0
    assert moved.max() == pytest.approx(1)


def test_without_ranges_a_scan_stays_as_it_is() -> None:
    scan = torch.rand(3, SIDE, SIDE, 4)
    torch.testing.assert_close(moving()({"image": scan})["image"], scan)


def test_without_luck_a_scan_stays_as_it_is() -> None:
    scan = torch.rand(3, SIDE, SIDE, 4)
    assert moving(degrees=20, prob=0.0)({"image": scan})["image"] is scan


def test_a_turn_keeps_the_distance_from_the_centre() -> None:
    turn, start = moving(degrees=15), np.array([0.0, 9.0])
    angles = []
    for _ in range(30):
        row, column = place(turn({"image": blob(*(start + CENTRE))})["image"])
        assert math.hypot(row, column) == pytest.approx(9, abs=0.05)
        angles.append(math.degrees(math.atan2(row, column)))
    assert max(np.abs(angles)) <= 15.5
    assert min(angles) < -5 < 5 < max(angles)


def test_a_shift_is_a_share_of_the_side_in_both_directions() -> None:
    shift = moving(shift=0.2)
    moves = np.array([place(shift({"image": blob(CENTRE, CENTRE)})["image"]) for _ in range(30)])
    assert np.abs(moves).max() <= 0.2 * SIDE + 0.05
    assert (moves.min(axis=0) < -0.1 * SIDE).all()
    assert (moves.max(axis=0) > 0.1 * SIDE).all()


def test_a_zoom_is_the_same_for_rows_and_columns() -> None:
    zoom, start = moving(zoom=0.25), np.array([-5.0, 7.0])
    times = np.array([place(zoom({"image": blob(*(start + CENTRE))})["image"]) / start for _ in range(30)])
    assert times[:, 0] == pytest.approx(times[:, 1], abs=0.01)
    assert times.min() >= 0.74
    assert times.max() <= 1.26
    assert times.min() < 0.9 < 1.1 < times.max()


# chance


@pytest.mark.parametrize("workers", [0, 2])
def test_a_seed_gives_the_same_epochs_and_no_epoch_is_like_another(workers: int) -> None:
    def epochs() -> list[torch.Tensor]:
        set_determinism(seed=7)
        augmented = Compose([RandSliceDropd(0.4, 1), RandSliceAffined("image", prob=1.0)])
        scan = {**bag_of(20), "image": blob(10, 20).expand(1, SIDE, SIDE, 20)}
        loader = DataLoader(Dataset([scan] * 2, augmented), batch_size=1, num_workers=workers)
        return [batch["image"] for _ in range(2) for batch in loader]

    first, again = epochs(), epochs()
    set_determinism(seed=None)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    different = {(image.shape[-1], float(image[0, 0, ..., 0].sum()), float(image[0, 0, 12, 14, 0])) for image in first}
    assert len(different) == 4  # two scans in two epochs
