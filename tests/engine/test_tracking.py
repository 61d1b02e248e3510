# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""What a training and an evaluation leave in MLflow; and that a server which is gone costs one warning."""

import errno
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from mlflow import MlflowClient
from monai.bundle import ConfigParser

from scripts.core.errors import InputError
from scripts.core.files import sha256_of, whole_file
from scripts.engine import delivery
from scripts.engine.delivery import deliver_folder, deliver_record
from scripts.engine.run_record import evaluations_file, fingerprint, read_record, remember_evaluation, run_file
from scripts.engine.tracking import TrackEvaluation, TrackTraining, alphas
from scripts.networks import FeatureProjection, MILNetwork, SmoothAttentionPool, SmoothTransformer
from tests.bundle.commands import empty_store
from tests.engine.test_training import Run, bags

NETWORK = {
    "_target_": "scripts.networks.MILNetwork",
    "encoder": {"_target_": "scripts.networks.FeatureProjection", "in_features": "@in_features", "out_features": 4},
    "aggregator": {"_target_": "scripts.networks.GatedAttentionPool", "in_features": 4, "hidden_features": 4},
    "head": "$torch.nn.Sequential(torch.nn.Dropout(0.3), torch.nn.Linear(4, 1))",
    "spatial_dims": 1,
}
POSTPROCESSING = {
    "_target_": "Compose",
    "transforms": [
        {"_target_": "scripts.engine.evaluator.AnswerOfBagd", "keys": "pred"},
        {"_target_": "scripts.core.record.BagResultd", "threshold": "@threshold", "scaling": "@scaling"},
    ],
}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name, value in {"TIMEOUT": 1, "MAX_RETRIES": 0, "BACKOFF_FACTOR": 1, "BACKOFF_JITTER": 0}.items():
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", str(value))
    monkeypatch.setattr(delivery, "SERVER_WAIT_S", 2)
    return f"sqlite:///{shutil.copy(empty_store(), tmp_path / 'mlruns.db')}"


def record_of(uri: str, name: str, sections: dict[str, Any], **keys: Any) -> Any:
    config = {
        "in_features": 4, "threshold": 0.5, "scaling": [1.0, 0.0], "rate": "$1/2", "network_def": NETWORK,
        "validate": {"inferer": {"_target_": "scripts.engine.evaluator.BagInferer"}, "postprocessing": POSTPROCESSING},
        **keys,
        "record": {
            "_target_": "scripts.engine.run_record.new_record", "run_name": name, "experiment_name": "trials",
            "tracking_uri": uri, "bundle_root": "bundle/pathology_wsi_smooth_mil", "device": "cpu", "bags": sections,
            "params": {"network": "SmAP"},
        },
    }  # fmt: skip
    return ConfigParser(config).get_parsed_content("record")


def labelled() -> list[dict[str, Any]]:
    return [{"bag_id": bag["bag_id"], "label": int(bag["label"])} for bag in bags()]


def training(folder: Path, uri: str, name: str = "the run", **run: Any) -> Run:
    """A small training with the handler, as the configs place it: before what saves the state."""
    made = Run(folder, **run)
    record = record_of(uri, name, {"training": labelled(), "validation": labelled()})
    TrackTraining(record, str(folder / "model.pt"), str(folder), made.evaluator).attach(made.trainer)
    handlers = made.trainer._event_handlers
    for event in (Events.EPOCH_COMPLETED, Events.COMPLETED, Events.EXCEPTION_RAISED):
        handlers[event].sort(key=lambda each: "ResumeTraining" in repr(each[0]))
    return made


def stored_runs(uri: str) -> dict[str, Any]:
    client = MlflowClient(tracking_uri=uri)
    found = client.search_runs([each.experiment_id for each in client.search_experiments()])
    return {run.info.run_name: client.get_run(run.info.run_id) for run in found}


def curve(uri: str, run: Any, name: str) -> list[tuple[int, float]]:
    history = MlflowClient(tracking_uri=uri).get_metric_history(run.info.run_id, name)
    return sorted((point.step, point.value) for point in history)


