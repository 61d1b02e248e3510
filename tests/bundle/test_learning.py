# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Both configs learn: from bag labels alone they find the bags, and the instances that made them positive."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigWorkflow

from scripts.core.units import Level0Coords, Level0Pixels
from scripts.wsi.features.smooth_mil import PatchFeatures, write_features
from tests.bundle.commands import bundle

CHANCE = 0.5
SECTIONS = ["training"] * 20 + ["validation"] * 6 + ["test"] * 12


def learn(task: str, monkeypatch: pytest.MonkeyPatch, files: list[str], **keys: Any) -> dict[str, float]:
    """Train and evaluate in this process; gives the figures of metrics.json."""
    monkeypatch.chdir(bundle(task))
    monkeypatch.setattr("scripts.engine.launch.one_line_errors", lambda: None)  # it would change this very process
    home = Path(keys["dataset_dir"])
    keys |= {"ckpt_dir": str(home / "out"), "output_dir": str(home / "out"), "num_workers": 0, "val_interval": 1}
    for more in ([], ["configs/evaluate.json"]):
        workflow = ConfigWorkflow(
            ["configs/train.json", *files, *more], workflow_type="train", logging_file=False, **keys
        )
        workflow.initialize()
        workflow.run()
        workflow.finalize()
    figures = json.loads((home / "out" / "metrics.json").read_text())
    return {name: figure["value"] for name, figure in figures.items() if isinstance(figure, dict)}


def write_datalist(home: Path, bags: list[dict[str, Any]]) -> None:
    sections: dict[str, list[dict[str, Any]]] = {name: [] for name in SECTIONS}
    for section, bag in zip(SECTIONS, bags, strict=True):
        sections[section].append(bag)
    (home / "datalist.json").write_text(json.dumps(sections))


@pytest.mark.xdist_group("ct")
def test_head_ct_learns_which_slices_bleed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise at the brain's 35 HU; in positive scans a block of 75 HU spans three neighbouring slices."""
    rng = np.random.default_rng(0)
    bags = []
    for case in range(len(SECTIONS)):
        volume = rng.normal(35, 5, (32, 32, 10)).astype(np.float32)
        truth = np.zeros(10, int)
        if case % 2:
            x, y, z = rng.integers((4, 4, 0), (18, 18, 8)).tolist()
            volume[x : x + 10, y : y + 10, z : z + 3] += 40
            truth[z : z + 3] = 1
        nib.save(nib.Nifti1Image(volume, np.diag([-5.0, -5.0, 5.0, 1.0])), tmp_path / f"{case}.nii.gz")
        bags.append({"image": f"{case}.nii.gz", "label": case % 2, "instance_label": truth.tolist()})
    write_datalist(tmp_path, bags)
    figures = learn(
        "ct", monkeypatch, ["configs/small.json"], dataset_dir=str(tmp_path), cache_dir=str(tmp_path / "cache"),
        image_size=32, channels=[8, 8], max_epochs=12,
    )  # fmt: skip
    assert figures["bag_auroc"] > CHANCE + 0.3
    assert figures["instance_auroc_gated"] > CHANCE + 0.2


@pytest.mark.xdist_group("wsi")
@pytest.mark.parametrize("files", [[], ["configs/attention.json"], ["configs/abmil.json"]])
def test_slides_learn_which_patches_are_positive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str]
) -> None:
    """Features of noise on a 12×12 lattice; in positive slides a disc of patches has four features raised."""
    rng = np.random.default_rng(0)
    lattice = np.stack(np.meshgrid(np.arange(12), np.arange(12)), axis=-1).reshape(-1, 2)
    bags = []
    for case in range(len(SECTIONS)):
        features = rng.normal(size=(144, 16)).astype(np.float32)
        truth = (np.linalg.norm(lattice - rng.integers(3, 9, size=2), axis=1) < 3) & bool(case % 2)
        features[truth, :4] += 1.5
        slide = PatchFeatures(
            features, Level0Coords(lattice * 256), Level0Pixels(256), Level0Pixels(256), None, "noise", str(case),
            (12 * 256, 12 * 256),
        )  # fmt: skip
        write_features(tmp_path / f"{case}.h5", slide)
        bags.append({"image": f"{case}.h5", "label": case % 2, "instance_label": truth.astype(int).tolist()})
    write_datalist(tmp_path, bags)
    figures = learn(
        "wsi", monkeypatch, files, dataset_dir=str(tmp_path), in_features=16, learning_rate=1e-3, max_epochs=15
    )
    assert figures["bag_auroc"] > CHANCE + 0.3
    assert figures["instance_auroc_gated"] > CHANCE + 0.2


GRADES = 6


@pytest.mark.xdist_group("wsi")
@pytest.mark.parametrize("network", ["classes", "hmil"])
def test_slides_learn_their_grade_and_the_coarse_class_above_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: str
) -> None:
    """Features of noise on a 6×6 lattice; in a third of the patches a feature of the slide's own grade is raised."""
    rng = np.random.default_rng(0)
    lattice = np.stack(np.meshgrid(np.arange(6), np.arange(6)), axis=-1).reshape(-1, 2)
    bags = []
    for case in range(len(SECTIONS)):
        features = rng.normal(size=(36, 16)).astype(np.float32)
        grade = case % GRADES
        features[rng.permutation(36)[:12], grade] += 3
        slide = PatchFeatures(
            features, Level0Coords(lattice * 256), Level0Pixels(256), Level0Pixels(256), None, "noise", str(case),
            (6 * 256, 6 * 256),
        )  # fmt: skip
        write_features(tmp_path / f"{case}.h5", slide)
        bags.append({"image": f"{case}.h5", "label": str(grade)})
    write_datalist(tmp_path, bags)
    figures = learn(
        "wsi", monkeypatch, [f"configs/{network}.json", "configs/panda.json", "configs/balanced.json"],
        dataset_dir=str(tmp_path), in_features=16, learning_rate=2e-3, max_epochs=25,
    )  # fmt: skip
    assert figures["class_accuracy"] > 1 / GRADES + 0.4
    assert figures["class_kappa_quadratic"] > 0.4
    assert figures["coarse_accuracy"] > 1 / 3 + 0.3
    assert figures["bag_auroc"] > CHANCE + 0.3  # any cancer at all
    origin = json.loads((tmp_path / "out" / "model.origin.json").read_text())
    assert (origin["encoder"], origin["patch_um"], origin["class_names"]) == ("noise", 0.0, list("012345"))
