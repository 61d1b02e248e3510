# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Trainings that are killed, and such as lose their numbers: the same model in the end, or the last good one."""

import json
import sqlite3
import sys
from multiprocessing import active_children, get_context
from pathlib import Path
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
    f"$runpy.run_path('{Path(killing.__file__)}')['kill_at_a_random_moment'](@train#trainer, @validate#evaluator, {{}})"
)
SLIDES = {"in_features": 128, "batch_size": 1, "accumulation_steps": 2, "max_epochs": 16, "learning_rate": 0.001}


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("interrupted"), "ct")


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scans, and what a training that was interrupted in its second epoch left in results."""
    home = tmp_path_factory.mktemp("unfinished")
    data = write_cohort(home, "ct")
    keys = {**places(data, home / "results"), **KEYS, "num_workers": 0}
    killed(home, ["configs/train.json"], (sys.executable,), 5, **keys)
    return home


def places(data: Path, results: Path) -> dict[str, Any]:
    return {"dataset_dir": str(data), "ckpt_dir": str(results), "output_dir": str(results)}


def command(files: list[str], launcher: tuple[str, ...], **keys: Any) -> list[str]:
    typed = [
        word
        for key, value in keys.items()
        for word in (f"--{key}", value if isinstance(value, str) else json.dumps(value))
    ]
    return [*launcher, "-m", "monai.bundle", "run", "--config_file", str(files), *typed]


def with_step(step: str, folder: Path, task: str, name: str) -> str:
    """Write a config that gives the run of another one more step before the last."""
    steps = json.loads((bundle(task) / f"configs/{name}.json").read_text())["run"]
    imports = json.loads((bundle(task) / "configs/train.json").read_text())["imports"]
    path = folder / "more.json"
    path.write_text(json.dumps({"imports": [*imports, "$import runpy"], "run": [*steps[:-1], step, steps[-1]]}))
    return str(path)


def killed(folder: Path, files: list[str], launcher: tuple[str, ...], step: int, **keys: Any) -> None:
    """Train by a real command in which each process kills itself after a step."""
    more = with_step(KILL.format(step), folder, "ct", Path(files[-1]).stem)
    ended = run(*command([*files, more], launcher, **keys), cwd=bundle("ct"), check=False)
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
    """Whichever processes load its bags; these end with it."""
    others = set(active_children())
    kept = {"cache_dir": str(tmp_path / "cache")}  # with one, bags of the validation are not held, and need workers
    run_here("ct", ["train"], **places(scans, tmp_path / "whole"), **KEYS, **kept)
    assert not set(active_children()) - others
    keys = {**places(scans, tmp_path / "killed"), **KEYS}
    killed(tmp_path, ["configs/train.json"], (sys.executable,), step, **keys)
    run_here("ct", ["train"], **{**keys, "num_workers": 0})
    require_same(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize("step", [5])
def test_two_killed_processes_end_as_unbroken_ones(scans: Path, tmp_path: Path, step: int) -> None:
    files = ["configs/train.json", "configs/multi_gpu_train.json"]
    keys = {**KEYS, "num_workers": 0, "batch_size": 1}
    run(*command(files, TORCHRUN, **places(scans, tmp_path / "whole"), **keys), cwd=bundle("ct"))
    killed(tmp_path, files, TORCHRUN, step, **places(scans, tmp_path / "killed"), **keys)
    run(*command(files, TORCHRUN, **places(scans, tmp_path / "killed"), **keys), cwd=bundle("ct"))
    require_same(tmp_path / "whole", tmp_path / "killed")


def start(task: str, more: list[str], processes: int, **keys: Any) -> int:
    """Train in a process of its own, which saves the imports, or by torchrun in several; return its exit code."""
    if processes > 1:
        files = ["configs/train.json", "configs/multi_gpu_train.json", *more]
        return run(*command(files, TORCHRUN, **keys), cwd=bundle(task), check=False).returncode
    process = get_context("fork").Process(target=run_here, args=(task, ["train", *more]), kwargs=keys)
    process.start()
    process.join(300)
    assert process.exitcode is not None
    return process.exitcode


@pytest.mark.soak
@pytest.mark.parametrize(
    ("task", "processes", "kills", "other"),
    [
        ("wsi", 1, 10, {**SLIDES, "num_workers": 0}),
        ("wsi", 1, 10, {**SLIDES, "num_workers": 2}),
        ("ct", 1, 10, {**KEYS, "max_epochs": 16, "patience": 99}),  # augmented, with a schedule
        ("ct", 1, 6, {**KEYS, "max_epochs": 99, "patience": 9, "best_by": "val_bag_auroc"}),
        ("ct", 2, 10, {**KEYS, "num_workers": 0, "batch_size": 1, "max_epochs": 16, "patience": 99}),
    ],
    ids=["slides", "slides with workers", "augmented scans with a schedule", "early stopping", "two processes"],
)
def test_a_training_killed_at_random_moments_ends_as_an_unbroken_one(
    tmp_path: Path, task: str, processes: int, kills: int, other: dict[str, Any]
) -> None:
    data = write_cohort(tmp_path, task)
    if task == "wsi":
        run_here("wsi", ["features"], dataset_dir=str(data), tile_size=128)
    assert start(task, [], processes, **places(data, tmp_path / "whole"), **other) == 0
    keys, codes = {**places(data, tmp_path / "killed"), **other}, []
    for seed in range(kills):
        name = "train" if processes == 1 else "multi_gpu_train"
        more = with_step(KILL_AT_RANDOM.format(seed), tmp_path, task, name)
        codes.append(start(task, [more], processes, **keys))
    assert set(codes) == {-9 if processes == 1 else 1}, codes
    assert (tmp_path / "killed" / "unfinished.pt").is_file()
    assert start(task, [], processes, **keys) == 0
    require_same(tmp_path / "whole", tmp_path / "killed")


def test_after_an_interruption_in_its_first_epoch_other_settings_are_another_run(scans: Path, tmp_path: Path) -> None:
    keys = {**places(scans, tmp_path), **KEYS, "num_workers": 0}
    killed(tmp_path, ["configs/train.json"], (sys.executable,), 1, **keys)
    run_here("ct", ["train"], **{**keys, "learning_rate": 0.002, "max_epochs": 1})
    with sqlite3.connect(tmp_path / "mlruns.db") as db:
        rates = db.execute("select value from params where key = 'learning_rate' order by value").fetchall()
    assert rates == [("0.001",), ("0.002",)]


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"loss#variant": "released"}, "another loss"),
        ({"augmentation#1#prob": 0.1}, "another augmentation"),
        ({"slice_drop": 0}, "slice_drop 0.1, not 0"),
        ({}, "another training_bags"),
    ],
)
def test_an_unfinished_training_with_another_loss_augmentation_or_content_of_the_datalist_is_refused(
    unfinished: Path, other: dict[str, Any], named: str
) -> None:
    keys = {**places(unfinished / "ct", unfinished / "results"), **KEYS, "num_workers": 0}
    datalist = unfinished / "ct" / "datalist.json"
    listed = datalist.read_text()
    if not other:
        content = json.loads(listed)
        content["training"][0]["label"] = 1 - content["training"][0]["label"]
        datalist.write_text(json.dumps(content))
    message = message_of("ct", ["train"], **keys, **other)
    datalist.write_text(listed)
    assert f"unfinished.pt is an unfinished training with {named}: give that again" in message


def test_a_learning_rate_that_destroys_the_network_ends_in_one_line(scans: Path, tmp_path: Path) -> None:
    keys = {**places(scans, tmp_path), **KEYS, "warmup_epochs": 0, "num_workers": 0}
    message = message_of("ct", ["train"], **{**keys, "learning_rate": 1e30})
    assert "the training loss is" in message
    assert "give a smaller --learning_rate" in message
    assert not (tmp_path / "model.pt").exists()
