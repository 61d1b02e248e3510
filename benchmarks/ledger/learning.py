# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Training of a bundle's own network with its own loss, from its own JSON, on bags that lie in memory as one tensor.

The commands of the bundles train the same networks; they read a file per bag and keep a record of each epoch, which
for a thousand trainings of small bags would take days. Nothing is augmented here: it is a training with slice_drop 0.
"""

import copy
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.utils import set_determinism
from torch import Tensor, nn

CONFIGS = Path(__file__).parents[2] / "configs"


class Bags(NamedTuple):
    """Bags padded to the longest."""

    image: Tensor  # [B, ..., N]
    coords: Tensor  # [B, 1 or 2, N]
    mask: Tensor  # [B, 1, N]
    label: Tensor  # [B, 1]

    def chosen(self, which: np.ndarray) -> "Bags":
        """Those bags alone, as long as the longest of them."""
        own = Bags(*(part[torch.from_numpy(which)] for part in self))
        longest = int(own.mask.sum(dim=2).max())
        return Bags(own.image[..., :longest], own.coords[..., :longest], own.mask[..., :longest], own.label)


def padded(instances: Sequence[np.ndarray], labels: Sequence[int], coords: np.ndarray | None = None) -> Bags:
    """Pad bags of instances [N_i, ...]; coords [1 or 2, N] are the same in all, by default a chain."""
    longest = max(map(len, instances))
    image = torch.zeros(len(instances), *instances[0].shape[1:], longest)
    mask = torch.zeros(len(instances), 1, longest)
    for bag, rows in enumerate(instances):
        image[bag, ..., : len(rows)] = torch.from_numpy(rows).movedim(0, -1)
        mask[bag, :, : len(rows)] = 1
    of_all = torch.arange(longest, dtype=torch.float)[None] if coords is None else torch.from_numpy(coords)
    return Bags(image, of_all.expand(len(instances), -1, -1), mask, torch.tensor(labels, dtype=torch.float)[:, None])


class System(NamedTuple):
    """What is trained: a row of a table, as configs and keys of the command line."""

    wing: str  # ct or wsi
    files: tuple[str, ...]  # behind train.json
    keys: Mapping[str, Any]

    def parser(self) -> ConfigParser:
        """Return the config that the command would run."""
        parser = ConfigParser()
        parser.read_config([str(CONFIGS / self.wing / name) for name in ("train.json", *self.files)])
        parser.update(copy.deepcopy(dict(self.keys)))  # which it changes
        return parser


class Parts(NamedTuple):
    """A system as its configs make it."""

    network: nn.Module
    loss: nn.Module
    optimizer: torch.optim.Optimizer
    batch_size: int
    epochs: int


def parts_of(system: System, seed: int) -> Parts:
    """Make the network with the numbers of this seed, its loss and its optimizer."""
    parser = system.parser()
    parser.update({"device": torch.device("cpu")})
    set_determinism(seed)
    made = [parser.get_parsed_content(name) for name in ("network", "loss", "optimizer", "batch_size", "max_epochs")]
    return Parts(*made)


def fingerprint(system: System, also: Sequence[str] = ()) -> str:
    """Return a short text that changes with whatever a training here takes from the configs, and `also` these keys."""
    config: Any = system.parser().config
    taken = dict[str, Any]()
    wanted = ["network_def", "loss", "optimizer", "batch_size", "max_epochs", *also]
    while wanted:
        name = wanted.pop()
        if name not in taken and name in config:
            taken[name] = config[name]
            wanted += re.findall(r"@(\w+)", json.dumps(config[name]))
    return hashlib.sha256(json.dumps(taken, sort_keys=True).encode()).hexdigest()[:16]


def options_of(system: System, also: Sequence[str] = ()) -> dict[str, Any]:
    """Return what an experiment is given of a system."""
    return {"wing": system.wing, "files": system.files, "keys": system.keys, "config": fingerprint(system, also)}


def fit(
    parts: Parts, training: Bags, validation: Bags, seed: int, watch: Callable[[nn.Module], None] | None = None
) -> tuple[nn.Module, list[float]]:
    """Train, and return the network of the lowest validation cross-entropy with that of every epoch.

    `watch` is shown the network of every epoch.
    """
    network, course, best = parts.network, list[float](), copy.deepcopy(parts.network.state_dict())
    order = np.random.default_rng(seed)
    for _ in range(parts.epochs):
        network.train()
        for which in batches(order.permutation(len(training.label)), parts.batch_size):
            bags = training.chosen(which)
            parts.optimizer.zero_grad()
            loss = parts.loss(network(bags.image, bags.coords, bags.mask), bags.label)
            loss.backward()
            parts.optimizer.step()
        course.append(validation_loss(network, validation))
        if not math.isfinite(course[-1]):
            raise FloatingPointError(f"the validation loss of epoch {len(course)} is {course[-1]}")
        if watch is not None:
            watch(network)
        if course[-1] == min(course):
            best = copy.deepcopy(network.state_dict())
    network.load_state_dict(best)
    return network.eval(), course


def batches(order: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Yield `size` numbers at a time, the rest at the end."""
    return (order[first : first + size] for first in range(0, len(order), size))


@torch.no_grad()
def validation_loss(network: nn.Module, bags: Bags) -> float:
    """The cross-entropy of the bags' labels."""
    logits = network.eval()(bags.image, bags.coords, bags.mask)
    return float(nn.functional.binary_cross_entropy_with_logits(logits, bags.label))
