# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Records of runs on their way to MLflow: what the store lacks is logged, so that a record may be delivered again."""

import logging
import os
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import mlflow
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import (
    LoggedModel,
    LoggedModelInput,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
    RunTag,
)  # fmt: skip
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.telemetry.client import set_telemetry_client

from scripts.core.errors import InputError
from scripts.core.files import alone_with, sha256_of, sqlite_uri, whole_file
from scripts.engine.run_record import ENDING, Record, effective_uri, read_record, weights_of, write_record
from scripts.engine.served import save_served

RECORD_TAG = "record"  # by which a run in the store is found again
WEIGHTS_TAG, JUDGED_TAG = "weights_sha256", "evaluated_weights_sha256"
KIND = {"mlflow.experimentKind": "custom_model_development"}  # or MLflow's pages ask whether it is about agents
SERVER_WAIT_S = 8  # for a server at the end of a run
FILE_WAIT_S = 60  # for a local file, which is there, but whose tables may have to be made first

logger = logging.getLogger(__name__)


def answer_within(seconds: int) -> None:
    """Have MLflow give up a server that does not answer, and tell its makers nothing, unless the user has set that."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    set_telemetry_client()  # MONAI has imported MLflow long before, which reads the variable then
    limits = {"TIMEOUT": seconds, "MAX_RETRIES": 1, "BACKOFF_FACTOR": 1, "BACKOFF_JITTER": 0}
    for name, value in limits.items():
        os.environ.setdefault(f"MLFLOW_HTTP_REQUEST_{name}", str(value))
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # each try again is a warning of its own


class Courier:
    """A thread that delivers a record each time it is told to, and records that earlier runs have left.

    Args:
        path: file of the record.
        record: what is in it.
        folders: where undelivered records may lie.
    """

    def __init__(self, path: Path, record: Record, folders: Sequence[str | Path]) -> None:
        answer_within(4)
        self.path = path
        self.folders = folders
        self.uri = record["tracking_uri"]
        self.told = threading.Event()
        self.is_last = False
        self.warned = False
        self.thread = threading.Thread(target=self._work, name="delivery", daemon=True)
        self.thread.start()

    def tell(self) -> None:
        """Have the record delivered as it is now, once what is under way is done."""
        self.told.set()

    def finish(self) -> None:
        """Have it delivered for the last time, and wait some seconds for that."""
        self.is_last = True
        self.told.set()
        self.thread.join(FILE_WAIT_S if self.uri.startswith("sqlite:") else SERVER_WAIT_S)
        if self.thread.is_alive():
            self._warn(self.path, "it has not answered in time")

    def _work(self) -> None:
        is_last = False
        while not is_last:
            self.told.wait()
            self.told.clear()
            is_last = self.is_last
            for path in [self.path, *(left for left in undelivered(self.folders) if left != self.path)]:
                try:
                    deliver_record(path)
                except Exception as error:  # a record is kept, whatever MLflow or its server say
                    self._warn(path, _first_line(error))

    def _warn(self, path: Path, reason: str) -> None:
        if not self.warned:
            self.warned = True
            logger.warning(
                "MLflow at %s is not told of the run yet (%s): all of it is kept in %s, and is delivered by the next "
                "run that finds it or by `python -m scripts deliver %s`",
                self.uri,
                reason,
                path,
                path.parent,
            )


def undelivered(folders: Sequence[str | Path]) -> list[Path]:
    """Return the records directly in these folders that are not delivered, the earliest first."""
    found = {path.resolve(): path for folder in folders for path in sorted(Path(folder).glob(f"*{ENDING}"))}
    records = {path: read_record(path) for path in found.values()}
    left = {path: record for path, record in records.items() if record is not None and not record["delivered"]}
    return sorted(left, key=lambda path: left[path]["started"])


def deliver_folder(folder: Path) -> None:
    """Deliver every record below a folder, a line for each."""
    answer_within(30)
    paths = sorted(folder.rglob(f"*{ENDING}"))
    if not paths:
        raise InputError(f"{folder} holds no {ENDING.removeprefix('.')}: give a folder of results or of weights")
    failed = 0
    for number, path in enumerate(paths, start=1):
        record = read_record(path)
        if record is None:
            said, failed = "is no record of a run", failed + 1
        elif record["delivered"]:
            said = "was delivered before"
        else:
            try:
                deliver_record(path)
                said = f"{record['run_name']} delivered to {effective_uri(record['tracking_uri'])}"
            except Exception as error:  # one that fails does not keep the others
                said, failed = f"{record['run_name']} not delivered ({_first_line(error)})", failed + 1
        print(f"{number}/{len(paths)} {path}: {said}", flush=True)
    if failed:
        raise InputError(f"{failed} of {len(paths)} runs were not delivered: see above, and try again")


def _first_line(error: Exception) -> str:
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return line if len(line) < 200 else f"{line[:80]} ... {line[-110:]}"


def deliver_record(path: Path) -> None:
    """Find or create the run of a record in its store, and log what it lacks."""
    with alone_with(path.parent):  # two would create a run each
        record = read_record(path)
        if record is None or record["delivered"]:
            return
        uri = effective_uri(record["tracking_uri"])
        _make_store(uri)
        client = MlflowClient(tracking_uri=uri)
        run = _run_of(client, record, uri)
        judged = _link_judged(client, run, record)
        _log_lacking(client, run, record, judged)
        if run.info.status != record["status"] and record["ended"] is None:
            client.update_run(run.info.run_id, status=record["status"])
        elif run.info.status != record["status"]:
            client.set_terminated(run.info.run_id, record["status"], record["ended"])
        lacking = []
        for name, log in (("files", _log_files), ("model", _log_model)):
            try:
                log(client, run, record, path)
            except Exception as error:  # one that fails keeps neither the other nor the end of the run
                lacking.append(f"{name} ({_first_line(error)})")
        if lacking:
            raise InputError(f"all but its {' and its '.join(lacking)} is there")
        if record["ended"] is not None:
            with suppress(OSError, InputError):  # a folder that cannot be written to any more
                write_record(path, {**record, "delivered": True})


def _local_file(uri: str) -> Path | None:
    return Path(unquote(uri.removeprefix("sqlite:///"))) if uri.startswith("sqlite:///") else None


def _make_store(uri: str) -> None:
    """Make a local store whole or not at all: one that was interrupted in the making would be refused for good."""
    file = _local_file(uri)
    if file is not None and not file.exists():
        with whole_file(file) as beside:
            MlflowClient(tracking_uri=sqlite_uri(beside)).search_experiments()


def _run_of(client: MlflowClient, record: Record, uri: str) -> Any:
    experiment = _experiment(client, record["experiment_name"], uri)
    found: list[Any] = client.search_runs([experiment], f"tags.{RECORD_TAG} = '{record['id']}'")
    if not found:  # that of MONAI's own handlers, by `--tracking mlflow`, is gone on with
        since = client.search_runs([experiment], f"attributes.start_time >= {record['started']}")
        name = record["run_name"]
        found = [run for run in since if run.info.run_name == name and RECORD_TAG not in run.data.tags]
    tags = {RECORD_TAG: record["id"]}
    run = found[0] if found else client.create_run(experiment, record["started"], tags, record["run_name"])
    return client.get_run(run.info.run_id)  # with what it has put in and out


def _experiment(client: MlflowClient, name: str, uri: str) -> str:
    experiment: Any = client.get_experiment_by_name(name)
    if experiment is None:
        file = _local_file(uri)
        place = (file.parent / "mlruns").absolute().as_uri() if file else None  # a server knows one
        with suppress(mlflow.MlflowException):  # another run may have made it just now
            client.create_experiment(name, place, KIND)
        experiment = client.get_experiment_by_name(name)
    elif not KIND.keys() & experiment.tags.keys():
        for key, value in KIND.items():
            client.set_experiment_tag(experiment.experiment_id, key, value)
    return str(experiment.experiment_id)


def _log_lacking(client: MlflowClient, run: Any, record: Record, judged: str | None) -> None:
    run_id, stored = run.info.run_id, run.data
    wanted = {RECORD_TAG: record["id"], **record["tags"]}
    params = [Param(key, value) for key, value in record["params"].items() if key not in stored.params]
    tags = [RunTag(key, value) for key, value in wanted.items() if stored.tags.get(key) != value]
    points = [
        Metric(name, value, epoch["time"], epoch["epoch"])
        for epoch in record["epochs"]
        for name, value in epoch.items()
        if name not in ("epoch", "time")
    ]
    if record["ended"] is not None:
        kept: Mapping[str, float] = record["kept"] or {}
        points += [Metric(f"kept_{name}", value, record["ended"], int(kept["epoch"])) for name, value in kept.items()]
        points += [Metric(name, value, record["ended"], 0, judged) for name, value in record["metrics"].items()]
    there = {
        name: {point.step for point in client.get_metric_history(run_id, name)}
        for name in {point.key for point in points} & stored.metrics.keys()
    }
    points = [point for point in points if point.step not in there.get(point.key, ())]
    for start in range(0, len(params), 100):  # as many as a server takes at a time
        client.log_batch(run_id, params=params[start : start + 100])
    for start in range(0, max(len(points), 1), 1000):
        client.log_batch(run_id, points[start : start + 1000], tags=tags)


def _log_files(client: MlflowClient, run: Any, record: Record, path: Path) -> None:
    """The config at once; figures and files when the run has ended."""
    run_id = run.info.run_id
    if "config.json" not in {each.path for each in client.list_artifacts(run_id)}:
        client.log_dict(run_id, record["config"], "config.json")
    if record["ended"] is not None:
        client.log_figure(run_id, drawn(record), "curves.png" if record["epochs"] else "metrics.png")
        for name in record["artifacts"]:
            client.log_artifact(run_id, str(path.with_name(name)))


def drawn(record: Record) -> Figure:
    """Return the curves of a training over its epochs, or the metrics of an evaluation with their intervals."""
    epochs, metrics = record["epochs"], record["metrics"]
    if not epochs:
        names = [name for name in metrics if f"{name}_low" in metrics and f"{name}_high" in metrics]
        figure = Figure(figsize=(7, 1 + 0.25 * len(names)), layout="constrained")
        axes = figure.subplots()
        for place, name in enumerate(reversed(names)):
            axes.plot([metrics[f"{name}_low"], metrics[f"{name}_high"]], [place, place], color="#1f4e79")
            axes.plot(metrics[name], place, "o", color="#1f4e79")
        axes.set(yticks=range(len(names)), yticklabels=names[::-1], title="with 95 % intervals")
        return figure
    names = [
        name for name in dict.fromkeys(name for epoch in epochs for name in epoch) if name not in ("epoch", "time")
    ]
    panels: dict[str, list[str]] = {}
    for name in names:
        title = "loss" if name.endswith("loss") else name.partition(".")[0]
        panels.setdefault(title, []).append(name)
    figure = Figure(figsize=(4 * len(panels), 3.2), layout="constrained")
    for axes, (title, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name in curves:
            points = [(epoch["epoch"], epoch[name]) for epoch in epochs if name in epoch]
            axes.plot(*zip(*points, strict=True), marker=".", label=name)
        if record["kept"]:
            axes.axvline(record["kept"]["epoch"], color="#7f7f7f", linestyle=":", label="kept")
        axes.set(title=title, xlabel="epoch")
        axes.legend(fontsize=8)
    return figure


def _link_judged(client: MlflowClient, run: Any, record: Record) -> str | None:
    """Link an evaluation to the training of its weights, if the store has it, and return the model of these."""
    sha256 = record["tags"].get(JUDGED_TAG)
    if sha256 is None:
        return None
    everywhere = [each.experiment_id for each in client.search_experiments()]
    trainings: list[Any] = client.search_runs(everywhere, f"tags.{WEIGHTS_TAG} = '{sha256}'")
    if not trainings:
        return None
    client.set_tag(run.info.run_id, "training_run_id", trainings[0].info.run_id)
    models = [each.model_id for each in trainings[0].outputs.model_outputs]
    if models and not run.inputs.model_inputs:
        client.log_inputs(run.info.run_id, models=[LoggedModelInput(models[0])])
    return models[0] if models else None


def _log_model(client: MlflowClient, run: Any, record: Record, path: Path) -> None:
    """Log the network of a finished training, with the code that loads and serves it."""
    weights = weights_of(path)
    if record["status"] != "FINISHED" or not record["input"] or not weights.is_file():
        return
    if sha256_of(weights) != record["tags"].get(WEIGHTS_TAG):
        return
    experiment, run_id = run.info.experiment_id, run.info.run_id
    begun = client.search_logged_models([experiment], f"source_run_id = '{run_id}'")
    if any(model.status == LoggedModelStatus.READY for model in begun):
        return
    tags = {WEIGHTS_TAG: record["tags"][WEIGHTS_TAG]}
    model: LoggedModel = begun[0] if begun else client.create_logged_model(experiment, "model", run_id, tags)
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "model"
        save_served(saved, weights, record, model.model_id, run_id)
        store = get_artifact_repository(model.artifact_location, client.tracking_uri)
        for file in sorted(path for path in saved.rglob("*") if path.is_file()):
            # one by one: MLflow's pool of threads would be waited for when the process ends, whatever the server does
            below = file.parent.relative_to(saved).as_posix()
            store.log_artifact(str(file), None if below == "." else below)
    if model.model_id not in {each.model_id for each in run.outputs.model_outputs}:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, (record["kept"] or {}).get("epoch", 0))])
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
