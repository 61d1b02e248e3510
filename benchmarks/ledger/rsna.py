# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Scan labels of CQ500 → slices of RSNA: what each head finds that nobody ever showed it."""

from typing import Any

import numpy as np
import torch

from benchmarks.ledger import data
from benchmarks.ledger.cells import Arrays, Cell
from benchmarks.ledger.learning import Bags, System, fingerprint, fit, padded, parts_of
from scripts.studies.crossval import LabelledBag, fold_sections

FOLDS = 5
RECIPE = {"in_features": 8}


def cells(runs: list[str], rows: dict[str, System]) -> dict[str, list[Cell]]:
    """The trainings behind each row: every fold of CQ500, by every run of the slice network."""
    return {
        name: [Cell("rsna", "train", {**_options(system), "run": run, "fold": k}) for run in runs for k in range(FOLDS)]
        for name, system in rows.items()
    }


def _options(system: System) -> dict[str, Any]:
    return {"files": system.files, "keys": system.keys, "config": fingerprint(system)}


def train(files: list[str], keys: dict[str, Any], config: str, run: str, fold: int) -> Arrays:
    """One head: its answers to the held-out scans of CQ500 and to RSNA."""
    cohort, unseen = data.cq500(run), data.rsna(run)
    labelled = [LabelledBag(n, str(y), n, {}) for n, y in zip(cohort.names, cohort.labels.tolist(), strict=True)]
    place = {name: number for number, name in enumerate(cohort.names)}
    of_fold = fold_sections(labelled, FOLDS, "0 0")[fold]  # as `python -m scripts crossval` deals them
    training, validation, held_out = (np.array([place[bag.bag_id] for bag in own]) for own in of_fold.values())
    bags = padded(cohort.slices, cohort.labels.tolist())
    system = System("ct", tuple(files), keys)
    network, course = fit(parts_of(system, seed=fold), bags.chosen(training), bags.chosen(validation), seed=fold)
    return {
        "course": np.array(course),
        "held_out": held_out,
        "held_out_logit": answers(network, bags.chosen(held_out))["logit"],
        **answers(network, padded(unseen.slices, unseen.labels.tolist())),
    }


@torch.no_grad()
def answers(network: Any, bags: Bags) -> Arrays:
    """Logits of the bags and, of all their instances in a row, each score that the network has."""
    prediction = network.predict(bags.image, None, bags.mask)
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
