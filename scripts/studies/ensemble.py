# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The networks of all folds as one model.pt, which inference, evaluation and export take as any other."""

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from scripts.core.files import write_whole
from scripts.core.record import BagResult
from scripts.engine.operating_point import (
    FEWEST,
    OperatingPoint,
    choose_threshold,
    near_chance,
    read_operating_point,
    refused,
    write_operating_point,
)
from scripts.engine.provenance import origin_file
from scripts.studies.runs import Run, Study


def write_ensemble(study: Study, runs: Sequence[Run], results: Sequence[BagResult], logits: np.ndarray) -> str:
    """Write models/model.pt with what describes it and its operating point beside it; return what is told of it.

    Args:
        study: in whose folder they are written.
        runs: whose networks become the members.
        results: of bags out of fold.
        logits: (bags, classes) of these bags, by the scaling of each fold, the mean of the repeats.
    """
    path = study.output_dir / "models" / "model.pt"
    first = json.loads(origin_file(runs[0].model).read_text())
    network = first["config"].get("network_def")
    if not isinstance(network, Mapping):
        return "no ensemble is written: the network is given as an object, which no file describes"
    file = io.BytesIO()  # a file of its own name has that name in its bytes
    torch.save(_member_weights(runs), file)
    write_whole(path, file.getvalue())
    config = {**first["config"], "network_def": ensemble_of(network, len(runs))}
    write_whole(origin_file(path), json.dumps({**first, "config": config}, indent=4) + "\n")
    point = _operating_point(results, logits, str(study.value_of("operating_target")))
    write_operating_point(path, point)
    return f"{path} is the ensemble of {len(runs)} networks; {point.origin}"


def ensemble_of(network: Mapping[str, Any], members: int) -> dict[str, Any]:
    """Return the config of an ensemble of networks; the parts of a member stay where references to them lead."""
    parts = {key: value for key, value in network.items() if key not in ("_target_", "_desc_")}
    kind = {"_target_": network["_target_"], "_mode_": "callable"}
    return {"_target_": "scripts.networks.Ensemble", "kind": kind, "members": members, **parts}


def _member_weights(runs: Sequence[Run]) -> dict[str, torch.Tensor]:
    """The state_dict of the ensemble."""
    scalings = torch.tensor([read_operating_point(str(run.model)).scaling for run in runs])  # [members, 2]
    weights = {"slope": scalings[:, 0].clone(), "intercept": scalings[:, 1].clone()}
    for number, run in enumerate(runs):
        member = torch.load(run.model, map_location="cpu", weights_only=True)
        weights |= {f"members.{number}.{name}": value for name, value in member.items()}
    return weights


def _operating_point(results: Sequence[BagResult], logits: np.ndarray, target: str) -> OperatingPoint:
    """A threshold for the mean of calibrated logits, which needs no scaling, chosen on bags out of fold."""
    bags = f"{len(logits)} bags, each by the networks that did not see its patient"
    if logits.shape[1] > 1:
        return OperatingPoint(origin="the likeliest class is called; every member has a temperature of its own")
    positive = np.array([result.label_positive for result in results], dtype=bool)
    if min(positive.sum(), (~positive).sum()) < FEWEST:
        return refused(f"{bags}, are too few of one kind to choose on")
    threshold, seen = choose_threshold(logits, positive, target)
    return OperatingPoint(threshold, origin=f"{target} on {bags}: {seen}{near_chance(logits[:, 0], positive)}")
