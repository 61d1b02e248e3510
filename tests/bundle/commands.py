# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Small cohorts and real commands, for the tests that run what a person would type."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from demo.cohorts import write_demo_data
from tests.shared_data import ROOT

BUNDLES = {"ct": "hemorrhage_ct_smooth_mil", "wsi": "pathology_wsi_smooth_mil"}


def bundle(task: str) -> Path:
    return ROOT / "bundle" / BUNDLES[task]


def write_cohort(folder: Path, task: str) -> Path:
    """Six training, two validation and three test bags of one task, in `folder`/ct or `folder`/wsi."""
    write_demo_data(folder, 0, ct_cases=(6, 2, 3), wsi_cases=(6, 2, 3), ct=task == "ct", wsi=task == "wsi")
    return folder / task


def run(*command: str, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """One real command, on one thread, so that two test processes share two cores."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment.pop("PYTHONPATH", None)  # a bundle must find its own code
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=400)
    if check:
        assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
    return result


def monai_bundle(*arguments: str, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-m", "monai.bundle", *arguments, cwd=cwd, check=check)
