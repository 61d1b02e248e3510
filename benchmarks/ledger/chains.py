# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Made-up scans whose best possible answer is known: one lesion of neighbouring slices in Gaussian noise.

A slice is N(0, I) in D numbers; in half of the scans the slices of one lesion, of a known length and anywhere in the
chain, are shifted by δ along one direction. δ² · length is the same for all lengths, so that scans are told apart
equally well whatever the length, and what differs is how far a slice can lean on its neighbours.
"""

import platform
from importlib.metadata import version
from typing import Any

import numpy as np
from scipy.special import logsumexp

from benchmarks.ledger.cells import Arrays, Cell, Store
from benchmarks.ledger.data import Scans
from benchmarks.ledger.judge import Truth, with_smoothed
from benchmarks.ledger.learning import System, fit, padded, parts_of
from benchmarks.ledger.rsna import SCORES, answers, options_of
from benchmarks.ledger.systems import losses, pools, smooth_pools
from benchmarks.report import Section, Table, Target

SLICES, DIMENSIONS = 32, 16
SIGNAL = 4.0  # δ · √length
LESIONS, SEEDS = (1, 2, 4, 8, 16), 3
ROWS = (
    *("gated attention", "LS1 paper, α 0.01", "LS1 paper, α 0.5", "LS1 scale_free, α 0.5", "mean"),
    *(f"SmAP {placement}, α {alpha}" for placement in ("early", "mid", "late") for alpha in (0.1, 0.5, 0.9)),
)
HOW = (
    "Scans of 32 slices in noise, half of them with one lesion of the length that is named; the same signal in all, "
    "so that scans are told apart equally well and only where is harder. 400 scans train, 100 choose the epoch, 400 "
    "are judged; mean of {seeds} seeds. `best possible` is the posterior probability of each slice in closed form, "
    "which no score can beat on average. Slice AUC."
)
SCANS = {"training": 400, "validation": 100, "test": 400}


def cohort(length: int, scans: int, seed: int) -> Scans:
    """Draw scans, every other with a lesion; the direction of the shift is the first axis, which no network knows."""
    rng = np.random.default_rng([length, seed])
    labels = np.arange(scans) % 2
    truth = np.zeros((scans, SLICES), dtype=int)
    for scan in np.flatnonzero(labels):
        first = rng.integers(SLICES - length + 1)
        truth[scan, first : first + length] = 1
    features = rng.normal(size=(scans, SLICES, DIMENSIONS)).astype(np.float32)
    features[:, :, 0] += delta(length) * truth
    return Scans([str(scan) for scan in range(scans)], list(features), labels, list(truth))


def delta(length: int) -> float:
    """How far a slice of a lesion is shifted."""
    return float(SIGNAL / np.sqrt(length))


def bayes(scans: Scans, length: int) -> np.ndarray:
    """Return the logarithm of the probability that each slice, in a row, lies in a lesion, given its whole scan.

    P(lesion begins at k | x) ∝ Π over its slices of p(x | lesion) / p(x | none), and half of the scans have none.
    """
    d, starts = delta(length), SLICES - length + 1
    ratio = d * np.stack(scans.slices)[:, :, 0].astype(float) - d**2 / 2  # [scans, slices] log-likelihood ratios
    total = np.concatenate([np.zeros((len(ratio), 1)), ratio.cumsum(axis=1)], axis=1)
    window = total[:, length:] - total[:, :starts] - np.log(starts)  # [scans, starts]
    evidence = np.logaddexp(0, logsumexp(window, axis=1))  # of the scan: with a lesion or without
    covers = np.abs(np.arange(SLICES)[:, None] - np.arange(starts) - (length - 1) / 2) <= (length - 1) / 2
    by_slice = np.where(covers, window[:, None], -np.inf)  # [scans, slices, starts]
    return (logsumexp(by_slice, axis=2) - evidence[:, None]).ravel()


def section(store: Store, jobs: int, quick: bool) -> Section:
    """The table, and what it was to show."""
    recipe = {"in_features": DIMENSIONS}
    every = {**pools(recipe), **losses(recipe), **smooth_pools(recipe)}
    rows = {name: every[name] for name in ROWS}
    lengths, seeds = (LESIONS[1:3], 1) if quick else (LESIONS, SEEDS)
    asked = {
        (name, length): [
            Cell("chains", "train", {**options_of(system), "length": length, "seed": seed}) for seed in range(seeds)
        ]
        for name, system in rows.items()
        for length in lengths
    }
    store.complete([cell for of_row in asked.values() for cell in of_row], jobs, "chains")
    found: dict[str, dict[str, dict[str, float]]] = {}
    for (name, length), of_row in asked.items():
        for seed, cell in enumerate(of_row):
            own = store.read(cell)
            truth = Truth(cohort(length, SCANS["test"], 3 * seed + 2).truth)
            scores = with_smoothed({each: own[each] for each in SCORES if each in own}, truth.counts)
            for score, values in {**scores, "best possible": own["bayes"]}.items():
                row = "best possible" if score == "best possible" else f"{name}: {score}"
                of_seeds = found.setdefault(row, {}).setdefault(str(length), {})
                of_seeds[str(seed)] = truth.cases.auroc(values)(np.ones(len(truth.counts)))
    means = {
        row: {length: float(np.mean(list(each.values()))) for length, each in own.items()} for row, own in found.items()
    }
    table = Table(
        ["row", *(f"length {n}" for n in lengths)],
        [[row, *(f"{own[str(n)]:.3f}" for n in lengths)] for row, own in means.items()],
    )
    gaps = [
        Target(
            f"length {n}: best possible less the best of SmAP",
            means["best possible"][str(n)] - max(own[str(n)] for row, own in means.items() if row.startswith("SmAP")),
            0.05,
        )
        for n in lengths
        if n > 1
    ]
    where = {"Python": platform.python_version(), "torch": version("torch")}
    return Section("chains", "A known optimum", HOW.format(seeds=seeds), quick, where, gaps, [table], found, "ledger")


def train(files: list[str], keys: dict[str, Any], config: str, length: int, seed: int) -> Arrays:
    """One head on scans with a lesion of this length: its answers to unseen scans, beside the best possible."""
    parts = {name: cohort(length, count, 3 * seed + part) for part, (name, count) in enumerate(SCANS.items())}
    bags = {name: padded(scans.slices, scans.labels.tolist()) for name, scans in parts.items()}
    made = parts_of(System("ct", tuple(files), keys), seed)
    network, course = fit(made, bags["training"], bags["validation"], seed)
    found = answers(network, bags["test"])
    return {**found, "course": np.array(course), "bayes": bayes(parts["test"], length)}
