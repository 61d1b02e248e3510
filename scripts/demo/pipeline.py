# Copyright (c) 2026 the smooth MIL bundle authors
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""The demonstration: both bundles from nothing to one page, by the commands a person would type."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from scripts.demo.page import write_page

ROOT = Path(__file__).parents[2]
ARMS = ("attention", "smooth")  # plain attention, and the smooth variant, from the same seed


class StepError(RuntimeError):
    """A command of the demonstration ended with an error; its log says why."""


@dataclass(frozen=True)
class Step:
    name: str
    title: str
    command: Sequence[str]
    folder: Path


def run_demo(directory: str = "demo", seed: int = 0) -> None:
    """Make data, train, evaluate and infer with both bundles, and write `DIRECTORY/index.html`.

    Args:
        directory: where everything goes; what is already there is not made again.
        seed: of the data and of the training.
    """
    home = Path(directory).resolve()
    started = time.monotonic()
    print(f"Demonstration in {directory}: two bundles side by side, some minutes on two cores", flush=True)
    with ThreadPoolExecutor(max_workers=2) as pool:
        tasks = [pool.submit(_run_all, home, steps) for steps in (ct_steps(home, seed), wsi_steps(home, seed))]
        failures = [str(error) for error in (task.exception() for task in tasks) if error is not None]
    if failures:
        sys.exit("\n".join(f"error: {failure}" for failure in failures))
    page = write_page(home)
    print(f"done in {time.monotonic() - started:.0f} s: open {os.path.relpath(page)} in a browser", flush=True)


def ct_steps(home: Path, seed: int) -> Iterator[Step]:
    """Head CT: LS1 with alpha 0.5 beside alpha 0."""
    bundle, work = ROOT / "bundle" / "hemorrhage_ct_smooth_mil", home / "ct"
    yield _data_step("ct", "synthetic head CT series", home, seed)
    small = "'configs/train.json','configs/small.json'"
    common = ["--dataset_dir", str(home / "data" / "ct"), "--num_workers", "0"]
    common += ["--cache_dir", str(work / f"cache_{seed}")]  # the cache would not notice another seed's data
    common += ["--seed", str(seed), "--tracking_uri", f"sqlite:///{work / 'mlruns.db'}"]
    for arm in ARMS:
        files = f"[{small},'configs/attention.json']" if arm == "attention" else f"[{small}]"
        yield from _train_and_evaluate("ct", arm, files, common, bundle, work)
    yield Step(
        "ct-inference",
        "CT: inference with pictures",
        _bundle_run(
            "['configs/inference.json','configs/small.json']",
            *("--dataset_dir", str(home / "data" / "ct"), "--datalist", str(home / "data" / "ct" / "datalist.json")),
            *("--ckpt_path", str(work / "smooth" / "model.pt"), "--output_dir", str(work / "inference")),
        ),
        bundle,
    )


def wsi_steps(home: Path, seed: int) -> Iterator[Step]:
    """Whole slides: SmAP beside the same network without smoothing."""
    bundle, work = ROOT / "bundle" / "pathology_wsi_smooth_mil", home / "wsi"
    data = home / "data" / "wsi"
    yield _data_step("wsi", "synthetic slides", home, seed)
    yield Step(
        "wsi-features",
        "WSI: features of the slides",
        _bundle_run("configs/features.json", "--dataset_dir", str(data), "--tile_size", "128"),
        bundle,
    )
    common = ["--dataset_dir", str(data), "--num_workers", "0", "--in_features", "128", "--learning_rate", "0.001"]
    common += [
        "--cache_dir",
        str(work / f"cache_{seed}"),
        "--max_epochs",
        "40",
        "--seed",
        str(seed),
        "--tracking_uri",
        f"sqlite:///{work / 'mlruns.db'}",
    ]
    for arm in ARMS:
        files = "['configs/train.json','configs/attention.json']" if arm == "attention" else "['configs/train.json']"
        yield from _train_and_evaluate("wsi", arm, files, common, bundle, work)
    yield Step(
        "wsi-inference",
        "WSI: inference with pictures",
        _bundle_run(
            "configs/inference.json",
            *("--dataset_dir", str(data), "--datalist", str(data / "datalist.json"), "--in_features", "128"),
            *("--ckpt_path", str(work / "smooth" / "model.pt"), "--output_dir", str(work / "inference")),
        ),
        bundle,
    )


def _data_step(task: str, what: str, home: Path, seed: int) -> Step:
    other = "--nowsi" if task == "ct" else "--noct"
    command = [sys.executable, "-m", "scripts", "demo-data", str(home / "data"), "--seed", str(seed), other]
    return Step(f"{task}-data", f"{task.upper()}: {what}", command, ROOT)


def _train_and_evaluate(task: str, arm: str, files: str, common: list[str], bundle: Path, work: Path) -> Iterator[Step]:
    folders = ["--ckpt_dir", str(work / arm), "--output_dir", str(work / arm)]
    train = _bundle_run(files, *common, *folders, "--run_name", arm)
    yield Step(f"{task}-train-{arm}", f"{task.upper()}: training, {arm}", train, bundle)
    files = files.replace("]", ",'configs/evaluate.json']")
    evaluate = _bundle_run(files, *common, *folders, "--run_name", f"evaluate_{arm}")
    yield Step(f"{task}-evaluate-{arm}", f"{task.upper()}: evaluation, {arm}", evaluate, bundle)


def _bundle_run(config_file: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "monai.bundle", "run", "--config_file", config_file, *arguments]


def _run_all(home: Path, steps: Iterator[Step]) -> None:
    fresh = False  # once a step has run, what follows from it is out of date
    for step in steps:
        fresh = _run(home, step, again=fresh) or fresh


def _run(home: Path, step: Step, again: bool) -> bool:
    """Run one command and say True, unless the very same one has already succeeded here."""
    log = home / "logs" / f"{step.name}.log"
    done = home / "logs" / f"{step.name}.done"
    log.parent.mkdir(parents=True, exist_ok=True)
    if not again and done.is_file() and done.read_text() == "\n".join(step.command):
        print(f"  {step.title}: already there", flush=True)
        return False
    print(f"  {step.title} ...", flush=True)
    done.unlink(missing_ok=True)
    started = time.monotonic()
    one_core = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # two bundles run side by side
    with log.open("w") as output:
        result = subprocess.run(
            step.command, cwd=step.folder, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **one_core}
        )
    if result.returncode != 0:
        last = log.read_text().strip().splitlines()[-1:]
        raise StepError(f"{step.title} failed: {' '.join(last)} (all of it: {os.path.relpath(log)})")
    done.write_text("\n".join(step.command))
    print(f"  {step.title}: {time.monotonic() - started:.0f} s", flush=True)
    return True
