# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Runs of a study as processes: several at a time, each done once, failures told and the others finished."""

import fcntl
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from scripts.core.errors import InputError
from scripts.studies.runs import Run, Study, perform, refuse_failures, study_of
from tests.bundle.commands import bundle

TRAIN = """
import os, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
(folder / "models").mkdir(exist_ok=True)
(folder / "models" / "model.pt").touch()
with open(folder / "trained", "a") as file:
    file.write(os.environ["OMP_NUM_THREADS"] + " " + os.environ["RUNS_AT_A_TIME"])
"""
EVALUATE = """
import os, pathlib, sys
print("reading")
if (pathlib.Path(sys.argv[1]) / "broken").exists():
    sys.exit("error: scan7 is no scan: give another")
if (pathlib.Path(sys.argv[1]) / "killed").exists():
    os.kill(os.getpid(), 9)
if (pathlib.Path(sys.argv[1]) / "faulty").exists():
    raise RuntimeError("no part\\nset a mode")
"""


@dataclass(frozen=True, kw_only=True)
class ShortStudy(Study):
    """A study whose commands take no time."""

    def command(self, run: Run, evaluate: bool = False) -> list[str]:
        return [sys.executable, "-S", "-c", EVALUATE if evaluate else TRAIN, str(run.folder)]


def short_study(folder: Path, jobs: int) -> ShortStudy:
    places: dict[str, Any] = dict.fromkeys(("bundle", "dataset_dir", "datalist", "output_dir"), folder)
    return ShortStudy(**places, files=["configs/train.json"], keys={}, jobs=jobs)


def runs_in(folder: Path, count: int) -> list[Run]:
    runs = [Run(f"run {n}", folder / f"run_{n}", folder / "datalist.json", "test", {}) for n in range(count)]
    for run in runs:
        run.folder.mkdir()
    return runs


