# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m scripts crossval`: folds by patient, a real training and evaluation of each, and their figures pooled."""

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from scripts.core.bags import load_bags
from scripts.core.cli import aligned
from scripts.core.errors import InputError
from scripts.core.files import sha256_of, write_whole
from scripts.core.record import BagResult
from scripts.datalist.split import patients_by_class
from scripts.datalist.tables import SECTIONS
from scripts.engine.operating_point import read_operating_point
from scripts.metrics.figures import UNDEFINED, Interval
from scripts.metrics.summary import cohort_metrics, of_one_network
from scripts.outputs.page import write_report
from scripts.outputs.report import LOGGED, Outcomes, write_cohort
from scripts.outputs.results import known_values, read_metrics, read_results
from scripts.studies.ensemble import write_ensemble
from scripts.studies.runs import Run, Study, perform, refuse_failures

INNER_PARTS = 5  # of what a fold trains with, one part is its validation section
ORIGIN = "that of each fold's own network, chosen on the fold's validation bags"


def cross_validate(study: Study, folds: int, repeats: int, seed: int) -> None:
    """Do the runs of all folds that are left, and pool them."""
    bags = read_bags(study.datalist, study.dataset_dir)
    runs = [
        Run(f"repeat {repeat} fold {fold}", path, path / "datalist.json", "test", {"seed": seed + number})
        for number, (repeat, fold) in enumerate((r, k) for r in range(1, repeats + 1) for k in range(1, folds + 1))
        for path in [study.output_dir / f"repeat_{repeat}" / f"fold_{fold}"]
    ]
    sections = [each for repeat in range(repeats) for each in fold_sections(bags, folds, f"{seed} {repeat}")]
    study.keep_settings("crossval", datalist_sha256=sha256_of(study.datalist), folds=folds, seed=seed)
    for run, own in zip(runs, sections, strict=True):
        lists = {name: [bag.entry for bag in listed] for name, listed in own.items()}
        write_whole(run.datalist, json.dumps(lists, indent=1) + "\n")
    refuse_failures(perform(study, runs, _figures_of), len(runs))
    print(pool(study, [runs[first : first + folds] for first in range(0, len(runs), folds)]))


@dataclass(frozen=True)
class LabelledBag:
    """A bag as the datalist has it, and what a split needs to know of it."""

    bag_id: str
    label: str
    patient: str
    entry: dict[str, Any]


def read_bags(datalist: Path, dataset_dir: Path) -> list[LabelledBag]:
    """Return the bags of the sections training and validation; without a `patient` each is one of its own.

    Their labels stay as the datalist has them: which number a name has is for the config to say that trains with it.
    """
    sections, labels = _sections_and_labels(datalist)
    names = None if labels.keys() <= {"0", "1"} else sorted(labels)
    bags: dict[str, LabelledBag] = {}
    for section in sections:
        for bag in load_bags(str(datalist), section, str(dataset_dir), class_names=names):
            label, bag_id = str(bag["label"]) if names is None else names[bag["label"]], bag["bag_id"]
            if bag_id in bags:
                raise InputError(f'{datalist} has two bags {bag_id}: give each a "bag_id" of its own')
            entry = {**bag, "label": labels[label]}
            bags[bag_id] = LabelledBag(bag_id, label, bag.get("patient", bag_id), entry)
    patients = len({bag.patient for bag in bags.values()})
    stated = "" if any("patient" in bag.entry for bag in bags.values()) else ', as the datalist states no "patient"'
    print(f"{len(bags)} bags of {patients} patients{stated}; the test section is not opened", flush=True)
    return list(bags.values())


def _sections_and_labels(datalist: Path) -> tuple[list[str], dict[str, Any]]:
    """The sections that have bags; and what these are labelled, in words and as it is written."""
    try:
        content = json.loads(datalist.read_text())
        sections = [name for name in SECTIONS[:2] if content.get(name)]
        given = [bag.get("label") for name in sections for bag in content[name]]
    except (OSError, ValueError, AttributeError, TypeError):
        return list(SECTIONS[:1]), {}  # `load_bags` tells what is wrong
    return sections or list(SECTIONS[:1]), {str(label): label for label in given if label is not None}


