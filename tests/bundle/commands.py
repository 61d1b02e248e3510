# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Small cohorts, real commands, and the same runs within the test's own process, which saves seconds of imports."""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monai.bundle import ConfigWorkflow

from demo.cohorts import write_demo_data
from scripts.core.errors import input_error_message
from scripts.core.units import Level0Coords, Level0Pixels
from scripts.engine import delivery
from scripts.studies.runs import BUNDLES
from scripts.wsi.features.smooth_mil import PatchFeatures, write_features
from tests.bundle.forked import Ended, run_forked
from tests.shared_data import ROOT

make_store = delivery._make_store  # which runs within this process get a copy of its work instead of
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


def bundle(task: str) -> Path:
    return ROOT / "bundle" / BUNDLES[task]


def write_cohort(folder: Path, task: str) -> Path:
    """Six training, two validation and three test bags of one task, in `folder`/ct or `folder`/wsi."""
    return Path(shutil.copytree(made_cohort(task), folder / task))


@cache
def made_cohort(task: str) -> Path:
    """The same in a folder of this process, as making it takes seconds."""
    folder = temporary_folder()
    write_demo_data(folder, 0, ct_cases=(6, 2, 3), wsi_cases=(6, 2, 3), ct=task == "ct", wsi=task == "wsi")
    return folder / task


def temporary_folder() -> Path:
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    return folder


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


def run(*command: str, cwd: Path, check: bool = True) -> Ended:
    """Run one command; a python that imports MONAI, or two that shall both succeed, are forked, as this is faster."""
    known = ((*TORCHRUN, "-m"), (sys.executable, "-m"))
    launcher = next((each for each in known if command[: len(each)] == each), None)
    if launcher is None or (launcher[2:] and not check):  # torchrun itself ends the other when one fails
        ended = [subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=400)]
    else:
        ended = run_forked(command[len(launcher) :], cwd, environment(), ranks=2 if launcher[2:] else 1)
    for each in ended if check else ():
        assert each.returncode == 0, f"{' '.join(command)}\n{each.stdout[-2000:]}\n{each.stderr[-4000:]}"
    return ended[0]


def monai_bundle(*arguments: str, cwd: Path, check: bool = True) -> Ended:
    return run(sys.executable, "-m", "monai.bundle", *arguments, cwd=cwd, check=check)


def workflow(files: list[str], **keys: Any) -> ConfigWorkflow:
    """The workflow of configs of a bundle, by their names without folder and ending; to be used in its folder."""
    paths = [name if name.endswith(".json") else f"configs/{name}.json" for name in files]  # or paths of others
    kind = "train" if files[0] == "train" else "infer"
    return ConfigWorkflow(paths, workflow_type=kind, logging_file=False, **keys)


@cache
def empty_store() -> Path:
    """A tracking store without runs: its tables take seconds to make, and no time to copy."""
    file = temporary_folder() / "mlruns.db"
    make_store(f"sqlite:///{file}")
    return file


def copy_store(uri: str) -> None:
    file = delivery._local_file(uri)
    if file is not None and not file.exists():
        shutil.copy(empty_store(), file)


def run_here(task: str, files: list[str], **keys: Any) -> None:
    """What `python -m monai.bundle run` does with these files and keys, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(bundle(task))
        patch.setattr("scripts.engine.launch.one_line_errors", lambda *_: None)  # it would change this very process
        patch.setattr(delivery, "_make_store", copy_store)
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
