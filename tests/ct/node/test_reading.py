# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""A bundle that stays loaded writes what its inference writes."""

import json
import re
from pathlib import Path

import pytest

from scripts.core.errors import input_error_message
from scripts.ct.node.reading import StudyReader
from tests.bundle.commands import run_here
from tests.bundle.test_viewers import write_bundle, write_scans
from tests.release.trained import SMALL


@pytest.mark.slow
def test_a_study_has_the_results_of_inference(tmp_path: Path) -> None:
    bundle, folder = write_bundle(tmp_path / "bundle", 0.0), write_scans(tmp_path / "scans")["dicom"]
    reader = StudyReader(bundle, tmp_path / "node", {"device": "cpu", "segmentation": True})
    results = [reader.read("dicom", folder) for _ in range(2)]
    assert results[0].logits == results[1].logits
    weights = bundle / "models" / "model.pt"
    run_here("ct", ["inference"], dataset_dir=str(folder), output_dir=str(tmp_path / "run"), ckpt_path=str(weights),
             segmentation=True, **SMALL["ct"])  # fmt: skip
    (wanted,) = (tmp_path / "run").glob("*/result.json")
    by_node, by_run = (json.loads(path.read_text()) for path in (tmp_path / "node" / "dicom" / "result.json", wanted))
    for key in ("probability", "threshold", "called", "flagged", "instances", "about"):
        assert by_node[key] == by_run[key], key
    names = {path.name for path in wanted.parent.iterdir()}
    assert names == {path.name for path in (tmp_path / "node" / "dicom").iterdir()}
    assert {"report.dcm", "flagged.dcm", "flagged.nrrd", "slices.png"} <= names


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("ckpt_path", "nowhere.pt", r"nowhere\.pt is missing: train first, or give its place"),
        ("ckpt_pth", "model.pt", "--ckpt_pth is no key of inference.json: nothing would read it"),
    ],
)
def test_what_would_fail_later_is_told_before_anything_comes_in(
    tmp_path: Path, key: str, value: str, wanted: str
) -> None:
    bundle = write_bundle(tmp_path / "bundle", 0.0)
    with pytest.raises(Exception) as raised:  # noqa: PT011 as MONAI wraps it
        StudyReader(bundle, tmp_path, {"device": "cpu", key: value})
    assert re.search(wanted, input_error_message(raised.value) or "")
