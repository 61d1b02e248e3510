# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
import json
import time
from pathlib import Path
from typing import Any

import pydicom
import pytest

from benchmarks.ct import CONFIGS, Clock, Inference, profile

pytestmark = pytest.mark.slow  # each runs a bundle


def test_a_clock_adds_up_and_hands_through() -> None:
    clock = Clock()

    def sleep(seconds: float, answer: str) -> str:
        time.sleep(seconds)
        return answer

    slow = clock.timed("slow", sleep)
    assert slow(0.02, answer="yes") == slow(0.03, answer="yes") == "yes"
    assert clock.seconds["slow"] == pytest.approx(0.05, abs=0.03)
    with pytest.raises(ZeroDivisionError):
        clock.timed("failing", lambda: 1 / 0)()
    assert set(clock.seconds) == {"slow", "failing"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ct")


@pytest.fixture(scope="module")
def measured(home: Path) -> dict:
    return profile(str(home), scans=2, overrides=["small.json"], calls=1, untimed=0)


def test_every_step_of_the_config_is_timed_and_the_parts_make_the_whole(measured: dict) -> None:
    config = json.loads((CONFIGS / "inference.json").read_text())
    steps = [step for key in ("preprocessing", "postprocessing") for step in config[key]["transforms"]]
    parts = measured["part of it"]
    assert {step["_target_"].rsplit(".", 1)[-1] for step in steps} < set(parts)
    assert min(parts.values()) >= 0
    assert sum(parts.values()) == pytest.approx(measured["whole"]["all"])
    assert measured["ratio"] == pytest.approx(measured["whole"]["all"] / sum(measured["bare"].values()))


def test_each_scan_is_read_whole_and_has_slices_to_report(home: Path, measured: dict) -> None:
    files = sorted((home / "scans").rglob("*.dcm"))
    results = [json.loads(path.read_text()) for path in (home / "results").rglob("result.json")]
    assert len(results) == 2
    assert measured["slices"] == len(files) == sum(len(result["instances"]) for result in results)
    assert all(any(instance["flagged"] for instance in result["instances"]) for result in results)


def test_the_bare_parts_work_on_all_of_it(home: Path, measured: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    inference, decoded = Inference(str(home), 2, ["small.json"]), []
    decode = pydicom.FileDataset.convert_pixel_data

    def counted(file: pydicom.FileDataset, *args: Any) -> None:
        decoded.append(str(file.filename))
        decode(file, *args)

    monkeypatch.setattr(pydicom.FileDataset, "convert_pixel_data", counted)
    inference.read_pixels()
    assert sorted(decoded) == sorted(map(str, (home / "scans").rglob("*.dcm")))
    assert sum(int(bag["mask"].sum()) for bag in inference.bags()) == measured["slices"]
