# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Whether a score points at what the answer rests on: the network is asked again without some instances (no labels).

Of a bag called positive, the share k/20 of its instances that score highest (insertion), or lowest (deletion, so that
the highest are gone), is shown alone, for k = 1 … 20, and the probability of what the whole bag is called is averaged
over k. A faithful score has a high insertion and a low deletion. A bag called negative claims no place.
"""

import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from scripts.core.errors import InputError
from scripts.core.record import BagResult
from scripts.core.scoring import probabilities
from scripts.metrics.figures import Figure, mean_over_bags
from scripts.networks.mil import MILNetwork

STEPS = 20
AT_ONCE = 2**16  # instances in one pass of the network
SCORES_ASKED = {  # name in the figures → of the result, as far as a network tells them
    "attention": "attention",
    "evidence": "evidence",
    "instance": "instance_logits",
    "leave_one_out": "leave_one_out",
    "score": "scores",
}
RANDOM = "random"  # order, for reference
MEASURES = ("deletion", "insertion", "sufficient")


class MeasureFaithfulness:
    """Ignite handler that enters into each result how faithful every score is; put it before the CohortReport.

    Args:
        scaling: slope and intercept of the logits on their way to probabilities.
    """

    def __init__(self, scaling: Sequence[float] = (1.0, 0.0)) -> None:
        self.scaling = scaling

    def attach(self, engine: Engine) -> None:
        """Register the handler with an evaluator."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.measure)

    def measure(self, engine: Engine) -> None:
        """Measure the bags of a batch that are called positive."""
        evaluator: Any = engine
        network = getattr(evaluator.network, "module", evaluator.network)
        for given, bag in zip(evaluator.state.batch, evaluator.state.output, strict=True):
            if "bag_result" in bag and bag["bag_result"].positive:
                image = bag.get("image", given["image"])  # as the network was given it
                if not isinstance(image, Tensor):
                    raise InputError("faithfulness wants the whole bag in memory: evaluate without streaming.json")
                found = self.of_bag(network, {**given, "image": image}, bag["bag_result"])
                bag["bag_result"] = replace(bag["bag_result"], about={**bag["bag_result"].about, "faithfulness": found})

    def of_bag(self, network: nn.Module, given: Mapping[str, Any], result: BagResult) -> dict[str, dict[str, float]]:
        """Return the measures of each score, in the order that the result reports; given: image, coords and mask."""
        told = {name: getattr(result, field) for name, field in SCORES_ASKED.items()}
        scores = {name: values for name, values in told.items() if values is not None}
        device = next(network.parameters()).device
        image, coords, mask = (given[name].to(device)[None] for name in ("image", "coords", "mask"))
        return measured(
            network, image, coords, mask, scores, result.bag_id, lambda logits: self._answers(logits, result)
        )

    def _answers(self, logits: Tensor, result: BagResult) -> tuple[np.ndarray, np.ndarray]:
        """Return the probability of what the whole bag is called, and whether a part of it is called the same."""
        found = probabilities(logits.float().cpu().numpy(), self.scaling)
        if result.classes is None:
            return found[:, 0], found[:, 0] > (result.threshold or 0.0)
        called = result.classes.called
        return found[:, called], found.argmax(axis=1) == called


Answers = Callable[[Tensor], tuple[np.ndarray, np.ndarray]]  # logits → probability of the call, whether it stands


@torch.no_grad()
def measured(
    network: nn.Module,
    image: Tensor,
    coords: Tensor,
    mask: Tensor,
    scores: Mapping[str, np.ndarray],
    bag_id: str,
    answers: Answers,
) -> dict[str, dict[str, float]]:
    """Return the measures of each score of one bag; `answers` says of logits of its parts what becomes of the call."""
    real = np.flatnonzero(mask[0, 0].cpu().numpy() > 0.5)
    generator = np.random.default_rng(zlib.crc32(bag_id.encode()))
    shuffled = generator.permutation(len(real))  # chance decides between equals
    orders = {name: real[shuffled[np.argsort(-own[shuffled], kind="stable")]] for name, own in scores.items()}
    orders[RANDOM] = real[shuffled]
    parts = [part for order in orders.values() for part in _parts_of(order)]  # scores * 2 * STEPS
    with encoded_once(network, image, mask) as instances:
        probability, kept = answers(logits_of_parts(network, instances, coords, parts))
    share = np.array(_counts(len(real))) / len(real)
    found = {}
    by_score = zip(orders, probability.reshape(-1, 2, STEPS), kept.reshape(-1, 2, STEPS), strict=True)
    for name, (insertion, deletion), (suffices, _) in by_score:
        sufficient = share[suffices.argmax()] if suffices.any() else 1.0
        found[name] = dict(zip(MEASURES, map(float, (deletion.mean(), insertion.mean(), sufficient)), strict=True))
    return found


