# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Bags on their way to the network: held in memory while a training lasts, if all fit, and put into batches."""

import logging
import os
import random
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from monai.data import Dataset, MetaTensor, PersistentDataset
from monai.engines import PrepareBatch, default_prepare_batch
from monai.transforms import Transform
from monai.transforms.traits import RandomizableTrait
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader, default_collate
from tqdm import tqdm

from scripts.core.cli import PROGRESS_AFTER_S
from scripts.core.errors import InputError
from scripts.networks.graph import require_coords
from scripts.networks.mil import of_padded

SHARE = 0.5  # of the free memory, for bags
TELLING = 8  # bags from whose size that of all is estimated
CONTROL_GROUP = Path("/sys/fs/cgroup")  # of a container, as it sees itself
RUNS_AT_A_TIME = "RUNS_AT_A_TIME"  # a variable of the environment, by which a study tells its runs to share the memory

logger = logging.getLogger(__name__)


class BagDataset(PersistentDataset):
    """A PersistentDataset that can hold its bags in memory, as the first random transform finds them.

    With a `cache_dir` it holds none: they lie there. What is drawn for a bag depends on the seed of the epoch and the
    index of the bag alone, be it in this process, in a worker of the data loader, or in one that persists.
    """

    held: list[dict[Hashable, Any]] | None = None

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._seed = torch.tensor(-1).share_memory_()  # of the epoch, for workers that persist; -1 = none

    @property
    def draws(self) -> bool:
        """Whether a bag is not the same in every epoch."""
        chance = self.transform.get_index_of_first(
            lambda step: isinstance(step, RandomizableTrait) or not isinstance(step, Transform)
        )
        return chance is not None

    def seed_draws(self, seed: int) -> None:
        """Give the seed of an epoch, before its first bag is asked for."""
        self._seed.fill_(seed)

    def _transform(self, index: int) -> Any:
        bag = self._cachecheck(self.data[index]) if self.held is None else self._copied(self.held[index])
        if not self.draws or self._seed < 0:
            return self._post_transform(bag)
        with _seeded([int(self._seed), index % len(self.data)]) as seed:
            self.transform.set_random_state(seed)
            return self._post_transform(bag)

    def _copied(self, bag: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        if not self.draws:
            return dict(bag)
        # a random transform may write into what it is given; deepcopy of a tensor is far slower than clone
        return {key: value.clone() if isinstance(value, Tensor) else deepcopy(value) for key, value in bag.items()}

    def hold(self, what: str, num_workers: int = 0) -> None:
        """Read all bags and keep them, if they take no more than half of the free memory; else keep none.

        Args:
            what: the bags are called in the log.
            num_workers: processes that read them.
        """
        if self.held is not None or self.cache_dir is not None or not self.data:
            return
        sharing = dist.get_world_size() if dist.is_initialized() else 1
        room = SHARE * free_memory() / sharing / int(os.environ.get(RUNS_AT_A_TIME, 1))
        # a generator of its own, or the training would draw other numbers
        read = DataLoader(
            Dataset(self.data, self._cachecheck), batch_size=None, num_workers=num_workers, generator=torch.Generator()
        )
        held: list[dict[Hashable, Any]] = []
        size = 0
        for bag in tqdm(read, desc=f"{what} bags", unit="bag", delay=PROGRESS_AFTER_S):
            held.append(deepcopy(bag))  # out of the memory that processes share
            size += sum(value.nbytes for value in bag.values() if isinstance(value, Tensor))
            expected = size * max(1, len(self.data) / max(len(held), TELLING))
            if expected > room:
                logger.info(
                    "the %d %s bags are read in every epoch: %.3g GB are over half of the free memory; --cache_dir "
                    "keeps them prepared on a disk", len(self.data), what, expected / 1e9
                )  # fmt: skip
                return
        self.held = held
        logger.info("the %d %s bags are held in memory: %.3g GB", len(held), what, size / 1e9)


@contextmanager
def _seeded(origin: Sequence[int]) -> Iterator[int]:
    """Seed for a while the generators of Python, numpy and the CPU, from which a user's own transform may draw."""
    seed = int(np.random.SeedSequence(origin).generate_state(1)[0])
    before = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPU, on which dropout draws
        try:
            yield seed
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])  # noqa: NPY002


