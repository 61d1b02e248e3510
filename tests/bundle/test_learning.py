# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Both configs learn from bag labels alone; and a cohort laid out as RSNA 2019 is, from its flat folder to results."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from scripts.ct.features import read_slice_features
from scripts.studies.cli import calibrate
from tests.bundle.commands import bundle, run, run_here, square_lattice, write_square_slide
from tests.ct.rsna_cohort import write_rsna_cohort
from tests.outputs.results import table
from tests.shared_data import ROOT

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
    return {name: figure["value"] for name, figure in figures.items() if isinstance(figure, dict) and "value" in figure}


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
    if not files:
        require_taken_up_after_calibration(tmp_path, tmp_path / "out")


def require_taken_up_after_calibration(home: Path, out: Path) -> None:
    """By evaluation and inference, as the bags that it was calibrated on say."""
    calibrate(str(out), str(out / "model.pt"), coverage=0.8)
    keys = {"dataset_dir": str(home), "num_workers": 0}
    run_here("wsi", ["train", "evaluate"], **keys, ckpt_dir=str(out), output_dir=str(out / "again"))
    run_here(
        "wsi", ["inference"], **keys, ckpt_path=str(out / "model.pt"), output_dir=str(out / "read"),
        datalist=str(home / "datalist.json"),
    )  # fmt: skip
    metrics = json.loads((out / "again" / "metrics.json").read_text())
    assert metrics["threshold_origin"].startswith("chosen on 12 labelled bags of the site by calibrate")
    assert metrics["bag_set_coverage"]["value"] >= 0.8
    tables = [table(out / name / "summary.csv") for name in ("again", "read")]
    evaluated, inferred = ({row["bag_id"]: row["label_set"] for row in rows} for rows in tables)
    assert evaluated == inferred
    for bag_id, labels in inferred.items():
        of_one = json.loads((out / "read" / bag_id / "result.json").read_text())
        assert "|".join(of_one["label_set"]) == labels


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


SMALL: dict[str, Any] = {"image_size": 32, "channels": [8, 8]}
MOST_MEMORY = 2.5e9  # bytes, of one process of a training


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty series in one flat folder, and their datalist."""
    folder = tmp_path_factory.mktemp("rsna")
    write_rsna_cohort(folder, series=20, slices=8, image_size=32)
    run(sys.executable, "-m", "scripts", "datalist", "ct", str(folder), cwd=ROOT)
    return folder


@pytest.fixture(scope="module")
def trained(cohort: Path) -> tuple[str, float]:
    """The weights of one epoch on the whole scans, and the most memory that the process of the training took."""
    command = "import atexit, runpy; atexit.register(lambda: print(open('/proc/self/status').read()))"
    ended = run(
        sys.executable, "-c", f"{command}; runpy.run_module('monai.bundle', run_name='__main__')",
        "run", "--config_file", "['configs/train.json','configs/small.json']", "--dataset_dir", str(cohort),
        "--ckpt_dir", str(cohort / "model"), "--output_dir", str(cohort / "model"), "--max_epochs", "1",
        "--num_workers", "2", "--image_size", "32", "--channels", "[8,8]",
        cwd=bundle("ct"),
    )  # fmt: skip
    (kilobytes,) = re.findall(r"VmHWM:\s*(\d+) kB", ended.stdout)
    return str(cohort / "model" / "model.pt"), 1024 * float(kilobytes)


@pytest.mark.skipif(sys.platform != "linux", reason="no other system tells the peak of one process so")
@pytest.mark.xdist_group("ct")
def test_an_epoch_on_a_flat_folder_stays_small(trained: tuple[str, float]) -> None:
    assert trained[1] < MOST_MEMORY


@pytest.mark.xdist_group("ct")
def test_two_stages_from_the_flat_folder_to_results(cohort: Path, trained: tuple[str, float]) -> None:
    features, results = cohort / "features", cohort / "results"
    run_here(
        "ct", ["features", "small"], dataset_dir=str(cohort), datalist=str(cohort / "datalist.json"),
        ckpt_path=trained[0], num_workers=0, **SMALL,
    )  # fmt: skip
    scans = json.loads((features / "datalist.json").read_text())
    one = read_slice_features(features / scans["test"][0]["image"])
    assert set(one.sop_instance_uids) == set(scans["test"][0]["instance_label"])
    assert one.encoder.startswith("SliceCNN (sha256 ")

    figures = learn("ct", features, ["on_features", "smap"], in_features=one.features.shape[1], max_epochs=2)
    assert {"bag_auroc", "instance_auroc_gated"} <= figures.keys()

    of_head = str(features / "out" / "model.pt")
    run_here("ct", ["inference"], dataset_dir=str(features), ckpt_path=of_head, output_dir=str(results), num_workers=0)
    done = {row["bag_id"]: row["status"] for row in table(results / "summary.csv")}
    assert done == {bag["bag_id"]: "done" for bags in scans.values() for bag in bags}
    result = json.loads((results / scans["test"][0]["bag_id"] / "result.json").read_text())
    assert [row["id"] for row in result["instances"]] == one.sop_instance_uids
    assert result["about"] == one.about
