# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""What was named at training is named nowhere else: every other run takes it from beside the weights."""

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from scripts.engine.provenance import origin_file, origin_text
from scripts.weights.sa_dmil import SA_DMIL_CONFIG
from tests.bundle.commands import bundle, message_of, run_here, write_square_slide
from tests.outputs.results import table

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {"image_size": 32, "channels": [8, 8]}
NARROW: dict[str, Any] = {"in_features": 16}
COMPOSITIONS = [  # what is named at training, and what contradicts it
    pytest.param("ct", ["small"], SMALL, ["smap"], id="ct-small"),
    pytest.param("ct", ["small", "smtap"], SMALL, ["smap"], id="ct-smtap"),
    pytest.param("wsi", [], NARROW, ["exact"], id="wsi-default"),
    pytest.param("wsi", ["smtap"], {**NARROW, "network_def#aggregator#landmarks": 3}, ["exact"], id="wsi-landmarks"),
    pytest.param("wsi", ["classes", "panda"], NARROW, ["bracs"], id="wsi-classes"),
    pytest.param("wsi", ["hmil", "bracs"], NARROW, ["hmil", "panda"], id="wsi-hmil"),
]


def write_cohort(home: Path, task: str, labels: list[str]) -> None:
    """Two training bags, one for validation and two for the test, of noise."""
    rng = np.random.default_rng(0)
    bags = []
    for case in range(5):
        name = f"{case}.nii.gz" if task == "ct" else f"{case}.h5"
        if task == "ct":
            volume = rng.normal(35, 20, (32, 32, 9)).astype(np.float32)
            nib.save(nib.Nifti1Image(volume, np.diag([-5.0, -5.0, 5.0, 1.0])), home / name)
        else:
            write_square_slide(home / name, rng.normal(size=(25, 16)).astype(np.float32))
        bags.append({"image": name, "label": labels[case % len(labels)]})
    sections = {"training": bags[:2], "validation": bags[2:3], "test": bags[3:]}
    (home / "datalist.json").write_text(json.dumps(sections))


def probabilities(folder: Path) -> dict[str, str]:
    return {row["bag_id"]: row["probability"] for row in table(folder / "summary.csv")}


@pytest.mark.parametrize(("task", "named", "keys", "contradicting"), COMPOSITIONS)
def test_what_was_named_at_training_need_not_be_named_again(
    tmp_path: Path, task: str, named: list[str], keys: dict[str, Any], contradicting: list[str]
) -> None:
    write_cohort(tmp_path, task, ["N", "IC", "PB"] if "bracs" in named else ["0", "1"])
    common = {"dataset_dir": str(tmp_path), "num_workers": 0}
    place = {**common, "ckpt_dir": str(tmp_path / "out"), "output_dir": str(tmp_path / "out")}
    run_here(task, ["train", *named], **place, **keys, max_epochs=1)
    run_here(task, ["train", *named, "evaluate"], **place, **keys)
    named_again = probabilities(tmp_path / "out")
    assert len(named_again) == 2
    run_here(task, ["train", "evaluate"], **{**place, "output_dir": str(tmp_path / "plain")})
    weights = str(tmp_path / "out" / "model.pt")
    infer = {**common, "datalist": str(tmp_path / "datalist.json"), "ckpt_path": weights}
    run_here(task, ["inference"], **infer, output_dir=str(tmp_path / "found"))
    assert probabilities(tmp_path / "plain") == probabilities(tmp_path / "found") == named_again
    result = json.loads(next((tmp_path / "found").glob("*/result.json")).read_text())
    assert (result["classes"] is not None) == ("bracs" in named or "panda" in named)
    message = message_of(task, ["inference", *contradicting], **infer, output_dir=str(tmp_path / "refused"))
    assert f"{weights} was trained with " in message
    assert ", this run names " in message
    assert not (tmp_path / "refused").exists()
    if named in ([], ["small"]):  # and so does the export to ONNX
        onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
        path = str(tmp_path / "model.onnx")
        run_here(task, ["inference", "onnx"], ckpt_path=weights, onnx_path=path)
        shapes = {given.name: given.shape for given in onnxruntime.InferenceSession(path).get_inputs()}
        assert shapes["image"][:-1] == ([1, 3, 32, 32] if task == "ct" else [1, 16])


def test_converted_weights_bring_their_57_slots(tmp_path: Path) -> None:
    write_cohort(tmp_path, "ct", ["0", "1"])
    (tmp_path / "one").mkdir()
    (tmp_path / "0.nii.gz").rename(tmp_path / "one" / "0.nii.gz")
    weights = tmp_path / "released.pt"
    parser = ConfigParser(json.loads((bundle("ct") / "configs" / "train.json").read_text()))
    torch.save(parser.get_parsed_content("network_def").state_dict(), weights)
    origin_file(weights).write_text(origin_text(SA_DMIL_CONFIG))  # as the converter does
    found = {"dataset_dir": str(tmp_path / "one"), "ckpt_path": str(weights), "num_workers": 0}
    run_here("ct", ["inference"], **found, output_dir=str(tmp_path / "out"))
    result = json.loads((tmp_path / "out" / "0" / "result.json").read_text())
    assert (result["slots"], result["score_name"], result["flagged_above"][:14]) == (57, "attention", "attention 1/57")
    assert 0 < sum(instance["attention"] for instance in result["instances"]) < 1 - 1e-3  # empty slots hold the rest
