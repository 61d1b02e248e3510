# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path
from typing import Any

import pydicom
import pytest

from benchmarks.ct import CONFIGS, Inference, profile


@pytest.mark.slow
def test_every_step_of_the_config_is_timed_and_the_bare_parts_work_on_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = profile(str(tmp_path), scans=2, overrides=["small.json"], calls=1, untimed=0)
    config = json.loads((CONFIGS / "inference.json").read_text())
    steps = [step for key in ("preprocessing", "postprocessing") for step in config[key]["transforms"]]
    steps += [each for each in steps.pop()["writers"] if "_disabled_" not in each]
    parts, whole = measured["part of it"], measured["whole"]["all"]
    assert {step["_target_"].rsplit(".", 1)[-1] for step in steps} < set(parts)
    assert min(parts.values()) >= 0
    assert sum(parts.values()) == pytest.approx(whole)
    assert measured["ratio"] == pytest.approx(whole / sum(measured["bare"].values()))
    results = [json.loads(path.read_text()) for path in (tmp_path / "results").rglob("result.json")]
    assert len(results) == 2
    assert all(any(instance["flagged"] for instance in result["instances"]) for result in results)

    inference, decoded = Inference(str(tmp_path), 2, ["small.json"]), []
    decode = pydicom.FileDataset.convert_pixel_data

    def counted(file: pydicom.FileDataset, *args: Any) -> None:
        decoded.append(str(file.filename))
        decode(file, *args)

    monkeypatch.setattr(pydicom.FileDataset, "convert_pixel_data", counted)
    inference.read_pixels()
    assert sorted(decoded) == sorted(map(str, (tmp_path / "scans").rglob("*.dcm")))
    assert len(decoded) == measured["slices"] == sum(len(result["instances"]) for result in results)
    assert sum(int(bag["mask"].sum()) for bag in inference.bags()) == measured["slices"]
