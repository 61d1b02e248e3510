# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The standard commands of monai.bundle, for real, in both bundle folders."""

import json
import math
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.bundle.commands import TORCHRUN, bundle, monai_bundle, run, run_here, workflow, write_cohort
from tests.shared_data import shared_data

pytestmark = pytest.mark.slow


class Trained(NamedTuple):
    task: str
    data: Path
    results: Path  # where one training command has put model.pt and mlruns.db
    keys: dict[str, Any]  # what makes it small

    @property
    def typed(self) -> list[str]:
        return [word for key, value in self.keys.items() for word in (f"--{key}", json.dumps(value))]


TASKS = [pytest.param(task, marks=pytest.mark.xdist_group(f"commands {task}")) for task in ("ct", "wsi")]
each_trained = pytest.mark.parametrize("trained", TASKS, indirect=True, scope="module")  # else its marks are lost


@pytest.fixture(scope="module")
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    """Trained by the real command from another working directory, with tracking asked for on the command line."""
    task: str = request.param
    home = tmp_path_factory.mktemp(task)
    data = write_cohort(home, task)
    keys: dict[str, Any] = {"image_size": 32, "channels": [8, 8], "batch_size": 2, "num_workers": 1}
    if task == "wsi":
        keys = {"in_features": 128, "num_workers": 0}
        run_here(task, ["features"], dataset_dir=str(data), tile_size=128)
    got = Trained(task, data, home / "results", keys)
    monai_bundle(
        "run", "--config_file", str(bundle(task) / "configs" / "train.json"), "--bundle_root", str(bundle(task)),
        "--dataset_dir", str(data), "--ckpt_dir", str(got.results), "--output_dir", str(got.results),
        "--max_epochs", "2", "--tracking", "mlflow", *got.typed,
        cwd=home,
    )  # fmt: skip
    yield got
    shutil.rmtree(home)


@each_trained
def test_training_from_another_folder_leaves_a_model_and_tracked_metrics(trained: Trained) -> None:
    weights = torch.load(trained.results / "model.pt", weights_only=True)
    assert all(value.isfinite().all() for value in weights.values())
    with sqlite3.connect(trained.results / "mlruns.db") as db:
        runs = db.execute("select run_uuid, status from runs").fetchall()
        metrics = {key for (key,) in db.execute("select distinct key from metrics")}
        steps = [step for (step,) in db.execute("select step from metrics where key = 'val_loss' order by step")]
    assert [status for _, status in runs] == ["FINISHED"]
    assert {"train_loss", "val_loss", "val_bag_auroc", "val_attention_spread"} <= metrics
    assert set(steps) == {1, 2}


@each_trained
def test_two_processes_train_with_gloo(trained: Trained, tmp_path: Path) -> None:
    run(
        *TORCHRUN, "-m", "monai.bundle", "run", "--config_file",
        "['configs/train.json','configs/multi_gpu_train.json']", "--dataset_dir", str(trained.data),
        "--ckpt_dir", str(tmp_path), "--output_dir", str(tmp_path), "--max_epochs", "1", *trained.typed,
        cwd=bundle(trained.task),
    )  # fmt: skip
    alone = torch.load(trained.results / "model.pt", weights_only=True)
    together = torch.load(tmp_path / "model.pt", weights_only=True)
    assert {name: value.shape for name, value in together.items()} == {n: v.shape for n, v in alone.items()}
    with sqlite3.connect(tmp_path / "mlruns.db") as db:
        lengths = db.execute("select value from params where key = 'epoch_length'").fetchall()
    batch = trained.keys.get("batch_size", 1)
    assert lengths == [(str(math.ceil(6 / 2 / batch)),)]  # six bags, half of them for each process
    assert not (tmp_path / "unfinished.pt").exists()


@each_trained
def test_two_processes_evaluate_as_one_does(trained: Trained, tmp_path: Path) -> None:
    """Three bags on two processes: none is lost, none counts twice."""
    keys = {"dataset_dir": str(trained.data), "ckpt_dir": str(trained.results)}
    run_here(trained.task, ["train", "evaluate"], **keys, output_dir=str(tmp_path / "one"), **trained.keys)
    run(
        *TORCHRUN, "-m", "monai.bundle", "run", "--config_file",
        "['configs/train.json','configs/multi_gpu_train.json','configs/evaluate.json']", "--dataset_dir",
        keys["dataset_dir"], "--ckpt_dir", keys["ckpt_dir"], "--output_dir", str(tmp_path / "two"), *trained.typed,
        cwd=bundle(trained.task),
    )  # fmt: skip
    for name in ("metrics.json", "summary.csv"):
        assert (tmp_path / "two" / name).read_text() == (tmp_path / "one" / name).read_text()


@pytest.mark.parametrize("task", TASKS)
def test_the_metadata_are_valid_and_the_network_takes_and_gives_what_they_say(task: str, tmp_path: Path) -> None:
    schema = shutil.copy(shared_data("monai/meta_schema_20240725.json"), tmp_path / "schema.json")
    metadata = ["--meta_file", "configs/metadata.json"]
    ended = monai_bundle("verify_metadata", *metadata, "--filepath", str(schema), cwd=bundle(task))
    assert "metadata is verified with no error" in ended.stdout + ended.stderr
    config = ["--config_file", "configs/inference.json"]
    ended = monai_bundle("verify_net_in_out", "network_def", *metadata, *config, cwd=bundle(task))
    assert "data shape of network is verified with no error" in ended.stdout + ended.stderr


@each_trained
def test_an_exported_network_gives_the_same_logits(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bundle(trained.task))
    monai_bundle(
        "ckpt_export", "network_def", "--filepath", str(tmp_path / "model.ts"),
        "--ckpt_file", str(trained.results / "model.pt"),
        "--meta_file", "configs/metadata.json", "--config_file", "configs/inference.json", *trained.typed,
        cwd=bundle(trained.task),
    )  # fmt: skip
    exported = torch.jit.load(tmp_path / "model.ts")
    inference = workflow(["inference"], **trained.keys)
    inference.initialize()
    network = inference.network_def
    network.load_state_dict(torch.load(trained.results / "model.pt", weights_only=True))
    network.eval()
    if trained.task == "ct":
        bag = torch.rand(1, 3, 32, 32, 7)
        torch.testing.assert_close(exported(bag), network(bag))
    else:
        bag, coords = torch.rand(1, 128, 6), torch.tensor([[[0.0, 1, 2, 0, 1, 2], [0, 0, 0, 1, 1, 1]]])
        torch.testing.assert_close(exported(bag, coords), network(bag, coords))


@each_trained
def test_no_required_property_is_missing(trained: Trained, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(bundle(trained.task))
    (tmp_path / "model.pt").write_bytes(b"")
    images = trained.data / {"ct": "scans", "wsi": "features"}[trained.task]
    for name, dataset_dir in (("train", trained.data), ("inference", images)):
        places = {"dataset_dir": str(dataset_dir), "output_dir": str(tmp_path), "ckpt_dir": str(tmp_path)}
        started = workflow([name], **places, **trained.keys)
        started.initialize()
        assert started.check_properties() == []
