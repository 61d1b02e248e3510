# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""report.json: everything that the report of a cohort shows, computed from the tables of the cohort and nothing else.

A part that cannot be computed is null.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from scripts.core.files import plain
from scripts.core.record import BagResult
from scripts.engine.run_record import read_record, run_file
from scripts.metrics.figures import Cases, draws, tenth
from scripts.metrics.intervals import auroc, wilson
from scripts.metrics.summary import is_one_question, with_truth
from scripts.outputs.results import figures_in, read_metrics, read_results, rows_in

CASES = 10  # of each kind
AT = np.linspace(0, 1, 101)  # where the bands of curves are given
BARS = 40  # of a histogram
FAINTEST = 1e-3  # of the average attention; what is fainter is in the first bar


def report_content(folder: Path) -> dict[str, Any]:
    """Return the content of report.json for a folder of results, but for what its tables do not hold: the network."""
    results = read_results(folder)
    metrics, summary = read_metrics(folder), folder / "summary.csv"
    over_folds = metrics.get("over_folds", {})
    labelled = [result for result in results if result.label is not None]
    thresholds = [result.threshold for result in results if result.threshold is not None]
    attention = _attention_on_truth(results)
    content = {
        "tables_written": datetime.fromtimestamp(summary.stat().st_mtime).isoformat(" ", "minutes"),
        "cohort": {
            "bags": dict(Counter(row["status"] for row in rows_in(summary))),
            "labelled": len(labelled),
            "positive": sum(bool(result.label_positive) for result in labelled),
            "called_positive": sum(result.positive for result in results),
            "instances": sum(len(result.scores) for result in results),
        },
        "threshold": [min(thresholds), max(thresholds)] if thresholds else None,
        "threshold_origin": metrics.get("threshold_origin"),
        "over_folds": {key: over_folds[key] for key in ("folds", "repeats")} if over_folds else None,
        "score": _score(results),
        "figures": {name: {**figure, **over_folds.get(name, {})} for name, figure in figures_in(metrics).items()},
        "confusion": _confusion(labelled),
        "curves": _curves(labelled),
        "calibration": _calibrations(labelled),
        "instances": _histograms(results),
        "attention_on_truth": attention,
        "cases": _cases(results, attention or []),
    }
    return {name: plain(part) for name, part in content.items()}


def training_record(ckpt_path: Path) -> dict[str, Any] | None:
    """Return what training left beside its weights: curves, each of (epoch, value), and the epoch that was kept."""
    record = read_record(run_file(ckpt_path))
    if record is None:
        return None
    curves: dict[str, list[tuple[int, float]]] = {}
    for epoch in record["epochs"]:
        for name, value in epoch.items():
            if name not in ("epoch", "time"):
                curves.setdefault(name, []).append((epoch["epoch"], value))
    return {"run_name": record["run_name"], "curves": curves, "kept": (record["kept"] or {}).get("epoch")}


def _score(results: Sequence[BagResult]) -> dict[str, Any] | None:
    """What ranks and flags the instances; several where runs of several scores were put together."""
    if not results:
        return None
    smoothing = max(result.score_smoothing for result in results)
    return {"names": sorted({result.score_name for result in results}), "smoothing": smoothing}


def _confusion(labelled: Sequence[BagResult]) -> dict[str, Any] | None:
    if not labelled:
        return None
    classes = labelled[0].classes
    names = ("negative", "positive") if classes is None else classes.names
    count = Counter((result.true_verdict, result.verdict) for result in labelled)
    return {"names": names, "bags": [[count[label, called] for called in names] for label in names]}


def _curves(labelled: Sequence[BagResult]) -> dict[str, Any] | None:
    """ROC and precision with recall, by what is asked: positive or not, or each class against the rest."""
    asked: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    if is_one_question(labelled):
        truth = np.array([bool(result.label_positive) for result in labelled])
        name = "positive" if labelled[0].classes is None else "any finding"
        asked[name] = truth, np.array([result.probability for result in labelled])
    classes = [result.classes for result in labelled if result.classes is not None]
    for number, name in enumerate(classes[0].names if classes else ()):
        truth = np.array([result.label == number for result in labelled])
        asked[name] = truth, np.array([each.probabilities[number] for each in classes])
    curves = {name: _curve(truth, score) for name, (truth, score) in asked.items() if 0 < truth.sum() < len(truth)}
    return curves or None


def _curve(truth: np.ndarray, score: np.ndarray) -> dict[str, Any]:
    """Every point of both curves, and bands within which 95 % of the draws of bags lie at each place of `AT`."""
    rates = Cases(list(truth[:, None])).rates(score)
    hits, alarms = rates(np.ones(len(truth)))
    drawn = [(h, a) for h, a in map(rates, draws(len(truth))) if h[-1] and a[-1]]
    sensitivity = [np.interp(AT, a / a[-1], h / h[-1]) for h, a in drawn]
    precision = [(h[at] / (h[at] + a[at])) for h, a in drawn for at in [np.searchsorted(h / h[-1], AT[1:])]]
    return {
        "positive": truth.sum(),
        "negative": (~truth).sum(),
        "roc": {
            "false_positive_rate": alarms / alarms[-1],
            "sensitivity": hits / hits[-1],
            "band": _band(AT, sensitivity),
        },
        "precision_recall": {
            "recall": hits[1:] / hits[-1],
            "precision": hits[1:] / (hits[1:] + alarms[1:]),
            "band": _band(AT[1:], precision),
        },
    }


