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
"""Where the tests find public data that is never committed."""

from __future__ import annotations

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
