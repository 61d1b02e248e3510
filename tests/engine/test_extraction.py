# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Several processes share the slides: each is encoded once, what fails is reported once, features are numbers."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from scripts.core.errors import InputError
from scripts.core.files import require_finite
from scripts.engine.extraction import encode
from tests.bundle.commands import TORCHRUN, contents, run
from tests.shared_data import ROOT
from tests.wsi.slide_files import extract, tissue, write_slide

SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from scripts.core.cli import one_line_errors
from tests.wsi.slide_files import extract
one_line_errors()
extract(Path({folder!r}), output_dir=Path({folder!r}) / "shared")
"""


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    """Five slides, two of which cannot be read; extracted by one process alone into `alone`."""
    for slide in range(5):
        write_slide(tmp_path / f"slides/{slide}.tif", tissue(256, 256, seed=slide), mpp=0.25)
    for broken in (1, 3):
        (tmp_path / f"slides/{broken}.tif").write_text("hello")
    with pytest.raises(InputError, match="2 of 5 slides failed"):
        extract(tmp_path, output_dir=tmp_path / "alone")
    return tmp_path


def test_processes_that_do_not_know_each_other_speak_for_themselves(
    slides: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in an array of jobs on a cluster; their shares are disjoint and make the whole."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("RANK", "0")
    assert set(extract(slides)) == {"0", "2", "4"}
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(InputError, match=r"2 of 2 slides failed \(1.tif, 3.tif\): .*\(all reasons: failed_1.csv\)"):
        extract(slides)
    made, alone = contents(slides / "features"), contents(slides / "alone")
    assert {name: made[name] for name in made if name != "failed_1.csv"} == {
        name: alone[name] for name in alone if name != "failed.csv"
    }
    assert made["failed_1.csv"] == alone["failed.csv"]


def test_tissue_is_shared_among_processes_like_the_encoding(slides: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("RANK", "0")
    extract(slides, tissue_only=True)
    drawn = slides / "features/tissue"
    assert {path.name for path in drawn.iterdir()} == {"0.png", "2.png", "4.png", "tissue_0.csv"}
    assert [row[0] for row in csv.reader((drawn / "tissue_0.csv").read_text().splitlines())] == ["slide", *"024"]


@pytest.mark.slow
def test_two_processes_of_torchrun_make_what_one_makes(slides: Path) -> None:
    """Those that fail end the run only when all is done; here the process that fails is done first."""
    script = slides / "extract.py"
    script.write_text(SCRIPT.format(root=str(ROOT), folder=str(slides)))
    ended = run(*TORCHRUN, str(script), cwd=slides, check=False)
    assert ended.returncode == 1
    (error,) = (line for line in ended.stderr.splitlines() if "error: " in line)
    assert error.startswith("[rank0]: error: 2 of 5 slides failed (1.tif, 3.tif): 1.tif is not a slide")
    assert contents(slides / "shared") == contents(slides / "alone")
    table = list(csv.reader((slides / "shared/failed.csv").read_text().splitlines()))
    assert [row[0] for row in table] == ["slide", "1.tif", "3.tif"]


class Times(nn.Module):
    """Two features of each image: its sum, and that times a number."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.number = number

    def forward(self, images: Tensor) -> Tensor:
        total = images.flatten(1).sum(dim=1, keepdim=True)
        return torch.cat([total, total * self.number], dim=1).requires_grad_()


def test_features_are_those_of_the_encoder_and_all_numbers() -> None:
    for dtype in (torch.float16, torch.float32):
        features = encode(Times(2), "times", torch.arange(12.0).reshape(3, 1, 2, 2), dtype)
        assert features.tolist() == [[6, 12], [22, 44], [38, 76]]
        assert str(features.dtype) == str(dtype).removeprefix("torch.")
    for number, dtype in ((1e5, torch.float16), (float("nan"), torch.float32)):
        with pytest.raises(InputError, match=f"encoder times .*{str(dtype)[6:]}"):
            encode(Times(number), "times", torch.ones(1, 1, 2, 2), dtype)
    with pytest.raises(InputError, match=r"encoder same gave \(2, 1, 4, 4\) for 2 images; it must give \[B, D\]"):
        encode(nn.Identity(), "same", torch.ones(2, 1, 4, 4), torch.float32)
    with pytest.raises(InputError, match=r"a\.h5"):
        require_finite("a.h5", np.array([[1.0, np.inf]]))
