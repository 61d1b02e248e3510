# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""A real MLflow server: what it holds of a training, what it serves, and that its end does not end a training."""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from mlflow import MlflowClient

from scripts.engine.run_record import read_record
from tests.bundle.commands import bundle, environment, run, workflow, write_cohort
from tests.shared_data import free_port

pytestmark = pytest.mark.soak

MLFLOW = (sys.executable, "-m", "mlflow")
KEYS = {"image_size": 32, "channels": [8, 8], "batch_size": 2, "num_workers": 0, "patience": 99}
PLANTED = ("Plantedname", "PLANTED-ID", "planted_scan")


@contextmanager
def serving(*command: str, port: int, path: str, log: Path, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server of MLflow from when it answers until the end of the block."""
    words = [*MLFLOW, *command, "--host", "127.0.0.1", "--port", str(port)]
    with log.open("ab") as output:
        server = subprocess.Popen(
            words, env={**environment(), **variables}, stdout=output, stderr=output, start_new_session=True
        )
    try:
        until = time.monotonic() + 180
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5).read()
                break
            except (OSError, urllib.error.URLError):
                if server.poll() is not None or time.monotonic() > until:
                    raise AssertionError(log.read_text()[-3000:]) from None
                time.sleep(0.5)
        yield server
    finally:
        end(server)


def end(server: subprocess.Popen[bytes]) -> None:
    if server.poll() is None:
        os.killpg(server.pid, 9)  # its workers too
        server.wait()


def tracking(home: Path, port: int) -> Any:
    store = ["--backend-store-uri", f"sqlite:///{home}/server.db", "--artifacts-destination", str(home / "artifacts")]
    return serving("server", *store, "--workers", "1", port=port, path="/health", log=home / "server.log")


def planted_cohort(folder: Path) -> Path:
    """Scans of patients with names, in files and in the datalist."""
    data = write_cohort(folder, "ct")
    for k, path in enumerate(sorted(path for path in data.rglob("*.dcm"))):
        image = pydicom.dcmread(path)
        image.PatientName, image.PatientID = f"Plantedname^{k}", f"PLANTED-ID-{k}"
        image.save_as(path)
    datalist = json.loads((data / "datalist.json").read_text())
    for section, scans in datalist.items():
        for k, scan in enumerate(scans if isinstance(scans, list) else []):
            scan |= {"bag_id": f"planted_scan_{section}_{k}", "patient": f"PLANTED-ID-{section}-{k}"}
    (data / "datalist.json").write_text(json.dumps(datalist))
    return data


def command(files: str, data: Path, results: Path, uri: str, **keys: Any) -> list[str]:
    places = {"dataset_dir": str(data), "ckpt_dir": str(results), "output_dir": str(results), "tracking_uri": uri}
    typed = [word for key, value in {**KEYS, **keys}.items() for word in (f"--{key}", json.dumps(value))]
    typed += [word for key, value in places.items() for word in (f"--{key}", value)]
    return [sys.executable, "-m", "monai.bundle", "run", "--config_file", files, *typed]


def epochs_in(path: Path) -> int:
    record = read_record(path)
    return 0 if record is None else len(record["epochs"])


def test_a_server_holds_serves_and_dies_and_no_training_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, port = planted_cohort(tmp_path), free_port()
    uri = f"http://127.0.0.1:{port}"
    client = MlflowClient(tracking_uri=uri)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    here, epochs = bundle("ct"), 12
    with tracking(tmp_path, port):
        started = time.monotonic()
        run(*command("configs/train.json", data, whole, uri, max_epochs=epochs, run_name="whole"), cwd=here)
        usual = time.monotonic() - started
        both = "['configs/train.json','configs/evaluate.json']"
        run(*command(both, data, whole, uri, run_name="look"), cwd=here)
        found = client.search_runs(["1"])
        runs: dict[str, Any] = {each.info.run_name: client.get_run(each.info.run_id) for each in found}
        trained, look = runs["whole"], runs["look"]
        assert {each.info.status for each in runs.values()} == {"FINISHED"}
        assert [point.step for point in client.get_metric_history(trained.info.run_id, "val_loss")] == [*range(1, 13)]
        assert "curves.png" in {each.path for each in client.list_artifacts(trained.info.run_id)}
        (output,) = trained.outputs.model_outputs
        assert [each.model_id for each in look.inputs.model_inputs] == [output.model_id]
        assert look.data.tags["training_run_id"] == trained.info.run_id
        serve(tmp_path, uri, output.model_id, data, whole)
    with tracking(tmp_path, port) as server:
        started = time.monotonic()
        typed = command("configs/train.json", data, cut, uri, max_epochs=epochs, run_name="cut")
        with (tmp_path / "cut.log").open("w") as log:
            going = subprocess.Popen(typed, cwd=here, env=environment(), stdout=log, stderr=log)
        while going.poll() is None and epochs_in(cut / "model.run.json") < 3:
            time.sleep(0.1)
        end(server)
        killed_after = epochs_in(cut / "model.run.json")
        assert going.wait(timeout=300) == 0, (tmp_path / "cut.log").read_text()[-3000:]
        without = time.monotonic() - started
    said = (tmp_path / "cut.log").read_text()
    assert said.count("is not told of the run yet") == 1
    assert said.count("WARNING") <= 3  # with those that are not about MLflow
    with tracking(tmp_path, port):
        ended = run(sys.executable, "-m", "scripts", "deliver", str(cut), cwd=here)
        assert "cut delivered to" in ended.stdout
        (again,) = client.search_runs(["1"], "attributes.run_name = 'cut'")
        assert again.info.status == "FINISHED"
        for name in ("train_loss", "val_loss"):
            points = client.get_metric_history(again.info.run_id, name)
            assert [point.step for point in points] == [*range(1, epochs + 1)]
        stored_run: Any = client.get_run(again.info.run_id)
        assert len(stored_run.outputs.model_outputs) == 1
    assert without < usual + 10
    stored = [tmp_path / "server.db", *(tmp_path / "artifacts").rglob("*")]
    held = [path for path in stored if path.is_file() and any(name.encode() in path.read_bytes() for name in PLANTED)]
    assert held == []
    with capsys.disabled():
        print(
            f"\n{epochs} epochs: {usual:.1f} s with the server, {without:.1f} s as it was killed after epoch "
            f"{killed_after}; {len(stored)} stored files hold no planted name"
        )


def serve(home: Path, uri: str, model_id: str, data: Path, results: Path) -> None:
    """`mlflow models serve` answers a scan with the logits that the bundle's own network gives."""
    port = free_port()
    options = ["models", "serve", "-m", f"models:/{model_id}", "--env-manager", "local"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(bundle("ct"))
        keys = {**KEYS, "dataset_dir": str(data), "ckpt_dir": str(results), "output_dir": str(results)}
        parser = workflow(["train"], **keys).parser
        parser.parse()
        bag = parser.get_parsed_content("validate#dataset")[0]
        network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(results / "model.pt", weights_only=True))
    image, coords = (torch.as_tensor(np.asarray(bag[name]))[None] for name in ("image", "coords"))
    with torch.no_grad():
        wanted = network.predict(image, coords)
    inputs = {"image": image[0].tolist(), "coords": coords[0].tolist()}
    log = home / "serve.log"
    with serving(*options, port=port, path="/ping", log=log, MLFLOW_TRACKING_URI=uri):
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations",
            json.dumps({"inputs": inputs}).encode(),
            {"Content-Type": "application/json"},
        )
        answer = json.loads(urllib.request.urlopen(request, timeout=60).read())["predictions"]
    assert answer["logits"] == pytest.approx(wanted.logits[0].tolist(), abs=1e-6)
    assert answer["attention"] == pytest.approx(wanted.attention[0, 0].tolist(), abs=1e-6)
