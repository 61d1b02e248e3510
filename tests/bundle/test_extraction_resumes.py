# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The real command that makes features, killed and started again; tests/data/test_extraction.py has more moments."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.bundle.commands import bundle, monai_bundle
from tests.wsi.slide_files import tissue, write_slide

SLIDES = 6
LONGEST = 60  # seconds that a run may take to its first file


def command(data: Path, output: Path) -> list[str]:
    settings = ["--dataset_dir", str(data), "--output_dir", str(output), "--tile_size", "64", "--batch_size", "4"]
    return ["run", "--config_file", "configs/features.json", *settings]


def kill(data: Path, output: Path, files: int, seconds: float) -> None:
    """Start the command, and kill it so long after it has written so many features."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "monai.bundle", *command(data, output)],
        cwd=bundle("wsi"),
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    began = time.monotonic()
    while len(list(output.glob("*.h5"))) < files and process.poll() is None and time.monotonic() < began + LONGEST:
        time.sleep(0.002)
    time.sleep(seconds)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it was done before it could be killed"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_killed_and_started_again_it_makes_the_same_files(tmp_path: Path) -> None:
    for slide in range(SLIDES):
        write_slide(tmp_path / f"slides/{slide}.tif", tissue(1000, 1200, seed=slide), mpp=0.25)
    monai_bundle(*command(tmp_path, tmp_path / "undisturbed"), cwd=bundle("wsi"))
    rng = random.Random(0)
    killed = tmp_path / "killed"
    kill(tmp_path, killed, files=1, seconds=0)
    there = contents(killed)
    kill(tmp_path, killed, files=len(list(killed.glob("*.h5"))) + 1, seconds=rng.uniform(0, 0.1))
    assert all(content == contents(killed)[name] for name, content in there.items() if name.endswith(".h5"))
    result = monai_bundle(*command(tmp_path, killed), cwd=bundle("wsi"))
    assert "0 skipped" not in result.stderr + result.stdout
    assert contents(killed) == contents(tmp_path / "undisturbed")
