# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Small cohorts, real commands, and the same runs within the test's own process, which saves seconds of imports."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monai.bundle import ConfigWorkflow

from demo.cohorts import write_demo_data
from scripts.core.errors import input_error_message
from scripts.core.units import Level0Coords, Level0Pixels
from scripts.studies.runs import BUNDLES
from scripts.wsi.features.smooth_mil import PatchFeatures, write_features
from tests.shared_data import ROOT

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


def bundle(task: str) -> Path:
    return ROOT / "bundle" / BUNDLES[task]


def write_cohort(folder: Path, task: str) -> Path:
    """Six training, two validation and three test bags of one task, in `folder`/ct or `folder`/wsi."""
    write_demo_data(folder, 0, ct_cases=(6, 2, 3), wsi_cases=(6, 2, 3), ct=task == "ct", wsi=task == "wsi")
    return folder / task


def square_lattice(side: int) -> np.ndarray:
    """Columns and rows [side², 2] of a square of patches."""
    return np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2)


def write_square_slide(path: Path, features: np.ndarray) -> None:
    """A feature file whose patches fill a square, 256 level-0 pixels from one to the next."""
    side = round(len(features) ** 0.5)
    pitch, coords = Level0Pixels(256), Level0Coords(square_lattice(side) * 256)
    size = (side * 256, side * 256)
    write_features(path, PatchFeatures(features, coords, pitch, pitch, None, "noise", path.stem, size))


def environment() -> dict[str, str]:
    """One thread, so that two test processes share two cores; and a bundle must find its own code."""
    given = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**given, "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def run(*command: str, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run one real command."""
    result = subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=400)
    if check:
        assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
    return result


def monai_bundle(*arguments: str, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-m", "monai.bundle", *arguments, cwd=cwd, check=check)


def workflow(files: list[str], **keys: Any) -> ConfigWorkflow:
    """The workflow of configs of a bundle, by their names without folder and ending; to be used in its folder."""
    paths = [name if name.endswith(".json") else f"configs/{name}.json" for name in files]  # or paths of others
    kind = "train" if files[0] == "train" else "infer"
    return ConfigWorkflow(paths, workflow_type=kind, logging_file=False, **keys)


def run_here(task: str, files: list[str], **keys: Any) -> None:
    """What `python -m monai.bundle run` does with these files and keys, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(bundle(task))
        patch.setattr("scripts.engine.launch.one_line_errors", lambda *_: None)  # it would change this very process
        started = workflow(files, **keys)
        started.initialize()
        started.run()
        started.finalize()


def message_of(task: str, files: list[str], **keys: Any) -> str:
    """The one line that a run ends with; a fault of the program is raised."""
    try:
        run_here(task, files, **keys)
    except Exception as error:
        message = input_error_message(error)
        if message is None:
            raise
        assert "\n" not in message
        return message
    raise AssertionError("the run succeeded")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
