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
"""What a process that was killed has left beside a file goes when the file is written again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from scripts.files import write_whole


def of_the_dead() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path: Path) -> None:
    dead = of_the_dead()
    gone = [f".a[1].h5.{dead}.part", ".a[1].h5.99999999999999999999.part", ".a[1].h5.x.part"]
    stay = [f".a[1].h5.{os.getppid()}.part", ".a[1].h5.1.part", f".b.h5.{dead}.part", f".a1.h5.{dead}.part"]
    for name in gone + stay:
        (tmp_path / name).write_text("half of it")
    write_whole(tmp_path / "a[1].h5", "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["a[1].h5", *stay])
    assert (tmp_path / "a[1].h5").read_text() == "whole"
