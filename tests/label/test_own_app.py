# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Our app of MONAI Label: answers in a segment's name, labels of whole scans and slides, slides and regions as bags."""

import json
import shutil
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import pytest

pytest.importorskip("monailabel", reason="make label-test builds an environment for MONAI Label")

import httpx
from monailabel.interfaces.exception import MONAILabelException
from monailabel.interfaces.utils.app import app_instance, clear_cache

from scripts.engine.operating_point import OperatingPoint, write_operating_point
from tests.bundle.test_viewers import files_of
from tests.label.cohort import SCAN, SCANS, SLIDE, write_bundles, write_mask, write_slides, write_studies
from tests.label.server import check_map, serve
from tests.shared_data import ROOT
from tests.wsi.slide_files import tissue, write_slide

APP = str(ROOT / "apps" / "smooth_mil")


@pytest.fixture
def scans(tmp_path: Path) -> Iterator[Any]:
    (bundle,) = write_bundles(tmp_path, "ct")
    conf = {"bundles": str(bundle), "trained": str(tmp_path / "trained")}
    yield app_instance(APP, str(write_studies(tmp_path / "studies")), conf)
    clear_cache()


@pytest.fixture
def slides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr("monailabel.config.settings.MONAI_LABEL_DATASTORE_FILE_EXT", ["*.h5"])
    (bundle,) = write_bundles(tmp_path, "wsi")
    conf = {"bundles": str(bundle), "trained": str(tmp_path / "trained")}
    yield app_instance(APP, str(write_slides(tmp_path / "slides")), conf)
    clear_cache()


def label_whole(app: Any, folder: Path, names: Iterable[str] = SCANS) -> None:
    """Label every other scan or slide as one with a finding, by JSON, as whoever uploads it does."""
    for number, name in enumerate(names):
        (folder / "label.json").write_text(json.dumps({"label": number % 2}))
        app.datastore().save_label(name, str(folder / "label.json"), "final", {})


def test_the_segment_is_named_with_the_probability_and_the_call(scans: Any) -> None:
    told = scans.infer({"model": SCAN, "image": "a", "device": "cpu"})["params"]
    (name,) = told["label_names"]
    assert name == f"suspected hemorrhage, probability {told['probability']:.2f}: positive"


def test_a_training_leaves_the_released_weights_alone_and_can_be_undone(scans: Any, tmp_path: Path) -> None:
    with pytest.raises(MONAILabelException, match="labels so far: none; a training wants two or more of each kind"):
        scans.train({"model": SCAN})
    label_whole(scans, tmp_path)
    scans.datastore().save_label("a", str(write_mask(tmp_path, "a", False)), "final", {})  # painted masks beside JSON
    scans.datastore().save_label("b", str(write_mask(tmp_path, "b", True)), "final", {})
    before = files_of(tmp_path / SCAN)
    released = scans.infer({"model": SCAN, "image": "a", "device": "cpu"})["params"]
    assert scans.train({"model": SCAN, "max_epochs": 2}) == {"weights": "training_1"}
    assert files_of(tmp_path / SCAN) == before
    assert scans.info()["models"][SCAN]["config"]["weights"] == ["newest", "released", "training_1"]
    now, then = (
        scans.infer({"model": SCAN, "image": "a", "device": "cpu", "weights": which})["params"]
        for which in ("newest", "released")
    )
    assert now["logits"] != then["logits"] == released["logits"]
    datalist = json.loads((tmp_path / "trained" / SCAN / "training_1" / "datalist.json").read_text())
    assert [len(bags) for bags in datalist.values()] == [4, 2]
    assert scans.train({"model": SCAN, "undo": True})["weights"] == "released"
    undone = scans.infer({"model": SCAN, "image": "a", "device": "cpu"})["params"]
    assert undone["logits"] == released["logits"]
    with pytest.raises(MONAILabelException, match="there is no training to undo"):
        scans.train({"model": SCAN, "undo": True})


def test_the_least_certain_unlabelled_scan_is_proposed(scans: Any, tmp_path: Path) -> None:
    (tmp_path / "studies" / "broken.nii.gz").write_text("no scan")
    scans.datastore().refresh()
    proposed = scans.next_sample({"strategy": "least certain", "model": SCAN})
    assert (proposed["read"], proposed["not_read_yet"]) == (6, 7)
    again = scans.next_sample({"strategy": "least certain", "model": SCAN})
    assert (again["id"], again["read"], again["not_read_yet"]) == (proposed["id"], 6, 1)  # the others are remembered
    answers = {
        name: scans.infer({"model": SCAN, "image": name, "device": "cpu"})["params"]["probability"] for name in SCANS
    }
    assert proposed["id"] == min(answers, key=lambda name: answers[name])  # the threshold is 0
    scans.datastore().save_label(proposed["id"], str(write_mask(tmp_path, "x", True)), "final", {})
    assert scans.next_sample({"strategy": "least certain", "model": SCAN})["id"] != proposed["id"]


