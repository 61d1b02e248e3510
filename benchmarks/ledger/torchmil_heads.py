# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The heads of torchmil 1.0.2, trained as ours are and asked the same. It runs in the peers' environment, alone.

Every head sees bags of one length at a time, as most do not know padding from instances. A step of the optimizer is
still that of a whole batch: each length adds its share to the gradient.
"""

import copy
import math
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from inspect import signature
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

WIDTH, BATCH, LEARNING_RATE, WEIGHT_DECAY = 64, 16, 1e-3, 1e-4  # as configs/ct/on_features.json has them
SINGLES = 512  # bags of one instance at a time


class Head(NamedTuple):
    """How torchmil makes it; whatever is not named is as its constructor sets it."""

    model: str
    options: Mapping[str, Any] = {}
    at_once: int = BATCH  # bags; 1 where the answer to a bag depends on those beside it
    instance_loss: nn.Module | None = None  # in place of its own


class TwoClasses(nn.Module):
    """Cross-entropy of instances, for targets as CLAM_SB makes them."""

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, targets[:, 0].long())


HEADS = {
    "ABMIL": Head("ABMIL"),
    "ABMIL, gated": Head("ABMIL", {"gated": True}),
    "SmABMIL": Head("SmABMIL"),
    "SmABMIL, mid, α 0.5": Head("SmABMIL", {"sm_where": "mid", "sm_alpha": 1 - 0.5}),  # it takes 1 - α
    "ProbSmoothABMIL": Head("ProbSmoothABMIL"),
    "CLAM_SB": Head("CLAM_SB", at_once=1),
    "CLAM_SB, cross-entropy": Head("CLAM_SB", at_once=1, instance_loss=TwoClasses()),
    "DSMIL": Head("DSMIL"),
    "DTFDMIL": Head("DTFDMIL"),
    "TransMIL": Head("TransMIL", {"att_dim": WIDTH}, at_once=1),
    "SETMIL": Head("SETMIL", {"att_dim": WIDTH}),
    "GTP": Head("GTP", {"att_dim": WIDTH}),
    "CAMIL": Head("CAMIL", {"nystrom_att_dim": WIDTH, "n_landmarks": WIDTH // 2}, at_once=1),
}


class Bags:
    """What was handed over: the instances of all bags in a row."""

    def __init__(self, handed: Mapping[str, np.ndarray]) -> None:
        self.counts, self.label = handed["counts"], torch.from_numpy(handed["label"]).float()
        self.first = np.cumsum(self.counts) - self.counts
        self.instances = torch.from_numpy(handed["instances"])

    def image(self, which: np.ndarray) -> Tensor:
        """Bags of one length, [B, N, D]."""
        count = self.counts[which[0]]
        return torch.stack([self.instances[first : first + count] for first in self.first[which]])

    def pieces(self, which: np.ndarray, at_once: int) -> Iterator[np.ndarray]:
        """Yield those of one length, some at a time."""
        for count in np.unique(self.counts[which]):
            own = which[self.counts[which] == count]
            yield from np.array_split(own, math.ceil(len(own) / at_once))


def built(models: Any, head: Head, features: int, seed: int) -> nn.Module:
    """Make the network with the numbers of this seed, behind the projection that our heads have."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002  DTFDMIL shuffles by it
    projection = nn.Sequential(nn.Linear(features, WIDTH), nn.ReLU())
    network: nn.Module = getattr(models, head.model)(in_shape=(features,), feat_ext=projection, **head.options)
    if head.instance_loss is not None:
        network.inst_loss_fn = head.instance_loss
    return network


