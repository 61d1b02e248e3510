# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The threshold and the scaling of probabilities: chosen on labelled bags, kept beside the weights, read by each run.

A network of one logit gets Platt's scaling, sigmoid(slope · logit + intercept); one of several classes a temperature,
1 / slope. Both are held near the network's own probabilities while there are few bags.
"""

import json
import logging
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from torch import nn

from scripts.core.conformal import Conformal
from scripts.core.errors import InputError
from scripts.core.files import in_bundle, sha256_of, write_whole
from scripts.core.scoring import probabilities

PRIOR_SD = (0.5, 1.0)  # how far the logarithm of the slope, and the intercept, are thought to be from 0
FEWEST = 4  # positive and negative bags each, below which nothing is chosen
CHANCE_SD = 1.645  # one network in twenty that tells nothing ranks its bags further above an AUROC of 0.5
_DEFAULT, _NEAR_CHANCE = "the default", "may be ranked so by chance: "  # what an origin says of poor choices

logger = logging.getLogger(__name__)


class OperatingPoint(NamedTuple):
    """Above which probability a bag is called positive, how logits become probabilities, and who chose both.

    Conformal sets are there where a site's own bags chose them.
    """

    threshold: float = 0.5
    scaling: tuple[float, float] = (1.0, 0.0)  # slope and intercept
    origin: str = f"{_DEFAULT}, chosen on no data"
    conformal: Conformal | None = None
    refusal: str = ""  # why the bags that were asked choose none, and it is the default

    def origin_of(self, threshold: float, scaling: Sequence[float]) -> str:
        """Return who chose what a run takes: this point, or the user."""
        return self.origin if (threshold, tuple(scaling)) == self[:2] else "given by the user"


def operating_file(ckpt_path: str | Path) -> Path:
    """Return the file beside weights that holds their operating point."""
    return Path(ckpt_path).with_suffix(".operating_point.json")


def read_operating_point(ckpt_path: str) -> OperatingPoint:
    """Return the operating point of weights; the default where none was chosen."""
    weights = in_bundle(ckpt_path)
    path = operating_file(weights)
    if not path.is_file():
        return OperatingPoint()
    try:
        stored = json.loads(path.read_text())
        if stored["weights_sha256"] != sha256_of(weights):
            logger.warning("%s was chosen for other weights than %s: the default is used", path.name, ckpt_path)
            return OperatingPoint()
        slope, intercept = map(float, stored["scaling"])
        threshold = float(stored["threshold"])
        if not (0 <= threshold <= 1 and 0 < slope < math.inf and math.isfinite(intercept)):
            raise ValueError("no threshold and scaling")
        conformal = stored.get("conformal") and _conformal(**stored["conformal"])
        point = OperatingPoint(threshold, (slope, intercept), str(stored["origin"]), conformal)
        logger.info("operating point beside the weights: threshold %.3g (%s)", point.threshold, point.origin)
        return point
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise InputError(f"{path} holds no operating point: train again, or remove it for the default") from error


def _conformal(coverage: float, cuts: Mapping[str, float | None], bags: Mapping[str, int]) -> Conformal:
    as_numbers = {name: None if cut is None else float(cut) for name, cut in cuts.items()}
    return Conformal(float(coverage), as_numbers, dict(bags))


def write_operating_point(ckpt_path: Path, point: OperatingPoint, keep: bool = False) -> Path | None:
    """Write the operating point of weights; return under which other name the one before is kept, if it is asked for.

    Args:
        ckpt_path: file of the weights.
        point: what is written beside them.
        keep: copy what is there to the first free name.
    """
    path, kept = operating_file(ckpt_path), None
    if keep and path.exists():
        names = (path.with_suffix(f".{number}.json") for number in count(1))
        kept = next(name for name in names if not name.exists())
        shutil.copy2(path, kept)
    content = {"threshold": point.threshold, "scaling": point.scaling, "origin": point.origin}
    content |= {"conformal": point.conformal and point.conformal._asdict(), "weights_sha256": sha256_of(ckpt_path)}
    write_whole(path, json.dumps(content, indent=4) + "\n")
    return kept


def choose_operating_point(
    logits: np.ndarray, labels: np.ndarray, target: str, kind: str = "validation bags"
) -> OperatingPoint:
    """Fit the scaling and choose the threshold; logits: (bags, 1) or (bags, classes), labels: (bags,).

    Args:
        target: "youden", "sensitivity 0.95" or "specificity 0.9"; of several classes the likeliest is called.
        kind: what the origin calls the bags.
    """
    _parse(target)
    bags = f"{len(labels)} {kind}"
    if logits.shape[1] > 1:
        if len(labels) < 2 * FEWEST:
            return refused(f"{bags} are too few to fit a temperature on")
        slope, _ = fit_scaling(logits, labels)
        return OperatingPoint(0.5, (slope, 0.0), f"temperature {1 / slope:.3g} fitted on {bags}")
    positive, logit = labels > 0.5, logits[:, 0]
    few = min(positive.sum(), (~positive).sum())
    if few < FEWEST:
        return refused(f"{bags} with {few} of one kind are too few to choose on")
    above = float(logit[positive].mean() - logit[~positive].mean())
    if above <= 1e-6 * max(1.0, float(np.abs(logit).max())):
        return refused(f"on {bags} no scaling fits, as the logits of positive ones are not higher")
    slope, intercept = fit_scaling(logits, labels)
    threshold, seen = choose_threshold(slope * logits + intercept, positive, target)
    of = f"{positive.sum()} positive and {(~positive).sum()} negative {kind}"
    scaled = f"probability is sigmoid({slope:.3g} · logit {intercept:+.3g})"
    origin = f"{target} on {of}: {seen}; {scaled}{near_chance(logit, positive)}"
    return OperatingPoint(threshold, (slope, intercept), origin)


def refused(reason: str) -> OperatingPoint:
    """Return the default, with the reason why no bags have chosen another."""
    return OperatingPoint(origin=f"{_DEFAULT}: {reason}", refusal=reason)


def near_chance(logit: np.ndarray, positive: np.ndarray) -> str:
    """Return how an origin ends where chance may well rank its bags as the network does, by the test of Mann-Whitney.

    logit, positive: (bags,). Of other bags it is "".
    """
    above = logit[positive, None] - logit[~positive]
    auroc = float((above > 0).mean() + (above == 0).mean() / 2)
    by_chance = 0.5 + CHANCE_SD * math.sqrt((len(logit) + 1) / (12 * above.size))
    return "" if auroc > by_chance else f"; {_NEAR_CHANCE}AUROC {auroc:.2f} of {len(logit)} bags"


def caveat(origin: str) -> list[str]:
    """Return why calls at a threshold of this origin mean little: chosen on nothing, or near chance; else nothing."""
    if origin.startswith(_DEFAULT):
        return [f"the threshold is {origin}"]
    _, near, auroc = origin.partition(_NEAR_CHANCE)
    return [f"the bags that chose the threshold {near}{auroc}"] if near else []


def choose_threshold(calibrated: np.ndarray, positive: np.ndarray, target: str) -> tuple[float, str]:
    """Return the threshold that meets a target on labelled bags, or comes closest, and in words what was seen there.

    Args:
        calibrated: (bags, 1) logits behind their scaling.
        positive: (bags,) whether each is.
        target: as of choose_operating_point.
    """
    rule, least = _parse(target)
    logits = np.unique(calibrated)
    ends = min(logits[0] - 1, 0), max(logits[-1] + 1, 0)  # probabilities of less than 37 can be told from 1
    between = np.array([ends[0], *(logits[:-1] + logits[1:]) / 2, ends[1]])
    cuts = probabilities(between[:, None])  # [cuts, 1]
    called = probabilities(calibrated)[:, 0] > cuts  # [cuts, bags]
    sensitivity, specificity = called[:, positive].mean(axis=1), (~called)[:, ~positive].mean(axis=1)
    if rule == "youden":
        best = int(np.argmax(sensitivity + specificity))
    else:
        kept, other = (sensitivity, specificity) if rule == "sensitivity" else (specificity, sensitivity)
        best = max(range(len(cuts)), key=lambda cut: (min(kept[cut], least - 1e-9), other[cut], kept[cut]))
    return float(cuts[best, 0]), f"sensitivity {sensitivity[best]:.3g}, specificity {specificity[best]:.3g} there"


def _parse(target: str) -> tuple[str, float]:
    found = re.fullmatch(r"youden|(sensitivity|specificity) (0?\.\d+|1(?:\.0*)?|0)", target.strip().lower())
    if not found:
        raise InputError(f"the target is {target!r}: 'youden', 'sensitivity 0.95' or 'specificity 0.9' is wanted")
    return found[1] or "youden", float(found[2] or 0)


def fit_scaling(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return the likeliest slope and intercept; logits: (bags, 1) or (bags, classes), labels: (bags,).

    Before any bag is seen the likeliest are 1 and 0, so that a few bags without a mistake do not make the probabilities
    of others extreme, nor draw them to the middle. Of several classes the intercept stays 0.
    """
    x, y = torch.from_numpy(logits.astype(float)), torch.from_numpy(labels.astype(float))
    parameters = torch.zeros(2, dtype=x.dtype, requires_grad=True)  # logarithm of the slope, intercept
    optimizer = torch.optim.LBFGS([parameters], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        scaled = parameters[0].exp() * x
        if x.shape[1] > 1:
            likelihood = nn.functional.cross_entropy(scaled, y.long(), reduction="sum")
        else:
            positive = scaled[:, 0] + parameters[1]
            likelihood = nn.functional.binary_cross_entropy_with_logits(positive, y, reduction="sum")
        total: torch.Tensor = likelihood + (parameters / torch.tensor(PRIOR_SD)).square().sum() / 2
        total.backward()
        return total

    optimizer.step(loss)
    log_slope, intercept = parameters.detach().tolist()
    return math.exp(log_slope), intercept


class RememberOperatingPoint:
    """An ignite handler of the validator, behind its saver: chooses the operating point of the weights just saved.

    Args:
        ckpt_path: file of the weights.
        target: as of choose_operating_point.
    """

    def __init__(self, ckpt_path: str, target: str) -> None:
        _parse(target)
        self.ckpt_path = Path(ckpt_path)
        self.target = target
        self.seen: dict[str, tuple[list[float], float]] = {}  # bag → its logits and its label

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.remember)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.write)

    def remember(self, engine: Engine) -> None:
        bags: Sequence[Mapping[str, Any]] = engine.state.batch  # type: ignore[assignment]
        results: Sequence[Mapping[str, Any]] = engine.state.output  # type: ignore[assignment]
        for bag, of_bag in zip(bags, results, strict=True):
            self.seen[bag["bag_id"]] = (of_bag["logits"].float().flatten().tolist(), float(of_bag["label"]))

    def write(self, engine: Engine) -> None:
        """Write the file if these are the best weights; of several processes the first does, for all of their bags."""
        gathered = [self.seen]
        if dist.is_initialized():
            gathered = [{} for _ in range(dist.get_world_size())]
            dist.all_gather_object(gathered, self.seen)
        best: int = engine.state.best_metric_epoch  # type: ignore[attr-defined]  # MONAI adds it
        if best != engine.state.epoch or (dist.is_initialized() and dist.get_rank() > 0):
            return
        logits, labels = zip(*{bag: seen for part in gathered for bag, seen in part.items()}.values(), strict=True)
        point = choose_operating_point(np.array(logits), np.array(labels), self.target)
        write_operating_point(self.ckpt_path, point)