def test_a_label_that_is_none_is_refused_and_not_kept(scans: Any, tmp_path: Path) -> None:
    (tmp_path / "label.json").write_text("{}")
    label = scans.datastore().save_label("a", str(tmp_path / "label.json"), "final", {})
    with pytest.raises(MONAILabelException, match=r'holds no label: give {"label": 0} or {"label": 1}'):
        scans.on_save_label("a", label)
    assert "a" in scans.datastore().get_unlabeled_images()


def test_a_slide_and_a_region_are_read_as_one_bag_each(slides: Any) -> None:
    asked = {"model": SLIDE, "image": "b"}
    whole = slides.infer_wsi({**asked, "output": "json", "location": [0, 0], "size": [2048, 2048]})
    assert whole["file"] is None
    assert (whole["params"]["positive"], whole["params"]["threshold"]) == (True, 0.0)
    features = whole["params"]["geojson"]["features"]
    assert all(each["properties"]["objectType"] == "annotation" for each in features)
    part = slides.infer_wsi({**asked, "output": "json", "location": [256, 0], "size": [512, 512]})["params"]
    assert part["logits"] != whole["params"]["logits"]
    for each in part["geojson"]["features"]:
        for x, y in each["geometry"]["coordinates"][0]:
            assert 256 <= x <= 768
            assert 0 <= y <= 512
    with pytest.raises(MONAILabelException, match=r"the region at \[9000, 9000\] holds no tissue: choose another"):
        slides.infer_wsi({**asked, "location": [9000, 9000], "size": [512, 512]})


def test_the_least_certain_unlabelled_slide_is_proposed(slides: Any, tmp_path: Path) -> None:
    label_whole(slides, tmp_path, "abcd")
    proposed = slides.next_sample({"strategy": "least certain", "model": SLIDE})
    assert (proposed["read"], proposed["not_read_yet"]) == (2, 2)
    e, f = (slides.datastore().get_image_info(name)["smooth_mil"]["probability"] for name in "ef")
    assert proposed["id"] == ("e" if e < f else "f")  # the threshold is 0


@pytest.fixture
def slide_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr("monailabel.config.settings.MONAI_LABEL_DATASTORE_FILE_EXT", ["*.tif"])
    (bundle,) = write_bundles(tmp_path, "wsi")
    slide = write_slide(tmp_path / "slides" / "s.tif", tissue(512, 768), 0.5)
    parts = "torch.nn.Conv2d(3, 8, 1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()"
    encoder = {"encoder": f"$torch.nn.Sequential({parts})", "encoder_name": "mean colours"}
    (tmp_path / "encoder.json").write_text(json.dumps(encoder))
    conf = {"bundles": str(bundle), "trained": str(tmp_path / "trained"), "encoder": str(tmp_path / "encoder.json")}
    yield app_instance(APP, str(slide.parent), conf)
    clear_cache()


def test_features_of_a_slide_are_made_once_beside_it(slide_files: Any, tmp_path: Path) -> None:
    told = slide_files.infer_wsi({"model": SLIDE, "image": "s", "output": "json"})["params"]
    made = tmp_path / "slides" / "features" / "s.h5"
    first = made.stat().st_mtime_ns
    again = slide_files.infer_wsi({"model": SLIDE, "image": "s", "output": "json"})["params"]
    assert made.stat().st_mtime_ns == first
    assert again["logits"] == told["logits"]
    with h5py.File(made) as file:
        assert file["features"].shape == (6, 8)  # 3 × 2 tiles of 256 pixels


