# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Scan labels of CQ500 → slices of RSNA: what each head finds that nobody ever showed it."""

import math
import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from benchmarks.ledger import data
from benchmarks.ledger.cells import Arrays, Cell, Store
from benchmarks.ledger.judge import RESAMPLES, Truth, with_smoothed
from benchmarks.ledger.learning import Bags, System, fingerprint, fit, padded, parts_of
from benchmarks.ledger.systems import losses, pools, smooth_pools
from benchmarks.report import Section, Table, Target
from scripts.core.scoring import needed_logit
from scripts.engine.operating_point import choose_operating_point
from scripts.metrics.figures import bootstrap
from scripts.metrics.intervals import auroc
from scripts.metrics.place import pairs_by_prior, share_of_pairs
from scripts.studies.crossval import LabelledBag, fold_sections

FOLDS = 5
RECIPE = {"in_features": 8}
SCORES = ("attention", "evidence", "instance")
OUT_OF_FOLD = ("held_out", "held_out_logit")
BASELINE, SHIPPED, SMAP = "attention", "shipped default", "SmAP as shipped"
FLAGS_BY = "instance, Sm 0.7"  # the shipped `score` and `score_smoothing`
LENGTHS = {
    f"auroc_lesions_of_{name.replace(' ', '_')}": f"lesions of {name}"
    for name in ("1 to 3", "4 to 8", "9 to 15", "16 or more")
}
HOW = (
    "Heads learn from the labels of 490 scans of CQ500, on 8 features per slice of a published slice network, and are"
    " asked about the slices of 150 scans of RSNA; no training and no choice of an epoch sees RSNA, but for the row "
    "`supervised ceiling`. {runs} runs of the slice network × 5 folds of CQ500 = {models} models a row: in each fold "
    "three fifths train, one fifth of the rest chooses the epoch by its cross-entropy, a fifth is held out for the "
    "column out of fold. Settings of configs/ct/on_features.json, with slice_drop 0. **What was chosen on what:** "
    "CQ500 has no labels of slices and cannot choose between heads; it even prefers SmTAP. The shipped settings (8 → "
    "64 numbers, 25 epochs, batches of 16, SmAP mid with α 0.5, own logits smoothed by 0.7) come from an earlier "
    "probe whose figures were read on these same 150 scans, so the shipped rows are no independent test of them: that"
    " would be other runs of the features, and other data. `single`: mean ± SD of the models; `all as one`: their "
    "mean score; `gain`: single slice AUC less that of the attention of plain attention networks, and less that of "
    "plain attention networks by the same score. `at one height`: only pairs of slices whose heights differ by 0.05 "
    "or less; `within scans`: mean over scans; lesions by their length in slices, against the other slices of "
    "positive scans."
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
    """Smooth attention."""
    figures = judged(store, jobs, quick, smooth_pools(RECIPE), unlearned_too=False)
    return _section("rsna_smooth", "The same by smooth attention", quick, figures)


def judged(
    store: Store, jobs: int, quick: bool, rows: dict[str, System], unlearned_too: bool = True
) -> dict[str, dict[str, Any]]:
    """Every figure of each row."""
    runs = data.feature_runs()[: 1 if quick else None]
    rows = {BASELINE: pools(RECIPE)[BASELINE], **rows}
    if quick:
        rows = {name: system._replace(keys={**system.keys, "max_epochs": 1}) for name, system in [*rows.items()][:3]}
    trained = cells(runs, rows)
    store.complete([cell for of_row in trained.values() for cell in of_row], jobs, "RSNA from CQ500")
    models = {name: [store.read(cell) for cell in of_row] for name, of_row in trained.items()}
    judge = Judge(runs, models[BASELINE])
    every = {**unlearned(runs), **models} if unlearned_too else models
    figures = {}
    for number, (name, own) in enumerate(every.items(), 1):
        print(f"RSNA from CQ500: judging {number} of {len(every)}, {name}", flush=True)
        figures[name] = judge.row(own)
    return {"height alone": judge.height_alone(), **figures} if unlearned_too else figures


def _section(
    name: str, title: str, quick: bool, figures: dict[str, dict[str, Any]], targets: Sequence[Target] = ()
) -> Section:
    models = figures[BASELINE]["models"]
    how = HOW.format(runs=models // FOLDS, models=models)
    where = {"Python": platform.python_version(), "torch": version("torch")}
    return Section(name, title, how, quick, where, targets, [_table(figures)], figures, format="ledger")


def _targets(figures: dict[str, Any]) -> list[Target]:
    """What the issue of the shipped settings asks, by the score that they flag with."""

    def auc(row: str, way: str) -> float | None:
        found = figures.get(row, {}).get("scores", {}).get(FLAGS_BY, {}).get(way, {}).get("slice AUC")
        return None if found is None else float(found.get("mean", found.get("value")))

    def gain(row: str) -> float | None:
        found = figures.get(row, {}).get("scores", {}).get(FLAGS_BY, {}).get("gain over attention of attention")
        return None if found is None else float(found["low"])

    def scan(row: str) -> float | None:
        return figures[row]["scan AUC"]["mean"] if row in figures else None

    return [
        Target(f"{SHIPPED}: slice AUC, single", auc(SHIPPED, "single"), 0.965, at_least=True),
        Target(f"{SHIPPED}: scan AUC, single", scan(SHIPPED), 0.97, at_least=True),
        Target(f"{SMAP}: slice AUC, single", auc(SMAP, "single"), 0.975, at_least=True),
        Target(f"{SMAP}: slice AUC, all as one", auc(SMAP, "all as one"), 0.978, at_least=True),
        Target(f"{SMAP}: scan AUC, single", scan(SMAP), 0.97, at_least=True),
        Target(f"{SHIPPED}: gain over plain attention, lower end", gain(SHIPPED), 0.0, at_least=True),
        Target(f"{SMAP}: gain over plain attention, lower end", gain(SMAP), 0.0, at_least=True),
    ]


def _table(figures: dict[str, Any]) -> Table:
    columns = ("slice AUC", "at one height", "within scans", *LENGTHS)
    names = ["scan AUC", "slice AUC", "all as one", *columns[1:3], *LENGTHS.values()]
    gains = {"attention": "gain", "the same score": "by the same score"}
    rows = []
    for row_name, row in figures.items():
        for score, own in row["scores"].items():
            one = own["all as one"]["slice AUC"]
            slices, *others = (_cell(own["single"].get(name)) for name in columns)
            over = [_interval(own.get(f"gain over {rival} of attention"), "+") for rival in gains]
            rows.append([row_name, score, _cell(row.get("scan AUC")), slices, _interval(one), *others, *over])
    return Table(["row", "score", *names, *gains.values()], rows)


def _interval(found: dict[str, float] | None, sign: str = "") -> str:
    if found is None:
        return "–"
    value, low, high = (f"{found[key]:{sign}.3f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _cell(found: dict[str, float] | None) -> str:
    if found is None:
        return "–"
    return f"{found['mean']:.3f}" if math.isnan(found["sd"]) else f"{found['mean']:.3f} ± {found['sd']:.3f}"


def cells(runs: list[str], rows: dict[str, System]) -> dict[str, list[Cell]]:
    """The trainings behind each row: every fold of CQ500, by every run of the slice network."""
    of_runs = {run: {"run": run, "data_sha256": data.sha256_of_run(run)} for run in runs}
    return {
        name: [
            Cell("rsna", "train", {**options_of(system), **of_runs[run], "fold": fold})
            for run in runs
            for fold in range(FOLDS)
        ]
        for name, system in rows.items()
    }


def options_of(system: System) -> dict[str, Any]:
    return {"files": system.files, "keys": system.keys, "config": fingerprint(system)}


def train(files: list[str], keys: dict[str, Any], config: str, run: str, data_sha256: str, fold: int) -> Arrays:
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


def unlearned(runs: list[str]) -> dict[str, list[Arrays]]:
    """The rows that no bag label taught: what stands here is what learning has to beat."""
    found: dict[str, list[Arrays]] = {"PC1 of the features": [], "supervised ceiling": []}
    for run in runs:
        cohort, unseen = data.cq500(run), data.rsna(run)
        centre = np.concatenate(cohort.slices).mean(axis=0)
        axis = np.linalg.svd(np.concatenate(cohort.slices) - centre, full_matrices=False)[2][0]
        means = np.array([(scan - centre).mean(axis=0) @ axis for scan in cohort.slices])
        axis *= np.sign(means[cohort.labels == 1].mean() - means[cohort.labels == 0].mean())  # which way is bleeding
        along = [(scan - centre) @ axis for scan in unseen.slices]
        found["PC1 of the features"].append(_row(along))
        found["supervised ceiling"].append(_row(_supervised(unseen)))
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


class Judge:
    """The table: each row by each score that it has, against networks of plain attention."""

    def __init__(self, runs: list[str], baseline: list[Arrays]) -> None:
        self.truth = Truth(data.rsna(runs[0]).truth)
        self.scan_labels = data.rsna(runs[0]).labels
        self.baseline = [self._scores(own) for own in baseline]

    def _scores(self, own: Arrays) -> Arrays:
        return with_smoothed({name: own[name] for name in SCORES if name in own}, self.truth.counts)

    def height_alone(self) -> dict[str, Any]:
        """A histogram of labels by height, fitted on all scans but the two that are compared."""
        won, pairs = pairs_by_prior(self.truth.cases, self.truth.height)
        prior, scans = share_of_pairs(won, pairs), len(self.truth.counts)
        value = {"slice AUC": {"mean": prior(np.ones(scans)), "sd": math.nan}}
        value["in positive scans"] = {"mean": prior(self.truth.positive_scan.astype(float)), "sd": math.nan}
        interval = bootstrap(scans, {"slice AUC": prior}, RESAMPLES)["slice AUC"]._asdict()
        return {"models": 0, "scores": {"height": {"single": value, "all as one": {"slice AUC": interval}}}}

    def row(self, models: list[Arrays]) -> dict[str, Any]:
        """Every figure of one row: of its models one by one, and of them all as one."""
        named = [self._scores(own) for own in models]
        figures: dict[str, Any] = {"models": len(models), "scan AUC": _spread([self._scan(own) for own in models])}
        figures["scan AUC, all as one"] = auroc(self.scan_labels, _mean([own["logit"] for own in models]))._asdict()
        if "held_out" in models[0]:
            figures["scan AUC on CQ500, out of fold"] = _spread(_out_of_fold(models))
        if "weight" in models[0]:
            spreads = [float(own["weight"].std() / own["weight"].mean()) for own in models]
            figures["spread of attention"] = _spread(spreads)
        if FLAGS_BY in named[0] and "held_out" in models[0]:
            of_models = zip(models, named, strict=True)
            figures["F1 of flagged slices"] = _spread([self._f1(own, scores[FLAGS_BY]) for own, scores in of_models])
        figures["scores"] = {name: self._score([own[name] for own in named], name) for name in named[0]}
        return figures

    def _score(self, scores: list[np.ndarray], name: str) -> dict[str, Any]:
        by_model = [self.truth.values(score) for score in scores]
        found = {
            "single": {figure: _spread([values[figure] for values in by_model]) for figure in by_model[0]},
            "all as one": {figure: each._asdict() for figure, each in self.truth.intervals(_mean(scores)).items()},
        }
        for rival in dict.fromkeys(["attention", name]):
            if rival in self.baseline[0]:
                gain = self.truth.gain(scores, [own[rival] for own in self.baseline])
                found[f"gain over {'the same score' if rival == name else rival} of attention"] = gain._asdict()
        return found

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


def _spread(values: list[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "sd": float(np.std(values, ddof=1)) if len(values) > 1 else math.nan}
