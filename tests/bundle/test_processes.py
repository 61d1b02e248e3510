# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Two processes train as one that accumulates; where one of them dies, or a disk fills, no model is lost."""

import json
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.bundle.commands import TORCHRUN, bundle, run, run_here, write_cohort
from tests.bundle.test_interrupted import KEYS, command, places, with_step

HEAD = "$torch.nn.Linear(@network_def#encoder.out_features, 1)"  # without its dropout

pytestmark = [pytest.mark.soak, pytest.mark.xdist_group("interrupted")]


def curve(folder: Path, metric: str) -> list[float]:
    """A metric of the only run, epoch by epoch."""
    with sqlite3.connect(folder / "mlruns.db") as db:
        return [value for (value,) in db.execute("select value from metrics where key = ? order by step", (metric,))]


@pytest.mark.parametrize(
    ("task", "files", "fixed"),
    [
        ("wsi", [], {"in_features": 128}),
        ("ct", ["small"], {"augmentation": [], "network_def#encoder#dropout": 0, "network_def#head": HEAD}),
    ],
)  # fmt: skip
def test_two_processes_have_the_curve_of_one_that_accumulates(
    tmp_path: Path, task: str, files: list[str], fixed: dict[str, Any]
) -> None:
    """In equal order and without chance; each batch has its own statistics in both, but only one process keeps them."""
    data = write_cohort(tmp_path, task)
    if task == "wsi":
        run_here("wsi", ["features"], dataset_dir=str(data), tile_size=128)
    keys = {"batch_size": 1, "num_workers": 0, "max_epochs": 4, "learning_rate": 0.001}
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, order in ((one, "train#dataloader#shuffle"), (two, "train#sampler#shuffle")):
        folder.mkdir()
        (folder / "fixed.json").write_text(json.dumps({**fixed, order: False}))
    run_here(task, ["train", *files, str(one / "fixed.json")], **places(data, one), **keys, accumulation_steps=2)
    configs = ["train", *files, "multi_gpu_train"]
    paths = [*(f"configs/{name}.json" for name in configs), str(two / "fixed.json")]
    run(*command(paths, TORCHRUN, **places(data, two), **keys), cwd=bundle(task))
    assert curve(two, "train_loss") == pytest.approx(curve(one, "train_loss"), abs=1e-4)
    assert curve(two, "train_loss")[0] != pytest.approx(curve(two, "train_loss")[-1], abs=1e-3)  # it learns
    if task == "wsi":
        assert curve(two, "val_loss") == pytest.approx(curve(one, "val_loss"), abs=1e-4)
    loss = {"validate#additional_metrics": "${'val_loss': @validate#metrics['val_loss']}"}
    places_of_kept = {**places(data, tmp_path / "evaluated"), "ckpt_dir": str(two), "section": "validation"}
    run_here(task, ["train", *files, str(one / "fixed.json"), "evaluate"], **places_of_kept, num_workers=0, **loss)
    (of_kept,) = curve(tmp_path / "evaluated", "val_loss")  # what was validated is what was kept
    assert of_kept == pytest.approx(min(curve(two, "val_loss")), abs=1e-5)


DIES = (
    "$@train#trainer.add_event_handler("
    "ignite.engine.Events.ITERATION_COMPLETED(once=5), lambda: os.kill(os.getpid(), 9) if @rank == 1 else None)"
)
DISK_FILLS = (
    "$@train#trainer.add_event_handler(ignite.engine.Events.EPOCH_STARTED(once=3), "
    "lambda: runpy.run_path('{}')['let_files_be_small'](@ckpt_dir + '/model.pt'))"
)


@pytest.mark.parametrize(
    ("processes", "step", "message"),
    [
        (2, DIES, "error: another process of this run has ended: its own message says why"),
        (1, DISK_FILLS.format(Path(__file__).with_name("killing.py")), "error: cannot write "),
    ],
    ids=["a process dies", "the disk fills"],
)
def test_what_cannot_go_on_ends_in_one_line_and_the_last_good_network_stays(
    tmp_path: Path, processes: int, step: str, message: str
) -> None:
    name = "train" if processes == 1 else "multi_gpu_train"
    files = [f"configs/{each}.json" for each in dict.fromkeys(["train", name])]
    keys = {**places(write_cohort(tmp_path, "ct"), tmp_path / "results"), **KEYS, "num_workers": 0, "batch_size": 1}
    more, launcher = with_step(step, tmp_path, "ct", name), TORCHRUN if processes > 1 else (sys.executable,)
    ended = run(*command([*files, more], launcher, **keys), cwd=bundle("ct"), check=False)
    assert ended.returncode != 0
    told = [line for line in ended.stderr.split("\n") if line.startswith("error: ")]
    assert all(line.startswith(message) for line in told)
    assert len(told) == 1 or processes > 1  # torchrun may end the others before they tell
    assert "monai/bundle" not in ended.stderr  # no traceback of ours
    model = tmp_path / "results" / "model.pt"
    assert processes > 1 or model.read_bytes() == model.with_suffix(".before").read_bytes()
    weights = torch.load(model, weights_only=True)
    assert all(value.isfinite().all() for value in weights.values())
    run(*command(files, launcher, **keys), cwd=bundle("ct"))
    assert not (tmp_path / "results" / "unfinished.pt").exists()
