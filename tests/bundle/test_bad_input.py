# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Bad input in the place where a user meets it: the whole pipeline of a config, up to the message it ends with."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pydicom
import pytest
import torch
from monai.bundle import ConfigWorkflow

from scripts.core.errors import input_error_message
from tests.bundle.commands import bundle, monai_bundle, write_cohort

pytestmark = pytest.mark.xdist_group("ct")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("bad"), "ct")


@pytest.fixture
def scan(cohort: Path, tmp_path: Path) -> Path:
    """A copy of one good scan, to be spoiled."""
    return Path(shutil.copytree(cohort / "scans" / "scan_000", tmp_path / "input" / "scan"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(bundle("ct"))
        workflow = ConfigWorkflow("configs/inference.json", workflow_type="infer", logging_file=False, **KEYS)
        workflow.initialize()
        torch.save(workflow.network_def.state_dict(), path)
    return path


KEYS: dict[str, Any] = {"image_size": 32, "channels": [8, 8], "num_workers": 0}


def infer(weights: Path, folder: Path, output: Path, **more: Any) -> str | None:
    """The message inference ends with, or None if it succeeds."""
    keys = {**KEYS, "dataset_dir": str(folder), "ckpt_path": str(weights), "output_dir": str(output), **more}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(bundle("ct"))
        patch.setattr("scripts.engine.launch.one_line_errors", lambda: None)  # it would change this very process
        workflow = ConfigWorkflow("configs/inference.json", workflow_type="infer", logging_file=False, **keys)
        workflow.initialize()
        try:
            workflow.run()
        except Exception as error:
            return input_error_message(error) or f"a traceback: {error!r}"
    return None


def rows_of(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def written(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_good_scan_is_read(weights: Path, scan: Path, tmp_path: Path) -> None:
    assert infer(weights, scan.parent, tmp_path / "out") is None
    of_scan = ["scan/flagged.nrrd", "scan/report.dcm", "scan/result.json", "scan/slices.png"]
    assert written(tmp_path / "out") == ["instances.csv", *of_scan, "summary.csv"]
    uids = {pydicom.dcmread(file, stop_before_pixels=True).SOPInstanceUID for file in scan.iterdir()}
    rows = json.loads((tmp_path / "out" / "scan" / "result.json").read_text())["instances"]
    assert {row["id"] for row in rows} == uids
    assert [row["position_mm"] for row in rows] == sorted(row["position_mm"] for row in rows)


def test_one_truncated_file_is_left_out_with_its_name(weights: Path, scan: Path, tmp_path: Path) -> None:
    victim = sorted(scan.iterdir())[7]
    victim.write_bytes(victim.read_bytes()[:100_000])
    assert infer(weights, scan.parent, tmp_path / "out") is None
    told = json.loads((tmp_path / "out" / "scan" / "result.json").read_text())
    assert any(victim.name in warning for warning in told["about"]["warnings"])
    assert len(told["instances"]) == len(list(scan.iterdir())) - 1
    assert victim.name in (tmp_path / "out" / "summary.csv").read_text()


def test_a_spoiled_scan_among_good_ones_ends_nothing_and_a_second_run_does_what_is_left(
    weights: Path, scan: Path, tmp_path: Path
) -> None:
    out, broken = tmp_path / "out", scan.with_name("broken")
    shutil.copytree(scan, broken)
    spoil_many(broken)
    said = infer(weights, scan.parent, out)
    assert said is not None
    assert said.startswith("1 of 2 failed: ")
    assert "mend and run again, what is done is skipped" in said
    assert (out / "scan" / "result.json").exists()
    assert not (out / "broken").exists()
    assert [row["status"] for row in rows_of(out / "summary.csv")] == ["done", "failed"]

    first = (out / "scan" / "result.json").stat().st_mtime_ns
    shutil.rmtree(broken)
    shutil.copytree(scan, broken)
    assert infer(weights, scan.parent, out) is None
    assert (out / "scan" / "result.json").stat().st_mtime_ns == first
    assert [row["status"] for row in rows_of(out / "summary.csv")] == ["done", "done"]
    assert {row["bag_id"] for row in rows_of(out / "instances.csv")} == {"broken", "scan"}

    assert infer(weights, scan.parent, out, threshold=0.01) is None  # another result: all anew
    assert (out / "scan" / "result.json").stat().st_mtime_ns > first


def spoil_many(scan: Path) -> None:
    for file in sorted(scan.iterdir())[:5]:
        file.write_bytes(file.read_bytes()[:100_000])


def spoil_modality(scan: Path) -> None:
    for file in scan.iterdir():
        header = pydicom.dcmread(file)
        header.Modality = "MR"
        header.save_as(file)


def spoil_everything(scan: Path) -> None:
    for file in scan.iterdir():
        file.unlink()
    (scan / "notes.txt").write_text("no images here")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_many, "copy the scan again"),
        (spoil_modality, "Modality MR"),
        (spoil_everything, "holds neither DICOM"),
    ],
)
def test_a_spoiled_scan_ends_in_one_line_and_no_file(
    weights: Path, scan: Path, tmp_path: Path, spoil: Any, message: str
) -> None:
    spoil(scan)
    said = infer(weights, scan.parent, tmp_path / "out")
    assert said is not None
    assert message in said
    assert "\n" not in said
    assert set(written(tmp_path / "out")) <= {"summary.csv"}  # which says why


def test_weights_of_another_network_are_told(weights: Path, scan: Path, tmp_path: Path) -> None:
    said = infer(weights, scan.parent, tmp_path / "out", channels=[4, 4])
    assert said is not None
    assert "give the override files they were trained with" in said


def test_results_that_cannot_be_written_are_told_first(weights: Path, scan: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = infer(weights, scan.parent, tmp_path / "file" / "out")
    assert said is not None
    assert "cannot write to" in said


@pytest.mark.parametrize(
    ("label", "message"), [(None, 'has no "label"'), (3, "has the label 3, which is not one of the classes")]
)
def test_a_wrong_label_stops_training_with_one_line(
    cohort: Path, tmp_path: Path, label: int | None, message: str
) -> None:
    """By the real command: one line on stderr, no model, no record of a run."""
    content = json.loads((cohort / "datalist.json").read_text())
    content["training"][1]["label"] = label
    (tmp_path / "datalist.json").write_text(json.dumps(content))
    said = monai_bundle(
        "run", "--config_file", "['configs/train.json','configs/small.json']", "--dataset_dir", str(cohort),
        "--datalist", str(tmp_path / "datalist.json"), "--ckpt_dir", str(tmp_path / "models"),
        "--output_dir", str(tmp_path / "out"),
        cwd=bundle("ct"), check=False,
    )  # fmt: skip
    assert said.returncode != 0
    assert message in said.stderr.strip().splitlines()[-1]
    assert "Traceback" not in said.stderr + said.stdout
    assert written(tmp_path / "models") == []
    assert written(tmp_path / "out") == []
