# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""A small cohort of results, and readers of what is written of it."""

import csv
import gzip
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from scripts.core.record import BagResult


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


def told(one: BagResult, seed: int = 0, **more: Any) -> BagResult:
    """The result of a network that tells everything of its instances, flagged by their own logits."""
    n, generator = len(one.scores), np.random.default_rng(seed)
    names = ("evidence", "instance_logits", "leave_one_out")
    known = {name: generator.normal(size=n).astype(np.float32) for name in names}
    by_own = {"score_name": "instance", "scores": known["instance_logits"], "flag_above": float(np.log(1.5))}
    return replace(one, **{"attention_logits": one.scores, **known, **by_own, **more})


COHORT = [
    result("d", 0.9, [5.0, 1.0, 0.5], 1, [1, 0, 0]),
    result("b", 0.2, [4.0, 0.0], 1, [1, 0]),
    result("c", 0.7, [6.0, 3.0], 0, [0, 0]),
    result("a", 0.1, [2.0], 0, [0]),
]


# The record of a training that has not begun.
TRAINING: dict[str, Any] = {
    "id": "i", "run_name": "r", "experiment_name": "e", "tracking_uri": "u", "status": "RUNNING", "started": 1,
    "ended": None, "delivered": True, "params": {}, "tags": {}, "epochs": [], "kept": None, "metrics": {},
    "artifacts": [], "input": {}, "requirements": [], "config": {},
}  # fmt: skip


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def strict_json(path: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = path.read_bytes()
    content: dict[str, Any] = json.loads(gzip.decompress(text) if path.suffix == ".gz" else text, parse_constant=refuse)
    return content
