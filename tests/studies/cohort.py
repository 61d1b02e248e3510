# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""A small cohort of slice features, and the runs of a study within the test's own process."""

import ast
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monai.bundle import ConfigWorkflow

from scripts.core.record import BagResult
from scripts.ct.features import SliceFeatures, write_slice_features
from scripts.engine.operating_point import OperatingPoint, write_operating_point
from scripts.engine.provenance import origin_file
from scripts.studies.runs import Run, Study
from tests.bundle.commands import bundle
from tests.outputs.cohorts import write_tables

FEATURES = 4
KEYS: dict[str, Any] = {"in_features": FEATURES, "max_epochs": 1, "batch_size": 4, "learning_rate": 0.01}


def write_features(folder: Path, bags: int) -> Path:
    """Scans of 3 to 6 slices, every other one positive, two of each patient; the test section names no file."""
    generator = np.random.default_rng(0)
    entries = []
    for number in range(bags):
        label, slices = number % 2, int(generator.integers(3, 7))
        features = generator.normal(size=(slices, FEATURES)).astype(np.float32)
        features[0] += 2 * label
        scan = SliceFeatures(features, np.arange(slices) * 5.0, [], {}, "noise", "{}")
        write_slice_features(folder / f"scan{number}.h5", scan)
        entries.append({"image": f"scan{number}.h5", "label": label, "patient": f"p{number // 4}{label}"})
    half = bags // 2
    sections = {"training": entries[:half], "validation": entries[half:], "test": [{"image": "closed.h5", "label": 1}]}
    (folder / "datalist.json").write_text(json.dumps(sections))
    return folder


def evaluated_folds(
    folder: Path, results: Sequence[BagResult], folds: int = 3, repeats: int = 1
) -> tuple[Study, list[list[Run]]]:
    """A cross-validation whose folds gave these results, of networks that no file describes."""
    keys = {"operating_target": "youden"}
    files = ["configs/train.json"]
    study = Study(
        bundle=bundle("ct"), dataset_dir=folder, datalist=folder, output_dir=folder, files=files, keys=keys, jobs=1
    )
    found = []
    for repeat in range(repeats):
        found.append([Run(f"{repeat} {k}", folder / f"{repeat}_{k}", folder, "test", {}) for k in range(folds)])
        for k, run in enumerate(found[-1]):
            write_tables(run.results, results[k * len(results) // folds : (k + 1) * len(results) // folds])
            run.model.parent.mkdir()
            run.model.write_text(run.name)
            origin_file(run.model).write_text('{"config": {}}')
            write_operating_point(run.model, OperatingPoint(0.5, (1.5, 0.3)))
    return study, found


def run_in_this_process(patch: pytest.MonkeyPatch) -> list[list[str]]:
    """Let studies run their commands here, which saves seconds of imports; return the commands they will have run."""
    ran: list[list[str]] = []

    def start(study: Any, command: Sequence[str], log: Any, children: Any) -> None:
        ran.append(list(command))
        files, *words = command[5:]
        keys = {name.removeprefix("--"): _value(text) for name, text in zip(words[::2], words[1::2], strict=True)}
        workflow = ConfigWorkflow(ast.literal_eval(files), workflow_type="train", logging_file=False, **keys)
        workflow.initialize()
        workflow.run()
        workflow.finalize()

    patch.setattr("scripts.engine.launch.one_line_errors", lambda *_: None)  # it would change this very process
    patch.setattr("scripts.studies.runs._run_command", start)
    return ran


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
