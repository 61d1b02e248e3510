# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The demonstration: both bundles from nothing to one page, by the commands a person would type."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from demo.page import write_page

ROOT = Path(__file__).parents[1]
ARMS = ("attention", "smooth")  # plain attention, and the smooth variant, from the same seed


class StepError(RuntimeError):
    """A command of the demonstration ended with an error; its log says why."""


@dataclass(frozen=True)
class Step:
    name: str
    title: str
    command: Sequence[str]
    folder: Path
    after: tuple[str, ...] = ()  # the steps whose files it reads


def run_demo(directory: str, seed: int = 0) -> None:
    """Make data, train, evaluate and infer with both bundles, and write `DIRECTORY/index.html`.

    Args:
        directory: where everything goes; what is already there is not made again.
        seed: of the data and of the training.
    """
    home = Path(directory).resolve()
    started = time.monotonic()
    print(f"Demonstration in {directory}: two steps side by side, some minutes on two cores", flush=True)
    failures = _run_all(home, [*ct_steps(home, seed), *wsi_steps(home, seed)])
    if failures:
        sys.exit("\n".join(f"error: {failure}" for failure in failures))
    page = write_page(home)
    print(f"done in {time.monotonic() - started:.0f} s: open {os.path.relpath(page)} in a browser", flush=True)


def ct_steps(home: Path, seed: int) -> Iterator[Step]:
    """Head CT: LS1 with alpha 0.5 beside alpha 0."""
    bundle, data, work = ROOT / "bundle" / "hemorrhage_ct_smooth_mil", home / "data" / "ct", home / "ct"
    yield _data_step("ct", "synthetic head CT series", home, seed)
    small = "'configs/train.json','configs/small.json'"
    common = ["--dataset_dir", str(data), "--num_workers", "0", "--seed", str(seed)]
    for arm in ARMS:
        files = f"[{small},'configs/attention.json']" if arm == "attention" else f"[{small}]"
        yield from _train_and_evaluate("ct", arm, files, common, bundle, work, seed, after="ct-data")
    yield _inference_step("ct", "['configs/inference.json','configs/small.json']", bundle, data, work)


def wsi_steps(home: Path, seed: int) -> Iterator[Step]:
    """Whole slides: SmAP beside the same network without smoothing."""
    bundle, data, work = ROOT / "bundle" / "pathology_wsi_smooth_mil", home / "data" / "wsi", home / "wsi"
    yield _data_step("wsi", "synthetic slides", home, seed)
    encode = _bundle_run("configs/features.json", "--dataset_dir", str(data), "--tile_size", "128")
    yield Step("wsi-features", "WSI: features of the slides", encode, bundle, after=("wsi-data",))
    common = ["--dataset_dir", str(data), "--num_workers", "0", "--seed", str(seed)]
    common += ["--in_features", "128"]
    for arm in ARMS:
        files = "['configs/train.json','configs/attention.json']" if arm == "attention" else "['configs/train.json']"
        yield from _train_and_evaluate("wsi", arm, files, common, bundle, work, seed, after="wsi-features")
    more = ("--in_features", "128", "--slides", str(data / "slides"), "--page_from", "0")
    yield _inference_step("wsi", "configs/inference.json", bundle, data, work, *more)


def _data_step(task: str, what: str, home: Path, seed: int) -> Step:
    command = [sys.executable, "-m", "demo", "data", str(home / "data"), "--seed", str(seed), "--only", task]
    return Step(f"{task}-data", f"{task.upper()}: {what}", command, ROOT)


def _train_and_evaluate(
    task: str, arm: str, files: str, common: list[str], bundle: Path, work: Path, seed: int, after: str
) -> Iterator[Step]:
    folders = ["--ckpt_dir", str(work / arm), "--output_dir", str(work / arm)]
    # of its own, as both arms may write at once, and of this seed, as a cache would not notice other data
    folders += ["--cache_dir", str(work / arm / f"cache_{seed}")]
    train, evaluate = f"{task}-train-{arm}", f"{task}-evaluate-{arm}"
    command = _bundle_run(files, *common, *folders, "--run_name", arm)
    yield Step(train, f"{task.upper()}: training, {arm}", command, bundle, after=(after,))
    files = files.replace("]", ",'configs/evaluate.json']")
    command = _bundle_run(files, *common, *folders, "--run_name", f"evaluate_{arm}")
    yield Step(evaluate, f"{task.upper()}: evaluation, {arm}", command, bundle, after=(train,))


def _inference_step(task: str, files: str, bundle: Path, data: Path, work: Path, *more: str) -> Step:
    command = _bundle_run(
        files,
        *("--dataset_dir", str(data), "--datalist", str(data / "datalist.json")),
        *("--ckpt_path", str(work / "smooth" / "model.pt"), "--output_dir", str(work / "inference"), *more),
    )
    title = f"{task.upper()}: inference with pictures"
    return Step(f"{task}-inference", title, command, bundle, after=(f"{task}-train-smooth",))


def _bundle_run(config_file: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "monai.bundle", "run", "--config_file", config_file, *arguments]


def _run_all(home: Path, steps: list[Step]) -> list[str]:
    """Run every step as soon as those before it have succeeded, two at a time; gives the failures."""
    waiting = list(steps)
    running: dict[Future[bool], Step] = {}
    fresh: dict[str, bool] = {}  # of each step that succeeded: whether it had to run
    failures = []
    with ThreadPoolExecutor(max_workers=2) as pool:
        while waiting or running:
            ready = [step for step in waiting if all(name in fresh for name in step.after)]
            for step in ready[: 2 - len(running)]:
                waiting.remove(step)
                out_of_date = any(fresh[name] for name in step.after)
                running[pool.submit(_run, home, step, out_of_date)] = step
            if not running:
                break  # what still waits does so for a step that failed
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                step, error = running.pop(future), future.exception()
                if error is None:
                    fresh[step.name] = future.result()
                else:
                    failures.append(str(error))
    return failures


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
    one_core = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # two steps run side by side
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
