# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""What a viewer is told of a scan: plain numbers, none of which names a patient."""

import json

import numpy as np
import pytest

from scripts.core.record import BagResult, Model
from scripts.ct.outputs.answer import AnswerViewerd

SHARES = np.array([0.1, 0.6, 0.3])


def result(probability: float = 0.8) -> BagResult:
    slices = [{"id": f"1.2.{k}", "position_mm": 5.0 * k, "file": f"smith_{k}.dcm"} for k in range(3)]
    return BagResult(
        "smith", "/data/smith", probability, 0.5, SHARES, SHARES, slices,
        threshold_origin="chosen by hand", logits=(1.4,), model=Model("a network", "1.2.3", "ab"),
        about={"warnings": ["unevenly spaced", "smith_9.dcm is damaged and is left out"]},
        evidence=np.array([-1.0, 2.0, 0.4]),
    )  # fmt: skip


def test_a_viewer_is_told_the_call_its_threshold_and_each_slice() -> None:
    told = AnswerViewerd()({"bag_result": result(), "other": 1})
    assert told["other"] == 1
    got = json.loads(json.dumps(told["result"]))
    assert (got["probability"], got["called"], got["positive"], got["threshold"]) == (0.8, "positive", True, 0.5)
    assert (got["threshold_origin"], got["warnings"]) == ("chosen by hand", ["unevenly spaced", "1 files are left out"])
    assert got["model"] == {"name": "a network", "version": "1.2.3", "sha256": "ab", "trained_on": ""}
    assert [row["slice"] for row in got["slices"]] == [1, 2, 3]
    assert [row["position_mm"] for row in got["slices"]] == [0.0, 5.0, 10.0]
    assert [row["evidence"] for row in got["slices"]] == pytest.approx([-1.0, 2.0, 0.4])
    assert [row["flagged"] for row in got["slices"]] == [False, True, False]
    assert got["flagged"] == 1
    assert got["note"] == "research use only, not for diagnosis"


def test_neither_path_nor_uid_nor_name_is_told() -> None:
    text = json.dumps(AnswerViewerd()({"bag_result": result(0.1)})["result"])
    assert not any(word in text for word in ("smith", "/data", "1.2.0", ".dcm"))
    assert json.loads(text)["flagged"] == 0
