# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Inference on a folder of feature files, by the real command: what it leaves behind, however it was interrupted."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from scripts.core.units import Level0Coords, Level0Pixels, MicronsPerPixel
from scripts.engine.provenance import RememberTraining
from scripts.wsi.features.smooth_mil import PatchFeatures, write_features
from tests.bundle.commands import bundle, monai_bundle, run

pytestmark = pytest.mark.xdist_group("slides")

DIMENSION = 16
EMPTY, BROKEN = "slide_3", "slide_5"
SLIDES = [f"slide_{number}" for number in range(8)]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight feature files, one of a slide without tissue and one cut short; and weights."""
    folder = tmp_path_factory.mktemp("slides")
    lattice = np.stack(np.meshgrid(np.arange(9), np.arange(7)), axis=-1).reshape(-1, 2) * 512
    for number, name in enumerate(SLIDES):
        coords = lattice[: 0 if name == EMPTY else 40 + number]
        rng = np.random.default_rng(number)
        slide = PatchFeatures(
            rng.normal(size=(len(coords), DIMENSION)).astype(np.float16), Level0Coords(coords), Level0Pixels(512),
            Level0Pixels(512), MicronsPerPixel(0.25), "noise", name, (5000, 4000),
            rng.integers(200, 255, (80, 100, 3)).astype(np.uint8), 50.0,
        )  # fmt: skip
        write_features(folder / "features" / f"{name}.h5", slide)
    broken = folder / "features" / f"{BROKEN}.h5"
    broken.write_bytes(broken.read_bytes()[:3000])
    parser = ConfigParser(ConfigParser.load_config_file(str(bundle("wsi") / "configs" / "inference.json")))
    parser["in_features"] = DIMENSION
    torch.manual_seed(0)
    network = parser.get_parsed_content("network_def")
    torch.save(network.state_dict(), folder / "model.pt")
    RememberTraining(str(folder / "model.pt"), network, [{"encoder": "Noise", "patch_um": 128.0}]).write()
    return folder


def arguments(cohort: Path, output: Path, *more: str, files: str = "'configs/inference.json'") -> list[str]:
    return [
        *("run", "--config_file", f"[{files}]", "--dataset_dir", str(cohort / "features")),
        *("--ckpt_path", str(cohort / "model.pt"), "--output_dir", str(output), "--in_features", str(DIMENSION)),
        *("--threshold", "0", *more),  # all are positive, so that there are regions to write
    ]


@pytest.fixture(scope="module")
def undisturbed(
    cohort: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    output = tmp_path_factory.mktemp("undisturbed")
    return output, monai_bundle(*arguments(cohort, output), cwd=bundle("wsi"), check=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_every_slide_is_read_or_said_why_not(
    undisturbed: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    output, ended = undisturbed
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("error: 1 of 7 failed: ")
    assert "is damaged or cut short" in ended.stderr.splitlines()[-1]
    told = ended.stdout + ended.stderr
    assert "7 slides: 7 smooth-mil; encoder noise; pitch 512 level-0 pixels (pitch_level0); 1 without patches" in told
    with (output / "summary.csv").open(newline="") as file:
        status = {row["bag_id"]: row["status"] for row in csv.DictReader(file)}
    assert status == {name: {EMPTY: "empty", BROKEN: "failed"}.get(name, "done") for name in SLIDES}
    done = [name for name in SLIDES if status[name] == "done"]
    of_each = {"map.png", "result.json", "scores.h5", "tiles.geojson.gz"}
    assert set(contents(output)) == {"summary.csv"} | {f"{name}/{file}" for name in done for file in of_each}


def test_a_killed_run_goes_on_to_the_same_files(
    cohort: Path, undisturbed: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "monai.bundle", *arguments(cohort, tmp_path)]
    process = subprocess.Popen(
        command, cwd=bundle("wsi"), env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while len(list(tmp_path.glob("*/result.json"))) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/result.json")}
    assert 3 <= len(before) < 6
    again = monai_bundle(*arguments(cohort, tmp_path), cwd=bundle("wsi"), check=False)
    assert f"{len(before)} skipped (already there)" in again.stdout + again.stderr
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    assert contents(tmp_path) == contents(undisturbed[0])


def test_two_processes_make_what_one_makes(
    cohort: Path, undisturbed: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    files = "'configs/inference.json','configs/multi_gpu_inference.json'"
    ended = run(
        *torchrun, "-m", "monai.bundle", *arguments(cohort, tmp_path, files=files), cwd=bundle("wsi"), check=False
    )
    assert ended.returncode == 1
    assert "error: 1 of 7 failed: " in ended.stderr
    assert contents(tmp_path) == contents(undisturbed[0])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            ("--encoder_name", "uni_v1"),
            "the features are of the encoder uni_v1, the network was trained on those of Noise: "
            "give features of that, or say with --encoder_name that it is the same one",
        ),
        (
            ("--network_def#aggregator#mode", "exact"),
            "{0}/model.pt is of a network with aggregator.smooth.exact false, the one asked for has true: "
            "give the override files and keys it was trained with "
            "(if you mean it, take that line out of {0}/model.origin.json)",
        ),
    ],
    ids=["encoder", "network"],
)
def test_weights_are_not_used_for_what_they_were_not_trained_for(
    cohort: Path, tmp_path: Path, keys: tuple[str, str], message: str
) -> None:
    ended = monai_bundle(*arguments(cohort, tmp_path, *keys), cwd=bundle("wsi"), check=False)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == f"error: {message.format(cohort)}"
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def patient(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One bag of three slides, one of them without tissue."""
    folder = tmp_path_factory.mktemp("patient")
    images = [str(cohort / "features" / f"{name}.h5") for name in ("slide_0", EMPTY, "slide_7")]
    (folder / "datalist.json").write_text(json.dumps({"test": [{"bag_id": "patient", "image": images, "label": 1}]}))
    return folder


def test_a_bag_of_several_slides_has_files_of_each(cohort: Path, patient: Path, tmp_path: Path) -> None:
    monai_bundle(
        *arguments(cohort, tmp_path, "--datalist", str(patient / "datalist.json")), cwd=bundle("wsi"), check=True
    )
    (result,) = (json.loads(path.read_text()) for path in tmp_path.glob("*/result.json"))
    assert [slide["slide_id"] for slide in result["about"]["slides"]] == ["slide_0", EMPTY, "slide_7"]
    names = {path.name for path in (tmp_path / "patient").iterdir()}
    assert {"slide_0.geojson.gz", "slide_7.geojson.gz", "result.json", "scores.h5"} <= names
