# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""A release works as downloaded: real commands in a folder of its own, with the archive alone."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pytest

from scripts.core.errors import InputError
from scripts.release import build
from scripts.release.build import SYNTHETIC, build_release, is_of_demo, read_evaluation, stated_before
from scripts.release.defaults import read_weights
from scripts.release.tree import source_folder
from tests.bundle.commands import BUNDLES, contents, environment, monai_bundle, run, write_cohort, write_square_slide
from tests.bundle.declared import ONLY_DECLARED, not_declared
from tests.outputs.results import table
from tests.release.trained import write_weights
from tests.shared_data import ROOT, shared_data

METRICS = {"bags": 4, "positive_bags": 2, "threshold": 0.5, "bag_auroc": {"value": 0.87654321, "low": 0.5, "high": 1.0}}
# what a person does with a downloaded bundle in Python; the working directory is where it is downloaded to
AS_DOWNLOADED = """
import json, os, shutil, sys
from pathlib import Path
import torch
import monai.bundle.scripts as commands
from monai.bundle import ckpt_export, download, init_bundle, load, load_bundle_config
from monai.bundle import verify_metadata, verify_net_in_out
name, archive, version, schema = sys.argv[1:]
download(name=name, url=Path(archive).as_uri(), bundle_dir=".", progress=False)
config = load_bundle_config(archive, "inference.json")
assert config["_meta_#eval_metrics"] == {"bag_auroc": 0.876543}
sys.path.insert(0, name)

def from_dist(url, filepath, **_):  # instead of the network
    assert url == f"https://github.com/somebody/models/releases/download/first/{name}_v{version}.zip"
    filepath.parent.mkdir(exist_ok=True)
    shutil.copy(Path(archive).parent / Path(url).name, filepath)

usual, commands.download_url = commands.download_url, from_dist
weights = torch.load(f"{name}/models/model.pt", weights_only=True)
for workflow in ("inference", "train"):
    origin = {"version": version, "source": "github", "repo": "somebody/models/first", "progress": False}
    network = load(name, bundle_dir=f"of_{workflow}", workflow_type=workflow, device="cpu", **origin)
    assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())
commands.download_url = usual
init_bundle("somebodys_own", network=network)
assert torch.load("somebodys_own/models/model.pt", weights_only=True).keys() == weights.keys()
os.chdir(name)
meta, inference = "configs/metadata.json", "configs/inference.json"
if schema:
    verify_metadata(meta_file=meta, filepath=schema)
verify_net_in_out("network_def", meta_file=meta, config_file=inference)
ckpt_export("network_def", filepath="../again.ts", config_file=inference, ckpt_file="models/model.pt")
one, other = torch.jit.load("../again.ts"), torch.jit.load("models/model.ts")
image = config["_meta_#network_data_format#inputs#image"]
bag = torch.rand(1, image["num_channels"], *image["spatial_shape"][:-1], 1)
assert torch.equal(one(bag), other(bag))
"""

# beside what hides packages: tells every file that is opened, by workers too
TELL = """
told = os.open(os.environ["OPENED"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)

def tell(event, given):
    if event == "open" and isinstance(given[0], str):
        os.write(told, os.fsencode(os.path.abspath(given[0]) + "\\n"))

sys.addaudithook(tell)
"""


def write_metrics(folder: Path, weights_sha256: str) -> Path:
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    (folder / "report.json").write_text(json.dumps({"weights_sha256": weights_sha256}))
    return folder / "metrics.json"


def release(root: Path, wing: str, weights: Path, metrics: Path, dist: Path) -> None:
    """The real command; within a process the names in a TorchScript file depend on what was scripted before."""
    given = {"weights": weights, "metrics": metrics, "output_dir": dist, "trained_on": SYNTHETIC}
    words = [word for key, value in given.items() for word in (f"--{key}", str(value))]
    run(sys.executable, "-m", "scripts", "release", wing, *words, cwd=root)


class Released(NamedTuple):
    wing: str
    weights: Path
    dist: Path
    home: Path  # outside of the repository

    @property
    def name(self) -> str:
        return BUNDLES[self.wing]


