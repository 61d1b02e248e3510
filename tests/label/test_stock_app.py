# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""MONAI Label's own app `monaibundle` with the head CT bundle, in process and as a real server, without our code."""

import json
import logging
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("monailabel", reason="make label-test builds an environment for MONAI Label")

import httpx
from monailabel.interfaces.utils.app import app_instance, clear_cache

from scripts.engine.operating_point import OperatingPoint, write_operating_point
from tests.bundle.test_viewers import files_of
from tests.label.cohort import SCAN, SCANS, write_bundles, write_dicom, write_mask, write_studies
from tests.label.server import check_map, serve

STOCK = Path(sys.prefix) / "monailabel" / "sample-apps" / "monaibundle"
CONF = {"models": SCAN, "zoo_source": "github", "sam2": "false"}
MOST_GROWTH_MB = 20.0  # of fifty answers


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the stock app, the bundle in it, and scans."""
    shutil.copytree(STOCK, tmp_path / "app", ignore=shutil.ignore_patterns("__pycache__"))
    write_bundles(tmp_path / "app" / "model", "ct")
    write_studies(tmp_path / "studies")
    return tmp_path


@pytest.fixture
def app(place: Path) -> Iterator[Any]:
    yield app_instance(str(place / "app"), str(place / "studies"), CONF)
    clear_cache()


def test_a_scan_is_answered_with_a_map_and_numbers_and_a_negative_one_with_an_empty_map(app: Any, place: Path) -> None:
    assert app.info()["models"][SCAN]["labels"] == {"suspected hemorrhage": 1}
    dicom = write_dicom(place / "dicom")
    weights = place / "app" / "model" / SCAN / "models" / "model.pt"
    for image, path in (("a", place / "studies" / "a.nii.gz"), (str(dicom), dicom)):
        answer = app.infer({"model": SCAN, "image": image, "device": "cpu"})
        json.dumps(answer["params"])
        assert answer["file"].endswith(".nrrd")
        assert (answer["params"]["positive"], answer["params"]["threshold"]) == (True, 0.0)
        assert answer["params"]["flagged"] > 0
        check_map(answer["file"], path, answer["params"])
    write_operating_point(weights, OperatingPoint(1.0, (1.0, 0.0), "chosen by a test"))
    answer = app.infer({"model": SCAN, "image": "a", "device": "cpu"})
    assert (answer["params"]["positive"], answer["params"]["flagged"]) == (False, 0)
    check_map(answer["file"], place / "studies" / "a.nii.gz", answer["params"])


def test_fifty_answers_leave_the_model_folder_and_the_memory_as_they_were(
    app: Any, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.root.manager, "disable", logging.CRITICAL)  # pytest keeps every line
    bundle, sizes = place / "app" / "model" / SCAN, []
    before = files_of(bundle)
    for _ in range(2):
        for number in range(25):
            app.infer({"model": SCAN, "image": SCANS[number % 6], "device": "cpu"})
        sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1024**2)
    assert files_of(bundle) == before
    assert sizes[1] - sizes[0] < MOST_GROWTH_MB


def test_it_learns_from_painted_masks_and_answers_with_the_new_weights(app: Any, place: Path) -> None:
    for number, name in enumerate(SCANS):
        app.datastore().save_label(name, str(write_mask(place, name, bool(number % 2))), "final", {})
    weights = place / "app" / "model" / SCAN / "models" / "model.pt"
    before, was = weights.read_bytes(), app.infer({"model": SCAN, "image": "a", "device": "cpu"})["params"]
    app.train({"model": SCAN, "max_epochs": 2, "val_split": 0.34, "device": "cpu", "pretrained": True})
    assert weights.read_bytes() != before
    now = app.infer({"model": SCAN, "image": "a", "device": "cpu"})["params"]
    assert now["model"]["sha256"] != was["model"]["sha256"]
    assert now["logits"] != was["logits"]


@pytest.fixture
def server(place: Path) -> Iterator[str]:
    with serve(place / "app", place / "studies", CONF) as url:
        yield url


def test_a_real_server_answers_scans_and_refuses_what_is_none(server: str, place: Path) -> None:
    assert SCAN in httpx.get(f"{server}/info/", timeout=60).json()["models"]
    images = {"a": place / "studies" / "a.nii.gz", "dicom": write_dicom(place / "dicom")}
    for name, path in images.items():
        asked = {"image": name if name == "a" else str(path)}
        form = {"params": (None, json.dumps({"device": "cpu"}))}
        told = httpx.post(f"{server}/infer/{SCAN}", params={**asked, "output": "json"}, files=form, timeout=120)
        assert told.status_code == 200, told.text
        found = httpx.post(f"{server}/infer/{SCAN}", params={**asked, "output": "image"}, files=form, timeout=120)
        (place / f"{name}.nrrd").write_bytes(found.content)
        check_map(place / f"{name}.nrrd", path, told.json())
    (place / "notes.nii.gz").write_text("no scan")
    wrong = {"image": str(place / "notes.nii.gz"), "output": "json"}
    refused = httpx.post(f"{server}/infer/{SCAN}", params=wrong, files=form, timeout=120)
    assert refused.status_code >= 400
    for _ in range(50):
        if "cannot be read as NIfTI: copy or convert it again" in (place / "server.log").read_text():
            return
        time.sleep(0.1)  # the log is written by a thread
    raise AssertionError((place / "server.log").read_text()[-3000:])
