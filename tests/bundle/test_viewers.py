# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""One contract for MONAI Label and MONAI Deploy: an image goes in, a label map and plain numbers come out.

The viewers' own steps are in viewers.py, as they were read in their sources; `make label-test` runs MONAI Label itself.
"""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from scripts.ct.reader import load_scan
from scripts.engine.operating_point import OperatingPoint, write_operating_point
from tests.bundle.commands import run
from tests.ct.series import couch, tilted, write_series
from tests.release.trained import SMALL, write_weights
from tests.shared_data import ROOT
from tests.test_configs import content

VIEWERS = Path(__file__).with_name("viewers.py")
SLICES = 5


def write_bundle(folder: Path, threshold: float, scripted: bool = False, wing: str = "ct") -> Path:
    """A bundle as a release has it, its network with its weights, called positive above a threshold."""
    shutil.copytree(ROOT / "scripts", folder / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "configs" / wing, folder / "configs")
    for name in ("inference.json", "train.json"):
        config = {**content(folder / "configs" / name), **SMALL[wing]}
        (folder / "configs" / name).write_text(json.dumps(config, indent=4))
    weights = write_weights(folder / "models", wing)
    write_operating_point(weights, OperatingPoint(threshold, (1.0, 0.0), "chosen by a test"))
    if scripted:
        export = ("ckpt_export", "network_def", "--filepath", "models/model.ts", "--ckpt_file", "models/model.pt")
        files = ("--meta_file", "configs/metadata.json", "--config_file", "configs/inference.json")
        run(sys.executable, "-m", "monai.bundle", *export, *files, cwd=folder)
    return folder


def write_scans(folder: Path) -> dict[str, Path]:
    """One scan under a tilted gantry, as a folder of DICOM and as volumes, with its axes swapped in one of them."""
    stored = np.random.default_rng(0).integers(0, 80, (SLICES, 12, 10)).astype(np.int16)
    dicom = write_series(folder / "dicom", stored, couch(SLICES), ImageOrientationPatient=list(tilted(18)))
    scan = load_scan(dicom)
    upright = nib.Nifti1Image(scan.array, scan.affine)
    paths = {"dicom": dicom, "nifti": folder / "a.nii.gz", "swapped": folder / "b.nii"}
    upright.to_filename(paths["nifti"])
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(scan.affine), nib.orientations.axcodes2ornt(("S", "L", "A"))
    )
    upright.as_reoriented(turn).to_filename(paths["swapped"])
    return paths


def files_of(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if "__pycache__" not in path.parts}


def ask(viewer: str, bundle: Path, cwd: Path, *images: Path) -> list[dict[str, Any]]:
    cwd.mkdir(exist_ok=True)
    before = files_of(bundle)
    done = run(sys.executable, "-B", str(VIEWERS), viewer, str(bundle), *map(str, images), cwd=cwd)
    assert files_of(bundle) == before
    assert os.listdir(cwd) == []
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def check_positive(told: dict[str, Any], path: Path) -> None:
    """Whole slices are marked, those whose rows say flagged, where the input has them."""
    scan = load_scan(path)
    assert told["dtype"] == "uint8"
    assert tuple(told["shape"]) == scan.stored_shape
    np.testing.assert_allclose(told["affine"], scan.stored_affine, atol=1e-4)
    flagged = [row["slice"] - 1 for row in told["slices"] if row["flagged"]]
    assert 0 < len(flagged) == told["flagged"] <= len(told["slices"]) == SLICES
    axis = 2 if tuple(told["shape"]) == scan.array.shape else 0  # of the slices; swapped, they are the first
    assert told["marked"][axis] == flagged
    others = [told["marked"][other] for other in range(3) if other != axis]
    assert others == [list(range(size)) for k, size in enumerate(told["shape"]) if k != axis]


def check_numbers(told: dict[str, Any], threshold: float) -> None:
    assert (told["threshold"], told["threshold_origin"]) == (threshold, "chosen by a test")
    assert told["positive"] == (told["probability"] > threshold)
    assert told["model"]["version"] == content(ROOT / "metadata.json")["version"]
    assert len(told["model"]["sha256"]) == 64
    assert sum(row["attention"] for row in told["slices"]) == pytest.approx(1, abs=1e-5)
    assert {"slice", "position_mm", "score", "evidence", "instance_logit", "flagged"} <= told["slices"][0].keys()
    assert "Secret" not in json.dumps(told)


@pytest.mark.slow
def test_monai_label_gets_a_map_in_the_inputs_geometry_and_numbers_in_json(tmp_path: Path) -> None:
    scans = write_scans(tmp_path)
    bundle = write_bundle(tmp_path / "bundle", 0.0)
    told = ask("label", bundle, tmp_path / "cwd", *scans.values(), *[scans["nifti"]] * 3)
    for one, path in zip(told, scans.values(), strict=False):
        check_positive(one, path)
        check_numbers(one, 0.0)
    assert len({round(one["probability"], 5) for one in told}) == 1  # of one scan, however it is stored
    write_operating_point(bundle / "models" / "model.pt", OperatingPoint(1.0, (1.0, 0.0), "chosen by a test"))
    (negative,) = ask("label", bundle, tmp_path / "cwd", scans["dicom"])
    check_numbers(negative, 1.0)
    assert (negative["positive"], negative["called"], negative["flagged"]) == (False, "negative", 0)
    assert negative["marked"] == [[], [], []]


@pytest.mark.slow
def test_monai_deploy_gets_the_same_from_a_volume_that_it_has_read_itself(tmp_path: Path) -> None:
    if not (ROOT / ".venv" / "deploy").is_dir():
        pytest.skip("make .venv/ready puts the operator of MONAI Deploy there")
    scans = write_scans(tmp_path)
    bundle = write_bundle(tmp_path / "bundle", 0.0, scripted=True)
    volumes = [scans["nifti"], scans["swapped"]]
    told = ask("deploy", bundle, tmp_path / "cwd", *volumes)
    by_label = ask("label", bundle, tmp_path / "cwd", *volumes)
    for one, other, path in zip(told, by_label, volumes, strict=True):
        check_positive(one, path)
        check_numbers(one, 0.0)
        assert one["marked"] == other["marked"]
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)
        for row, by_ours in zip(one["slices"], other["slices"], strict=True):
            assert row["position_mm"] == pytest.approx(by_ours["position_mm"], abs=1e-3)


def test_metadata_say_what_viewers_look_for() -> None:
    metadata = content(ROOT / "configs" / "ct" / "metadata.json")
    formats = metadata["network_data_format"]
    assert list(formats["inputs"]) == ["image"]  # of every other key MONAI Deploy wants a port
    assert list(formats["outputs"]) == ["pred"]
    assert formats["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "suspected hemorrhage"}
    assert "segmentation" in metadata["task"]
    assert (metadata["modality"], metadata["organ"]) == ("CT", "Brain")
    inference, train = (content(ROOT / "configs" / "ct" / f"{name}.json") for name in ("inference", "train"))
    assert inference["displayable_configs"]["result_dtype"] == "uint8"
    assert "displayable_configs" not in train
    loaders = [each for each in train["train"]["handlers"] if each["_target_"].endswith("CheckpointLoader")]
    assert [each["_target_"] for each in loaders] != ["CheckpointLoader"]  # or its own, for `pretrained`, is not added
    assert formats["outputs"]["pred"]["dtype"] == "float32"  # the network's own: verify_net_in_out
