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
"""A cohort is read to its end, whatever one of its bags is like."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader
from monai.transforms import Compose, Lambdad

from scripts.cohorts import BagEvaluator, ReadableBags
from scripts.errors import EmptyBagError, InputError


def load(value: int) -> torch.Tensor:
    if value == 2:
        raise InputError("two is broken: copy it again")
    if value == 6:
        raise EmptyBagError("six has no tissue")
    if value == 4:
        raise ZeroDivisionError("a fault of the program")
    return torch.full((1, 3), float(value))


def judge(data: dict[str, Any]) -> dict[str, Any]:
    if data["image"].max() == 3:
        raise InputError("three cannot be written: make room")
    return data


def evaluator(*values: int, workers: int = 0) -> BagEvaluator:
    data = [{"bag_id": f"bag_{value}", "image": value, "label": 0} for value in values]
    dataset = ReadableBags(data, Lambdad("image", load))
    return BagEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(dataset, batch_size=1, num_workers=workers),
        network=torch.nn.Identity(),
        postprocessing=Compose([judge]),
    )


def outputs(engine: BagEvaluator) -> list[Any]:
    seen: list[Any] = []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: seen.extend(e.state.output))
    engine.run()
    return seen


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bag_that_cannot_be_read_or_judged_is_told_and_the_others_are_read(workers: int) -> None:
    seen = outputs(evaluator(0, 2, 1, 3, 5, workers=workers))
    assert [bag["failed"] if "failed" in bag else float(bag["pred"].max()) for bag in seen] == [
        0, "two is broken: copy it again", 1, "three cannot be written: make room", 5,
    ]  # fmt: skip
    assert [bag["bag_id"] for bag in seen if "failed" in bag] == ["bag_2", "bag_3"]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_empty_bag_is_told_apart_from_a_fault(workers: int) -> None:
    seen = outputs(evaluator(6, 2, 1, workers=workers))
    assert seen[:2] == [
        {"bag_id": "bag_6", "empty": "six has no tissue"},
        {"bag_id": "bag_2", "failed": "two is broken: copy it again"},
    ]
    assert "pred" in seen[2]


def test_a_fault_of_the_program_is_not_hidden() -> None:
    with pytest.raises(RuntimeError) as raised:
        evaluator(0, 4).run()
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


def test_an_empty_cohort_is_reported_all_the_same() -> None:
    engine = evaluator()
    reported: list[int] = []
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: reported.append(1))
    engine.run()
    assert reported == [1]
