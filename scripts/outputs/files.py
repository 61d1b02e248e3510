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
"""The record of one bag as a file: result.json, written whole, and read back by a run that goes on."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monai.transforms import Transform

from scripts.data.results import BagResult, Model
from scripts.files import write_whole

RESEARCH_USE = "research use only, not for diagnosis"
_OF_THE_NETWORK = ("score", "attention", "flagged", "truth")  # of an instance; the rest says what it is


def as_json(result: BagResult) -> dict[str, Any]:
    """What result.json holds."""
    return {
        "bag_id": result.bag_id,
        "source": result.source,
        "probability": result.probability,
        "threshold": result.threshold,
        "threshold_origin": result.threshold_origin,
        "positive": result.positive,
        "label": result.label,
        "note": RESEARCH_USE,
        "model": result.model and result.model._asdict(),
        "flagged_above": f"attention 1/{result.slots or len(result.scores)}, in a positive bag",
        "slots": result.slots,
        "about": result.about,
        "instances": instance_rows(result),
    }


def instance_rows(result: BagResult) -> list[dict[str, Any]]:
    columns = zip(result.instances, result.scores, result.attention, result.flagged, strict=True)
    rows = [
        {**about, "score": float(score), "attention": float(attention), "flagged": bool(flagged)}
        for about, score, attention, flagged in columns
    ]
    if result.truth is not None:
        for row, truth in zip(rows, result.truth, strict=True):
            row["truth"] = int(truth)
    return rows


def from_json(content: Mapping[str, Any]) -> BagResult:
    """The result that `as_json` was given."""
    rows = content["instances"]
    return BagResult(
        **{key: content[key] for key in ("bag_id", "source", "probability", "threshold", "threshold_origin", "label")},
        scores=np.array([row["score"] for row in rows], dtype=np.float32),
        attention=np.array([row["attention"] for row in rows], dtype=np.float32),
        instances=[{key: value for key, value in row.items() if key not in _OF_THE_NETWORK} for row in rows],
        truth=np.array([row["truth"] for row in rows]) if rows and "truth" in rows[0] else None,
        model=content["model"] and Model(**content["model"]),
        about=content["about"],
        slots=content["slots"],
    )


class SaveResultd(Transform):
    """Writes `output_dir/<bag_id>/result.json`: after all other files of the bag, as it says that the bag is done.

    Args:
        output_dir: folder of the results.
        recipe: a short text that changes with whatever would change the result.
    """

    def __init__(self, output_dir: str, recipe: str = "") -> None:
        self.output_dir = Path(output_dir)
        self.recipe = recipe

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result: BagResult = data["result"]
        content = {**as_json(result), "input": data.get("input", ""), "recipe": self.recipe}
        write_whole(self.output_dir / result.bag_id / "result.json", json.dumps(content, indent=1) + "\n")
        return dict(data)