def fold_sections(bags: Sequence[LabelledBag], folds: int, seed: str) -> list[dict[str, list[LabelledBag]]]:
    """Return the datalist of each fold: its bags are the test section, one part of the others the validation."""
    patients = Counter(label for label, _ in {(bag.label, bag.patient) for bag in bags})
    label, few = patients.most_common()[-1]
    if few < folds:
        raise InputError(f"the label {label} has {few} patients, fewer than {folds} folds: give fewer --folds")
    found = []
    parts = deal(bags, folds, seed)
    for fold, held_out in enumerate(parts):
        others = [bag for number, part in enumerate(parts) if number != fold for bag in part]
        inner = deal(others, INNER_PARTS, seed)
        validation = max(inner, key=lambda part: len({bag.label for bag in part}))
        training = [bag for part in inner if part is not validation for bag in part]
        found.append(dict(zip(SECTIONS, (training, validation, held_out), strict=True)))
    return found


def deal(bags: Sequence[LabelledBag], parts: int, seed: str) -> list[list[LabelledBag]]:
    """Put each patient into one part, so that the bags of every class are spread alike."""
    by_patient: dict[str, list[LabelledBag]] = defaultdict(list)
    for bag in bags:
        by_patient[bag.patient].append(bag)
    dealt: list[list[LabelledBag]] = [[] for _ in range(parts)]
    for patients in patients_by_class({name: {bag.label for bag in own} for name, own in by_patient.items()}):
        patients.sort(key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
        patients.sort(key=lambda name: -len(by_patient[name]))  # those of many bags first, as the others fill up
        of_class = [0] * parts
        for name in patients:
            part = min(range(parts), key=lambda k: (of_class[k], len(dealt[k])))
            of_class[part] += len(by_patient[name])
            dealt[part] += by_patient[name]
    return dealt


def _figures_of(run: Run) -> str:
    metrics = read_metrics(run.results)
    values = known_values(metrics)
    return f"{', '.join(f'{name} {values[name]:.3f}' for name in LOGGED if name in values)} of {metrics['bags']} bags"


def out_of_fold(runs: Sequence[Run]) -> tuple[list[BagResult], np.ndarray]:
    """Return the results of all folds of a repeat, and their logits, (bags, classes), by the scaling of each fold."""
    found = []
    for run in runs:
        slope, intercept = read_operating_point(str(run.model)).scaling
        found += [
            (replace(result, threshold_origin=ORIGIN), [slope * logit + intercept for logit in result.logits])
            for result in read_results(run.results)
        ]
    results, logits = zip(*sorted(found, key=lambda one: one[0].bag_id), strict=True)
    return list(results), np.array(logits)


def pool(study: Study, repeats: Sequence[Sequence[Run]]) -> str:
    """Write the figures of all folds together, and the ensemble of their networks; return a table for the screen."""
    runs = [run for of_repeat in repeats for run in of_repeat]
    pooled = [out_of_fold(of_repeat) for of_repeat in repeats]
    of_repeats = [cohort_metrics(results) for results, _ in pooled]
    of_folds = [known_values(read_metrics(run.results)) for run in runs]
    figures = dict.fromkeys([*of_repeats[0], *(name for values in of_folds for name in values)], UNDEFINED)
    figures |= {  # an interval is that of one repeat: all repeats have the same bags
        name: Interval(*np.mean([metrics[name] for metrics in of_repeats], axis=0).tolist())
        for name in of_repeats[0]
        if not of_one_network(name)
    }
    spread = {name: _spread([values[name] for values in of_folds if name in values]) for name in figures}
    results = pooled[0][0]
    outcomes = Outcomes({result.bag_id: result for result in results}, {}, {}, {})
    over_folds = {"folds": len(repeats[0]), "repeats": len(repeats), **spread}
    has_instances = any(len(result.scores) for result in results)
    write_cohort(study.output_dir, outcomes, figures, has_instances, over_folds=over_folds)
    write_report(study.output_dir, study.bundle)
    told = write_ensemble(study, runs, results, np.mean([logits for _, logits in pooled], axis=0))
    rows = [["", "pooled", "95 % interval", f"mean of {len(runs)} folds", "SD"]]
    for name, figure in figures.items():
        value, low, high, mean, sd = (
            "–" if math.isnan(each) else f"{each:.3f}" for each in (*figure, *spread[name].values())
        )
        rows.append([name, value, "–" if low == "–" else f"[{low}, {high}]", mean, sd])
    return "\n".join([aligned(rows), told, f"written to {study.output_dir}"])


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "mean": float(np.mean(values)) if values else math.nan,
        "sd": float(np.std(values, ddof=1)) if len(values) > 1 else math.nan,
    }