def test_a_training_is_logged_with_its_curves_its_kept_epoch_and_a_model_that_loads_alone(
    tmp_path: Path, store: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = training(tmp_path / "out", store, epochs=3)
    run.trainer.run()
    (logged,) = stored_runs(store).values()
    client = MlflowClient(tracking_uri=store)
    record = read_record(run_file(tmp_path / "out" / "model.pt"))
    assert record is not None
    assert (logged.info.status, record["status"], record["delivered"]) == ("FINISHED", "FINISHED", True)
    experiment = client.get_experiment(logged.info.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    for name in ("val_loss", "learning_rate"):
        assert curve(store, logged, name) == [(each["epoch"], each[name]) for each in record["epochs"]]
    assert [each["learning_rate"] for each in record["epochs"]] == pytest.approx(run.rates)
    best = min(record["epochs"], key=lambda each: each["val_loss"])
    assert logged.data.metrics["kept_val_loss"] == best["val_loss"] == run.evaluator.state.best_metric
    assert logged.data.metrics["kept_epoch"] == best["epoch"]
    known = {"in_features": "4", "network": "SmAP", "training_bags": "8", "training_labels": '{"0": 4, "1": 4}'}
    assert known.items() <= logged.data.params.items()
    assert "rate" not in logged.data.params
    assert logged.data.tags["weights_sha256"] == sha256_of(tmp_path / "out" / "model.pt")
    assert {"torch", "numpy", "device", "processes", "bundle_version"} <= logged.data.tags.keys()
    assert {each.path for each in client.list_artifacts(logged.info.run_id)} == {"config.json", "curves.png"}
    (output,) = logged.outputs.model_outputs
    moved = shutil.copytree(
        client.get_logged_model(output.model_id).artifact_location.removeprefix("file://"), tmp_path / "elsewhere"
    )
    shutil.rmtree(tmp_path / "out")
    loaded = mlflow.pyfunc.load_model(str(moved))
    image = np.random.default_rng(0).normal(size=(4, 5)).astype("float32")
    answer = loaded.predict({"image": image})
    network = ConfigParser({"in_features": 4, "network_def": NETWORK}).get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(moved / "data" / "data" / "model.pt", weights_only=True))
    with torch.no_grad():
        wanted = network.predict(torch.tensor(image)[None])
    assert answer["logits"] == pytest.approx(wanted.logits[0].numpy(), abs=1e-6)
    assert answer["attention"] == pytest.approx(wanted.attention[0, 0].numpy(), abs=1e-6)
    assert answer["probability"] == pytest.approx(torch.sigmoid(wanted.logits).item(), abs=1e-6)
    assert "WARNING" not in caplog.text
    for file in [tmp_path / "mlruns.db", *(path for path in tmp_path.rglob("*") if path.is_file())]:
        assert b"bag 3" not in file.read_bytes(), file


@pytest.fixture
def closed_port() -> str:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def silent_server() -> Iterator[str]:
    """One that takes every connection and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(50)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize("server", ["closed_port", "silent_server"])
def test_a_server_that_does_not_answer_costs_one_warning_and_all_is_delivered_later(
    tmp_path: Path,
    store: str,
    server: str,
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    uri: str = request.getfixturevalue(server)
    started = time.monotonic()
    training(tmp_path / "out", uri, epochs=4).trainer.run()
    assert time.monotonic() - started < 2 + 3
    (warning,) = [each.message for each in caplog.records if "MLflow" in each.message]
    assert uri in warning
    assert f"`python -m scripts deliver {tmp_path / 'out'}`" in warning
    assert str(tmp_path / "out" / "model.run.json") in warning
    with pytest.raises(InputError, match="1 of 1 runs were not delivered"):
        deliver_folder(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    deliver_folder(tmp_path)
    deliver_folder(tmp_path)
    assert [line.partition(": ")[2] for line in capsys.readouterr().out.splitlines()[1:]] == [
        f"the run delivered to {store}", "was delivered before",
    ]  # fmt: skip
    (logged,) = stored_runs(store).values()
    assert logged.info.status == "FINISHED"
    assert [epoch for epoch, _ in curve(store, logged, "val_loss")] == [1, 2, 3, 4]
    assert len(logged.outputs.model_outputs) == 1


def test_what_an_earlier_run_could_not_deliver_the_next_one_does(tmp_path: Path, store: str, closed_port: str) -> None:
    training(tmp_path / "out", closed_port, "first", epochs=1).trainer.run()
    left = run_file(tmp_path / "out" / "model.pt")
    left.write_text(left.read_text().replace(closed_port, store))  # the server is back
    training(tmp_path / "out", store, "second", epochs=1).trainer.run()
    assert {name: run.info.status for name, run in stored_runs(store).items()} == {
        "first": "FINISHED", "second": "FINISHED",
    }  # fmt: skip
    assert len(list((tmp_path / "out").glob("*.run.json"))) == 2


def fail(engine: Engine) -> None:
    raise InputError("the training loss is nan")


def interrupt(engine: Engine) -> None:
    raise KeyboardInterrupt


def test_a_training_that_stops_says_how_and_a_resumed_one_is_the_same_run(tmp_path: Path, store: str) -> None:
    stopped = training(tmp_path / "out", store, epochs=4)
    stopped.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=10), interrupt)
    with pytest.raises(KeyboardInterrupt):
        stopped.trainer.run()
    assert stored_runs(store)["the run"].info.status == "KILLED"
    broken = training(tmp_path / "out", store, epochs=4)
    broken.evaluator.add_event_handler(Events.EPOCH_COMPLETED(once=3), fail)  # within the validation
    with pytest.raises(InputError, match="the training loss is nan"):
        broken.trainer.run()
    assert stored_runs(store)["the run"].info.status == "FAILED"
    training(tmp_path / "out", store, epochs=4).trainer.run()
    (logged,) = stored_runs(store).values()
    assert logged.info.status == "FINISHED"
    assert [epoch for epoch, _ in curve(store, logged, "val_loss")] == [1, 2, 3, 4]


@pytest.mark.parametrize("part", ["files", "model"])
def test_a_part_that_fails_keeps_neither_the_others_nor_the_end_of_the_run(
    tmp_path: Path, store: str, part: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*_: Any) -> None:
        raise OSError("no room for artifacts")

    with monkeypatch.context() as patch:
        patch.setattr(delivery, "drawn" if part == "files" else "save_served", refused)
        training(tmp_path / "out", store, epochs=1).trainer.run()
    assert f"all but its {part} (no room for artifacts) is there" in caplog.text
    (logged,) = stored_runs(store).values()
    assert (logged.info.status, logged.data.metrics["kept_epoch"]) == ("FINISHED", 1)
    assert bool(logged.outputs.model_outputs) == (part == "files")
    deliver_folder(tmp_path)
    (logged,) = stored_runs(store).values()
    assert len(logged.outputs.model_outputs) == 1
    names = {each.path for each in MlflowClient(tracking_uri=store).list_artifacts(logged.info.run_id)}
    assert names == {"config.json", "curves.png"}


def test_a_full_disk_costs_the_record_and_not_the_run_or_its_error(
    tmp_path: Path, store: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: Any) -> None:
        with whole_file(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("scripts.engine.run_record.write_whole", full)
    training(tmp_path / "out", store, epochs=1).trainer.run()
    assert f"cannot write {run_file(tmp_path / 'out' / 'model.pt')} (No space left on device)" in caplog.text
    broken = training(tmp_path / "out", store, epochs=1)
    broken.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=3), fail)
    with pytest.raises(InputError, match="the training loss is nan"):
        broken.trainer.run()


def test_a_training_that_was_killed_stays_running_and_is_delivered_once(tmp_path: Path, store: str) -> None:
    """Its record is as the last epoch left it, and epochs that come again replace it."""
    run = training(tmp_path / "out", store, epochs=3)
    run.trainer.run()
    path = run_file(tmp_path / "out" / "model.pt")
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "id": "killed", "status": "RUNNING", "ended": None, "delivered": False}))
    for _ in range(2):
        deliver_record(path)
    states = [each.info.status for each in MlflowClient(tracking_uri=store).search_runs(["1"])]
    assert sorted(states) == ["FINISHED", "RUNNING"]
    again = read_record(path)
    assert again is not None
    assert not again["delivered"]


def judged(folder: Path, uri: str, name: str) -> None:
    record = record_of(uri, name, {"test": labelled()}, section="test")
    engine = Engine(lambda engine, batch: None)
    tracker = TrackEvaluation(record, str(folder / "model.pt"), str(folder), "test")
    tracker.attach(engine)
    figures = {"bags": 8, "bag_auroc": {"value": 0.75, "low": 0.5, "high": None}}
    (folder / "metrics.json").write_text(json.dumps(figures))
    engine.state.metrics = {"bag_auroc": 0.75, "test_loss": float("nan")}
    engine.run([0])


def test_an_evaluation_is_linked_to_its_training_and_counts_how_often_the_test_bags_were_seen(
    tmp_path: Path, store: str, caplog: pytest.LogCaptureFixture
) -> None:
    training(tmp_path, store, epochs=1).trainer.run()
    judged(tmp_path, store, "first look")
    assert "were evaluated" not in caplog.text
    judged(tmp_path, store, "second look")
    assert "the test bags were evaluated once before" in caplog.text
    runs = stored_runs(store)
    trained, look = runs["the run"], runs["second look"]
    assert look.data.tags["training_run_id"] == trained.info.run_id
    assert [each.model_id for each in look.inputs.model_inputs] == [trained.outputs.model_outputs[0].model_id]
    assert look.data.params["evaluated_before"] == "1"
    assert look.data.metrics == {"bag_auroc": 0.75, "bag_auroc_low": 0.5}
    paths = {each.path for each in MlflowClient(tracking_uri=store).list_artifacts(look.info.run_id)}
    assert paths == {"config.json", "metrics.json", "metrics.png"}
    evaluations_file(tmp_path / "model.pt").write_text("damaged")
    judged(tmp_path, store, "third look")
    assert "cannot keep this evaluation" in caplog.text
    assert evaluations_file(tmp_path / "model.pt").read_text() == "damaged"


def test_evaluations_at_the_same_time_are_all_listed(tmp_path: Path) -> None:
    weights = tmp_path / "model.pt"
    weights.write_bytes(b"weights")
    with ThreadPoolExecutor(8) as pool:
        before = [*pool.map(lambda k: remember_evaluation(str(weights), "test", "the bags", f"look {k}"), range(40))]
    listed = json.loads(evaluations_file(weights).read_text())
    assert sorted(before) == [*range(40)]
    assert sorted(each["run_name"] for each in listed) == sorted(f"look {k}" for k in range(40))


def test_the_fingerprint_is_of_ids_and_labels_and_tells_none() -> None:
    known = fingerprint(labelled())
    assert known == fingerprint(labelled()[::-1])
    assert (known["bags"], known["labels"]) == (8, {"0": 4, "1": 4})
    other = [{**bag, "label": 1 - bag["label"]} if bag["bag_id"] == "bag 2" else bag for bag in labelled()]
    assert fingerprint(other)["sha256"] != known["sha256"] != fingerprint(labelled()[:-1])["sha256"]
    assert "bag 2" not in json.dumps(known)
    painted = [{"image": "/data/smith.nii.gz", "label": f"/data/smith_{k}.nii.gz"} for k in range(2)]
    assert fingerprint(painted)["labels"] == {"mask": 2}
    assert "smith" not in json.dumps(fingerprint(painted))


def test_each_smooth_operator_is_followed() -> None:
    pool = SmoothAttentionPool(8, alpha=0.25)
    network = MILNetwork(FeatureProjection(4, 8), SmoothTransformer(8, pool, heads=2, layers=1), torch.nn.Identity(), 1)
    found = alphas(network)
    assert sorted(found.values()) == pytest.approx([0.25, 0.5])
    assert all(name.startswith("alpha.aggregator.") for name in found)
    assert alphas(pool) == {"alpha": pytest.approx(0.25)}
    assert alphas(torch.nn.Linear(1, 1)) == {}


def test_a_folder_without_records_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InputError, match=r"holds no run\.json: give a folder of results or of weights"):
        deliver_folder(tmp_path)
    (tmp_path / "model.run.json").write_text("{")
    with caplog.at_level(logging.WARNING), pytest.raises(InputError, match="1 of 1 runs were not delivered"):
        deliver_folder(tmp_path)
    assert (tmp_path / "model.run.json").read_text() == "{"
