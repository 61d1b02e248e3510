# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Patches drawn of a slide: so many, each as likely, in step with all that is known of them, and with neighbours."""

import json
import logging
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms import Compose
from torch import Tensor

from benchmarks.bags import tissue
from scripts.core.errors import InputError
from scripts.engine.batches import BagDataset
from scripts.networks import MILNetwork, build_graph
from scripts.wsi.sampling import RandPatchesd, most_patches
from tests.bundle.commands import message_of, run_here, write_square_slide
from tests.wsi.foreign_features import load


def bag_of(cells: Tensor) -> dict[Hashable, Any]:
    """A bag whose every number tells which patch it is of. cells: [2, N]."""
    number = torch.arange(cells.shape[1], dtype=torch.float)[None]  # [1, N]
    return {
        "image": number.t().expand(-1, 3).contiguous().t(), "coords": cells.float(), "mask": torch.ones_like(number),
        "stored_coords": number.double().expand(3, -1), "lesion": number.long(), "instance_label": number,
        "label": torch.ones(1), "bag_id": "a", "about": "{}",
    }  # fmt: skip


def drawn(cells: Tensor, patches: int, seed: int = 0) -> dict[Hashable, Any]:
    draw = RandPatchesd(patches)
    draw.set_random_state(seed)
    return draw(bag_of(cells))


def numbers(bag: Mapping[Hashable, Any]) -> list[int]:
    found: list[int] = bag["lesion"][0].tolist()
    return found


@settings(max_examples=80, deadline=None)
@given(
    cells=st.sets(st.tuples(st.integers(-40, 60), st.integers(-40, 60)), min_size=1, max_size=120),
    patches=st.integers(1, 130),
    seed=st.integers(0, 99),
)
def test_so_many_patches_each_once_in_order_and_all_in_step(
    cells: set[tuple[int, int]], patches: int, seed: int
) -> None:
    places = torch.tensor(sorted(cells, key=hash)).t()
    bag, whole = drawn(places, patches, seed), bag_of(places)
    kept = numbers(bag)
    assert len(kept) == min(patches, len(cells))
    assert kept == sorted(set(kept))
    assert bag.keys() == whole.keys()
    for key, value in whole.items():
        if isinstance(value, Tensor):
            assert torch.equal(bag[key], value[..., kept] if key != "label" else value), key
        else:
            assert bag[key] == value
    assert bag["image"].t().is_contiguous()  # as the reader gives it


def test_the_same_state_draws_the_same_and_the_next_draw_another() -> None:
    draw, bag = RandPatchesd(30), bag_of(tissue(200))
    draw.set_random_state(3)
    first, second = numbers(draw(bag)), numbers(draw(bag))
    draw.set_random_state(3)
    assert numbers(draw(bag)) == first != second


@pytest.mark.parametrize("patches", [5, 40, 150])
def test_every_patch_is_as_likely_as_any_other(patches: int) -> None:
    """Also alone far from the others, and at an edge: of the 200 none is off by more than 5 standard errors."""
    cells = torch.cat([tissue(190), 90 + 7 * torch.arange(10).expand(2, -1)], dim=1)
    draw, bag, times = RandPatchesd(patches), bag_of(cells), 4000
    draw.set_random_state(0)
    counts = np.bincount(np.concatenate([numbers(draw(bag)) for _ in range(times)]), minlength=200)
    share = patches / 200
    assert np.abs(counts / times - share).max() < 5 * np.sqrt(share * (1 - share) / times)


@pytest.mark.parametrize("patches", [1000, 5000, 10_000])
def test_patches_keep_their_neighbours_as_single_draws_do_not(patches: int) -> None:
    def degree(cells: Tensor) -> float:
        return build_graph(cells[None].float(), edgeless=True).weights.sum().item() / cells.shape[1]

    whole = tissue(20_000)
    alone = whole[:, torch.randperm(20_000, generator=torch.Generator().manual_seed(0))[:patches]]
    assert degree(alone) / degree(whole) == pytest.approx(patches / 20_000, abs=0.02)
    assert degree(drawn(whole, patches)["coords"]) / degree(whole) > 0.75


def test_slides_of_one_patient_are_drawn_from_alike(tmp_path: Path) -> None:
    rng, paths = np.random.default_rng(0), [tmp_path / "a.h5", tmp_path / "b.h5"]
    for path, side in zip(paths, (12, 24), strict=True):
        write_square_slide(path, rng.normal(size=(side**2, 4)).astype(np.float32))
    whole = load(image=[*map(str, paths)], bag_id="ab")
    draw = RandPatchesd(360)
    draw.set_random_state(1)
    slides = [draw(whole)["stored_coords"][0] for _ in range(200)]
    assert np.mean([(of == 0).sum().item() for of in slides]) == pytest.approx(72, abs=8)  # a fifth of them