def call(method: Callable[..., Any], image: Tensor, **more: Any) -> Any:
    """Call a method with whatever it takes of a bag: features, chain of neighbours, places on a square, mask."""
    bags, count, _ = image.shape
    at, side = torch.arange(count), math.ceil(math.sqrt(count))
    touching = ((at[:, None] - at).abs() == min(1, count - 1)).float()  # a lone instance its own neighbour: GTP divides
    degree = touching.sum(dim=1)
    given = {
        "X": image,
        "adj": (touching / (degree[:, None] * degree).sqrt()).expand(bags, -1, -1),  # D^-1/2 A D^-1/2, in float32
        "coords": torch.stack([at // side, at % side], dim=1).expand(bags, -1, -1),
        "mask": torch.ones(bags, count),
    }
    taken = signature(method).parameters
    return method(**{name: each for name, each in given.items() if name in taken}, **more)


def fit(network: Any, bags: Bags, order: np.ndarray, validation: np.ndarray, at_once: int) -> list[float]:
    """Train by the order of each epoch; leave the network of the lowest validation cross-entropy, return them all."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    course, best = list[float](), copy.deepcopy(network.state_dict())
    for epoch in order:
        network.train()
        for batch in (epoch[first : first + BATCH] for first in range(0, len(epoch), BATCH)):
            optimizer.zero_grad()
            for which in bags.pieces(batch, at_once):
                _, losses = call(network.compute_loss, bags.image(which), Y=bags.label[which])
                (sum(losses.values()) * (len(which) / len(batch))).backward()
            optimizer.step()
        course.append(validation_loss(network, bags, validation, at_once))
        if not math.isfinite(course[-1]):
            raise FloatingPointError(f"the validation loss of epoch {len(course)} is {course[-1]}")
        if course[-1] == min(course):
            best = copy.deepcopy(network.state_dict())
    network.load_state_dict(best)
    return course


@torch.no_grad()
def validation_loss(network: Any, bags: Bags, which: np.ndarray, at_once: int) -> float:
    """The cross-entropy of the labels of bags."""
    network.eval()
    pieces = list(bags.pieces(which, at_once))
    logits = torch.cat([call(network.predict, bags.image(own), return_inst_pred=False) for own in pieces])
    labels = bags.label[np.concatenate(pieces)]
    return float(nn.functional.binary_cross_entropy_with_logits(logits, labels))


def answers(network: Any, bags: Bags, which: np.ndarray, at_once: int) -> dict[str, np.ndarray]:
    """Return the logits of bags and, of all their instances in a row, the score that the network gives them."""
    network.eval()
    logits, scores = dict[int, Tensor](), dict[int, Tensor]()
    for own in bags.pieces(which, at_once):
        found = call(network.predict, bags.image(own), return_inst_pred=True)  # with gradients, of which GTP's are made
        for bag, logit, score in zip(own.tolist(), *found, strict=True):
            logits[bag], scores[bag] = logit.detach(), score.detach()
    in_a_row = torch.cat([scores[bag] for bag in which.tolist()])
    return {"logit": torch.stack([logits[bag] for bag in which.tolist()]).numpy(), "score": in_a_row.numpy()}


@torch.no_grad()
def alone(network: Any, bags: Bags, which: np.ndarray, at_once: int) -> np.ndarray:
    """Return the logit that each instance of the bags would have as a bag of its own."""
    network.eval()
    singles = torch.cat([bags.image(which[[place]])[0] for place in range(len(which))])[:, None]  # [instances, 1, D]
    parts = singles.split(SINGLES if at_once > 1 else 1)
    return torch.cat([call(network.predict, part, return_inst_pred=False) for part in parts]).numpy()


def told(error: Exception) -> str:
    """Return an error in one line; the whole of it goes to the log."""
    traceback.print_exception(error)
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"


def main(name: str, seed: str, question: str, answer: str) -> None:
    """Answer a question with arrays, or with the message of what was raised."""
    from torchmil import models  # which our own environment has not

    torch.set_num_threads(1)
    with np.load(question) as file:
        handed = dict(file)
    bags, head = Bags(handed), HEADS[name]
    found: dict[str, Any]
    try:
        network = built(models, head, handed["instances"].shape[1], int(seed))
        course = fit(network, bags, handed["order"], handed["validation"], head.at_once)
        found = {"course": course, **answers(network, bags, handed["asked"], head.at_once)}
    except Exception as error:  # of whatever kind: the table has a row for it
        found = {"failed": told(error)}
    else:
        try:
            found["instance"] = alone(network, bags, handed["asked"], head.at_once)
        except Exception as error:
            found["no instance"] = told(error)
    np.savez(answer, allow_pickle=False, **{key: np.asarray(each) for key, each in found.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
