# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Calibration on synthetic cohorts: how far probabilities of test bags are off, before and after the fitted scaling."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from monai.bundle import ConfigWorkflow

from benchmarks.hmil import paired_difference
from demo.cohorts import Counts, write_demo_data
from scripts.core.record import BagResult
from scripts.engine.operating_point import choose_operating_point
from scripts.metrics.summary import cohort_metrics
from scripts.outputs.results import read_results
from scripts.studies.runs import BUNDLES

ROOT = Path(__file__).parents[1]
ERRORS = {"bag_calibration_error": "calibration error", "bag_brier_score": "Brier score"}


class Cohort(NamedTuple):
    """Bags of the demonstration's generator, and a head that is trained on their features."""

    task: str
    counts: Counts  # training, validation, test
    encoder: dict[str, Any]  # keys of a training whose slice network encodes; {}: a seeded convolution does
    files: tuple[str, ...]  # behind train.json
    keys: dict[str, Any]  # of the training
    target: str
    fitted_on: tuple[int, ...]  # so many of the validation bags


# as `python -m demo data` makes them, and as the demonstration trains
SLIDES = Cohort(
    *("wsi", (28, 8, 20), {}, ()), {"in_features": 128, "learning_rate": 0.001, "max_epochs": 40}, *("youden", (8,))
)
# The demonstration's networks mistake next to nothing, and its validation bags are few: here are more of them, and
# heads on the features of a slice network that was trained briefly.
HEADS = Cohort(
    *("ct", (64, 80, 100), {"max_epochs": 8, "val_interval": 8}, ("on_features", "smap")),
    {"in_features": 128, "max_epochs": 20},
    *("sensitivity 0.95", (8, 16, 40, 80)),
)
COHORTS = {"SLIDES": SLIDES, "HEADS": HEADS}


def measure(cohort: str, folder: str, seeds: int, **changes: Any) -> dict[str, Any]:
    """Figures of each seed: of the fitted point on test bags, and what the scaling changes of their errors."""
    of = COHORTS[cohort]._replace(**changes)
    home = Path(folder).resolve()
    write_demo_data(home, 0, of.counts, of.counts, ct=of.task == "ct", wsi=of.task == "wsi")
    data = home / of.task
    encode: dict[str, Any] = {"tile_size": 128}
    if of.encoder:
        out = home / "encoder"
        _run(of.task, ("train", "small"), dataset_dir=data, ckpt_dir=out, output_dir=out, num_workers=0, **of.encoder)
        encode = {"ckpt_path": out / "model.pt", "datalist": data / "datalist.json"}
    _run(of.task, ("features",), dataset_dir=data, num_workers=1, **encode)
    if of.encoder:
        data /= "features"
    found, of_seeds = [], []
    for seed in range(seeds):
        out = home / f"seed_{seed}"
        keys = {**of.keys, "seed": seed, "dataset_dir": data, "ckpt_dir": out, "num_workers": 0}
        keys["tracking_uri"] = f"sqlite:///{home}/mlruns.db"
        _run(of.task, ("train", *of.files), output_dir=out, **keys)
        for section in ("validation", "test"):
            _run(of.task, ("train", *of.files, "evaluate"), output_dir=out / section, section=section, **keys)
        validation, test = (read_results(out / section) for section in ("validation", "test"))
        figures = {name: figure.value for name, figure in cohort_metrics(test).items()}
        names = ("bag_auroc", "instance_auroc_gated", "instance_auroc_ungated")
        of_seeds.append(errors(validation, test, of))
        found.append({**{name: figures[name] for name in names}, "errors": of_seeds[-1]})
    return {"seeds": found, "differences": _differences(of_seeds)}


def errors(validation: Sequence[BagResult], test: Sequence[BagResult], of: Cohort) -> dict[str, dict[str, float]]:
    """Errors of the probabilities of test bags: by the bags that the scaling was fitted on, and without scaling."""
    points = {"no scaling": (1.0, 0.0)}
    for bags in of.fitted_on:  # labels alternate, so that the first are of both kinds
        logits, labels = (np.array([getattr(bag, what) for bag in validation[:bags]]) for what in ("logits", "label"))
        points[f"{bags} bags"] = choose_operating_point(logits, labels, of.target).scaling
    found = {}
    alone = [replace(bag, scores=bag.scores[:1], instances=[], truth=None) for bag in test]
    for fitted, scaling in points.items():
        figures = cohort_metrics([bag.rescaled(scaling) for bag in alone])
        found[fitted] = {name: figures[name].value for name in ERRORS}
    return found


def _differences(of_seeds: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """After scaling less before, with its interval over the seeds."""
    return {
        fitted: {
            name: paired_difference(*([each[at][name] for each in of_seeds] for at in (fitted, "no scaling")))
            for name in ERRORS
        }
        for fitted in of_seeds[0]
        if fitted != "no scaling"
    }


def _run(task: str, files: Sequence[str], **keys: Any) -> None:
    """What `python -m monai.bundle run` does, in this process."""
    os.chdir(ROOT / "bundle" / BUNDLES[task])
    kind = "train" if files[0] == "train" else "infer"
    given = {key: str(value) if isinstance(value, Path) else value for key, value in keys.items()}
    run = ConfigWorkflow([f"configs/{name}.json" for name in files], workflow_type=kind, logging_file=False, **given)
    run.initialize()
    run.run()
    run.finalize()
