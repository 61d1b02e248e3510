# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Both configs learn: from bag labels alone they find the bags, and the instances that made them positive."""

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from tests.bundle.commands import run_here, square_lattice, write_square_slide

pytestmark = pytest.mark.slow

CHANCE = 0.5
GRADES = 6
SECTIONS = ["training"] * 20 + ["validation"] * 6 + ["test"] * 12


def learn(task: str, home: Path, files: list[str], **keys: Any) -> dict[str, float]:
    """Train and evaluate on the cohort in `home`; returns the figures of metrics.json."""
    out = str(home / "out")
    keys |= {"dataset_dir": str(home), "ckpt_dir": out, "output_dir": out, "num_workers": 0, "val_interval": 1}
    for more in ([], ["evaluate"]):
        run_here(task, ["train", *files, *more], **keys)
    figures = json.loads((home / "out" / "metrics.json").read_text())
    return {name: figure["value"] for name, figure in figures.items() if isinstance(figure, dict)}


def write_datalist(home: Path, bags: list[dict[str, Any]]) -> None:
    sections: dict[str, list[dict[str, Any]]] = {name: [] for name in SECTIONS}
    for section, bag in zip(SECTIONS, bags, strict=True):
        sections[section].append(bag)
    (home / "datalist.json").write_text(json.dumps(sections))


def test_head_ct_learns_which_slices_bleed(tmp_path: Path) -> None:
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
    small = {"image_size": 32, "channels": [8, 8], "cache_dir": str(tmp_path / "cache")}
    figures = learn("ct", tmp_path, ["small"], max_epochs=12, **small)
    assert figures["bag_auroc"] > CHANCE + 0.3
    assert figures["instance_auroc_gated"] > CHANCE + 0.2


@pytest.mark.parametrize("files", [[], ["abmil"]])
def test_slides_learn_which_patches_are_positive(tmp_path: Path, files: list[str]) -> None:
    """Features of noise on a 12×12 lattice; in positive slides a disc of patches has four features raised."""
    rng = np.random.default_rng(0)
    bags = []
    for case in range(len(SECTIONS)):
        features = rng.normal(size=(144, 16)).astype(np.float32)
        centre = rng.integers(3, 9, size=2)
        truth = (np.linalg.norm(square_lattice(12) - centre, axis=1) < 3) & bool(case % 2)
        features[truth, :4] += 1.5
        write_square_slide(tmp_path / f"{case}.h5", features)
        bags.append({"image": f"{case}.h5", "label": case % 2, "instance_label": truth.astype(int).tolist()})
    write_datalist(tmp_path, bags)
    figures = learn("wsi", tmp_path, files, in_features=16, learning_rate=1e-3, max_epochs=15)
    assert figures["bag_auroc"] > CHANCE + 0.3
    assert figures["instance_auroc_gated"] > CHANCE + 0.2


@pytest.mark.parametrize("network", ["classes", "hmil"])
def test_slides_learn_their_grade_and_the_coarse_class_above_it(tmp_path: Path, network: str) -> None:
    """Features of noise on a 6×6 lattice; in a third of the patches a feature of the slide's own grade is raised."""
    rng = np.random.default_rng(0)
    bags = []
    for case in range(len(SECTIONS)):
        features = rng.normal(size=(36, 16)).astype(np.float32)
        features[rng.permutation(36)[:12], case % GRADES] += 3
        write_square_slide(tmp_path / f"{case}.h5", features)
        bags.append({"image": f"{case}.h5", "label": str(case % GRADES)})
    write_datalist(tmp_path, bags)
    files = [network, "panda", "balanced"]
    figures = learn("wsi", tmp_path, files, in_features=16, learning_rate=2e-3, max_epochs=25)
    assert figures["class_accuracy"] > 1 / GRADES + 0.4
    assert figures["class_kappa_quadratic"] > 0.4
    assert figures["coarse_accuracy"] > 1 / 3 + 0.3
    assert figures["bag_auroc"] > CHANCE + 0.3  # any cancer at all
    origin = json.loads((tmp_path / "out" / "model.origin.json").read_text())
    assert (origin["encoder"], origin["patch_um"]) == ("noise", 0.0)
    classes = [name for group in origin["config"]["hierarchy"].values() for name in group]
    assert classes == list("012345")
