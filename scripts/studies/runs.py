# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The runs of a study: each a training and an evaluation by the bundle's own commands, in a folder of its own."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser

from scripts.core.errors import InputError
from scripts.core.files import sqlite_uri, writable_folder, write_whole
from scripts.engine.batches import RUNS_AT_A_TIME
from scripts.engine.launch import refuse_unknown_keys

BUNDLES = {"ct": "hemorrhage_ct_smooth_mil", "wsi": "pathology_wsi_smooth_mil"}
# A study sets these keys itself.
SET_HERE = ("bundle_root", "ckpt_dir", "ckpt_path", "config_file", "dataset_dir", "scaling", "section", "threshold")


@dataclass(frozen=True)
class Run:
    """One training of a study, and the evaluation of its network."""

    name: str
    folder: Path
    datalist: Path
    section: str  # that is evaluated
    keys: Mapping[str, Any]  # beside those of the study

    @property
    def model(self) -> Path:
        return self.folder / "models" / "model.pt"

    @property
    def results(self) -> Path:
        return self.folder / "eval"

    @property
    def finished(self) -> Path:
        """A file that is there once both commands have ended well."""
        return self.folder / "finished.json"


@dataclass(frozen=True, kw_only=True)
class Study:
    """What all runs of a study have in common."""

    bundle: Path  # folder of the bundle
    dataset_dir: Path
    datalist: Path
    output_dir: Path
    files: Sequence[str]  # configs of the training
    keys: Mapping[str, Any]  # that the user gave for all runs
    jobs: int  # runs at a time

    def value_of(self, key: str) -> Any:
        """Return what a key is in a training, as it is written."""
        given = ConfigParser.load_config_files([str(self.bundle / file) for file in self.files]).get(key)
        return self.keys.get(key, given)

    def keep_settings(self, kind: str, **settings: Any) -> None:
        """Write what a study depends on into its folder, or refuse a folder that holds another study."""
        files = {file: (self.bundle / file).read_text() for file in self.files[1:]}
        given = {"study": kind, "dataset_dir": str(self.dataset_dir), **settings, **files, **self.keys}
        now: dict[str, Any] = json.loads(json.dumps(given))
        path = writable_folder(self.output_dir) / "study.json"
        try:
            before = dict(json.loads(path.read_text())) if path.exists() else now
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{path} is no record of a study ({error}): give another --output_dir") from error
        other = next((key for key in [*now, *before] if before.get(key) != now.get(key)), None)
        if other is not None:
            was, asked = (str(each.get(other, "left out")) for each in (before, now))
            values = f"{other} {was}, not {asked}" if len(was + asked) < 80 else f"another {other}"
            raise InputError(
                f"{self.output_dir} holds a study with {values}: give that again to go on with it, or another "
                "--output_dir"
            )
        write_whole(path, json.dumps(now, indent=4) + "\n")

    def command(self, run: Run, evaluate: bool = False) -> list[str]:
        """Return the command line of the training or of the evaluation of a run, to be started in the bundle folder."""
        tracking = sqlite_uri(str(run.folder / "mlruns.db"))  # of both, as making one takes seconds
        keys = {
            "tracking_uri": tracking,
            **self.keys,
            **run.keys,
            "dataset_dir": self.dataset_dir,
            "datalist": run.datalist,
        }
        keys |= {"ckpt_dir": run.model.parent, "output_dir": run.results if evaluate else run.folder}
        files = [*self.files, "configs/evaluate.json"] if evaluate else list(self.files)
        words = [word for key, value in keys.items() for word in (f"--{key}", _as_typed(value))]
        section = ["--section", run.section] if evaluate else []
        return [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(files), *words, *section]


def study_of(
    wing: str, folder: str, output_dir: str, datalist: str | None, config: Any, jobs: int, keys: Mapping[str, Any]
) -> Study:
    """Check what a study is asked for, before any of its runs."""
    bundle = bundle_folder(wing)
    dataset_dir = Path(str(folder)).absolute()
    listed = dataset_dir / "datalist.json" if datalist is None else Path(str(datalist)).absolute()
    names = str(config).split(",") if isinstance(config, str) else list(config or ())
    files = ["configs/train.json", *(_config_file(str(name).strip(), bundle) for name in names)]
    for key in keys:
        if key in SET_HERE:
            raise InputError(f"--{key} is set by the study itself: leave it out")
    refuse_unknown_keys({"config_file": ",".join(str(bundle / file) for file in files), **keys})
    at_least(jobs, 1, "jobs")
    if not listed.is_file():
        raise InputError(f"the datalist {listed} does not exist: give one with --datalist FILE")
    return Study(
        bundle=bundle,
        dataset_dir=dataset_dir,
        datalist=listed,
        output_dir=Path(str(output_dir)).absolute(),
        files=files,
        keys=keys,
        jobs=jobs,
    )


def at_least(value: object, least: int, flag: str) -> None:
    if not isinstance(value, int) or value < least:
        raise InputError(f"--{flag} is {value!r}: give a whole number, {least} or more")