class HoldBags:
    """An ignite handler of the trainer that has bags held in memory when a training begins.

    Workers of the loaders that persist end with the training.

    Args:
        loaders: name of the bags → the loader of their `BagDataset`.
    """

    def __init__(self, loaders: Mapping[str, DataLoader]) -> None:
        self.loaders = loaders

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.hold)
        engine.add_event_handler(Events.COMPLETED, self.end_workers)

    def hold(self) -> None:
        for what, loader in self.loaders.items():
            dataset: Any = loader.dataset
            dataset.hold(what, loader.num_workers)
            if dataset.held is not None and not dataset.draws:
                loader.num_workers = 0  # a process has nothing left to do but to copy

    def end_workers(self) -> None:
        for loader in self.loaders.values():
            loader._iterator = None  # the last that refers to workers that wait for another epoch


class PrepareBags(PrepareBatch):
    """A batch whose image and label go to the device, while coords and mask stay where the network can ask them.

    Where no bag is padded there is no mask.
    """

    def __call__(
        self, batchdata: Mapping[str, Any], device: Any = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None, tuple[()], dict[str, Tensor]]:
        image, label = default_prepare_batch(dict(batchdata), device, non_blocking, **kwargs)
        mask = of_padded(batchdata["mask"])
        require_coords(batchdata["coords"], mask)  # which DDP moves to a GPU before the network can ask
        return image, label, (), {"coords": batchdata["coords"], **({} if mask is None else {"mask": mask})}


def free_memory() -> int:
    """Return the bytes that are free on this computer, or that a container leaves."""
    try:
        (kilobytes,) = re.findall(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
        free = 1024 * int(kilobytes)
    except (OSError, ValueError):  # no Linux
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for limit, used in (
        ("memory.max", "memory.current"),  # version 2
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),  # version 1
    ):
        path = CONTROL_GROUP / limit
        if path.is_file() and (allowed := path.read_text().strip()).isdigit():
            free = min(free, max(0, int(allowed) - _in_use(CONTROL_GROUP / used)))
    return free


def _in_use(used: Path) -> int:
    """The bytes that all processes of a container have, without the copies of files that it gives up when asked."""
    files = re.findall(r"^(?:total_)?inactive_file (\d+)$", used.with_name("memory.stat").read_text(), re.MULTILINE)
    return int(used.read_text()) - max(map(int, files), default=0)


def collate_bags(bags: Sequence[Mapping[Hashable, Any]]) -> dict[Hashable, Any]:
    """Return a batch in plain tensors; several bags are padded behind their last instance, one alone is not copied.

    The mask becomes 0 where a bag is padded.
    """
    if len(bags) == 1:
        return one_bag(bags)
    return {key: _in_a_batch([bag[key] for bag in bags]) for key in bags[0]}


def _in_a_batch(values: list[Any]) -> Any:
    if not isinstance(values[0], Tensor) or values[0].ndim < 2:  # it has no instances
        return default_collate(values)
    longest = max(value.shape[-1] for value in values)
    return torch.stack([pad(_plain(value), (0, longest - value.shape[-1])) for value in values])


def one_bag(bags: Sequence[Mapping[Hashable, Any]]) -> dict[Hashable, Any]:
    """Return a batch of a single bag, whose features stay where they are."""
    if len(bags) != 1:
        raise InputError(f"{len(bags)} bags in a batch of bags that are read in blocks: set the batch size to 1")

    def in_a_batch(value: Any) -> Any:  # as PyTorch collates: of a list each member
        if isinstance(value, Tensor):
            return _plain(value)[None]
        return [[member] for member in value] if isinstance(value, list) else [value]

    return {key: in_a_batch(value) for key, value in bags[0].items()}


def _plain(value: Tensor) -> Tensor:
    """Without the metadata that MONAI's transforms attach, which each operation would carry along."""
    return value.as_tensor() if isinstance(value, MetaTensor) else value
