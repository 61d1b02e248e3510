# Copyright (c) 2026 the smooth MIL bundle authors
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Small cohorts and real commands, for the tests that run what a person would type."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from scripts.demo.cohorts import write_demo_data
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
