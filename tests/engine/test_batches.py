# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Bags are the same held or read anew, and batches the same as MONAI pads and collates them."""

import logging
import random
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import DataLoader, MetaTensor, PersistentDataset, list_data_collate
from monai.data.utils import set_rnd
from monai.transforms import Compose, Lambdad, MapTransform, RandFlipd, RandLambdad
from monai.transforms.croppad.batch import PadListDataCollate
from torch import Tensor

from scripts.core.errors import InputError
from scripts.engine import batches
from scripts.engine.batches import BagDataset, HoldBags, PrepareBags, collate_bags, free_memory, one_bag


class Loadd(MapTransform):
    """The bag of a .npy file, its features one behind the other in memory as readers give them."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        features = torch.from_numpy(np.load(data["image"]))
        return {**data, "image": features.t(), "mask": torch.ones(1, len(features))}


def spoil(image: Tensor) -> Tensor:
    """A transform that writes into what it is given."""
    return image.add_(float(np.random.default_rng(len(image)).random()))


def chance() -> list[Any]:
    return [RandFlipd("image", 0.5, 0), RandLambdad("image", spoil, prob=0.5)]


@pytest.fixture
def files(tmp_path: Path) -> list[dict[str, Any]]:
    """Six bags of 3 to 8 instances with 4 features."""
    rng = np.random.default_rng(0)
    for k in range(6):
        np.save(tmp_path / f"{k}.npy", rng.normal(size=(3 + k, 4)).astype(np.float32))
    return [{"image": str(tmp_path / f"{k}.npy"), "bag_id": str(k), "label": torch.tensor([k % 2.0])} for k in range(6)]


def epochs(dataset: PersistentDataset, workers: int = 0, collate: Any = collate_bags, held: bool = False) -> list[Any]:
    """The batches of two epochs."""
    loader = DataLoader(dataset, batch_size=2, shuffle=True, num_workers=workers, collate_fn=collate)
    if held:
        HoldBags({"training": loader}).hold()
    torch.manual_seed(3)
    set_rnd(dataset, 3)
    return [batch for _ in range(2) for batch in loader]


def require_same(one: list[Any], other: list[Any]) -> None:
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for key, value in a.items():
            if isinstance(value, Tensor):
                assert torch.equal(torch.as_tensor(value), torch.as_tensor(b[key])), key
                assert (value.dtype, value.stride()) == (b[key].dtype, b[key].stride()), key
            else:
                assert value == b[key], key


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("chances", [chance(), []])
def test_held_bags_make_the_batches_of_bags_that_are_read_and_are_read_once(
    files: list[dict[str, Any]], chances: list[Any], workers: int
) -> None:
    steps = Compose([Loadd("image"), *chances])
    before = epochs(PersistentDataset(files, steps, None), workers, PadListDataCollate(method="end"))
    held = BagDataset(files, steps, None)
    require_same(epochs(held, workers, held=True), before)
    for bag in files:
        Path(bag["image"]).unlink()
    require_same(epochs(held, workers, held=True), before)


def drawn_anywhere(image: Tensor) -> Tensor:
    """What draws from every global generator, as a transform of somebody else may."""
    return image + random.random() + float(np.random.rand()) + torch.rand(1)  # noqa: NPY002


def test_a_bag_draws_by_the_seed_of_the_epoch_and_its_index_and_leaves_the_generators_as_they_were(
    files: list[dict[str, Any]], tmp_path: Path
) -> None:
    steps = Compose([Loadd("image"), *chance(), Lambdad("image", drawn_anywhere)])
    read, held, kept = (BagDataset(files, steps, folder) for folder in (None, None, tmp_path / "cache"))
    held.hold("training")
    by_seed = []
    for seed in (5, 2**32 - 1):
        for dataset in (read, held, kept):
            dataset.seed_draws(seed)
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)
        wanted = random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)
        drawn = [read[k]["image"] for k in range(6)]
        assert (random.random(), np.random.rand(), torch.rand(1)) == wanted  # noqa: NPY002
        for dataset in (held, kept, kept):  # of the last first as it is read, and then as it was kept
            for k in (3, 0, 5, 1, 4, 2, -1):
                assert torch.equal(torch.as_tensor(dataset[k]["image"]), drawn[k]), k
        plain = [np.load(file["image"]).T for file in files]
        by_seed += [float((image.sum() - float(one.sum())) / one.size) for image, one in zip(drawn, plain, strict=True)]
    assert len({round(each, 4) for each in by_seed}) == 12


def test_processes_are_kept_for_augmentation_alone(files: list[dict[str, Any]]) -> None:
    left = []
    for steps in (chance(), []):
        dataset = BagDataset(files, Compose([Loadd("image"), *steps]), None)
        loader = DataLoader(dataset, batch_size=1, num_workers=1, persistent_workers=True, collate_fn=collate_bags)
        HoldBags({"training": loader}).hold()
        left.append(loader.num_workers)
    assert left == [1, 0]
    assert [batch["bag_id"] for _ in range(2) for batch in loader] == [[str(k)] for k in range(6)] * 2


def test_all_bags_are_held_or_none_and_the_log_says_which(
    files: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.INFO)
    whole = sum(4 * (4 * n + n) for n in range(3, 9)) + 6 * 4  # bytes of images, masks and labels
    monkeypatch.setattr(batches, "free_memory", lambda: 2 * whole)
    fits = BagDataset(files, Loadd("image"), None)
    fits.hold("training")
    assert [len(bag["mask"][0]) for bag in fits.held or []] == [3, 4, 5, 6, 7, 8]
    assert "the 6 training bags are held in memory: 6.84e-07 GB" in caplog.text
    monkeypatch.setattr(batches, "free_memory", lambda: 2 * whole - 2)
    too_large = BagDataset(files, Loadd("image"), None)
    too_large.hold("validation")
    assert too_large.held is None
    assert "the 6 validation bags are read in every epoch: 6.84e-07 GB are over half of the free memory" in caplog.text
    many = BagDataset(1000 * files, Loadd("image"), None)
    missing = BagDataset([*files[:1], *999 * [{"image": "never read"}]], Loadd("image"), None)
    for each in (many, missing):  # told by the first of them
        each.hold("training")
        assert each.held is None
    on_disk = BagDataset(files, Loadd("image"), tmp_path / "cache")
    on_disk.hold("training")
    assert on_disk.held is None


def test_runs_of_a_study_share_the_memory(files: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sum(4 * (4 * n + n) for n in range(3, 9)) + 6 * 4
    monkeypatch.setattr(batches, "free_memory", lambda: 6 * whole - 2)  # room for two that have half of it
    for runs, held in ((1, True), (2, True), (3, False)):
        monkeypatch.setenv(batches.RUNS_AT_A_TIME, str(runs))
        bags = BagDataset(files, Loadd("image"), None)
        bags.hold("training")
        assert (bags.held is not None) == held


@pytest.mark.parametrize(
    ("limit", "used", "files"),
    [
        ("memory.max", "memory.current", "active_file 9\ninactive_file 400\n"),
        (
            *("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
            "inactive_file 1\ntotal_inactive_file 400\ntotal_active_file 9\n",
        ),
    ],
)
def test_free_memory_is_what_all_processes_of_a_container_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, used: str, files: str
) -> None:
    monkeypatch.setattr(batches, "CONTROL_GROUP", tmp_path)
    of_computer = free_memory()
    assert of_computer > 1e6
    (tmp_path / "memory").mkdir()
    (tmp_path / limit).write_text("max\n")
    assert free_memory() == pytest.approx(of_computer, rel=0.2)
    (tmp_path / limit).write_text("10000\n")
    (tmp_path / used).write_text("7000\n")
    (tmp_path / used).with_name("memory.stat").write_text(files)
    assert free_memory() == 3400  # files that were read go when the memory is wanted
    (tmp_path / used).write_text("20000\n")
    assert free_memory() == 0


def test_bags_are_padded_and_collated_as_monai_does_it_and_left_as_they_were() -> None:
    made = torch.Generator().manual_seed(0)
    for sizes in ((5, 7, 2), (4, 4)):
        bags: list[dict[Hashable, Any]] = [
            {
                "image": torch.randn(n, 3, generator=made).t(),
                "scan": MetaTensor(torch.randn(2, 3, 4, n, generator=made)),
                "stored_coords": torch.randn(3, n, generator=made, dtype=torch.float64),
                "lesion": torch.arange(n)[None],
                "label": torch.tensor([1.0]),
                "patch_um": 0.5,
                "bag_id": str(n),
                "annotation": ["a", "b"],
            }
            for n in sizes
        ]
        batch = collate_bags(bags)
        assert [bag["image"].shape[1] for bag in bags] == list(sizes)
        assert type(batch["scan"]) is Tensor
        require_same([batch], [PadListDataCollate(method="end")([dict(bag) for bag in bags])])
    of_two: list[dict[Hashable, Any]] = [{"image": torch.ones(n, 4), "bag_id": str(n)} for n in (3, 5)]
    with pytest.raises(RuntimeError, match="stack expects each tensor to be equal size"):  # of another encoder
        collate_bags(of_two)


def test_a_bag_alone_is_not_copied_and_alone_is_read_in_blocks() -> None:
    bag: dict[Hashable, Any] = {"image": torch.rand(4, 3), "bag_id": "a", "annotation": ["a", "b"]}
    batch = collate_bags([bag])
    assert batch["image"].data_ptr() == bag["image"].data_ptr()
    assert (batch["image"].shape, batch["bag_id"], batch["annotation"]) == ((1, 4, 3), ["a"], [["a"], ["b"]])
    as_monai = list_data_collate([dict(bag)])
    assert torch.equal(batch["image"], as_monai["image"])
    assert batch["bag_id"] == as_monai["bag_id"]
    with pytest.raises(InputError, match="2 bags in a batch of bags that are read in blocks"):
        one_bag([bag, bag])


def test_what_a_network_asks_of_a_batch_stays_where_it_is() -> None:
    image, label = torch.rand(2, 3, 4), torch.tensor([[0.0], [1.0]])
    coords, mask = torch.arange(4.0).expand(2, 1, 4), torch.ones(2, 1, 4)
    batch = {"image": image, "label": label, "coords": coords, "mask": mask, "bag_id": ["a", "b"]}
    for of_two, named in ((batch, {"coords": coords}), ({**batch, "mask": mask.tril()}, {"coords", "mask"})):
        on_device, its_label, _, found = PrepareBags()(of_two, "meta", True)
        assert on_device.is_meta
        assert its_label is not None
        assert its_label.is_meta
        assert found.keys() == set(named)
        assert all(found[key] is of_two[key] for key in found)
    assert PrepareBags()({key: batch[key] for key in ("image", "coords", "mask")})[1] is None
