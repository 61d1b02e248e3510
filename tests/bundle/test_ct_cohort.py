# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""A cohort laid out as RSNA 2019 is, from its flat folder to results: datalist, training, and the two stages."""

import json
import resource
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts.ct.features import read_slice_features
from tests.bundle.commands import bundle, monai_bundle, rows_of, run, run_here
from tests.bundle.test_learning import learn
from tests.ct.rsna_cohort import write_rsna_cohort
from tests.shared_data import ROOT

SMALL: dict[str, Any] = {"image_size": 32, "channels": [8, 8]}
MOST_MEMORY = 2.5e9  # bytes, of one process of a training

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ct")]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty series in one flat folder, and their datalist."""
    folder = tmp_path_factory.mktemp("rsna")
    write_rsna_cohort(folder, series=20, slices=8, image_size=32)
    run(sys.executable, "-m", "scripts", "datalist", "ct", str(folder), cwd=ROOT)
    return folder


@pytest.fixture(scope="module")
def weights(cohort: Path) -> str:
    """Of one epoch on the whole scans."""
    monai_bundle(
        "run", "--config_file", "['configs/train.json','configs/small.json']", "--dataset_dir", str(cohort),
        "--ckpt_dir", str(cohort / "model"), "--output_dir", str(cohort / "model"), "--max_epochs", "1",
        "--num_workers", "2", "--image_size", "32", "--channels", "[8,8]",
        cwd=bundle("ct"),
    )  # fmt: skip
    return str(cohort / "model" / "model.pt")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the unit is another")
@pytest.mark.usefixtures("weights")
def test_an_epoch_on_a_flat_folder_stays_small() -> None:
    """No process that this one has started took more, the training least of all."""
    assert 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < MOST_MEMORY


def test_two_stages_from_the_flat_folder_to_results(cohort: Path, weights: str) -> None:
    features, results = cohort / "features", cohort / "results"
    run_here(
        "ct", ["features", "small"], dataset_dir=str(cohort), datalist=str(cohort / "datalist.json"),
        ckpt_path=weights, num_workers=0, **SMALL,
    )  # fmt: skip
    scans = json.loads((features / "datalist.json").read_text())
    one = read_slice_features(features / scans["test"][0]["image"])
    assert set(one.sop_instance_uids) == set(scans["test"][0]["instance_label"])
    assert one.encoder.startswith("SliceCNN (sha256 ")

    figures = learn("ct", features, ["on_features", "smap"], in_features=one.features.shape[1], max_epochs=2)
    assert {"bag_auroc", "instance_auroc_gated"} <= figures.keys()

    of_head = str(features / "out" / "model.pt")
    run_here("ct", ["inference"], dataset_dir=str(features), ckpt_path=of_head, output_dir=str(results), num_workers=0)
    done = {row["bag_id"]: row["status"] for row in rows_of(results / "summary.csv")}
    assert done == {bag["bag_id"]: "done" for bags in scans.values() for bag in bags}
    result = json.loads((results / scans["test"][0]["bag_id"] / "result.json").read_text())
    assert [row["id"] for row in result["instances"]] == one.sop_instance_uids
    assert result["about"] == one.about
