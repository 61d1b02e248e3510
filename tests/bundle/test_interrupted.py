# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Trainings that are killed, and such as lose their numbers: the same model in the end, or the last good one."""

import json
import re
import sqlite3
import sys
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch

from scripts.engine.operating_point import read_operating_point
from tests.bundle import killing
from tests.bundle.commands import TORCHRUN, bundle, message_of, run, run_here, write_cohort

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("interrupted")]

KEYS: dict[str, Any] = {
    "image_size": 32, "channels": [8, 8], "batch_size": 2, "num_workers": 2, "max_epochs": 4, "warmup_epochs": 1,
    "final_learning_rate": 0, "clip_gradient": 1.0, "patience": 3, "learning_rate": 0.001,
}  # fmt: skip
KILL = (
    "$@train#trainer.add_event_handler("
    "ignite.engine.Events.ITERATION_COMPLETED(once={}), lambda: os.kill(os.getpid(), 9))"
)
KILL_AT_RANDOM = (
    f"$__import__('runpy').run_path('{Path(killing.__file__)}')['kill_at_a_random_moment']("
    "@train#trainer, @validate#evaluator, {})"
)
SLIDES = {"in_features": 128, "batch_size": 1, "accumulation_steps": 2, "max_epochs": 16, "learning_rate": 0.001}


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("interrupted"), "ct")


def places(data: Path, results: Path) -> dict[str, Any]:
    return {"dataset_dir": str(data), "ckpt_dir": str(results), "output_dir": str(results)}


def command(files: list[str], launcher: tuple[str, ...], **keys: Any) -> list[str]:
    typed = [
        word
        for key, value in keys.items()
        for word in (f"--{key}", value if isinstance(value, str) else json.dumps(value))
    ]
    return [*launcher, "-m", "monai.bundle", "run", "--config_file", str(files), *typed]


def train_with(
    step: str, folder: Path, files: list[str], launcher: tuple[str, ...], task: str = "ct", **keys: Any
) -> CompletedProcess[str]:
    """Train by a real command with one more step before the last."""
    steps = json.loads((bundle(task) / files[-1]).read_text())["run"]
    (folder / "more.json").write_text(json.dumps({"run": [*steps[:-1], step, steps[-1]]}))
    return run(*command([*files, str(folder / "more.json")], launcher, **keys), cwd=bundle(task), check=False)


def killed(folder: Path, files: list[str], launcher: tuple[str, ...], step: int, **keys: Any) -> None:
    """Train by a real command in which each process kills itself after a step."""
    ended = train_with(KILL.format(step), folder, files, launcher, **keys)
    assert ended.returncode != 0
    assert (Path(keys["ckpt_dir"]) / "unfinished.pt").is_file(), ended.stderr[-3000:]


def require_same(one: Path, other: Path) -> None:
    """The same best network and operating point, and one MLflow run with the same curve."""
    weights = [torch.load(folder / "model.pt", weights_only=True) for folder in (one, other)]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=1e-6, rtol=0)
    assert read_operating_point(str(one / "model.pt")) == read_operating_point(str(other / "model.pt"))
    curves = []
    for folder in (one, other):
        with sqlite3.connect(folder / "mlruns.db") as db:
            assert db.execute("select status from runs").fetchall() == [("FINISHED",)]
            metrics = db.execute("select distinct key, step, value from metrics order by key, step").fetchall()
            curves.append({(key, step): value for key, step, value in metrics})
    assert curves[0].keys() == curves[1].keys()
    assert curves[1] == pytest.approx(curves[0], abs=1e-6)