def _counts(instances: int) -> list[int]:
    return [-(-instances * k // STEPS) for k in range(1, STEPS + 1)]  # rounded up: never none


def _parts_of(order: np.ndarray) -> list[np.ndarray]:
    """Return the first instances of an order, STEPS times, then the last ones; as they stand in the bag."""
    counts = _counts(len(order))
    return [np.sort(part) for part in (*(order[:n] for n in counts), *(order[-n:] for n in counts))]


class Encoded(nn.Module):
    """Stands in for an encoder whose features [1, D, N] of a bag are known; an image names the instances of a part."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features[0]  # [D, N]

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        return self.features[:, image[:, 0]].transpose(0, 1)  # [B, D, n] of image [B, 1, n]


@contextmanager
def encoded_once(network: nn.Module, image: Tensor, mask: Tensor) -> Iterator[Tensor]:
    """Let the networks within `network` ask their encoders but once of a bag.

    Yield what it takes for the image of the bag meanwhile, so that a part of that is a part of the bag; an image whose
    empty slots are encoded too stays as it is.
    """
    parts = [part for part in network.modules() if isinstance(part, MILNetwork) and part.slots is None]
    before = [(part, part.encoder, part.edgeless) for part in parts]
    try:
        for part in parts:
            part.encoder = Encoded(part.encoder(image, mask))
            part.edgeless = True  # of few patches left, no two may touch
        yield torch.arange(mask.shape[2], device=mask.device)[None, None] if parts else image
    finally:
        for part, encoder, edgeless in before:
            part.encoder, part.edgeless = encoder, edgeless


def logits_of_parts(network: Any, image: Tensor, coords: Tensor, parts: Sequence[np.ndarray]) -> Tensor:
    """Return logits [parts, classes] of parts of one bag; neighbours are found anew, as nobody stands between them."""
    left = sorted(range(len(parts)), key=lambda k: len(parts[k]))
    found: dict[int, Tensor] = {}
    while left:
        several = max(1, AT_ONCE // len(parts[left[-1]]))
        some, left = left[-several:], left[:-several]
        index = pad_sequence([torch.from_numpy(parts[k]) for k in some], batch_first=True).to(coords.device)  # [B, n]
        ones = [torch.ones(len(parts[k])) for k in some]
        mask = pad_sequence(ones, batch_first=True)[:, None].to(coords)  # [B, 1, n]
        of_parts = [whole[0][..., index].movedim(-2, 0) for whole in (image, coords)]  # [B, ..., n]
        found.update(zip(some, network.predict(*of_parts, mask).logits, strict=True))
    return torch.stack([found[k] for k in range(len(parts))])


def faithfulness_figures(results: Sequence[BagResult]) -> dict[str, Figure]:
    """Return the means over bags of each measure of each score, and how it differs from that of attention."""
    found = [result.about["faithfulness"] for result in results]
    every, figures = np.ones(len(found)), {}
    for name in found[0]:
        for measure in found[0][name]:
            values = np.array([of_bag[name][measure] for of_bag in found])
            figures[f"{measure}_{name}"] = mean_over_bags(values, every)
            if name != "attention" and "attention" in found[0]:
                attention = np.array([of_bag["attention"][measure] for of_bag in found])
                figures[f"{measure}_{name}_less_attention"] = mean_over_bags(values - attention, every)
    return figures


def faithfulness_columns(result: BagResult) -> dict[str, float]:
    """Return the measures as columns of a table of bags; none where they were not taken."""
    found = result.about.get("faithfulness", {})
    return {f"{measure}({name})": value for name, of_score in found.items() for measure, value in of_score.items()}


def faithfulness_in(row: Mapping[str, str]) -> dict[str, Any]:
    """Return what `about` says of the measures in a row of that table."""
    found: dict[str, dict[str, float]] = {}
    for column, value in row.items():
        if value and (match := re.fullmatch(rf"({'|'.join(MEASURES)})\((\w+)\)", column)):
            found.setdefault(match[2], {})[match[1]] = float(value)
    return {"faithfulness": found} if found else {}
