# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.loop import SCANS, Turns, turns


class Config:
    """A training of which each step takes a hundredth of a second."""

    def __init__(self) -> None:
        self.images: list[Any] = []
        weight = torch.zeros(1, requires_grad=True)
        self.content = {
            "network": self,
            "loss": lambda told, label: weight.sum(),
            "optimizer": torch.optim.SGD([weight], lr=0.1),
            "prepare_batch": lambda batch, device: (batch, None, (), {}),
            "device": torch.device("cpu"),
            "amp": False,
            "amp_dtype": "bfloat16",
        }

    def get_parsed_content(self, name: str) -> Any:
        return self.content[name]

    def __call__(self, image: Any) -> None:
        time.sleep(0.01)
        self.images.append(image)

    def train(self) -> None:
        pass


@pytest.mark.parametrize(("kept", "run"), [(None, [1, 2, 3, 4, 5]), (2, [1, 2, 1, 2, 1])])
def test_the_bare_epoch_has_as_many_steps_on_the_batches_that_are_kept(kept: int | None, run: list[int]) -> None:
    config: Any = Config()
    clock = Turns(config, kept)
    clock.begin()
    for batch in range(1, 6):
        clock.keep(batch)
    clock.end()
    assert config.images == run
    assert clock.seconds["bare"][0] >= 0.05
    assert (clock.batches, clock.steps) == ([], 0)


@pytest.mark.slow
def test_scans_are_read_from_dicom_and_one_phantom_serves_for_several(tmp_path: Path) -> None:
    small: dict[str, Any] = {"channels": [16, 32, 32, 32], "num_workers": 0}
    told = turns(f"{tmp_path}/cohort", SCANS, bags=3, instances=2, columns=64, epochs=2, device="cpu", **small)
    assert told["bags"] == 3
    assert len(told["epoch"]) == len(told["bare"]) == 2
    assert told["ratio"] == pytest.approx(sum(told["epoch"]) / sum(told["bare"]))
    scans = [tmp_path / "cohort" / f"scan_{case}" for case in range(3)]
    assert [scan.is_symlink() for scan in scans] == [False, False, True]
    assert scans[2].resolve() == scans[0].resolve()
