# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Scan labels of CQ500 → slices of RSNA: what each head finds that nobody ever showed it."""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from benchmarks.ledger import data
from benchmarks.ledger.answers import Arrays, alike, scores_of
from benchmarks.ledger.cells import WHERE, Cell, Store
from benchmarks.ledger.cq500 import FOLDS
from benchmarks.ledger.judge import RESAMPLES, Truth, less_faithful, spelled, spread
from benchmarks.ledger.learning import System, options_of, padded
from benchmarks.ledger.systems import losses, pools, smooth_pools
from benchmarks.report import Section, Table, Target
from scripts.core.scoring import needed_logit
from scripts.engine.operating_point import choose_operating_point
from scripts.metrics.figures import bootstrap
from scripts.metrics.intervals import auroc
from scripts.metrics.place import pairs_at_one_place, pairs_by_prior, share_of_pairs

RECIPE = {"in_features": 8}
OUT_OF_FOLD = ("held_out", "held_out_logit")
SUPERVISED = "supervised, logistic"
BASELINE, SHIPPED, SMAP = "attention", "shipped default", "SmAP as shipped"
FLAGS_BY = "instance, Sm 0.7"  # the shipped `score` and `score_smoothing`
LENGTHS = {
    f"auroc_lesions_of_{name.replace(' ', '_')}": f"lesions of {name}"
    for name in ("1 to 3", "4 to 8", "9 to 15", "16 or more")
}
HOW = (
    "Heads learn from the labels of 490 scans of CQ500, on 8 features per slice of a published slice network, and are "
    "asked about the slices of 150 scans of RSNA. No training of a head and no choice of an epoch sees RSNA, but for "
    "the row `supervised, logistic`. The features themselves were learned by their authors from labels of RSNA scans, "
    "and whether these 150 were among them is not known here: this compares heads and scores, and says nothing of how "
    "features travel. {runs} runs of the slice network × 5 folds of CQ500 = {models} models a row: a fifth of CQ500 "
    "is held out (column `on CQ500`), of the rest four fifths train and one chooses the epoch by its cross-entropy. "
    "The runs have not all the same slices of CQ500 ({slices}). Settings of configs/ct/on_features.json, with "
    "slice_drop 0; the loop is benchmarks/ledger/learning.py's. **What was chosen on what:** CQ500 has no labels of "
    "slices and cannot choose between scores. The shipped settings (8 → 64 numbers, 25 epochs, batches of 16, SmAP "
    "mid with α 0.5, own logits smoothed by 0.7) come from an earlier probe whose figures were read on these same 150 "
    "scans, so the shipped rows are no independent test of them: that would be other runs of the features, and other "
    "data. `slice AUC` and the columns behind it: mean ± SD of the models; `gated`: slices of scans that are called "
    "negative at 0.5 rank last; `at one height`: only pairs of slices whose heights differ by 0.05 or less "
    "({at_one_height}); `within scans`: mean over scans; `all as one`: the mean score of the models. `gain`: slice "
    "AUC less that of the attention of plain attention networks, and `by the same score` less that of the same score "
    "of theirs, which is what a head itself adds. `F1 of flags`: by the rule of the bundles, at the threshold that a "
    "sensitivity of 0.95 on the held-out scans of CQ500 gives. Intervals are over scans, the models held fixed. "
    "Height alone within positive scans: {within_height}."
)


def heads(store: Store, jobs: int, quick: bool) -> Section:
    """Pools and the shipped heads, what no label taught, and what all this was to show."""
    title = "Slices of RSNA from scan labels of CQ500"
    figures = judged(store, jobs, quick, pools(RECIPE))
    return _section("rsna", title, quick, figures, _targets(figures))


def penalties(store: Store, jobs: int, quick: bool) -> Section:
    """The smoothness losses."""
    figures = judged(store, jobs, quick, losses(RECIPE), unlearned_too=False)
    return _section("rsna_losses", "The same by smoothness loss", quick, figures)


def placements(store: Store, jobs: int, quick: bool) -> Section:
    """Smooth attention, by labels alone, as deletions take as long as the trainings."""
    figures = judged(store, jobs, quick, smooth_pools(RECIPE), unlearned_too=False, without_labels=False)
    return _section("rsna_smooth", "The same by smooth attention", quick, figures)


