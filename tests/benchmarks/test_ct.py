# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path
from typing import Any

import pydicom
import pytest

from benchmarks.ct import CONFIGS, Inference, profile

pytestmark = pytest.mark.slow  # each runs a bundle


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ct")


@pytest.fixture(scope="module")
def measured(home: Path) -> dict[str, Any]:
    return profile(str(home), scans=2, overrides=["small.json"], calls=1, untimed=0)


def test_every_step_of_the_config_is_timed_and_the_parts_make_the_whole(home: Path, measured: dict[str, Any]) -> None:
    config = json.loads((CONFIGS / "inference.json").read_text())
    steps = [step for key in ("preprocessing", "postprocessing") for step in config[key]["transforms"]]
    parts, whole = measured["part of it"], measured["whole"]["all"]
    assert {step["_target_"].rsplit(".", 1)[-1] for step in steps} < set(parts)
    assert min(parts.values()) >= 0
    assert sum(parts.values()) == pytest.approx(whole)
    assert measured["ratio"] == pytest.approx(whole / sum(measured["bare"].values()))
    results = [json.loads(path.read_text()) for path in (home / "results").rglob("result.json")]
    assert len(results) == 2
    assert measured["slices"] == sum(len(result["instances"]) for result in results)
    assert all(any(instance["flagged"] for instance in result["instances"]) for result in results)


def test_the_bare_parts_work_on_all_of_it(
    home: Path, measured: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    inference, decoded = Inference(str(home), 2, ["small.json"]), []
    decode = pydicom.FileDataset.convert_pixel_data

    def counted(file: pydicom.FileDataset, *args: Any) -> None:
        decoded.append(str(file.filename))
        decode(file, *args)

    monkeypatch.setattr(pydicom.FileDataset, "convert_pixel_data", counted)
    inference.read_pixels()
    assert sorted(decoded) == sorted(map(str, (home / "scans").rglob("*.dcm")))
    assert len(decoded) == measured["slices"]
    assert sum(int(bag["mask"].sum()) for bag in inference.bags()) == measured["slices"]