TASKS = [pytest.param(wing, marks=[pytest.mark.slow, pytest.mark.xdist_group(f"release {wing}")]) for wing in BUNDLES]
each_released = pytest.mark.parametrize("released", TASKS, indirect=True, scope="module")


@pytest.fixture(scope="module")
def released(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Released]:
    home = tmp_path_factory.mktemp(request.param)
    weights = write_weights(home / "trained", request.param, "abmil")
    metrics = write_metrics(home / "trained", read_weights(weights).sha256)
    if request.param == "ct":
        release(ROOT, "ct", weights, metrics, home / "dist")
    else:
        build_release(request.param, weights, metrics, home / "dist", SYNTHETIC)
    yield Released(request.param, weights, home / "dist", home)
    shutil.rmtree(home)


@each_released
def test_a_release_has_all_that_is_handed_on_and_nothing_else(released: Released) -> None:
    name, dist = released.name, released.dist
    version = json.loads((dist / name / "configs" / "metadata.json").read_text())["version"]
    archives = [f"{name}.zip", f"{name}_v{version}.zip", f"{name}.cdx.json"]
    wanted = {name, "hf", *archives, *(f"{archive}.sha256" for archive in archives)}
    assert {path.name for path in dist.iterdir()} == wanted
    assert subprocess.run(["sha256sum", "-c", *(f"{each}.sha256" for each in archives)], cwd=dist).returncode == 0
    files = contents(dist / name)
    models = {"model.pt", "model.ts", "model.onnx", "model.origin.json", "model.operating_point.json"}
    assert {path.removeprefix("models/") for path in files if path.startswith("models/")} == models
    assert not [path for path in dist.rglob("*") if path.is_symlink() or path.name in ("demo", "tests", "__pycache__")]
    with zipfile.ZipFile(dist / f"{name}.zip") as archive:
        assert {path: archive.read(path) for path in archive.namelist()} == {f"{name}/{k}": v for k, v in files.items()}
    page = contents(dist / "hf" / name)
    assert page.keys() - files.keys() == {"README.md", ".gitattributes"}
    listed = json.loads(files["manifest.json"])
    assert listed.keys() == files.keys() - {"manifest.json"}
    assert b"Its weights were trained on: synthetic" in files["docs/data_license.txt"]
    assert f"Trained on: **{SYNTHETIC}**".encode() in page["README.md"]
    for path, content in files.items():
        assert str(ROOT).encode() not in content, path
        if path.endswith(".json"):
            assert content.decode("ascii") == json.dumps(json.loads(content), indent=4) + "\n"
    told = json.loads(files["configs/metadata.json"])
    assert (told["data_source"], told["eval_metrics"]) == (SYNTHETIC, {"bag_auroc": 0.876543})


