# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""A cohort laid out as RSNA 2019 is, from its flat folder to results: datalist, training, and the two stages."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from scripts.ct.features import read_slice_features
from tests.bundle.commands import bundle, monai_bundle, rows_of, run, run_here
from tests.bundle.test_learning import learn
from tests.ct.rsna_cohort import write_rsna_cohort
from tests.shared_data import ROOT

SMALL: dict[str, Any] = {"image_size": 32, "channels": [8, 8]}
LEAST_MEMORY, MOST_MEMORY = 2e8, 4e9  # bytes, of all processes of a training together

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ct")]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty series in one flat folder, and their datalist."""
    folder = tmp_path_factory.mktemp("rsna")
    write_rsna_cohort(folder, series=20, slices=8, image_size=32)
    run(sys.executable, "-m", "scripts", "datalist", "ct", str(folder), cwd=ROOT)
    return folder


def descendants(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            yield child
            yield from descendants(child)


def memory_of_children() -> int:
    """Bytes; a page that several share counts once."""
    total = 0
    for pid in descendants(os.getpid()):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:  # it has ended
            continue
        total += 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


class PeakMemory:
    """The most that the processes started within it took together."""

    def __enter__(self) -> PeakMemory:
        self.bytes = 0
        self.over = Event()
        self.watch = Thread(target=self._watch)
        self.watch.start()
        return self

    def _watch(self) -> None:
        while not self.over.wait(0.2):
            self.bytes = max(self.bytes, memory_of_children())

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.watch.join()


@pytest.fixture(scope="module")
def model(cohort: Path) -> tuple[Path, int]:
    """Weights of one epoch on the whole scans, and how many bytes that took at most."""
    with PeakMemory() as peak:
        monai_bundle(
            "run", "--config_file", "['configs/train.json','configs/small.json']", "--dataset_dir", str(cohort),
            "--ckpt_dir", str(cohort / "model"), "--output_dir", str(cohort / "model"), "--max_epochs", "1",
            "--num_workers", "2", "--image_size", "32", "--channels", "[8,8]",
            cwd=bundle("ct"),
        )  # fmt: skip
    return cohort / "model" / "model.pt", peak.bytes


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux: memory is read from /proc")
def test_an_epoch_on_a_flat_folder_stays_small(model: tuple[Path, int]) -> None:
    path, most = model
    assert path.is_file()
    assert LEAST_MEMORY < most < MOST_MEMORY


def test_two_stages_from_the_flat_folder_to_results(cohort: Path, model: tuple[Path, int]) -> None:
    features, results = cohort / "features", cohort / "results"
    run_here(
        "ct", ["features", "small"], dataset_dir=str(cohort), datalist=str(cohort / "datalist.json"),
        ckpt_path=str(model[0]), num_workers=0, **SMALL,
    )  # fmt: skip
    scans = json.loads((features / "datalist.json").read_text())
    one = read_slice_features(features / scans["test"][0]["image"])
    assert set(one.sop_instance_uids) == set(scans["test"][0]["instance_label"])
    assert one.encoder.startswith("SliceCNN (sha256 ")

    figures = learn("ct", features, ["on_features", "smap"], in_features=one.features.shape[1], max_epochs=2)
    assert {"bag_auroc", "instance_auroc_gated"} <= figures.keys()

    weights = str(features / "out" / "model.pt")
    run_here("ct", ["inference"], dataset_dir=str(features), ckpt_path=weights, output_dir=str(results), num_workers=0)
    done = {row["bag_id"]: row["status"] for row in rows_of(results / "summary.csv")}
    assert done == {bag["bag_id"]: "done" for bags in scans.values() for bag in bags}
    result = json.loads((results / scans["test"][0]["bag_id"] / "result.json").read_text())
    assert [row["id"] for row in result["instances"]] == one.sop_instance_uids
    assert result["about"] == one.about
