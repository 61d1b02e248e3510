# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The record of a run: one JSON file, written whole after each epoch, from which the run is delivered to MLflow.

It names no bag: the data are in it as counts and a hash. docs/reference/outputs.md describes its form.
"""

import hashlib
import json
import logging
import math
import os
import platform
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from scripts.core.errors import InputError
from scripts.core.files import alone_with, sha256_of, write_whole
from scripts.engine.provenance import running_config

ENDING = ".run.json"
READ_KEYS = {  # keys that somebody reads in a record
    *("id", "run_name", "experiment_name", "tracking_uri", "status", "started", "ended", "delivered", "params", "tags"),
    *("epochs", "kept", "metrics", "artifacts", "input", "requirements", "config"),
}
PACKAGES = ("torch", "monai", "pytorch-ignite", "mlflow", "numpy")

Record = dict[str, Any]

logger = logging.getLogger(__name__)


def run_file(ckpt_path: str | Path) -> Path:
    """Return the file beside weights that holds the record of their training."""
    return Path(ckpt_path).with_suffix(ENDING)


def weights_of(path: Path) -> Path:
    """Return the weights that a record of a training lies beside."""
    return path.with_name(path.name.removesuffix(ENDING) + ".pt")


def evaluations_file(ckpt_path: str | Path) -> Path:
    """Return the file beside weights that lists the evaluations made with them."""
    return Path(ckpt_path).with_suffix(".evaluations.json")


def fingerprint(bags: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return how many bags there are, how many of each label, and a hash that changes with their ids and labels.

    A label may be the path of a painted mask, which would name a patient where it is counted.
    """
    known = sorted((str(bag.get("bag_id") or bag["image"]), str(bag.get("label"))) for bag in bags)
    labels = ("mask" if isinstance(label := bag.get("label"), str) else str(label) for bag in bags)
    counts = sorted(Counter(labels).items())
    return {
        "bags": len(known),
        "labels": dict(counts),
        "sha256": hashlib.sha256(json.dumps(known).encode()).hexdigest(),
    }


def new_record(
    run_name: str,
    experiment_name: str,
    tracking_uri: str,
    bundle_root: str,
    device: object,
    bags: Mapping[str, Sequence[Mapping[str, Any]]],
    params: Mapping[str, Any],
) -> Record:
    """Return the record of a run that begins; called by a component of the config that is being run.

    Args:
        bags: section → its bags.
        params: what is logged beside the plain values of the config.
    """
    config = {key: _without_bags(value) for key, value in running_config().get().items() if key != "_meta_"}
    metadata: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        metadata = json.loads((Path(bundle_root) / "configs" / "metadata.json").read_text())
    data = {section: fingerprint(of_section) for section, of_section in bags.items()}
    of_data = {
        f"{section}_{name}": value
        for section, known in data.items()
        for name, value in ({**known, "labels": json.dumps(known["labels"])}).items()
    }
    plain = {key: value for key, value in config.items() if _stands_for_itself(value)}
    required = {name: metadata.get(f"{key}_version") for name, key in (("monai", "monai"), ("torch", "pytorch"))}
    required |= {"numpy": metadata.get("numpy_version"), **metadata.get("required_packages_version", {})}
    return {
        "id": uuid.uuid4().hex,
        "run_name": run_name,
        "experiment_name": experiment_name,
        "tracking_uri": effective_uri(tracking_uri),
        "status": "RUNNING",  # as MLflow calls it; then FINISHED, FAILED or KILLED
        "started": now(),
        "ended": None,
        "delivered": False,
        "params": {key: str(value) for key, value in {**plain, **of_data, **params}.items()},
        "tags": {
            **_circumstances(device),
            "bundle": metadata.get("name", ""),
            "bundle_version": metadata.get("version", ""),
        },
        "data": data,
        "epochs": [],
        "kept": None,
        "metrics": {},
        "artifacts": [],
        "input": {},
        "requirements": [f"{name}=={wanted}" for name, wanted in required.items() if wanted],
        "config": config,
    }


