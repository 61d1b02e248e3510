# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""What tests find on this machine: the repository, public data that is never committed, a free port."""

import os
import socket
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def shared_data(relative: str) -> Path:
    """A file or folder of the shared data, or a skip that names it."""
    path = Path(os.environ.get("SMOOTH_MIL_DATA", ROOT / ".." / "shared" / "data")) / relative
    if not path.exists():
        pytest.skip(f"needs the public data {relative}: set SMOOTH_MIL_DATA to a folder that holds it")
    return path.resolve()


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as opened:
        port: int = opened.getsockname()[1]
        return port
