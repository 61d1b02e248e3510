# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The peers' own environment: torchmil, pinned, beside the torch that ours runs on."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".venv-peers"
PYTHON = FOLDER / "bin" / "python"
REQUIREMENTS = ROOT / "benchmarks" / "requirements-peers.txt"
READY = FOLDER / "ready"  # holds the requirements it was built from


def ready() -> bool:
    return READY.exists() and READY.read_text() == REQUIREMENTS.read_text()


def build() -> None:
    if ready():
        return
    print(f"Building the peers' environment in {FOLDER.name} (once; about a minute) ...", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(FOLDER)], check=True)
    pip = [str(PYTHON), "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "-r", str(REQUIREMENTS)], check=True)
    READY.write_text(REQUIREMENTS.read_text())
