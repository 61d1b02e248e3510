# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m scripts calibrate`: scaling, threshold and conformal sets, from a site's own labelled results."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from scripts.core.cli import PROGRESS_AFTER_S, aligned
from scripts.core.conformal import ONE_LOGIT, Conformal, choose_conformal
from scripts.core.errors import InputError
from scripts.core.files import sha256_of
from scripts.core.record import BagResult
from scripts.datalist.tables import read_rows, require_named_once, zero_or_one
from scripts.engine.operating_point import OperatingPoint, choose_operating_point, operating_file, write_operating_point
from scripts.engine.run_record import ENDING
from scripts.metrics.summary import cohort_metrics
from scripts.outputs.results import read_metrics, read_results

FIGURES = {
    "bag_recall": "sensitivity",
    "bag_specificity": "specificity",
    "class_accuracy": "accuracy",
    "bag_brier_score": "Brier score",
    "bag_calibration_error": "calibration error",
}


def fit_to_site(folder: Path, model: Path, table: Path | None, target: str, coverage: float) -> None:
    """Write an operating point of the labelled bags in a folder of results beside the weights they are of.

    Args:
        table: labels of bags that have none.
        target: as of choose_operating_point.
        coverage: as of choose_conformal.
    """
    if not model.is_file():
        raise InputError(f"{model} is missing: give the model.pt of the results with --weights FILE")
    found = read_results(folder, instances=False)
    unknown = _require_same_weights(found, folder, model)
    bags = _with_labels(found, table, folder)
    point = site_operating_point(bags, target, coverage)
    if point.refusal:
        raise InputError(f"{point.refusal}: give more labelled bags; nothing is written")
    kept = write_operating_point(model, point, keep=True)
    if unknown:
        print(f"{unknown} of {len(found)} results do not name their weights: that they are of {model} is not checked")
    if len(bags) < len(found):
        print(f"{len(found) - len(bags)} of {len(found)} bags have no label and do not count")
    print(_before_and_after(bags, point))
    assert point.conformal is not None
    print("\n".join(_sets_in_words(point.conformal)))
    print(f"written: {operating_file(model)}{f'; the one before is {kept.name} now' if kept else ''}")


def site_operating_point(bags: Sequence[BagResult], target: str, coverage: float) -> OperatingPoint:
    """Return what labelled bags choose; the default, with the reason, where they are too few."""
    logits, labels = np.array([bag.logits for bag in bags]), np.array([bag.label for bag in bags])
    names = ONE_LOGIT if bags[0].classes is None else bags[0].classes.names
    conformal = choose_conformal(logits, labels, names, coverage)
    point = choose_operating_point(logits, labels, target, "labelled bags of the site")
    if point.refusal:
        return point
    origin = f"chosen on {len(bags)} labelled bags of the site by calibrate: {point.origin}"
    return point._replace(origin=origin, conformal=conformal)


def _require_same_weights(results: Sequence[BagResult], folder: Path, weights: Path) -> int:
    """Refuse results of other weights; return how many results do not say of which they are."""
    if "over_folds" in read_metrics(folder):
        raise InputError(f"{folder} is of the networks of several folds: evaluate or infer with {weights}")
    sha256 = sha256_of(weights)

    def is_named(path: Path, *keys: str) -> bool:
        named = _in_json(path, *keys)
        if named and named != sha256:
            raise InputError(f"{path} is of other weights than {weights}: give those, or read the bags with these")
        return bool(named)

    tag = ("tags", "evaluated_weights_sha256")
    records = [path for path in folder.glob(f"*{ENDING}") if _in_json(path, *tag)]
    records.sort(key=lambda path: _in_json(path, "started") or 0)  # an earlier evaluation may be of others
    of_all = [is_named(folder / "report.json", "weights_sha256"), *(is_named(path, *tag) for path in records[-1:])]
    bar = tqdm(results, desc="results", unit="bag", delay=PROGRESS_AFTER_S)
    unnamed = sum(not is_named(folder / result.bag_id / "result.json", "model", "sha256") for result in bar)
    return 0 if any(of_all) else unnamed


def _in_json(path: Path, *keys: str) -> Any:
    """What a file has below these keys; None where it has nothing, or is none."""
    try:
        content = json.loads(path.read_text())
        for key in keys:
            content = content[key]
        return content
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _with_labels(results: Sequence[BagResult], table: Path | None, folder: Path) -> list[BagResult]:
    """Return the results with a label, of the run or of the table."""
    by_name = {result.bag_id: result for result in results}
    if table is not None:
        rows = list(read_rows(table, ("bag_id", "label")))
        require_named_once([(line, bag_id) for line, (bag_id, _) in rows], table, "bag")
        for line, (bag_id, text) in rows:
            where = f"{table}, line {line}"
            if bag_id not in by_name:
                raise InputError(f"{where} names {bag_id!r}, of which {folder} has no result: take it out")
            label = _label_number(text, by_name[bag_id], table, line)
            if by_name[bag_id].label not in (None, label):
                raise InputError(f"{where} labels {bag_id!r} {text}, its result does not: correct one of them")
            by_name[bag_id] = replace(by_name[bag_id], label=label)
    labelled = [result for result in by_name.values() if result.label is not None]
    if not labelled:
        raise InputError(f"no result in {folder} has a label: give a csv of bag_id and label with --labels FILE")
    if not all(result.logits for result in labelled):
        raise InputError(f"{folder}/summary.csv has no logits: evaluate or infer again")
    return labelled


def _label_number(text: str, result: BagResult, table: Path, line: int) -> int:
    if result.classes is None:
        return zero_or_one(text, table, line)
    if text not in result.classes.names:
        wanted = ", ".join(result.classes.names)
        raise InputError(f"{table}, line {line}: the label {text!r} is not one of the classes: give one of {wanted}")
    return result.classes.names.index(text)


def _before_and_after(bags: Sequence[BagResult], point: OperatingPoint) -> str:
    nothing = np.zeros(0)
    alone = [replace(bag, scores=nothing, attention=nothing, instances=[], label_set=None) for bag in bags]
    both = (alone, [bag.rescaled(point.scaling, point.threshold) for bag in alone])
    figures = [cohort_metrics(each) for each in both]
    rows = [[f"on the {len(bags)} bags fitted to", "before", "after"]]
    if bags[0].threshold is not None:
        rows.append(["threshold", *(f"{each[0].threshold:.3g}" for each in both)])
    for name, title in FIGURES.items():
        if name in figures[0]:
            rows.append([title, *(f"{each[name].value:.3f}" for each in figures)])
    return aligned(rows)


def _sets_in_words(conformal: Conformal) -> list[str]:
    lines = []
    for name, cut in conformal.cuts.items():
        few = f"{conformal.bags[name]} bags are too few for a coverage of {conformal.coverage:g}: every set holds it"
        known = f"in the conformal set of at least {conformal.coverage:g} of such bags, by {conformal.bags[name]} bags"
        lines.append(f"{name}: {few if cut is None else known}")
    return lines