def test_how_many_is_the_number_given_or_half_the_median_of_a_batch_of_several(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bags = [{"patches": count} for count in (100, 900, 501)]
    caplog.set_level(logging.INFO)
    for of_user, batch in ((None, 1), ("all", 4), (0, 4), (900, 1)):
        assert most_patches(of_user, bags, batch) is None
    assert not caplog.records
    assert most_patches(None, bags, 2) == 250
    assert most_patches(300, bags) == 300
    assert [record.getMessage() for record in caplog.records] == [
        "of each slide at most 250 patches per step: half the median of the training slides; "
        "--patches_per_step all takes every one",
        "of each slide at most 300 patches per step; --patches_per_step all takes every one",
    ]
    wrong: Any
    for wrong in (-1, 2.5, "half", False, True):
        with pytest.raises(InputError, match=r"--patches_per_step is .*: give how many of a slide at most, or all"):
            most_patches(wrong, bags)
    assert most_patches(None, [{"patches": 1}, {"patches": 2}], 2) == 1  # never an empty bag


def test_what_is_held_of_a_bag_is_whole_and_each_epoch_draws_anew() -> None:
    dataset = BagDataset([bag_of(tissue(60))], Compose([RandPatchesd(20)]), None)
    dataset.hold("training")
    assert dataset.held is not None
    assert dataset.held[0]["mask"].shape[-1] == 60
    first, second = dataset[0], dataset[0]
    assert len(numbers(first)) == len(numbers(second)) == 20
    assert numbers(first) != numbers(second)


SIDES = {"training": (6, 14, 10, 10), "validation": (12, 13)}  # of square slides


@pytest.fixture
def cohort(tmp_path: Path) -> dict[str, Any]:
    """The keys of a training on slides of noise."""
    rng, bags = np.random.default_rng(0), {}
    for section, sides in SIDES.items():
        for number, side in enumerate(sides):
            write_square_slide(tmp_path / f"{section}_{number}.h5", rng.normal(size=(side**2, 8)).astype(np.float32))
        bags[section] = [{"image": f"{section}_{k}.h5", "label": k % 2} for k in range(len(sides))]
    (tmp_path / "datalist.json").write_text(json.dumps(bags))
    out = str(tmp_path / "out")
    return {"dataset_dir": str(tmp_path), "ckpt_dir": out, "output_dir": out, "in_features": 8, "num_workers": 0}


def watch(monkeypatch: pytest.MonkeyPatch, most_bags: int = 99) -> dict[bool, list[int]]:
    """Patches of each bag that the network is given, in training and not; after so many in training it fails."""
    seen: dict[bool, list[int]] = {True: [], False: []}
    predict = MILNetwork.predict

    def watched(self: MILNetwork, image: Tensor, coords: Tensor, mask: Tensor | None = None) -> Any:
        real = torch.ones(len(image), 1, image.shape[2]) if mask is None else mask
        seen[self.training] += real.sum(dim=2).flatten().int().tolist()
        if len(seen[True]) > most_bags:
            raise KeyboardInterrupt
        return predict(self, image, coords, mask)

    monkeypatch.setattr(MILNetwork, "predict", watched)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize(("keys", "most"), [({"batch_size": 2}, 50), ({"patches_per_step": 30}, 30), ({}, 196)])
def test_a_training_draws_of_its_slides_and_the_validation_sees_them_whole(
    cohort: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    keys: dict[str, Any],
    most: int,
) -> None:
    seen = watch(monkeypatch)
    with caplog.at_level(logging.INFO):
        run_here("wsi", ["train"], **cohort, max_epochs=2, **keys)
    assert sorted(seen[True]) == sorted(2 * [min(side**2, most) for side in SIDES["training"]])
    assert sorted(seen[False]) == [144, 144, 169, 169]
    assert (f"at most {most} patches per step" in caplog.text) == bool(keys)


@pytest.mark.slow
def test_an_unfinished_training_goes_on_with_as_many_patches(
    cohort: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        watch(patch, most_bags=5)
        with pytest.raises(KeyboardInterrupt):
            run_here("wsi", ["train"], **cohort, max_epochs=2, patches_per_step=30)
    message = message_of("wsi", ["train"], **cohort, max_epochs=2, patches_per_step=20)
    assert "unfinished.pt is an unfinished training with patches_per_step 30, not 20: give that again" in message