@pytest.mark.parametrize("output", ["dsa", "asap"])
def test_annotations_are_those_of_the_geojson(slides: Any, output: str) -> None:
    asked = {"model": SLIDE, "image": "b", "location": [0, 0], "size": [0, 0]}
    told = slides.infer_wsi({**asked, "output": "json"})["params"]
    rings = [each["geometry"]["coordinates"][0] for each in told["geojson"]["features"]]
    assert rings
    file = Path(slides.infer_wsi({**asked, "output": output})["file"])
    name = f"positive, probability {told['probability']:.2f}"
    if output == "dsa":
        elements = json.loads(file.read_text())["elements"]
        assert [[point[:2] for point in each["points"]] for each in elements] == rings
        assert {each["group"] for each in elements} == {name}
    else:
        found = ElementTree.parse(file).findall(".//Annotation")
        points = [[[float(p.get("X", "")), float(p.get("Y", ""))] for p in each.iter("Coordinate")] for each in found]
        assert points == rings
        assert {each.get("Name") for each in found} == {name}


def test_slides_are_learned_from_their_labels(slides: Any, tmp_path: Path) -> None:
    label_whole(slides, tmp_path)
    assert slides.train({"model": SLIDE, "max_epochs": 2}) == {"weights": "training_1"}
    asked = {"model": SLIDE, "image": "a", "output": "json"}
    now, then = (slides.infer_wsi({**asked, "weights": which})["params"] for which in ("newest", "released"))
    assert now["logits"] != then["logits"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[httpx.Client]:
    """One server of both bundles, for scans and a slide."""
    bundles = write_bundles(tmp_path, "ct", "wsi")
    studies = write_studies(tmp_path / "studies")
    shutil.copy(write_slides(tmp_path / "slides") / "b.h5", studies / "slide.h5")
    conf = {"bundles": ",".join(map(str, bundles)), "trained": str(tmp_path / "trained")}
    listed = json.dumps(["*.nii.gz", "*.h5"])
    app = shutil.copytree(APP, tmp_path / "app", ignore=shutil.ignore_patterns("__pycache__"))  # it writes logs there
    with (
        serve(app, studies, conf, MONAI_LABEL_DATASTORE_FILE_EXT=listed) as url,
        httpx.Client(base_url=url, timeout=120, headers={"Connection": "close"}) as client,  # as a refusal closes it
    ):
        yield client


def told_of(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()


def test_a_real_server_answers_scans_and_slides_and_learns_from_labels_of_whole_scans(
    server: httpx.Client, tmp_path: Path
) -> None:
    info = told_of(server.get("/info/"))
    assert (set(info["models"]), info["datastore"]["total"]) == ({SCAN, SLIDE}, 7)
    scan, slide = f"/infer/{SCAN}", f"/infer/wsi_v2/{SLIDE}"
    asked = {"image": "a", "output": "json"}
    released = told_of(server.post(scan, params=asked))
    assert released["positive"]
    write_operating_point(tmp_path / SCAN / "models" / "model.pt", OperatingPoint(1.0, (1.0, 0.0), "chosen by a test"))
    negative = told_of(server.post(scan, params=asked))
    assert (negative["positive"], negative["flagged"]) == (False, 0)
    (tmp_path / "map.nrrd").write_bytes(server.post(scan, params={**asked, "output": "image"}).content)
    check_map(tmp_path / "map.nrrd", tmp_path / "studies" / "a.nii.gz", negative)

    told = told_of(server.post(slide, params={"image": "slide", "output": "json"}))
    assert told["positive"]
    drawn = told_of(server.post(slide, params={"image": "slide", "output": "dsa"}))
    rings = [each["geometry"]["coordinates"][0] for each in told["geojson"]["features"]]
    assert [[point[:2] for point in each["points"]] for each in drawn["elements"]] == rings != []

    for number, name in enumerate(SCANS):
        label = {"label": ("label.json", json.dumps({"label": number % 2}))}
        told_of(server.put("/datastore/label", params={"image": name}, files=label))
    refused = server.put("/datastore/label", params={"image": "slide"}, files={"label": ("label.json", "{}")})
    assert refused.status_code >= 400
    of_slide = {"label": ("label.json", json.dumps({"label": 1}))}  # which head CT does not train on
    told_of(server.put("/datastore/label", params={"image": "slide"}, files=of_slide))
    task = told_of(server.post(f"/train/{SCAN}", json={"max_epochs": 2}))
    while task["status"] in ("SUBMITTED", "RUNNING"):
        time.sleep(0.5)
        task = told_of(server.get("/train/"))
    assert task["status"] == "DONE", task["details"]
    now, then = (
        told_of(server.post(scan, params=asked, files={"params": (None, json.dumps({"weights": which}))}))
        for which in ("newest", "released")
    )
    assert now["logits"] != then["logits"] == released["logits"]
    assert told_of(server.post(scan, params=asked))["logits"] == now["logits"]
