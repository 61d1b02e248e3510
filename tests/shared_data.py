# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Where the tests find public data that is never committed."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def shared_data(relative: str) -> Path:
    """A file or folder of the shared data, or a skip that names it."""
    path = Path(os.environ.get("SMOOTH_MIL_DATA", ROOT / ".." / "shared" / "data")) / relative
    if not path.exists():
        pytest.skip(f"needs the public data {relative}: set SMOOTH_MIL_DATA to a folder that holds it")
    return path.resolve()
