# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The tables of peers: torchmil's heads on the bags that our own heads learn from, judged as they are."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import peers as environment
from benchmarks.ledger import data, madeup
from benchmarks.ledger.answers import Arrays
from benchmarks.ledger.cells import WHERE, Cell, Store
from benchmarks.ledger.cq500 import FOLDS
from benchmarks.ledger.judge import Truth, spelled, spread
from benchmarks.ledger.learning import System, options_of
from benchmarks.ledger.rsna import BASELINE, RECIPE, SMAP, cells
from benchmarks.ledger.systems import pools, smooth_pools
from benchmarks.ledger.torchmil_heads import HEADS
from benchmarks.report import Section, Table
from scripts.metrics.intervals import auroc

EPOCHS, RUN, SEED = 25, "0", 0
LENGTHS = (1, 4, 8, 16)
GATED, MID, BEST = "gated attention", "SmAP mid, α 0.5", "best possible"  # of our own on chains
SCORES = {"score": "its own", "attention": "attention", "instance": "instance"}
HOW = (
    "torchmil 1.0.2 in an environment of its own. Heads learn from the same bags as ours, in the same order and from "
    "the same folds, with the same optimizer (AdamW 1e-3, weight decay 1e-4, batches of 16, 25 epochs, of which the "
    "validation cross-entropy chooses one) and behind the same projection to 64 numbers. Whatever else is as torchmil "
    "sets it, but the attention of transformers is 64 wide, as the features are. Most heads take padding for "
    "instances: bags of one length go through together, and the gradients of a batch of 16 are added up. RSNA: one run "
    "of the slice network × 5 folds; chains: one seed. `its own`: what `predict` gives as the score of an instance; "
    "`instance`: the logit of a bag of that instance alone. `single`: mean ± SD of the models; `all as one`: their "
    "mean score; `gain`: single slice AUC less that of plain attention networks' attention, and less that of the same "
    "score of theirs (`attention` for `its own`), in the same folds. Intervals are over scans. A head that raised an "
    "error has its message in place of figures."
)
REMARKS = {
    "SmABMIL": "early, trainable α, 10 steps: its defaults.",
    "SmABMIL, mid, α 0.5": "a fixed α is 1 - α of the paper's in its approximate mode.",
    "ProbSmoothABMIL": "`predict` hands its mask over as the adjacency: none is given.",
    "CLAM_SB": "one bag at a time, as its instance loss gets no mask. SmoothTop1SVM is given targets [n, 1] where it "
    "counts on [n]: it sets instances against each other, and raises once two logits of one differ by log 1000.",
    "CLAM_SB, cross-entropy": "the same with cross-entropy in place of its instance loss.",
    "DTFDMIL": "needs a mask, here of ones. Its `maxmin` keeps every instance of a pseudo-bag, twice.",
    "TransMIL": "one bag at a time: its pseudo-inverse is scaled by the largest sum in the batch.",
    "SETMIL": "slices row by row on the smallest square; it then reshapes [D, H, W] to [H W, D], so that a token is no "
    "slice.",
    "GTP": "100 clusters, its default; its map weighs them by logits of the assignment, not by their softmax. A lone "
    "instance is its own neighbour: without an edge its loss divides 0 by 0.",
    "CAMIL": "one bag at a time, as TransMIL; with 32 landmarks, as its default of None raises a TypeError.",
}

Models = Mapping[tuple[str, ...], Sequence[Arrays]]  # by row, and by length on chains


def peers(store: Store, jobs: int, quick: bool) -> Section:
    """Both tables, and what is to be known of each head."""
    names, epochs = ([*HEADS][:2], 1) if quick else ([*HEADS], EPOCHS)
    rsna = _done(store, jobs, rsna_cells(names, epochs), "Peers on RSNA")
    chains = _done(store, jobs, chain_cells(names, epochs, LENGTHS[1:2] if quick else LENGTHS), "Peers on chains")
    figures = {"rsna": judged_on_rsna(rsna), "chains": judged_on_chains(chains)}
    remarks = Table(["head", "remark"], [[name, REMARKS[name]] for name in names if name in REMARKS], "What it took")
    where = {**WHERE, "torchmil": "1.0.2"}
    tables = [_rsna_table(figures["rsna"]), _chain_table(figures["chains"]), remarks]
    return Section("peers", "Heads of torchmil", HOW, quick, where, [], tables, figures, "ledger")


def rsna_cells(names: Iterable[str], epochs: int) -> dict[tuple[str, ...], list[Cell]]:
    """Our own in the same folds, plain attention first, and the peers."""
    own = {f"ours: {name}": _shortened(pools(RECIPE)[name], epochs) for name in (BASELINE, SMAP)}
    of_run = {"run": RUN, "data_sha256": data.sha256_of_run(RUN)}
    return {
        **{(name,): of_row for name, of_row in cells([RUN], own).items()},
        **{(name,): [_cell(name, "on_rsna", epochs, **of_run, fold=fold) for fold in range(FOLDS)] for name in names},
    }