def bundle_folder(wing: str) -> Path:
    """Return the folder in which a bundle's commands work: the one that this code is in, or one of the sources'."""
    if wing not in BUNDLES:
        raise InputError(f"{wing!r} is no bundle: give ct (head CT) or wsi (slides)")
    root = Path(__file__).parents[2].absolute()
    for folder in (root, root / "bundle" / BUNDLES[wing], root.parent / BUNDLES[wing]):
        config = folder / "configs" / "train.json"
        if config.is_file() and json.loads(config.read_text())["experiment_name"] == BUNDLES[wing]:
            return folder
    raise InputError(f"{root} is another bundle: give the command in the folder of {BUNDLES[wing]}")


def _config_file(name: str, bundle: Path) -> str:
    """A config as a command in the bundle folder names it: one of the bundle's by its name, or the user's own."""
    if Path(name).is_file():
        return str(Path(name).absolute())
    for path in (Path(name), Path("configs", name)):
        if (bundle / path).is_file():
            return str(path)
    raise InputError(f"--config {name} is neither a file nor one in {bundle / 'configs'}: correct its name")


def _as_typed(value: object) -> str:
    """A value as one types it, so that the command line reads the same out of it."""
    text = str(value)
    is_text = isinstance(value, (str, Path)) and DefaultParseValue(text) == text
    return text if is_text else repr(value)


def perform(study: Study, runs: Sequence[Run], figures: Callable[[Run], str]) -> dict[str, str]:
    """Train and evaluate what is left to do, several at a time; return why each that failed did so.

    Args:
        figures: what is told of a run when it has ended well.
    """
    left = [run for run in runs if not run.finished.is_file()]
    if len(left) < len(runs):
        print(f"{len(runs) - len(left)} of {len(runs)} are there, {len(left)} are left", flush=True)
    failures: dict[str, str] = {}
    started, children = time.monotonic(), set[subprocess.Popen[str]]()
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that children end too
    pool = ThreadPoolExecutor(study.jobs)
    try:
        futures = {pool.submit(_train_and_evaluate, study, run, children): run for run in left}
        for number, future in enumerate(as_completed(futures), start=1):
            run, error = futures[future], future.exception()
            if isinstance(error, InputError):
                failures[run.name] = str(error)
            elif error is not None:
                raise error
            minutes = (time.monotonic() - started) / number * (len(left) - number) / 60
            remaining = f"about {minutes:.0f} min left" if number < len(left) else "the last"
            print(f"{run.name}: {f'failed: {error}' if error else figures(run)} ({remaining})", flush=True)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in list(children):
            child.terminate()
        signal.signal(signal.SIGTERM, before)
    return failures


def refuse_failures(failures: Mapping[str, str], runs: int) -> None:
    """Raise an error that names the first of the runs that failed."""
    if failures:
        name, reason = next(iter(failures.items()))
        raise InputError(
            f"{len(failures)} of {runs} runs failed, such as {name}: {reason}; correct it and give the same command "
            "again, which does what is left"
        )


def _train_and_evaluate(study: Study, run: Run, children: set[subprocess.Popen[str]]) -> None:
    started = time.monotonic()
    with (writable_folder(run.folder) / "log.txt").open("a", encoding="utf-8") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)  # its children hold it too, should this process be killed
        except OSError as error:
            raise InputError(f"another process works in {run.folder}: end that, or wait for it") from error
        print(f"{run.name}: begins, see {log.name}\n", end="", flush=True)  # in one piece, beside other threads
        unfinished = run.model.with_name("unfinished.pt").is_file()
        if unfinished or not run.model.is_file():
            if not unfinished:  # MLflow does not repair a database that was interrupted while it was made
                for left in run.folder.glob("mlruns.db*"):
                    left.unlink()
            _run_command(study, study.command(run), log, children)
        _run_command(study, study.command(run, evaluate=True), log, children)
    write_whole(run.finished, json.dumps({"seconds": round(time.monotonic() - started, 1)}) + "\n")


def _run_command(study: Study, command: Sequence[str], log: TextIO, children: set[subprocess.Popen[str]]) -> None:
    """Run a command to its end; one that fails is an error with the last that it said."""
    begins = log.seek(0, os.SEEK_END)
    threads = str(max(1, (os.cpu_count() or 1) // study.jobs))
    shares = {"OMP_NUM_THREADS": threads, **os.environ, RUNS_AT_A_TIME: str(study.jobs)}
    child = subprocess.Popen(command, cwd=study.bundle, env=shares, stdout=log, stderr=log, text=True)
    children.add(child)
    status = child.wait()
    children.discard(child)
    if status == 0:
        return
    said = Path(log.name).read_bytes()[begins:].decode(errors="replace").replace("\r", "\n").splitlines()
    lines = [line.strip() for line in said if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if re.match(r"error: |[\w.]+(Error|Exception): ", line)]
    last = (errors or lines or ["it said nothing"])[-1]
    raise InputError(f"{last} ({log.name})" if status > 0 else f"it was killed by signal {-status} ({log.name})")
