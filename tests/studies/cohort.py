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

from scripts.ct.features import SliceFeatures, write_slice_features

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
