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
"""Several processes share the slides: each is encoded once, and what fails is told once."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.data.sharing import Share
from scripts.errors import InputError
from tests.data.slides import extract, tissue, write_slide
from tests.shared_data import ROOT

SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from scripts.running import one_line_errors
from tests.data.slides import extract
one_line_errors()
extract(Path({folder!r}), output_dir=Path({folder!r}) / "shared")
"""


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    for slide in range(5):
        write_slide(tmp_path / f"slides/{slide}.tif", tissue(256, 256, seed=slide), mpp=0.25)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_shares_are_disjoint_and_make_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(Share().of("abcde")) == list("abcde")
    monkeypatch.setenv("WORLD_SIZE", "3")
    shares = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        shares.append("".join(Share().of("abcde")))
    assert shares == ["ad", "be", "c"]


def test_processes_that_do_not_know_each_other_speak_for_themselves(
    slides: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in an array of jobs on a cluster."""
    (slides / "slides/3.tif").write_text("hello")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("RANK", "0")
    assert set(extract(slides)) == {"0", "2", "4"}
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(InputError, match=r"1 of 2 slides failed \(3.tif\): .*\(all reasons: failed_1.csv\)"):
        extract(slides)
    assert set(contents(slides / "features")) == {"0.h5", "1.h5", "2.h5", "4.h5", "failed_1.csv", "settings.json"}


def test_two_processes_of_torchrun_make_what_one_makes(slides: Path) -> None:
    """Those that fail end the run only when all is done; here the process that fails is done first."""
    (slides / "slides/1.tif").write_text("hello")
    (slides / "slides/3.tif").write_text("hello")
    with pytest.raises(InputError, match="2 of 5 slides failed"):
        extract(slides, output_dir=slides / "alone")
    script = slides / "extract.py"
    script.write_text(SCRIPT.format(root=str(ROOT), folder=str(slides)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    result = subprocess.run(
        command, cwd=slides, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 1
    told = [line for line in result.stderr.splitlines() if "error: " in line]
    assert len(told) == 1
    assert told[0].startswith("[rank0]: error: 2 of 5 slides failed (1.tif, 3.tif): 1.tif is not a slide")
    assert contents(slides / "shared") == contents(slides / "alone")
    table = list(csv.reader((slides / "shared/failed.csv").read_text().splitlines()))
    assert [row[0] for row in table] == ["slide", "1.tif", "3.tif"]
