# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The table of real images: bag labels of windows of PHE-SICH → slices of whole scans that no network of a fold saw."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.ledger.answers import Arrays, scores_of
from benchmarks.ledger.cells import WHERE, Cell, Store
from benchmarks.ledger.images import FOLDS, PREPARED_BY, Cohort, cohort, sha256_of_images
from benchmarks.ledger.judge import RESAMPLES, Truth, less_faithful, spelled
from benchmarks.ledger.learning import options_of, padded
from benchmarks.ledger.systems import image_heads
from benchmarks.report import Section, Table
from scripts.metrics.figures import Cases, Figure, bootstrap
from scripts.metrics.place import pairs_by_prior, share_of_pairs

BASELINE = "gated attention"
FIGURES = ("slice AUC", "at one height", "within scans")
HOW = (
    "The slice network learns from images: 718 bags of 8 neighbouring slices of 96 patients, half of them with "
    "bleeding (each beside one without at the same height of another patient, so that height tells little), as "
    "volumes in the brain window at 128², 5 blocks, 5 epochs, AdamW 5e-4, batches of 8, flipped and turned as the "
    "bundle does. 5 folds by patient: three train, one chooses the epoch by its cross-entropy, one is judged; one "
    "seed. **What was chosen on what:** epochs, learning rate and batch size were fixed beforehand for the time they "
    "take, after one training of gated attention on fold 0 for 6 epochs at 1e-3, whose figures were seen. `bag AUC`: "
    "of the held-out windows; all else: whole scans of the held-out patients, all of which bleed in 2 to 11 slices. "
    "Figures are means over folds, as each fold has a network of its own; intervals are over scans; `gain`: over "
    "gated attention by its attention, and by the same score, in the same draws. `at one height`: pairs of slices "
    "whose heights differ by 0.05 or less. Three windows of the bundle are cut from the one that the images have."
)


def images(store: Store, jobs: int, quick: bool) -> Section:
    """Each head by each score."""
    rows = image_heads()
    folds = 1 if quick else FOLDS
    if quick:
        rows = {name: own._replace(keys={**own.keys, "max_epochs": 1}) for name, own in [*rows.items()][:1]}
    of_data = {"data_sha256": sha256_of_images()}
    asked = {
        name: [
            Cell("images", "train", {**options_of(system, PREPARED_BY), **of_data, "fold": fold})
            for fold in range(folds)
        ]
        for name, system in rows.items()
    }
    models = store.models(asked, jobs, "Slices of real images")
    judge = Judge(cohort(), folds, models[BASELINE])
    alone = {"height alone": judge.height_alone(), "length of the scan alone": judge.length_alone()}
    figures = {**alone, **{name: judge.row(own) for name, own in models.items()}}
    return Section("images", "Slices of real head CT", HOW, quick, WHERE, (), [_table(figures)], figures, "ledger")


