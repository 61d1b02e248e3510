# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The experiments of Ilse et al. (2018): the classical sets of small bags, and bags of handwritten digits."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.model_selection import StratifiedKFold
from torch import Tensor, nn

from benchmarks.ledger import data
from benchmarks.ledger.answers import Arrays, answers
from benchmarks.ledger.learning import Bags, System, fit, padded, parts_of

FOLDS = 10
DIGITS = {10: 2, 50: 10, 100: 20}  # mean size of a bag → its deviation
MNIST_BAGS = {"training": 200, "validation": 50, "test": 500}
NINE, VALIDATED_FROM = 9, 50_000  # the digit asked for; training digits that choose an epoch


class PerInstance(nn.Module):
    """An encoder of a paper that no bundle has: any network of one instance, for each of a bag."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, mask: Tensor | None) -> Tensor:
        """Return features [B, D, N] of image [B, ..., N]; padding gets 0."""
        real = image.new_ones(len(image), image.shape[-1]) > 0 if mask is None else mask[:, 0] > 0.5  # [B, N]
        rows = self.network(image.movedim(-1, 1)[real])  # [R, D]
        features = rows.new_zeros(*real.shape, rows.shape[1])
        features[real] = rows
        return features.transpose(1, 2)  # [B, D, N]


def classical(
    wing: str,
    files: Sequence[str],
    keys: dict[str, Any],
    config: str,
    data_sha256: str,
    name: str,
    repeat: int,
    fold: int,
) -> Arrays:
    """One fold of a classical set: the network of the lowest training loss, as no bag is spared to choose one."""
    bags = classical_bags(name)
    truth = bags.label[:, 0].numpy()
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=repeat).split(truth, truth)
    training, held_out = list(folds)[fold]
    made = parts_of(System(wing, tuple(files), keys), seed=FOLDS * repeat + fold)
    own = bags.chosen(training)
    network, course = fit(made, own, own, seed=FOLDS * repeat + fold)
    logit = answers(network, bags.chosen(held_out))["logit"]
    return {"course": np.array(course), "held_out": held_out, "logit": logit, "label": truth[held_out]}


def classical_bags(name: str) -> Bags:
    """Return the bags of a set, its features z-scored."""
    with np.load(set_path(name)) as file:
        x, bag, label, ids = (file[part] for part in ("X", "bag", "y_bag", "bag_ids"))
    return padded([x[bag == own] for own in ids], (label > 0).astype(int).tolist())


def set_path(name: str) -> Path:
    return data.file(f"mil_benchmarks/{name}.npz")


def mnist_path() -> Path:
    return data.file("mnist/mnist.npz")


def digits(
    wing: str, files: Sequence[str], keys: dict[str, Any], config: str, data_sha256: str, size: int, seed: int
) -> Arrays:
    """Bags of digits: is there a nine? The answers to bags of digits that nobody trained on."""
    drawn = {name: digit_bags(name, size, seed) for name in MNIST_BAGS}
    made = parts_of(System(wing, tuple(files), keys), seed)
    network, course = fit(made, drawn["training"][0], drawn["validation"][0], seed)
    asked, nines = drawn["test"]
    parts = [answers(network, asked.chosen(some)) for some in np.array_split(np.arange(len(asked.label)), 25)]
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    counts = asked.mask.sum(dim=2).flatten().int().numpy()
    return {**found, "course": np.array(course), "nines": np.concatenate(nines), "counts": counts}


def digit_bags(part: str, size: int, seed: int) -> tuple[Bags, list[np.ndarray]]:
    """Draw bags of a normally distributed size, every other of which has a nine or more, and where they are."""
    which = "test" if part == "test" else "train"
    with np.load(mnist_path()) as file:
        image, digit = file[f"x_{which}"], file[f"y_{which}"]
    rng = np.random.default_rng([size, seed, list(MNIST_BAGS).index(part)])
    own = {"training": slice(VALIDATED_FROM), "validation": slice(VALIDATED_FROM, None), "test": slice(None)}[part]
    image, digit = image[own], digit[own]
    others = np.flatnonzero(digit != NINE)
    bags, nines = [], []
    for number in range(MNIST_BAGS[part]):
        count = max(2, round(rng.normal(size, DIGITS[size])))
        rows = rng.choice(others, count)
        if number % 2:
            rows = rng.integers(len(digit), size=count)
            rows[0] = rng.choice(np.flatnonzero(digit == NINE))  # at least one; the order means nothing
        bags.append(image[rows][:, None].astype(np.float32) / 255)  # [N, 1, 28, 28]
        nines.append((digit[rows] == NINE).astype(int))
    labels = [number % 2 for number in range(len(bags))]
    return padded(bags, labels), nines
