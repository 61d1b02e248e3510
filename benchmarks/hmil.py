# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""HMIL against a flat classifier on synthetic slides: `python -m benchmarks.hmil`, some minutes on two cores.

The flat classifier is the same network from the same weights, trained by the cross-entropy of the fine label alone.
All see the same bags in the same order, one at a time, for the same epochs; the network of the last epoch is tested.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from scripts.core.files import write_whole
from scripts.losses import HierarchicalLoss
from scripts.networks.hmil import HMIL, membership

RESULTS = Path(__file__).parent / "results" / "hmil.json"
HIERARCHY = {"benign": ["N", "PB", "UDH"], "atypical": ["FEA", "ADH"], "malignant": ["DCIS", "IC"]}  # as in BRACS
FLAT = "flat"
WAYS: dict[str, dict[str, Any]] = {
    FLAT: {"parts": []},
    "HMIL": {},
    "HMIL without L_scl": {"parts": ["CE_coarse", "L_ia", "L_ba"]},
    "HMIL with β = 0.5 throughout": {"beta": 0.5},
    "L_scl alone with β = 0.5 throughout": {"parts": ["L_scl"], "beta": 0.5},
}
# The flat classifier alone set how hard the task is, on seeds 100 and 101; seeds 0 to 29 led to the choice of the last
# two ways. These seeds had not been looked at before.
SEEDS = range(30, 50)


class Task(NamedTuple):
    """A bag is mostly background; some instances are its class: a coarse prototype, a fine offset, and noise."""

    features: int = 64
    bags_per_class: int = 10  # to train on
    test_bags_per_class: int = 40
    instances: tuple[int, int] = (30, 60)
    share: float = 0.15  # of the instances that show the class
    backgrounds: int = 5  # kinds of background
    coarse_distance: float = 3.0  # length of a coarse prototype, in standard deviations of the noise
    fine_distance: float = 1.5  # length of a fine offset


class Training(NamedTuple):
    epochs: int = 50
    learning_rate: float = 3e-4
    embed_features: int = 32
    hidden_features: int = 32


Bag = tuple[Tensor, int]  # features [1, D, N] and the number of the fine class


def make_bags(task: Task, seed: int) -> tuple[list[Bag], list[Bag]]:
    """To train on and to test on, of one world: the prototypes differ from seed to seed."""
    generator = torch.Generator().manual_seed(seed)
    parent = membership(HIERARCHY).argmax(dim=0)

    def directions(count: int, length: float) -> Tensor:
        return length * torch.nn.functional.normalize(torch.randn(count, task.features, generator=generator), dim=1)

    coarse = directions(len(HIERARCHY), task.coarse_distance)
    fine = coarse[parent] + directions(len(parent), task.fine_distance)  # [F, D]
    background = directions(task.backgrounds, task.coarse_distance)

    def bag(label: int) -> Bag:
        n = int(torch.randint(task.instances[0], task.instances[1] + 1, (), generator=generator))
        kind = torch.randint(task.backgrounds, (n,), generator=generator)
        witnesses = max(1, round(task.share * n))
        prototype = torch.cat([fine[label].expand(witnesses, -1), background[kind[witnesses:]]])  # [N, D]
        return (prototype + torch.randn(n, task.features, generator=generator)).t()[None], label

    def bags(per_class: int) -> list[Bag]:
        return [bag(label) for label in range(len(parent)) for _ in range(per_class)]

    return bags(task.bags_per_class), bags(task.test_bags_per_class)


def train(way: Mapping[str, Any], bags: Sequence[Bag], task: Task, training: Training, seed: int) -> HMIL:
    torch.manual_seed(seed)  # the same weights and the same order of bags whichever way
    network = HMIL(task.features, HIERARCHY, training.embed_features, training.hidden_features).train()
    loss = HierarchicalLoss(HIERARCHY, **way)
    adam = torch.optim.Adam(network.parameters(), training.learning_rate)
    shuffle = torch.Generator().manual_seed(seed)
    for epoch in range(training.epochs):
        loss.progress = epoch / training.epochs
        for place in torch.randperm(len(bags), generator=shuffle).tolist():
            image, label = bags[place]
            adam.zero_grad()
            loss(network(image), torch.tensor([label])).backward()
            adam.step()
    return network.eval()


@torch.no_grad()
def accuracy(network: HMIL, bags: Sequence[Bag]) -> tuple[float, float]:
    """Of the fine class, and of the coarse class that it belongs to."""
    parent = membership(HIERARCHY).argmax(dim=0)
    predicted = torch.tensor([int(network(image).argmax()) for image, _ in bags])
    label = torch.tensor([label for _, label in bags])
    return float((predicted == label).float().mean()), float((parent[predicted] == parent[label]).float().mean())


def paired_difference(a: Sequence[float], b: Sequence[float]) -> dict[str, float]:
    """Mean of a - b over the seeds, with its 95 % interval by Student's t."""
    difference = np.subtract(a, b)
    half = float(stats.t.ppf(0.975, len(difference) - 1) * stats.sem(difference))
    mean = float(difference.mean())
    return {"mean": mean, "low": mean - half, "high": mean + half}


def run_seed(seed: int, task: Task, training: Training) -> dict[str, tuple[float, float]]:
    """Fine and coarse accuracy of each way."""
    to_train, to_test = make_bags(task, seed)
    found = {}
    for name, way in WAYS.items():
        started = time.perf_counter()
        found[name] = fine, coarse = accuracy(train(way, to_train, task, training, seed), to_test)
        took = time.perf_counter() - started
        print(f"seed {seed:3}  {name:36} fine {fine:.3f}  coarse {coarse:.3f}  {took:.0f} s", flush=True)
    return found


def compare(
    seeds: Sequence[int], task: Task, training: Training, run_all: Callable[..., Iterable[Any]] = map
) -> dict[str, Any]:
    found = list(run_all(partial(run_seed, task=task, training=training), seeds))
    fine = {name: [of_seed[name][0] for of_seed in found] for name in WAYS}
    return {
        "hierarchy": HIERARCHY,
        "seeds": list(seeds),
        "task": task._asdict(),
        "training": {**training._asdict(), "bags_per_step": 1, "optimizer": "Adam"},
        "fine_accuracy": fine,
        "coarse_accuracy": {name: [of_seed[name][1] for of_seed in found] for name in WAYS},
        "fine_accuracy_minus_flat": {
            name: paired_difference(values, fine[FLAT]) for name, values in fine.items() if name != FLAT
        },
    }


def table(found: Mapping[str, Any]) -> str:
    lines = ["| trained as | fine accuracy | coarse accuracy | fine minus flat [95 % interval] |", "|---|---|---|---|"]
    for name, fine in found["fine_accuracy"].items():
        d = found["fine_accuracy_minus_flat"].get(name)
        difference = f"{d['mean']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}]" if d else ""
        lines.append(f"| {name} | {np.mean(fine):.3f} | {np.mean(found['coarse_accuracy'][name]):.3f} | {difference} |")
    return "\n".join(lines)


def rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner) for inner in value]
    return round(value, 4) if isinstance(value, float) else value


def main() -> None:
    # so small a network runs no faster on two threads, but two of them at a time do
    with ProcessPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        found = compare(SEEDS, Task(), Training(), pool.map)
    write_whole(RESULTS, json.dumps(rounded(found), indent=4, sort_keys=True, ensure_ascii=False) + "\n")
    print(f"\n{table(found)}\n\n{RESULTS.name} is written")


if __name__ == "__main__":
    main()
