# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""What a trained network answers: logits of bags, every score of their instances, how faithful and how steady it is."""

from collections import deque
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor, nn

from benchmarks.ledger.learning import Bags
from scripts.metrics.faithfulness import RANDOM, measured
from scripts.networks import SmoothOperator, build_graph

Arrays = dict[str, np.ndarray]
SCORES = ("attention", "evidence", "instance")
SMOOTHED = (0.5, 0.7)  # α of Sm along the graph when a bag is read
LAST_EPOCHS = 5


@torch.no_grad()
def answers(network: nn.Module, bags: Bags) -> Arrays:
    """Return the logits of the bags and, of all their instances in a row, each score that the network has."""
    prediction = network.eval().predict(bags.image, bags.coords, bags.mask)  # type: ignore[operator]
    real = bags.mask[:, 0] > 0.5  # [B, N]
    scores = {
        "attention": prediction.scores,
        "weight": prediction.attention,
        "evidence": prediction.evidence,
        "instance": prediction.instance_logits,
        "leave one out": prediction.leave_one_out,
    }
    of_instances = {name: values[:, 0][real].numpy() for name, values in scores.items() if values is not None}
    return {"logit": prediction.logits[:, 0].numpy(), **of_instances}


def scores_of(answered: Mapping[str, np.ndarray], bags: Bags) -> Arrays:
    """Return the scores that rank instances, the instance logits also smoothed as `score_smoothing` does."""
    found = {name: answered[name] for name in SCORES if name in answered}
    return {**found, **smoothed("instance", found["instance"], bags)} if "instance" in found else found


def smoothed(name: str, values: np.ndarray, bags: Bags, alphas: Sequence[float] = SMOOTHED) -> Arrays:
    """Return the values of instances in a row, smoothed along the neighbours in their bags."""
    real = bags.mask[:, 0] > 0.5  # [B, N]
    padded = torch.zeros(bags.mask.shape)  # [B, 1, N]
    padded[:, 0][real] = torch.from_numpy(values.astype(np.float32))
    graph = build_graph(bags.coords, bags.mask, edgeless=True)
    return {
        f"{name}, Sm {alpha}": SmoothOperator(alpha, mode="exact").evenly(padded, graph)[:, 0][real].numpy()
        for alpha in alphas
    }


def deletions(network: nn.Module, bags: Bags, answered: Mapping[str, np.ndarray]) -> Arrays:
    """Return the deletion AUC of each score, (bags,), the lower the more faithful; NaN of bags called negative."""
    counts = bags.mask.sum(dim=2).flatten().int().tolist()
    scores = scores_of(answered, bags)
    apart = {name: np.split(values, np.cumsum(counts)[:-1]) for name, values in scores.items()}
    found = {name: np.full(len(counts), np.nan) for name in (*scores, RANDOM)}
    for bag in np.flatnonzero(answered["logit"] > 0):
        own = bags.chosen(np.array([bag]))
        of_bag = {name: values[bag] for name, values in apart.items()}
        measures = measured(network, own.image, own.coords, own.mask, of_bag, str(bag), _call)
        for name, each in measures.items():
            found[name][bag] = each["deletion"]
    return {f"deletion of {name}": values for name, values in found.items()}


def _call(logits: Tensor) -> tuple[np.ndarray, np.ndarray]:
    return torch.sigmoid(logits)[:, 0].numpy(), (logits[:, 0] > 0).numpy()


class Epochs:
    """How alike the scores of bags are from one epoch to the next, over the last epochs; it needs no label."""

    def __init__(self, bags: Bags) -> None:
        self.bags, self.last = bags, deque[Arrays](maxlen=LAST_EPOCHS + 1)

    def watch(self, network: nn.Module) -> None:
        self.last.append(answers(network, self.bags))

    def steadiness(self) -> Arrays:
        """Return the mean rank correlation within bags of each score."""
        counts = self.bags.mask.sum(dim=2).flatten().int().tolist()
        epochs = [scores_of(own, self.bags) for own in self.last]
        pairs = list(pairwise(epochs))
        return {
            f"steadiness of {name}": np.array([alike(one[name], other[name], counts) for one, other in pairs]).mean()
            for name in epochs[0]
        }


def alike(one: np.ndarray, other: np.ndarray, counts: Sequence[int]) -> float:
    """Return the mean of Spearman's correlation within bags; NaN if no bag has scores that differ."""
    ends = np.cumsum(counts)[:-1]
    with np.errstate(invalid="ignore"):
        found = [
            np.corrcoef(rankdata(a), rankdata(b))[0, 1]
            for a, b in zip(np.split(one, ends), np.split(other, ends), strict=True)
            if len(a) > 1
        ]
    defined = [value for value in found if np.isfinite(value)]
    return float(np.mean(defined)) if defined else np.nan
