# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The tables of made-up bags: how near smooth attention comes to the best possible answer."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.ledger.answers import SMOOTHED, Arrays, scores_of, smoothed
from benchmarks.ledger.cells import WHERE, Cell, Store
from benchmarks.ledger.judge import Truth
from benchmarks.ledger.learning import System, options_of
from benchmarks.ledger.madeup import BAGS, DIMENSIONS, PLACES, SIDE, SLICES, Places, cohort
from benchmarks.ledger.systems import lattice_pools, losses, pools, smooth_pools
from benchmarks.report import Section, Table, Target

SEEDS = 3
ON_CHAINS = (
    *("attention", "gated attention", "LS1 paper, α 0.01", "LS1 paper, α 0.5", "LS1 scale_free, α 0.5", "mean"),
    *(f"SmAP {placement}, α {alpha}" for placement in ("early", "mid", "late") for alpha in (0.1, 0.5, 0.9)),
)
BEST, SIGNAL_ALONE = "best possible", "the signal itself"
MORE_SMOOTHED = (0.9, 0.97)
HOW = (
    "{bags}, in noise, half of them with one lesion of the size that is named; the same signal in all, so that only "
    "where is harder. 400 bags train, 100 choose the epoch, 400 are judged; mean of {seeds} seeds, no intervals. "
    "`best possible` is the posterior probability of each instance in closed form, which no score can beat on "
    "average. `the signal itself` is the number that is shifted, of each instance: what Sm can make of a linear score "
    "that has learned the direction of the shift without error. **What was chosen on what:** the rows named under "
    "Targets take the best score and α on the judged bags themselves, with and without smoothness in training alike, "
    "and are read as bounds, not as what a user would get; {chosen}. `attention` and `SmAP` "
    "rows share their head, one layer; `gated attention` and LS rows have that of SA-DMIL. Deletion AUC, lower is "
    "more faithful, of those of 60 bags that a row calls positive."
)
CHOSEN_ON_LATTICES = (
    "the shipped score of slides, own logits smoothed by 0.7, was chosen on this table by all rows together, which is "
    "no independent test of it"
)


def chains(store: Store, jobs: int, quick: bool) -> Section:
    """Scans with lesions of 1 to 16 slices."""
    recipe = {"in_features": DIMENSIONS}
    every = {**pools(recipe), **losses(recipe), **smooth_pools(recipe)}
    how = {"bags": f"Scans of {SLICES} slices", "chosen": "nothing shipped was chosen here"}
    rows = {name: every[name] for name in ON_CHAINS}
    return section("chains", "A known optimum: scans", how, rows, (1, 2, 4, 8, 16), store, jobs, quick)


def lattices(store: Store, jobs: int, quick: bool) -> Section:
    """Slides with square lesions of 1 to 16 patches."""
    bags = f"Slides of {SIDE} × {SIDE} patches, lesions of side 1 to 4 patches (`size` 1 to 16)"
    how = {"bags": bags, "chosen": CHOSEN_ON_LATTICES}
    rows = lattice_pools({"in_features": DIMENSIONS})
    return section("lattices", "A known optimum: slides", how, rows, (1, 2, 3, 4), store, jobs, quick)


def section(
    name: str,
    title: str,
    about: Mapping[str, str],
    rows: Mapping[str, System],
    extents: Sequence[int],
    store: Store,
    jobs: int,
    quick: bool,
) -> Section:
    """The table, and what it was to show."""
    extents, seeds = (extents[1:3], 1) if quick else (extents, SEEDS)
    asked = {
        (row, extent): [
            Cell("madeup", "train", {**options_of(system), "kind": name, "extent": extent, "seed": seed})
            for seed in range(seeds)
        ]
        for row, system in rows.items()
        for extent in extents
    }
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for (row, extent), models in store.models(asked, jobs, title).items():
        places = PLACES[name](extent)
        figures = judged(models, places)
        for score, own in figures.items():
            score_row = score if score.startswith((BEST, SIGNAL_ALONE)) else f"{row}: {score}"
            found.setdefault(score_row, {})[str(places.size)] = own
    sizes = [str(PLACES[name](extent).size) for extent in extents]
    auc = {row: {size: float(np.mean(own[size]["AUC"])) for size in sizes} for row, own in found.items()}
    tables = [_table(found, "AUC", "AUC of instances", sizes), _table(found, "deletion", "deletion AUC", sizes)]
    smooth = [own for row, own in auc.items() if row.startswith("SmAP")]
    others = [own for row, own in auc.items() if not row.startswith(("SmAP", BEST, SIGNAL_ALONE))]
    gaps = [
        Target(f"{name}, size {size}: best possible less the best of {which}", auc[BEST][size] - best, 0.05)
        for size in sizes
        if int(size) > 1
        for which, rows_of in (("SmAP", smooth), ("rows without Sm in training", others))
        for best in [max(own[size] for own in rows_of)]
    ]
    how = HOW.format(**about, seeds=seeds)
    return Section(name, title, how, quick, WHERE, gaps, tables, found, "ledger")


def judged(models: Sequence[Arrays], places: Places) -> dict[str, dict[str, Any]]:
    """Every figure of each score of one row's models, seed by seed."""
    found: dict[str, dict[str, Any]] = {}
    for seed, own in enumerate(models):
        test = cohort(places, BAGS["test"], 3 * seed + 2)
        truth = Truth(list(test.truth))
        bags = test.bags(places.coords)
        scores = {**scores_of(own, bags), **smoothed("instance", own["instance"], bags, MORE_SMOOTHED)}
        signal = test.instances[:, :, 0].ravel()
        known = {
            BEST: own["bayes"],
            SIGNAL_ALONE: signal,
            **smoothed(SIGNAL_ALONE, signal, bags, (*SMOOTHED, *MORE_SMOOTHED)),
        }
        for score, values in {**scores, **known}.items():
            of_score = found.setdefault(score, {"AUC": [], "deletion": []})
            of_score["AUC"].append(truth.cases.auroc(values)(np.ones(truth.cases.bags)))
            if f"deletion of {score}" in own:
                of_score["deletion"].append(float(np.nanmean(own[f"deletion of {score}"])))
    return found


def _table(found: Mapping[str, Any], figure: str, corner: str, sizes: Sequence[str]) -> Table:
    rows = [
        [row, *(f"{np.mean(own[size][figure]):.3f}" for size in sizes)]
        for row, own in found.items()
        if own[sizes[0]][figure]
    ]
    return Table([corner, *(f"size {size}" for size in sizes)], rows)
