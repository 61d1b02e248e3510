# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Inference on a folder of feature files: what it leaves behind, however it was interrupted."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from scripts.core.units import Level0Coords, Level0Pixels, MicronsPerPixel
from scripts.engine.provenance import Origin, origin_file, origin_text
from scripts.outputs.scores import read_scores
from scripts.wsi.features.smooth_mil import PatchFeatures, write_features
from tests.bundle import commands
from tests.bundle.commands import bundle, contents, message_of, run, run_here
from tests.outputs.results import table

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slides")]

DIMENSION = 16
EMPTY, BROKEN = "slide_3", "slide_5"
SLIDES = [f"slide_{number}" for number in range(8)]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight feature files, one of a slide without tissue and one cut short; and weights with what describes them."""
    folder = tmp_path_factory.mktemp("slides")
    for number, name in enumerate(SLIDES):
        coords = commands.square_lattice(7)[: 0 if name == EMPTY else 40 + number] * 512
        rng = np.random.default_rng(number)
        slide = PatchFeatures(
            rng.normal(size=(len(coords), DIMENSION)).astype(np.float16), Level0Coords(coords), Level0Pixels(512),
            Level0Pixels(512), MicronsPerPixel(0.25), "noise", name, (5000, 4000),
            rng.integers(200, 255, (80, 100, 3)).astype(np.uint8), 50.0,
        )  # fmt: skip
        write_features(folder / "features" / f"{name}.h5", slide)
    broken = folder / "features" / f"{BROKEN}.h5"
    broken.write_bytes(broken.read_bytes()[:3000])
    config = json.loads((bundle("wsi") / "configs" / "inference.json").read_text())
    parser = ConfigParser({**config, "in_features": DIMENSION})
    torch.manual_seed(0)
    torch.save(parser.get_parsed_content("network_def").state_dict(), folder / "model.pt")
    origin_file(folder / "model.pt").write_text(origin_text({"in_features": DIMENSION}, Origin("Noise", 128.0)))
    return folder


def keys(cohort: Path, output: Path) -> dict[str, Any]:
    """All bags are called positive, so that there are regions to write."""
    places = {"dataset_dir": cohort / "features", "ckpt_path": cohort / "model.pt", "output_dir": output}
    return {**{key: str(place) for key, place in places.items()}, "threshold": 0.0}


def arguments(cohort: Path, output: Path, files: str = "'configs/inference.json'") -> list[str]:
    typed = [word for key, value in keys(cohort, output).items() for word in (f"--{key}", str(value))]
    return ["-m", "monai.bundle", "run", "--config_file", f"[{files}]", *typed]


@pytest.fixture(scope="module")
def undisturbed(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of one run; every slide is read, or the table says why not."""
    output = tmp_path_factory.mktemp("undisturbed")
    ended = run(sys.executable, *arguments(cohort, output), cwd=bundle("wsi"), check=False)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("error: 1 of 7 failed: ")
    assert "is damaged or cut short" in ended.stderr.splitlines()[-1]
    status = {row["bag_id"]: row["status"] for row in table(output / "summary.csv")}
    assert status == {name: {EMPTY: "empty", BROKEN: "failed"}.get(name, "done") for name in SLIDES}
    done = [name for name in SLIDES if status[name] == "done"]
    of_each = {"map.png", "result.json", "scores.h5", "tiles.geojson.gz"}
    assert set(contents(output)) == {"summary.csv"} | {f"{name}/{file}" for name in done for file in of_each}
    return output


def test_a_killed_run_goes_on_to_the_same_files(cohort: Path, undisturbed: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, *arguments(cohort, tmp_path)], cwd=bundle("wsi"), env=commands.environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while len(list(tmp_path.glob("*/result.json"))) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/result.json")}
    assert 3 <= len(before) < 6
    assert message_of("wsi", ["inference"], **keys(cohort, tmp_path)).startswith("1 of 7 failed: ")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert contents(tmp_path) == contents(undisturbed)


def test_two_processes_make_what_one_makes(cohort: Path, undisturbed: Path, tmp_path: Path) -> None:
    files = "'configs/inference.json','configs/multi_gpu_inference.json'"
    ended = run(*commands.TORCHRUN, *arguments(cohort, tmp_path, files), cwd=bundle("wsi"), check=False)
    assert ended.returncode == 1
    assert "error: 1 of 7 failed: " in ended.stderr
    assert contents(tmp_path) == contents(undisturbed)


def test_weights_are_not_used_on_features_of_another_encoder(cohort: Path, tmp_path: Path) -> None:
    message = message_of("wsi", ["inference"], **keys(cohort, tmp_path), encoder_name="uni_v1")
    assert all(fact in message for fact in ("uni_v1", "Noise", "--encoder_name"))
    assert contents(tmp_path) == {}


def test_a_bag_of_several_slides_has_files_of_each(cohort: Path, tmp_path: Path) -> None:
    """One patient of three slides, one of them without tissue."""
    images = [str(cohort / "features" / f"{name}.h5") for name in ("slide_0", EMPTY, "slide_7")]
    datalist = tmp_path / "datalist.json"
    datalist.write_text(json.dumps({"test": [{"bag_id": "patient", "image": images, "label": 1}]}))
    run_here("wsi", ["inference"], **keys(cohort, tmp_path / "out"), datalist=str(datalist), page_from=46)
    patient = tmp_path / "out" / "patient"
    result = json.loads((patient / "result.json").read_text())
    assert [slide["slide_id"] for slide in result["about"]["slides"]] == ["slide_0", EMPTY, "slide_7"]
    written = {path.name for path in patient.iterdir()}
    assert {"slide_0.geojson.gz", "slide_7.geojson.gz", "scores.h5"} <= written
    assert {name for name in written if name.endswith(".html")} == {"slide_7.html"}  # of 47 patches


def test_slides_read_in_blocks_have_the_same_scores(cohort: Path, undisturbed: Path, tmp_path: Path) -> None:
    assert message_of("wsi", ["inference", "streaming"], **keys(cohort, tmp_path), block_size=7).startswith("1 of 7 ")
    files = sorted(undisturbed.glob("*/scores.h5"))
    assert len(files) == 6
    for file in files:
        one, other = read_scores(file), read_scores(tmp_path / file.relative_to(undisturbed))
        np.testing.assert_array_equal(one.coords, other.coords)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
        np.testing.assert_allclose(one.attention, other.attention, atol=1e-5)
