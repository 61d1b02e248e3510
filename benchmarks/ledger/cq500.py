# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The experiment behind the tables of RSNA: one head learns from scan labels of a fold of CQ500."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.ledger import data
from benchmarks.ledger.answers import Arrays, Epochs, answers, deletions
from benchmarks.ledger.learning import System, fit, padded, parts_of
from scripts.studies.crossval import LabelledBag, fold_sections

FOLDS = 5


def dealt(cohort: data.Scans, fold: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the scans that train, choose the epoch and are held out, as `python -m scripts crossval` deals them."""
    labelled = [LabelledBag(n, str(y), n, {}) for n, y in zip(cohort.names, cohort.labels.tolist(), strict=True)]
    place = {name: number for number, name in enumerate(cohort.names)}
    of_fold = fold_sections(labelled, FOLDS, "0 0")[fold]
    training, validation, held_out = (np.array([place[bag.bag_id] for bag in own]) for own in of_fold.values())
    return training, validation, held_out


def train(
    wing: str,
    files: Sequence[str],
    keys: dict[str, Any],
    config: str,
    run: str,
    data_sha256: str,
    fold: int,
    without_labels: bool,
) -> Arrays:
    """Train it; return its answers to the held-out scans of CQ500 and to RSNA, and what can be told without labels."""
    cohort, unseen = data.cq500(run), data.rsna(run)
    training, validation, held_out = dealt(cohort, fold)
    bags, asked = padded(cohort.slices, cohort.labels.tolist()), padded(unseen.slices, unseen.labels.tolist())
    epochs = Epochs(bags.chosen(held_out))
    made = parts_of(System(wing, tuple(files), keys), seed=fold)
    watch = epochs.watch if without_labels else None
    network, course = fit(made, bags.chosen(training), bags.chosen(validation), fold, watch)
    answered = answers(network, asked)
    found = {
        "course": np.array(course),
        "held_out": held_out,
        "held_out_logit": answers(network, bags.chosen(held_out))["logit"],
        **answered,
    }
    return {**found, **deletions(network, asked, answered), **epochs.steadiness()} if without_labels else found
