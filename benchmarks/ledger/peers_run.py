# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The experiments behind the tables of peers: bags are handed to torchmil's environment, its answers come back."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.ledger import data, madeup
from benchmarks.ledger.answers import Arrays
from benchmarks.ledger.cq500 import dealt
from benchmarks.peers import FOLDER, PYTHON, ROOT
from scripts.core.errors import InputError


def on_rsna(peer: str, epochs: int, theirs: str, run: str, data_sha256: str, fold: int) -> Arrays:
    """One head that learns from a fold of CQ500: its answers to RSNA."""
    cohort, unseen = data.cq500(run), data.rsna(run)
    training, validation, _ = dealt(cohort, fold)
    asked = len(cohort.names) + np.arange(len(unseen.names))
    slices, labels = [*cohort.slices, *unseen.slices], np.concatenate([cohort.labels, unseen.labels])
    return ask(peer, fold, handed(slices, labels, training, validation, asked, epochs, fold))


def on_chains(peer: str, epochs: int, theirs: str, extent: int, seed: int) -> Arrays:
    """One head on made-up scans with a lesion of this extent: its answers to unseen ones."""
    places = madeup.chain(extent)
    parts = [madeup.cohort(places, count, 3 * seed + part) for part, count in enumerate(madeup.BAGS.values())]
    labels = np.concatenate([own.truth.max(axis=1) for own in parts])
    training, validation, test = np.split(np.arange(len(labels)), np.cumsum(list(madeup.BAGS.values()))[:-1])
    slices = [scan for own in parts for scan in own.instances]
    return ask(peer, seed, handed(slices, labels, training, validation, test, epochs, seed))


def handed(
    slices: Sequence[np.ndarray],
    labels: np.ndarray,
    training: np.ndarray,
    validation: np.ndarray,
    asked: np.ndarray,
    epochs: int,
    seed: int,
) -> Arrays:
    """Return what a peer is given: bags in a row, and the order in which `learning.fit` would show them."""
    order = np.random.default_rng(seed)
    return {
        "instances": np.concatenate(slices),
        "counts": np.array([len(own) for own in slices]),
        "label": labels,
        "order": np.stack([training[order.permutation(len(training))] for _ in range(epochs)]),
        "validation": validation,
        "asked": asked,
    }


def ask(peer: str, seed: int, question: Arrays) -> Arrays:
    """Return the arrays that a fresh process of the peers' python answers, or `failed` with its message."""
    with TemporaryDirectory() as folder:
        there, back = Path(folder) / "question.npz", Path(folder) / "answer.npz"
        np.savez(there, allow_pickle=False, **question)
        command = [str(PYTHON), "-m", "benchmarks.ledger.torchmil_heads", peer, str(seed), str(there), str(back)]
        threads = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=threads, capture_output=True, text=True)
        if done.returncode:
            what = f"the peers' python ended with {done.returncode} before it could answer"
            said = done.stderr.strip().rpartition("\n")[2]
            raise InputError(f"{what} ({said}): remove {FOLDER.name}, which is built anew")
        with np.load(back) as file:
            return dict(file)
