# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""What a viewer is told of a scan besides the label map: plain numbers and words."""

from collections.abc import Hashable, Mapping
from typing import Any

from monai.transforms import Transform

from scripts.core.record import BagResult
from scripts.ct.dicom.headers import LEFT_OUT
from scripts.outputs.result_json import as_json

OF_SCAN = (
    *("called", "positive", "probability", "logits", "threshold", "threshold_origin", "label_set", "note", "model"),
    *("score_name", "score_smoothing", "flagged_above", "flagged"),
)
OF_EACH_SLICE = ("position_mm", "score", "evidence", "instance_logit", "attention", "flagged")


class AnswerViewerd(Transform):
    """Add `result`, in plain JSON: the probability, the call, who chose the threshold, and a row for each slice.

    It holds no path, no name of a file and no UID. Slices are numbered from 1, from the lowest to the highest.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result: BagResult = data["bag_result"]
        told = as_json(result)
        rows = [{name: row[name] for name in OF_EACH_SLICE if name in row} for row in told["instances"]]
        answer = {
            **{name: told[name] for name in OF_SCAN},
            "warnings": without_names(result),
            "slices": [{"slice": number, **row} for number, row in enumerate(rows, 1)],
        }
        return {**data, "result": answer}


def without_names(result: BagResult) -> list[str]:
    """Return the warnings of a scan, those that name a file as their number."""
    warnings = result.about.get("warnings", ())
    others = [each for each in warnings if not each.endswith(LEFT_OUT)]
    left_out = len(warnings) - len(others)
    return others + [f"{left_out} files are left out"] * (left_out > 0)