def test_a_failed_run_is_told_in_a_line_the_others_go_on_and_what_is_done_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    study, runs = short_study(tmp_path, 2), runs_in(tmp_path, 5)
    (runs[1].folder / "broken").touch()
    (runs[2].folder / "killed").touch()
    (runs[3].folder / "faulty").touch()
    failures = perform(study, runs, lambda run: "well")
    logs = [run.folder / "log.txt" for run in runs]
    assert failures == {
        "run 1": f"scan7 is no scan: give another ({logs[1]})",
        "run 2": f"it was killed by signal 9 ({logs[2]})",
        "run 3": f"RuntimeError: no part ({logs[3]})",
    }
    with pytest.raises(InputError, match=r"^3 of 5 runs failed, such as run \d: .*; correct it and give the same comm"):
        refuse_failures(failures, len(runs))
    printed = capsys.readouterr().out.splitlines()
    assert sum("well (" in line for line in printed) == 2
    assert sum(": failed: " in line for line in printed) == 3
    assert printed[-1].endswith("(the last)")
    for name in ("broken", "killed", "faulty"):
        next(tmp_path.glob(f"*/{name}")).unlink()
    assert perform(study, runs, lambda run: "well") == {}
    assert capsys.readouterr().out.startswith("2 of 5 are there, 3 are left\n")
    threads = str(max(1, (os.cpu_count() or 1) // 2))
    assert [(run.folder / "trained").read_text().split() for run in runs] == [
        [threads, "2"]
    ] * 5  # none was trained twice
    assert logs[1].read_text() == "reading\nerror: scan7 is no scan: give another\nreading\n"


def test_a_database_that_was_interrupted_before_any_epoch_is_made_anew(tmp_path: Path) -> None:
    study, runs = short_study(tmp_path, 1), runs_in(tmp_path, 2)
    for run in runs:
        (run.folder / "mlruns.db").write_text("half")
    (runs[1].folder / "models").mkdir()
    (runs[1].folder / "models" / "unfinished.pt").touch()  # which is written once the database is whole
    assert perform(study, runs, lambda run: "") == {}
    assert [(run.folder / "mlruns.db").exists() for run in runs] == [False, True]


def test_a_run_that_another_process_is_at_is_left_to_it(tmp_path: Path) -> None:
    study, runs = short_study(tmp_path, 1), runs_in(tmp_path, 1)
    with (runs[0].folder / "log.txt").open("a") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        assert perform(study, runs, str) == {
            "run 0": f"another process works in {runs[0].folder}: end that, or wait for it"
        }
    assert perform(study, runs, lambda run: "") == {}


def test_an_interrupted_study_ends_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.TRAIN", "import time; print('ready', flush=True); time.sleep(100)")
    study, runs = short_study(tmp_path, 1), runs_in(tmp_path, 2)
    log = runs[0].folder / "log.txt"

    def interrupted(*_: Any) -> Any:
        while not (log.exists() and "ready" in log.read_text()):
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr("scripts.studies.runs.as_completed", interrupted)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        perform(study, runs, str)
    while True:  # until the child lets go of its log
        with log.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                assert time.monotonic() - started < 60
                time.sleep(0.01)
    assert not (runs[1].folder / "log.txt").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"wing": "mri"}, r"^'mri' is no bundle: give ct \(head CT\) or wsi \(slides\)$"),
        ({"max_epoch": 3}, r"^--max_epoch is no key of train\.json, on_features\.json, perhaps max_epochs: nothing"),
        ({"ckpt_dir": "x"}, r"^--ckpt_dir is set by the study itself: leave it out$"),
        ({"config": "on_feature.json"}, r"^--config on_feature\.json is neither a file nor one in .*configs: correct"),
        ({}, r"^the datalist .*datalist\.json does not exist: give one with --datalist FILE$"),
        ({"jobs": 0}, r"^--jobs is 0: give a whole number, 1 or more$"),
    ],
)
def test_what_no_training_would_take_is_refused_before_any(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    asked: dict[str, Any] = {"wing": "ct", "config": "on_features.json", "jobs": 1, **given}
    keys = {key: asked.pop(key) for key in list(asked) if key not in ("wing", "config", "jobs")}
    with pytest.raises(InputError, match=message):
        study_of(folder=str(tmp_path), output_dir=str(tmp_path / "out"), datalist=None, keys=keys, **asked)
    assert not (tmp_path / "out").exists()


def test_the_commands_are_those_that_one_would_type_in_the_bundle_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.json").write_text('{"best_by": "val_bag_auroc"}')
    (tmp_path / "all.json").touch()
    keys = {"learning_rate": 0.01, "encoder_name": "7", "network_def#radius": 2}
    study = study_of("wsi", "slides", "out", "all.json", "configs/abmil.json, mine.json", 1, keys)
    assert study.bundle.samefile(bundle("wsi"))
    assert (study.value_of("best_by"), study.value_of("learning_rate")) == ("val_bag_auroc", 0.01)
    run = Run("one", tmp_path / "out" / "one", study.datalist, "test", {"seed": 3})
    train, evaluate = study.command(run), study.command(run, evaluate=True)
    files = ["configs/train.json", "configs/abmil.json", str(tmp_path / "mine.json")]
    assert train[:6] == [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(files)]
    assert evaluate[5] == str([*files, "configs/evaluate.json"])
    typed = dict(zip(train[6::2], train[7::2], strict=True))
    assert typed == {
        "--tracking_uri": f"sqlite:///{tmp_path}/out/one/mlruns.db",
        "--learning_rate": "0.01",
        "--encoder_name": "'7'",  # or it would be read as a number
        "--network_def#radius": "2",
        "--seed": "3",
        "--dataset_dir": f"{tmp_path}/slides",
        "--datalist": f"{tmp_path}/all.json",
        "--ckpt_dir": f"{tmp_path}/out/one/models",
        "--output_dir": f"{tmp_path}/out/one",
    }
    changed = {"--output_dir": f"{tmp_path}/out/one/eval", "--section": "test"}
    assert dict(zip(evaluate[6::2], evaluate[7::2], strict=True)) == {**typed, **changed}


def test_a_folder_of_another_study_is_left_alone(tmp_path: Path) -> None:
    study = short_study(tmp_path, 1)
    study.keep_settings("crossval", folds=5)
    study.keep_settings("crossval", folds=5)
    with pytest.raises(InputError, match=r"holds a study with study crossval, not search: give that again"):
        study.keep_settings("search", folds=5)
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(InputError, match=r"study\.json is no record of a study .*: give another --output_dir$"):
        study.keep_settings("crossval", folds=5)