class Judge:
    """Figures that are means over folds, with intervals over the scans of all of them."""

    def __init__(self, known: Cohort, folds: int, baseline: Sequence[Arrays]) -> None:
        names = [known.scans_of_fold(fold) for fold in range(folds)]
        self.truth = [Truth([known.truth[name] for name in own]) for own in names]
        self.windows = [
            Cases([np.array([w.label for w in known.of_fold(fold) if w.scan == name]) for name in own])
            for fold, own in enumerate(names)
        ]
        self.in_order = [  # of a fold's windows: scan by scan
            np.concatenate([[k for k, w in enumerate(known.of_fold(fold)) if w.scan == name] for name in own])
            for fold, own in enumerate(names)
        ]
        self.window_heights = [
            np.array([w.start / max(len(known.truth[w.scan]) - 1, 1) for w in known.of_fold(fold)])[order]
            for fold, order in enumerate(self.in_order)
        ]
        self.baseline = [self._scores(fold, own) for fold, own in enumerate(baseline)]

    def _scores(self, fold: int, own: Arrays) -> Arrays:
        counts = self.truth[fold].counts
        return scores_of(own, padded([np.zeros([n, 1], np.float32) for n in counts], [1] * len(counts)))

    def _mean(self, of_folds: Sequence[Figure]) -> Figure:
        ends = np.cumsum([len(truth.counts) for truth in self.truth])[:-1]

        def figure(weight_of_scan: np.ndarray) -> float:
            weights = np.split(weight_of_scan, ends)
            values = [own(weight) for own, weight in zip(of_folds, weights, strict=True)]
            known = [value for value in values if not np.isnan(value)]  # a draw may have none of a fold's scans
            return float(np.mean(known)) if known else np.nan

        return figure

    def _intervals(self, figures: Mapping[str, Figure]) -> dict[str, dict[str, float]]:
        scans = sum(len(truth.counts) for truth in self.truth)
        return {name: found._asdict() for name, found in bootstrap(scans, figures, RESAMPLES).items()}

    def height_alone(self) -> dict[str, Any]:
        """A histogram of labels by height, fitted on all scans of the fold but the two that are compared."""
        priors = [share_of_pairs(*pairs_by_prior(truth.cases, truth.height)) for truth in self.truth]
        bags = [
            share_of_pairs(*pairs_by_prior(cases, height))
            for cases, height in zip(self.windows, self.window_heights, strict=True)
        ]
        found = self._intervals({"bag AUC": self._mean(bags), "slice AUC": self._mean(priors)})
        return {"bag AUC": found["bag AUC"], "scores": {"height": found}}

    def length_alone(self) -> dict[str, Any]:
        """How many slices the scan of a window has: positive windows come from shorter scans."""
        bags = [
            cases.auroc(-np.array(truth.counts)[cases.bag].astype(float))
            for cases, truth in zip(self.windows, self.truth, strict=True)
        ]
        return {**self._intervals({"bag AUC": self._mean(bags)}), "scores": {"number of slices": {}}}

    def row(self, models: Sequence[Arrays]) -> dict[str, Any]:
        """Every figure of one row."""
        named = [self._scores(fold, own) for fold, own in enumerate(models)]
        bags = [
            cases.auroc(own["window_logit"][order])
            for cases, order, own in zip(self.windows, self.in_order, models, strict=True)
        ]
        scores = {name: self._score(models, [own[name] for own in named], name) for name in named[0]}
        return {**self._intervals({"bag AUC": self._mean(bags)}), "scores": scores}

    def _score(self, models: Sequence[Arrays], scores: Sequence[np.ndarray], name: str) -> dict[str, Any]:
        of_folds = [truth.figures(score) for truth, score in zip(self.truth, scores, strict=True)]
        figures = {each: self._mean([own[each] for own in of_folds]) for each in FIGURES}
        for rival in dict.fromkeys(["attention", name]):
            theirs = [truth.cases.auroc(own[rival]) for truth, own in zip(self.truth, self.baseline, strict=True)]
            called = "the same score" if rival == name else rival
            figures[f"gain over {called}"] = _difference(figures["slice AUC"], self._mean(theirs))
        found: dict[str, Any] = self._intervals(figures)
        mine, attention = (
            [np.concatenate([own[f"deletion of {each}"] for own in models])] for each in (name, "attention")
        )
        return {
            **found,
            "deletion": less_faithful(mine)._asdict(),
            "less attention": less_faithful(mine, attention)._asdict(),
        }


def _difference(one: Figure, other: Figure) -> Callable[[np.ndarray], float]:
    return lambda weight: one(weight) - other(weight)


def _table(figures: Mapping[str, Any]) -> Table:
    gains = ("gain over attention", "gain over the same score")
    rows = [
        [
            *(row, score, spelled(of_row.get("bag AUC")), *(spelled(own.get(name)) for name in FIGURES)),
            *(spelled(own.get(name), "+") for name in gains),
            *(spelled(own.get("deletion")), spelled(own.get("less attention"), "+")),
        ]
        for row, of_row in figures.items()
        for score, own in of_row["scores"].items()
    ]
    header = [
        "row",
        "score",
        "bag AUC",
        *FIGURES,
        "gain",
        "by the same score",
        "deletion AUC",
        "less that of attention",
    ]
    return Table(header, rows)