def chain_cells(names: Iterable[str], epochs: int, lengths: Sequence[int]) -> dict[tuple[str, ...], list[Cell]]:
    """Our own and the peers, by length of the lesion."""
    recipe = {"in_features": madeup.DIMENSIONS}
    every = {**pools(recipe), **smooth_pools(recipe)}
    found = dict[tuple[str, ...], list[Cell]]()
    for length in lengths:
        for name in (GATED, MID):
            options = {**options_of(_shortened(every[name], epochs)), "kind": "chains", "extent": length, "seed": SEED}
            found[f"ours: {name}", str(length)] = [Cell("madeup", "train", options)]
        for name in names:
            found[name, str(length)] = [_cell(name, "on_chains", epochs, extent=length, seed=SEED)]
    return found


def _shortened(system: System, epochs: int) -> System:
    return system if epochs == EPOCHS else system._replace(keys={**system.keys, "max_epochs": epochs})


def _cell(peer: str, function: str, epochs: int, **options: Any) -> Cell:
    """An experiment in the peers' environment, whose key changes with what runs there."""
    there = Path(__file__).with_name("torchmil_heads.py").read_bytes() + environment.REQUIREMENTS.read_bytes()
    theirs = hashlib.sha256(there).hexdigest()
    return Cell("peers_run", function, {"peer": peer, "epochs": epochs, "theirs": theirs, **options})


def _done(store: Store, jobs: int, asked: Mapping[tuple[str, ...], Sequence[Cell]], title: str) -> Models:
    every = chain.from_iterable(asked.values())
    if any(cell.module == "peers_run" and not store.path(cell).exists() for cell in every):
        environment.build()
    return store.models(asked, jobs, title)


def judged_on_rsna(models: Models) -> dict[str, Any]:
    """Every figure of each row, or why there is none."""
    unseen = data.rsna(RUN)
    truth, plain = Truth(unseen.truth), models[f"ours: {BASELINE}",]
    baseline = {name: truth.mean_auroc([each[name] for each in plain]) for name in ("attention", "instance")}
    found: dict[str, Any] = {}
    for (row,), own in models.items():
        print(f"Peers on RSNA: judging {len(found) + 1} of {len(models)}, {row}", flush=True)
        found[row] = {"failed": _failure(own)}
        if found[row]["failed"]:
            continue
        found[row]["scan AUC"] = [auroc(unseen.labels, each["logit"]).value for each in own]
        for key, name in SCORES.items():
            if key in own[0]:
                scores = [each[key] for each in own]
                rivals = {"gain": "attention", "gain by the same score": key.replace("score", "attention")}
                mine = truth.mean_auroc(scores)
                found[row][name] = {
                    "single": [truth.values(score) for score in scores],
                    "all as one": truth.intervals(np.mean(scores, axis=0))["slice AUC"]._asdict(),
                    **{gain: truth.gain(mine, baseline[rival])._asdict() for gain, rival in rivals.items()},
                }
    return found


def judged_on_chains(models: Models) -> dict[str, Any]:
    """The AUC of instances by row and length, or why there is none."""
    found: dict[str, Any] = {}
    for (row, length), (own,) in models.items():
        places = madeup.chain(int(length))
        test = madeup.cohort(places, madeup.BAGS["test"], 3 * SEED + 2)
        cases = Truth(list(test.truth)).cases
        found.setdefault(BEST, {})[length] = cases.auroc(madeup.bayes(test, places))(np.ones(cases.bags))
        if failure := _failure([own]):
            found.setdefault(row, {})[length] = failure
            continue
        for key, name in SCORES.items():
            if key in own:
                found.setdefault(f"{row}: {name}", {})[length] = cases.auroc(own[key])(np.ones(cases.bags))
    return found


def _failure(models: Sequence[Arrays]) -> str | None:
    said = [str(own["failed"]) for own in models if "failed" in own]
    return f"failed: {said[0]} ({len(said)} of {len(models)} trainings)" if said else None


def _rsna_table(figures: Mapping[str, Any]) -> Table:
    columns = ("slice AUC", "at one height", "within scans")
    header = ["row", "score", "scan AUC", "slice AUC, single", "all as one", *columns[1:], "gain", "by the same score"]
    rows = []
    for row, of_row in figures.items():
        if of_row["failed"]:
            rows.append([row, of_row["failed"], *["–"] * (len(header) - 2)])
        for name, own in ((name, of_row[name]) for name in SCORES.values() if name in of_row):
            slices, *others = (spelled(spread([each[column] for each in own["single"]])) for column in columns)
            gains = [spelled(own[gain], "+") for gain in ("gain", "gain by the same score")]
            scan = spelled(spread(of_row["scan AUC"]))
            rows.append([row, name, scan, slices, spelled(own["all as one"]), *others, *gains])
    return Table(header, rows, "Slices of RSNA from scan labels of CQ500")


def _chain_table(figures: Mapping[str, Any]) -> Table:
    lengths = list(figures[BEST])
    rows = [
        [row, *(f"{value:.3f}" if isinstance(value, float) else value for value in map(own.get, lengths))]
        for row, own in figures.items()
    ]
    filled = [[cell or "–" for cell in row] for row in rows]  # it failed at some lengths and not at others
    return Table(["AUC of instances", *(f"length {length}" for length in lengths)], filled, "Chains of 32 slices")