def _without_bags(config: Any) -> Any:
    """A config as JSON has it; bags that a program put into it would name patients."""
    if isinstance(config, Mapping):
        is_bag = bool({"bag_id", "image"} & config.keys())
        return "<bag>" if is_bag else {str(key): _without_bags(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [_without_bags(value) for value in config]
    return config if isinstance(config, (int, float, str, type(None))) else f"<{type(config).__name__}>"


def _stands_for_itself(value: object) -> bool:
    if isinstance(value, list):
        return all(map(_stands_for_itself, value))
    return isinstance(value, (int, float, str)) and not str(value).startswith(("$", "@", "%"))


def _circumstances(device: object) -> dict[str, str]:
    """Versions of the packages, the revision of the code, the device and the number of processes."""
    found = {name: version(name) for name in PACKAGES}
    found["python"] = platform.python_version()
    is_gpu = str(device).startswith("cuda")
    found["device"] = torch.cuda.get_device_name(torch.device(str(device))) if is_gpu else platform.processor() or "cpu"
    found["processes"] = str(dist.get_world_size() if dist.is_initialized() else 1)
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with suppress(OSError, subprocess.SubprocessError):
        revision = subprocess.run(git, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
        found["mlflow.source.git.commit"] = revision  # MLflow's own name for it
    return found


def effective_uri(tracking_uri: str) -> str:
    """Return where to deliver to: MLFLOW_TRACKING_URI wins over the config, as in MONAI."""
    return os.environ.get("MLFLOW_TRACKING_URI") or tracking_uri


def now() -> int:
    """Return milliseconds since 1970, as MLflow counts time."""
    return int(time.time() * 1000)


def finite_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics that are finite numbers: JSON has no others."""
    numbers = {name: float(value) for name, value in metrics.items() if isinstance(value, (int, float, torch.Tensor))}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def read_record(path: Path) -> Record | None:
    """Return a record; None where there is none, or where the file holds something else."""
    try:
        record: Record = json.loads(path.read_text())
        epochs = [*record["epochs"], *([record["kept"]] if record["kept"] else [])]
        return record if record.keys() >= READ_KEYS and all("epoch" in epoch for epoch in epochs) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_record(path: Path, record: Record) -> None:
    """Write a record whole."""
    write_whole(path, json.dumps(record, indent=1) + "\n")


def set_aside(path: Path) -> None:
    """Keep the record of another run that has the name of one which begins, as it may not be delivered yet."""
    if path.is_file():
        stem = path.name.removesuffix(ENDING)
        when = time.strftime("%Y%m%d_%H%M%S", time.localtime(path.stat().st_mtime))
        number = next(n for n in range(1000) if not path.with_name(f"{stem}_{when}_{n}{ENDING}").exists())
        path.rename(path.with_name(f"{stem}_{when}_{number}{ENDING}"))


def remember_evaluation(ckpt_path: str, section: str, sha256: str, run_name: str) -> int:
    """List an evaluation beside the weights, and return how often these very bags were evaluated there before.

    The list stays when another training replaces the weights: the bags have been looked at all the same.
    """
    path = evaluations_file(ckpt_path)
    when = time.strftime("%Y-%m-%d %H:%M:%S")
    entry = {"when": when, "section": section, "bags_sha256": sha256, "run_name": run_name}
    try:
        entry["weights_sha256"] = sha256_of(ckpt_path)
        with alone_with(Path(ckpt_path)):
            made = json.loads(path.read_text()) if path.is_file() else []
            before = sum((each["section"], each["bags_sha256"]) == (section, sha256) for each in made)
            write_whole(path, json.dumps([*made, entry], indent=4) + "\n")
        return before
    except (OSError, InputError, ValueError, TypeError, KeyError) as error:
        logger.warning("%s cannot keep this evaluation (%s)", path, type(error).__name__)
        return 0