@each_released
def test_a_downloaded_release_is_verified_exported_and_read_with_from_elsewhere(released: Released) -> None:
    downloads = released.home / "downloads"
    downloads.mkdir()
    schema = ""
    with suppress(pytest.skip.Exception):  # the other commands do without
        schema = str(shutil.copy(shared_data("monai/meta_schema_20240725.json"), released.home / "schema.json"))
    archive = released.dist / f"{released.name}.zip"
    version = json.loads((released.dist / released.name / "configs" / "metadata.json").read_text())["version"]
    run(sys.executable, "-c", AS_DOWNLOADED, released.name, str(archive), version, schema, cwd=downloads)
    bundle = downloads / released.name
    before = contents(bundle)
    for path in (bundle, *bundle.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    images = released.home / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    if released.wing == "ct":
        volume = rng.normal(40, 30, (20, 20, 6)).astype(np.float32)
        nib.save(nib.Nifti1Image(volume, np.diag([1.0, 1, 5, 1])), images / "case.nii.gz")
    else:
        write_square_slide(images / "case.h5", rng.random((9, 8), dtype=np.float32))
    monai_bundle(
        "run", "--config_file", str(bundle / "configs" / "inference.json"), "--bundle_root", str(bundle),
        "--dataset_dir", str(images), "--output_dir", str(released.home / "results"),
        cwd=released.home,
    )  # fmt: skip
    result: dict[str, Any] = json.loads((released.home / "results" / "case" / "result.json").read_text())
    assert (result["threshold"], result["threshold_origin"]) == (0.25, "chosen by a test")
    assert {path: each for path, each in contents(bundle).items() if "__pycache__" not in path} == before
    for path in (bundle, *bundle.rglob("*")):
        path.chmod(0o755)


@pytest.mark.parametrize("released", TASKS[:1], indirect=True, scope="module")
def test_an_unpacked_release_trains_evaluates_and_infers_with_what_it_declares_and_nothing_of_the_repository(
    released: Released, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(released.dist / f"{released.name}.zip") as archive:
        archive.extractall(tmp_path)
    unpacked, data, results = tmp_path / released.name, write_cohort(tmp_path, "ct"), tmp_path / "results"
    shutil.copytree(data / "scans" / "scan_000", tmp_path / "new" / "somebody")
    hiding = tmp_path / "hiding" / "sitecustomize.py"
    hiding.parent.mkdir()
    hiding.write_text((ONLY_DECLARED / hiding.name).read_text() + TELL)
    monkeypatch.setenv("NOT_DECLARED", json.dumps(not_declared(unpacked)))
    for name in ("IMPORTED", "OPENED"):
        monkeypatch.setenv(name, str(tmp_path / name))

    def bundle_run(configs: str, dataset: Path, output: Path, *words: str) -> None:
        given = ("--config_file", configs, "--dataset_dir", str(dataset), "--output_dir", str(output), *words)
        python = ("env", f"PYTHONPATH={hiding.parent}", sys.executable)
        run(*python, "-m", "monai.bundle", "run", *given, cwd=unpacked)

    trained = ("--ckpt_dir", str(results))
    bundle_run("configs/train.json", data, results, *trained, "--max_epochs", "1")
    bundle_run("['configs/train.json','configs/evaluate.json']", data, results / "test", *trained)
    bundle_run("configs/inference.json", tmp_path / "new", results / "new", "--ckpt_path", str(results / "model.pt"))
    state = read_weights(results / "model.pt").state
    assert state.keys() == read_weights(released.weights).state.keys()
    assert json.loads((results / "test" / "metrics.json").read_text())["bags"] == 3
    assert [row["status"] for row in table(results / "new" / "summary.csv")] == ["done"]
    opened = {Path(line) for line in (tmp_path / "OPENED").read_text().splitlines()}
    assert {unpacked / "configs" / "evaluate.json", unpacked / "scripts" / "__init__.py"} <= opened
    assert {path for path in opened if path.is_relative_to(ROOT) and not path.is_relative_to(sys.prefix)} == set()


@pytest.mark.parametrize("released", TASKS[:1], indirect=True, scope="module")  # that were made by the command too
def test_the_command_gives_the_same_bytes_in_another_process_from_what_was_downloaded(released: Released) -> None:
    """The folder of the release is no repository: its own files are the sources."""
    bundle, again = released.home / "again" / released.name, released.home / "again" / "dist"
    shutil.copytree(released.dist / released.name, bundle)
    (bundle / "eval").mkdir()
    (bundle / "eval" / "summary.csv").write_text("a patient's")
    (bundle / "configs" / "datalist.json").write_text('["a patient"]')
    weights, metrics = bundle / "models" / "model.pt", released.weights.with_name("metrics.json")
    release(bundle, released.wing, weights, metrics, again)
    assert contents(again) == contents(released.dist)


def test_metrics_of_other_weights_or_without_a_figure_are_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = read_weights(write_weights(tmp_path, "wsi"))
    metrics = write_metrics(tmp_path, "0")
    with pytest.raises(InputError, match=r"metrics.json is of other weights than .*model.pt: evaluate these, and give"):
        read_evaluation(metrics, weights)
    (tmp_path / "report.json").unlink()
    assert read_evaluation(metrics, weights) == METRICS
    assert "nothing tells that it is of these" in caplog.text
    for text, message in (("{}", "holds no figure"), ("[]", "cannot be read"), ("no json", "cannot be read")):
        metrics.write_text(text)
        with pytest.raises(InputError, match=rf"metrics.json {message}: give the metrics.json of an evaluation$"):
            read_evaluation(metrics, weights)


def test_a_refusal_leaves_what_is_there(tmp_path: Path) -> None:
    weights, dist = write_weights(tmp_path, "wsi"), tmp_path / "dist"
    mine = dist / BUNDLES["wsi"] / "models" / "model.pt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(InputError, match=rf"^{mine.parents[1]} is there and no release: move it away, or give another"):
        build_release("wsi", weights, output_dir=dist)
    (mine.parents[1] / "manifest.json").write_text(json.dumps({"models/model.pt": "of other content"}))
    with pytest.raises(InputError, match=r"was changed, or used, since it was released: move it away, or give another"):
        build_release("wsi", weights, output_dir=dist)
    with pytest.raises(InputError, match=r"^--url is 's3://x': it must begin with https:// or http://$"):
        build_release("wsi", weights, output_dir=tmp_path / "other", url="s3://x")
    with pytest.raises(InputError, match=r"^--trained_on names a place on a computer, '/data/patients'"):
        build_release("wsi", weights, output_dir=tmp_path / "other", trained_on="/data/patients")
    with pytest.raises(InputError, match=r"describes weights of another bundle"):
        build_release("ct", weights, output_dir=tmp_path / "other")
    (tmp_path / "pages" / "hf" / BUNDLES["wsi"] / ".git").mkdir(parents=True)
    with pytest.raises(InputError, match=r"is a repository with a history: give another --output_dir$"):
        build_release("wsi", weights, output_dir=tmp_path / "pages")
    assert [path.name for path in dist.iterdir()] == [BUNDLES["wsi"]]
    assert list((tmp_path / "other").iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_release_that_is_interrupted_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    made, target, before = tmp_path / "new", tmp_path / "dist", tmp_path / "before"
    for folder, text in ((made, "new"), (target, "old")):
        (folder / "NAME").mkdir(parents=True)
        (folder / "NAME" / "a.txt").write_text(text)
        (folder / "NAME.zip").write_text(text)
    (made / "NAME.sbom").write_text("new")
    replace, calls = os.replace, 0

    def fails(source: Path, to: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:  # folder and archive are there, and what is beside them is not
            raise error
        replace(source, to)

    monkeypatch.setattr(build.os, "replace", fails)
    with pytest.raises(type(error)):
        build._publish(made, target, ["NAME", "NAME.zip", "NAME.sbom"], before)
    assert {path.name for path in target.iterdir()} == {"NAME", "NAME.zip"}
    assert (target / "NAME" / "a.txt").read_text() == (target / "NAME.zip").read_text() == "old"


def test_what_killed_releases_left_is_removed_and_what_runs_is_not(tmp_path: Path) -> None:
    ours, theirs = tmp_path / f".release-{os.getpid()}-x", tmp_path / ".release-999999999-y"
    ours.mkdir()
    theirs.mkdir()
    build._remove_leftovers(tmp_path)
    assert (ours.exists(), theirs.exists()) == (True, False)


def test_weights_of_an_earlier_release_keep_what_they_were_trained_on(tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "models", "wsi")
    assert stated_before(read_weights(weights)) is None
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "metadata.json").write_text(json.dumps({"data_source": "CAMELYON16"}))
    (tmp_path / "manifest.json").write_text(json.dumps({"models/model.pt": "0"}))
    assert stated_before(read_weights(weights)) is None
    (tmp_path / "manifest.json").write_text(json.dumps({"models/model.pt": read_weights(weights).sha256}))
    assert stated_before(read_weights(weights)) == "CAMELYON16"


def test_weights_of_the_demonstration_are_known_by_their_place(tmp_path: Path) -> None:
    assert is_of_demo(source_folder("ct"), ROOT / build.DEMO / "ct" / "smooth" / "model.pt")
    assert not is_of_demo(source_folder("ct"), tmp_path / "model.pt")
    (tmp_path / "link.pt").symlink_to(ROOT / build.DEMO / "model.pt")
    assert is_of_demo(source_folder("ct"), tmp_path / "link.pt")


def test_make_says_in_one_line_which_weights_are_wanted() -> None:
    command = ["make", "-o", ".venv/ready", "dist", "CT=", "WSI="]
    ended = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert ended.returncode != 0
    message = "error: give weights, make dist CT=model.pt or WSI=model.pt or both, or make demo first"
    assert ended.stderr.splitlines()[0] == message