def _band(at: np.ndarray, drawn: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return {"at": at, "low": low, "high": high}


def _calibrations(labelled: Sequence[BagResult]) -> dict[str, Any] | None:
    """Reliability of the probability as it is, and of what the logits alone would give, before any scaling."""
    if not is_one_question(labelled):
        return None
    truth = np.array([bool(result.label_positive) for result in labelled])
    before = np.array([result.rescaled((1, 0)).probability if result.logits else np.nan for result in labelled])
    return {
        "before": _calibration(truth, before) if np.isfinite(before).all() else None,
        "after": _calibration(truth, np.array([result.probability for result in labelled])),
    }


def _calibration(truth: np.ndarray, probability: np.ndarray) -> dict[str, Any]:
    bins = []
    for number in range(10):
        of_bin = tenth(probability) == number
        bags, positive = int(of_bin.sum()), int(truth[of_bin].sum())
        share, low, high = wilson(positive, bags)
        mean = probability[of_bin].mean() if bags else None
        counts = {"bags": bags, "positive": positive, "mean_probability": mean}
        bins.append({**counts, "share_positive": share, "low": low, "high": high})
    error = Cases(list(truth[:, None])).calibration(probability)["calibration_error"](np.ones(len(truth)))
    return {"calibration_error": error, "bins": bins}


def _histograms(results: Sequence[BagResult]) -> dict[str, Any] | None:
    """Counts of attention and scores, by the truth of the instances; what is beyond an end is in the bar at the end."""
    known = {result.bag_id: result.truth for result in with_truth(results) if result.truth is not None}
    kinds = [known.get(result.bag_id, np.full(len(result.scores), 2)) for result in results]
    if not sum(map(len, kinds)):
        return None
    kind = np.concatenate(kinds)
    attention = np.concatenate([result.times_average for result in results])
    score = np.concatenate([result.scores for result in results]).astype(float)
    seen = attention[attention > 0]
    decades = np.geomspace(max(seen.min(initial=1), FAINTEST), max(seen.max(initial=1), 1) * 1.01, BARS + 1)
    finite = score[np.isfinite(score)] if np.isfinite(score).any() else np.zeros(1)
    between = np.linspace(finite.min(), finite.max() + 1e-6, BARS + 1)
    return {"attention_times_average": _histogram(attention, kind, decades), "score": _histogram(score, kind, between)}


def _histogram(values: np.ndarray, kind: np.ndarray, edges: np.ndarray) -> dict[str, Any]:
    counts = {}
    for number, name in ((1, "positive"), (0, "negative"), (2, "unknown")):
        own = values[(kind == number) & np.isfinite(values)]
        if len(own):
            counts[name] = np.histogram(np.clip(own, edges[0], edges[-1]), edges)[0]
    return {"edges": edges, "counts": counts}


def _attention_on_truth(results: Sequence[BagResult]) -> list[dict[str, Any]] | None:
    """Of each positive bag with both kinds of instances: how much attention is where it should be."""
    bags = [
        {
            "bag_id": result.bag_id,
            "instances": len(truth),
            "positive_instances": int(truth.sum()),
            "share_of_instances": float(truth.mean()),
            "share_of_attention": float(result.attention[truth == 1].sum()),
            "auroc": auroc(truth, result.scores).value,
        }
        for result in with_truth(results)
        for truth in [result.truth]
        if truth is not None and 0 < truth.sum() < len(truth)
    ]
    return sorted(bags, key=lambda bag: -bag["share_of_attention"]) or None


def _cases(results: Sequence[BagResult], attention: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The bags worth looking at, the worst first."""
    mistaken = [result for result in results if result.label is not None and result.verdict != result.true_verdict]
    elsewhere = [bag for bag in attention if bag["share_of_attention"] < bag["share_of_instances"]]
    elsewhere.sort(key=lambda bag: bag["share_of_attention"] / bag["share_of_instances"])
    return {
        "confident_mistakes": _first(mistaken, lambda result: -_confidence(result)),
        "least_certain": _first(results, _margin),
        "attention_elsewhere": elsewhere[:CASES],
    }


def _first(results: Iterable[BagResult], order: Callable[[BagResult], float]) -> list[dict[str, Any]]:
    return [
        {
            "bag_id": result.bag_id,
            "label": result.true_verdict,
            "called": result.verdict,
            "confidence": _confidence(result),
            "probability": result.probability,
            "margin": _margin(result),
        }
        for result in sorted(results, key=order)[:CASES]
    ]


def _confidence(result: BagResult) -> float:
    """The probability of what the bag is called."""
    if result.classes is not None:
        return float(result.classes.probabilities.max())
    return result.probability if result.positive else 1 - result.probability


def _margin(result: BagResult) -> float:
    """The distance from another call: to the threshold, or to the second class."""
    if result.classes is not None:
        second, first = np.sort(result.classes.probabilities)[-2:]
        return float(first - second)
    return abs(result.probability - (result.threshold or 0.0))
