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
"""A small cohort of results, and readers of what is written of it."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scripts.data.results import BagResult


def result(
    bag_id: str, probability: float, scores: Sequence[float], label: int | None, truth: Sequence[int] | None = None
) -> BagResult:
    weights = np.exp(np.array(scores))
    return BagResult(
        bag_id=bag_id,
        source=f"scans/{bag_id}",
        probability=probability,
        threshold=0.5,
        scores=np.array(scores, dtype=np.float32),
        attention=(weights / weights.sum()).astype(np.float32),
        instances=[{"uid": f"{bag_id}.{place}", "position": 5.0 * place} for place in range(len(scores))],
        label=label,
        truth=None if truth is None else np.array(truth),
    )


COHORT = [
    result("d", 0.9, [5.0, 1.0, 0.5], 1, [1, 0, 0]),
    result("b", 0.2, [4.0, 0.0], 1, [1, 0]),
    result("c", 0.7, [6.0, 3.0], 0, [0, 0]),
    result("a", 0.1, [2.0], 0, [0]),
]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def strict_json(path: Path) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)