@pytest.mark.parametrize("step", [8])
def test_a_killed_training_ends_as_an_unbroken_one(scans: Path, tmp_path: Path, step: int) -> None:
    run_here("ct", ["train"], **places(scans, tmp_path / "whole"), **KEYS)
    keys = {**places(scans, tmp_path / "killed"), **KEYS}
    killed(tmp_path, ["configs/train.json"], (sys.executable,), step, **keys)
    run_here("ct", ["train"], **keys)
    require_same(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize("step", [5])
def test_two_killed_processes_end_as_unbroken_ones(scans: Path, tmp_path: Path, step: int) -> None:
    files = ["configs/train.json", "configs/multi_gpu_train.json"]
    keys = {**KEYS, "num_workers": 0, "batch_size": 1}
    run(*command(files, TORCHRUN, **places(scans, tmp_path / "whole"), **keys), cwd=bundle("ct"))
    killed(tmp_path, files, TORCHRUN, step, **places(scans, tmp_path / "killed"), **keys)
    run(*command(files, TORCHRUN, **places(scans, tmp_path / "killed"), **keys), cwd=bundle("ct"))
    require_same(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.soak
@pytest.mark.parametrize(
    ("task", "launcher", "kills", "other"),
    [
        ("wsi", (sys.executable,), 10, {**SLIDES, "num_workers": 0}),
        ("wsi", (sys.executable,), 10, {**SLIDES, "num_workers": 2}),
        ("ct", (sys.executable,), 10, {**KEYS, "max_epochs": 16, "patience": 99}),  # augmented, with a schedule
        ("ct", (sys.executable,), 5, {**KEYS, "max_epochs": 99, "patience": 9, "best_by": "val_bag_auroc"}),
        ("ct", TORCHRUN, 10, {**KEYS, "num_workers": 0, "batch_size": 1, "max_epochs": 16, "patience": 99}),
    ],
    ids=["slides", "slides with workers", "augmented scans with a schedule", "early stopping", "two processes"],
)
def test_a_training_killed_at_random_moments_ends_as_an_unbroken_one(
    tmp_path: Path, task: str, launcher: tuple[str, ...], kills: int, other: dict[str, Any]
) -> None:
    files = ["configs/train.json", "configs/multi_gpu_train.json"][: 1 + (launcher is TORCHRUN)]
    data = write_cohort(tmp_path, task)
    if task == "wsi":
        run(*command(["configs/features.json"], launcher, dataset_dir=str(data), tile_size=128), cwd=bundle("wsi"))
    run(*command(files, launcher, **places(data, tmp_path / "whole"), **other), cwd=bundle(task))
    keys, codes = {**places(data, tmp_path / "killed"), **other}, []
    for seed in range(kills):
        ended = train_with(KILL_AT_RANDOM.format(seed), tmp_path, files, launcher, task, **keys)
        print(*re.findall("^killed .*", ended.stdout, re.MULTILINE), ended.returncode, sep="\n")
        codes.append(ended.returncode)
    assert 0 not in codes, f"the training ended before it was killed so often: {codes}"
    run(*command(files, launcher, **keys), cwd=bundle(task))
    require_same(tmp_path / "whole", tmp_path / "killed")


def test_after_an_interruption_in_its_first_epoch_other_settings_are_another_run(scans: Path, tmp_path: Path) -> None:
    keys = {**places(scans, tmp_path), **KEYS, "num_workers": 0}
    killed(tmp_path, ["configs/train.json"], (sys.executable,), 1, **keys)
    run_here("ct", ["train"], **{**keys, "learning_rate": 0.002, "max_epochs": 1})
    with sqlite3.connect(tmp_path / "mlruns.db") as db:
        rates = db.execute("select value from params where key = 'learning_rate' order by value").fetchall()
    assert rates == [("0.001",), ("0.002",)]


def test_a_learning_rate_that_destroys_the_network_ends_in_one_line(scans: Path, tmp_path: Path) -> None:
    keys = {**places(scans, tmp_path), **KEYS, "warmup_epochs": 0, "num_workers": 0}
    message = message_of("ct", ["train"], **{**keys, "learning_rate": 1e30})
    assert "not finite in epoch 1" in message or "training loss is" in message
    assert "give a smaller --learning_rate" in message
    assert not (tmp_path / "model.pt").exists()
