# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The real command that makes features, killed and started again; tests/wsi/test_encode.py has more moments."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.bundle.commands import bundle, contents, environment, run_here
from tests.wsi.slide_files import tissue, write_slide

SLIDES = 6
LONGEST = 60  # seconds that a run may take to its next file


def keys(data: Path, output: Path) -> dict[str, Any]:
    return {"dataset_dir": str(data), "output_dir": str(output), "tile_size": 64, "batch_size": 4}


def kill(data: Path, output: Path, files: int) -> None:
    """Start the command, and kill it when it has written so many features."""
    typed = [word for key, value in keys(data, output).items() for word in (f"--{key}", str(value))]
    process = subprocess.Popen(
        [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/features.json", *typed],
        cwd=bundle("wsi"), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    began = time.monotonic()
    while len(list(output.glob("*.h5"))) < files and process.poll() is None and time.monotonic() < began + LONGEST:
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it was done before it could be killed"


@pytest.mark.slow
def test_killed_and_started_again_it_makes_the_same_files(tmp_path: Path) -> None:
    for slide in range(SLIDES):
        write_slide(tmp_path / f"slides/{slide}.tif", tissue(1000, 1200, seed=slide), mpp=0.25)
    killed = tmp_path / "killed"
    kill(tmp_path, killed, files=2)
    there = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in killed.glob("*.h5")}
    assert 2 <= len(there) < SLIDES
    run_here("wsi", ["features"], **keys(tmp_path, killed))
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in there} == there
    run_here("wsi", ["features"], **keys(tmp_path, tmp_path / "undisturbed"))
    assert contents(killed) == contents(tmp_path / "undisturbed")