def judged(
    store: Store,
    jobs: int,
    quick: bool,
    rows: dict[str, System],
    unlearned_too: bool = True,
    without_labels: bool = True,
) -> dict[str, dict[str, Any]]:
    """Every figure of each row."""
    runs = data.feature_runs()[: 1 if quick else None]
    rows = {BASELINE: pools(RECIPE)[BASELINE], **rows}
    if quick:
        rows = {name: system._replace(keys={**system.keys, "max_epochs": 1}) for name, system in [*rows.items()][:3]}
    models = store.models(cells(runs, rows, without_labels), jobs, "RSNA from CQ500")
    judge = Judge(runs, models[BASELINE])
    every = {**unlearned(runs), **models} if unlearned_too else models
    figures = {}
    for number, (name, own) in enumerate(every.items(), 1):
        print(f"RSNA from CQ500: judging {number} of {len(every)}, {name}", flush=True)
        figures[name] = judge.row(own)
    return {"height alone": height_alone(judge.truth), **figures} if unlearned_too else figures


def _section(
    name: str, title: str, quick: bool, figures: dict[str, dict[str, Any]], targets: Sequence[Target] = ()
) -> Section:
    models = figures[BASELINE]["models"]
    truth = Truth(data.rsna(data.feature_runs()[0]).truth)
    pairs = pairs_at_one_place(truth.cases, truth.height, np.zeros(len(truth.cases.truth)))[1].sum()
    at_one_height = f"{pairs:,.0f} of {truth.cases.truth.sum() * (~truth.cases.truth).sum():,}"
    within = spelled(height_alone(truth)["scores"]["height"]["single"]["in positive scans"])
    counts = [sum(map(len, data.cq500(run).slices)) for run in data.feature_runs()[: models // FOLDS]]
    slices = ", ".join(f"{count:,}" for count in counts)
    how = HOW.format(
        runs=models // FOLDS, models=models, slices=slices, at_one_height=at_one_height, within_height=within
    )
    return Section(name, title, how, quick, WHERE, targets, _tables(figures), figures, format="ledger")


def _targets(figures: dict[str, Any]) -> list[Target]:
    """What the issue of the shipped settings asks, by the score that they flag with."""

    def auc(row: str, way: str) -> float | None:
        found = figures.get(row, {}).get("scores", {}).get(FLAGS_BY, {}).get(way, {}).get("slice AUC")
        return None if found is None else float(found.get("mean", found.get("value")))

    def gain(row: str, over: str) -> float | None:
        found = figures.get(row, {}).get("scores", {}).get(FLAGS_BY, {}).get(f"gain over {over} of attention")
        return None if found is None else float(found["low"])

    def scan(row: str) -> float | None:
        return figures[row]["scan AUC"]["mean"] if row in figures else None

    return [
        Target(f"{SHIPPED}: slice AUC, single", auc(SHIPPED, "single"), 0.965, at_least=True),
        Target(f"{SHIPPED}: scan AUC, single", scan(SHIPPED), 0.97, at_least=True),
        Target(f"{SMAP}: slice AUC, single", auc(SMAP, "single"), 0.975, at_least=True),
        Target(f"{SMAP}: slice AUC, all as one", auc(SMAP, "all as one"), 0.978, at_least=True),
        Target(f"{SMAP}: scan AUC, single", scan(SMAP), 0.97, at_least=True),
        *(
            Target(f"{row}: gain over plain attention {way}, lower end", gain(row, over), 0.0, at_least=True)
            for row in (SHIPPED, SMAP)
            for way, over in (("by its attention", "attention"), ("by the same score", "the same score"))
        ),
    ]


def _tables(figures: dict[str, Any]) -> list[Table]:
    """Where, by each score; by the length of the lesion; and what can be told of a score without labels."""
    named = [(row, score, figures[row], own) for row in figures for score, own in figures[row]["scores"].items()]
    where, lengths, faithful = [], [], []
    for row, score, of_row, own in named:
        single, names = own["single"], [row, score]
        middle = [spelled(single.get(name)) for name in ("slice AUC", "gated", "at one height", "within scans")]
        one = spelled(own["all as one"]["slice AUC"])
        gains = [spelled(own.get(f"gain over {rival} of attention"), "+") for rival in ("attention", "the same score")]
        f1 = spelled(of_row.get("F1 of flagged slices")) if score == FLAGS_BY else "–"
        scans = [spelled(of_row.get(name)) for name in ("scan AUC", "scan AUC on CQ500, out of fold")]
        where.append([*names, *scans, *middle, one, *gains, f1])
        lengths.append([*names, *(spelled(single.get(name)) for name in LENGTHS)])
        steady = [spelled(own.get(name)) for name in ("over epochs", "over trainings")]
        faithful.append([*names, spelled(own.get("deletion")), spelled(own.get("less attention"), "+"), *steady])
    middle = ["scan AUC", "on CQ500", "slice AUC", "gated", "at one height", "within scans", "all as one"]
    tables = [
        Table(["row", "score", *middle, "gain", "by the same score", "F1 of flags"], where, "Where"),
        Table(
            ["row", "score", *LENGTHS.values()],
            [row for row in lengths if set(row[2:]) != {"–"}],
            "By the length of the lesion in slices, against the other slices of positive scans",
        ),
        Table(
            ["row", "score", "deletion AUC", "less that of attention", "over epochs", "over trainings"],
            [row for row in faithful if set(row[2:]) != {"–"}],
            "Without labels of slices: deletion AUC of the scans of RSNA that the row calls positive (other scans in "
            "other rows), the lower the more faithful; and how alike a score ranks the slices of a scan (mean rank "
            "correlation) from one of the last epochs to the next, on held-out scans of CQ500, and in two trainings "
            "on the same features, on RSNA, mean ± SD of pairs that share trainings",
        ),
    ]
    return [table for table in tables if table.rows]


def cells(runs: list[str], rows: dict[str, System], without_labels: bool = True) -> dict[str, list[Cell]]:
    """The trainings behind each row: every fold of CQ500, by every run of the slice network."""
    options = {"without_labels": without_labels}
    of_runs = {run: {"run": run, "data_sha256": data.sha256_of_run(run)} for run in runs}
    return {
        name: [
            Cell("cq500", "train", {**options_of(system), **of_runs[run], "fold": fold, **options})
            for run in runs
            for fold in range(FOLDS)
        ]
        for name, system in rows.items()
    }


def unlearned(runs: list[str]) -> dict[str, list[Arrays]]:
    """The first axis of the features, whose sign alone the bag labels give, and what labels of slices would give."""
    found: dict[str, list[Arrays]] = {"PC1 of the features": [], SUPERVISED: []}
    for run in runs:
        cohort, unseen = data.cq500(run), data.rsna(run)
        centre = np.concatenate(cohort.slices).mean(axis=0)
        axis = np.linalg.svd(np.concatenate(cohort.slices) - centre, full_matrices=False)[2][0]
        means = np.array([(scan - centre).mean(axis=0) @ axis for scan in cohort.slices])
        axis *= np.sign(means[cohort.labels == 1].mean() - means[cohort.labels == 0].mean())  # which way is bleeding
        along = [(scan - centre) @ axis for scan in unseen.slices]
        found["PC1 of the features"].append(_row(along))
        found[SUPERVISED].append(_row(_supervised(unseen)))
    return found


def _row(scores: list[np.ndarray]) -> Arrays:
    return {"logit": np.array([score.mean() for score in scores]), "instance": np.concatenate(scores)}


def _supervised(scans: data.Scans) -> list[np.ndarray]:
    """Logistic regression on the labels of the slices themselves, every fifth scan held out in turn."""
    found = [np.zeros(0)] * len(scans.slices)
    for fold in range(FOLDS):
        seen = [k for k in range(len(scans.slices)) if k % FOLDS != fold]
        rows, truth = (np.concatenate([part[k] for k in seen]) for part in (scans.slices, scans.truth))
        model = LogisticRegression(max_iter=1000).fit(rows, truth)
        for k in range(fold, len(found), FOLDS):
            found[k] = model.decision_function(scans.slices[k])
    return found


def height_alone(truth: Truth) -> dict[str, Any]:
    """A histogram of labels by height, fitted on all scans but the two that are compared."""
    won, pairs = pairs_by_prior(truth.cases, truth.height)
    prior, scans = share_of_pairs(won, pairs), len(truth.counts)
    value = {"slice AUC": {"mean": prior(np.ones(scans)), "sd": math.nan}}
    value["in positive scans"] = {"mean": prior(truth.positive_scan.astype(float)), "sd": math.nan}
    interval = bootstrap(scans, {"slice AUC": prior}, RESAMPLES)["slice AUC"]._asdict()
    return {"models": 0, "scores": {"height": {"single": value, "all as one": {"slice AUC": interval}}}}


class Judge:
    """The table: each row by each score that it has, against networks of plain attention."""

    def __init__(self, runs: list[str], baseline: list[Arrays]) -> None:
        self.truth = Truth(data.rsna(runs[0]).truth)
        self.scan_labels = data.rsna(runs[0]).labels
        self.bags = padded([np.zeros([count, 1], np.float32) for count in self.truth.counts], self.scan_labels.tolist())
        plain = [self._scores(own) for own in baseline]
        self.baseline = {name: self.truth.mean_auroc([own[name] for own in plain]) for name in plain[0]}

    def _scores(self, own: Arrays) -> Arrays:
        return scores_of(own, self.bags)

    def row(self, models: list[Arrays]) -> dict[str, Any]:
        """Every figure of one row: of its models one by one, and of them all as one."""
        named = [self._scores(own) for own in models]
        figures: dict[str, Any] = {"models": len(models), "scan AUC": spread([self._scan(own) for own in models])}
        figures["scan AUC, all as one"] = auroc(self.scan_labels, _mean([own["logit"] for own in models]))._asdict()
        if "held_out" in models[0]:
            figures["scan AUC on CQ500, out of fold"] = spread(_out_of_fold(models))
        if "weight" in models[0]:
            spreads = [float(own["weight"].std() / own["weight"].mean()) for own in models]
            figures["spread of attention"] = spread(spreads)
        if FLAGS_BY in named[0] and "held_out" in models[0]:
            of_models = zip(models, named, strict=True)
            figures["F1 of flagged slices"] = spread([self._f1(own, scores[FLAGS_BY]) for own, scores in of_models])
        figures["scores"] = {name: self._score(models, [own[name] for own in named], name) for name in named[0]}
        return figures

    def _score(self, models: list[Arrays], scores: list[np.ndarray], name: str) -> dict[str, Any]:
        by_model = [self.truth.values(score) for score in scores]
        for own, score, values in zip(models, scores, by_model, strict=True) if "held_out" in models[0] else ():
            called = self.truth.in_scans(own["logit"] > 0)
            floored = np.where(called, score, score.min() - 1)  # as the papers do in scans that are called negative
            values["gated"] = self.truth.cases.auroc(floored)(np.ones(len(self.truth.counts)))
        found = {
            "single": {figure: spread([values[figure] for values in by_model]) for figure in by_model[0]},
            "all as one": {figure: each._asdict() for figure, each in self.truth.intervals(_mean(scores)).items()},
        }
        mine = self.truth.mean_auroc(scores)
        for rival in dict.fromkeys(["attention", name]):
            if rival in self.baseline:
                gain = self.truth.gain(mine, self.baseline[rival])
                found[f"gain over {'the same score' if rival == name else rival} of attention"] = gain._asdict()
        if f"deletion of {name}" in models[0]:
            found |= self._without_labels(models, scores, name)
        return found

    def _without_labels(self, models: list[Arrays], scores: list[np.ndarray], name: str) -> dict[str, Any]:
        """How faithful a score is, and how steady over epochs, and over trainings on the same features."""
        mine, attention = ([own[f"deletion of {which}"] for own in models] for which in (name, "attention"))
        runs = [range(first, first + FOLDS) for first in range(0, len(scores), FOLDS)]
        pairs = [pair for run in runs for pair in combinations(run, 2)]
        return {
            "deletion": less_faithful(mine)._asdict(),
            "less attention": less_faithful(mine, attention)._asdict(),
            "over epochs": spread([float(own[f"steadiness of {name}"]) for own in models]),
            "over trainings": spread([alike(scores[a], scores[b], self.truth.counts) for a, b in pairs]),
        }

    def _scan(self, own: Arrays) -> float:
        return auroc(self.scan_labels, own["logit"]).value

    def _f1(self, own: Arrays, score: np.ndarray) -> float:
        """By the rule of the bundles, at the threshold that the held-out scans of CQ500 give."""
        labels = data.cq500(data.feature_runs()[0]).labels[own["held_out"]]
        point = choose_operating_point(own["held_out_logit"][:, None], labels, "sensitivity 0.95")
        needed = needed_logit(point.threshold, *point.scaling)
        return self.truth.f1((score > needed) & self.truth.in_scans(own["logit"] > needed))


def _out_of_fold(models: list[Arrays]) -> list[float]:
    """The AUROC of all scans of CQ500 by the models that did not see them, for each run of the features."""
    found = []
    for first in range(0, len(models), FOLDS):
        held_out, logits = (
            np.concatenate([own[name] for own in models[first : first + FOLDS]]) for name in OUT_OF_FOLD
        )
        found.append(auroc(data.cq500(data.feature_runs()[0]).labels[held_out], logits).value)
    return found


def _mean(arrays: list[np.ndarray]) -> np.ndarray:
    mean: np.ndarray = np.mean(arrays, axis=0)
    return mean
