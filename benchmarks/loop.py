# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Epochs of `train.json`, timed beside bare forward, backward and step on the batches of each."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser

from benchmarks.bags import tissue
from demo.heads import Head, plan_head, write_series
from scripts.core.units import Level0Coords, Level0Pixels
from scripts.ct.features import SliceFeatures, write_slice_features
from scripts.studies.runs import BUNDLES
from scripts.wsi.features.smooth_mil import PatchFeatures, write_features

ROOT = Path(__file__).parents[1]
SCANS = "ct scans"  # head CT on images; the others are on features
FILES = {"ct": ["train.json", "on_features.json"], "wsi": ["train.json"], SCANS: ["train.json"]}
SEED = 0
PITCH = Level0Pixels(256)


class Turns:
    """A handler of the trainer that runs the batches of each epoch once more, bare, and keeps the seconds of both.

    An epoch lasts from the end of the bare one before it to the end of what every other handler does after it: seeds,
    reading, batches, steps, the log, MLflow and the state to resume from.

    Args:
        config: Of the training, from which the bare epochs have a network, loss and optimizer of their own.
        kept: Of an epoch of large batches, so many are kept, and the bare one runs them again and again.
    """

    def __init__(self, config: ConfigParser, kept: int | None = None) -> None:
        self.network, self.loss, self.optimizer, self.prepare, self.device = (
            config.get_parsed_content(name) for name in ("network", "loss", "optimizer", "prepare_batch", "device")
        )
        self.amp = bool(config.get_parsed_content("amp"))
        self.dtype = getattr(torch, config.get_parsed_content("amp_dtype"))
        self.kept = kept
        self.batches: list[Any] = []
        self.steps = 0
        self.seconds: dict[str, list[float]] = {"epoch": [], "bare": []}
        self.began = 0.0

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.begin)
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, lambda engine: self.keep(engine.state.batch))
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.end)

    def begin(self) -> None:
        self.batches.clear()
        self.steps = 0
        self.began = self._now()

    def keep(self, batch: Any) -> None:
        self.steps += 1
        if self.kept is None or len(self.batches) < self.kept:
            self.batches.append(batch)

    def end(self) -> None:
        self.seconds["epoch"].append(self._now() - self.began)
        ready = [self.prepare(batch, self.device) for batch in self.batches]
        self.network.train()
        began = self._now()
        for step in range(self.steps):
            image, label, _, named = ready[step % len(ready)]
            self.optimizer.zero_grad()
            with torch.autocast(self.device.type, self.dtype, enabled=self.amp):
                loss = self.loss(self.network(image, **named), label)
            loss.backward()
            self.optimizer.step()
        self.seconds["bare"].append(self._now() - began)
        self.begin()

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def loop_profile(folder: str, cohorts: Mapping[str, Mapping[str, Any]], **options: Any) -> dict[str, Any]:
    """What `turns` tells of cohorts, by their names."""
    return {
        name: turns(str(Path(folder, str(place))), **cohort, **options)
        for place, (name, cohort) in enumerate(cohorts.items())
    }


def turns(
    home: str,
    kind: str,
    bags: int,
    instances: int,
    columns: int,
    epochs: int,
    device: str | None = None,
    kept: int | None = None,
    **keys: Any,
) -> dict[str, Any]:
    """Seconds of each epoch but the first, of the bare ones between them, and the ratio of their medians.

    Args:
        home: Folder of the cohort, made on first use.
        kind: A key of FILES.
        bags, instances, columns: How many bags, instances of one and features of each; of scans, whose phantoms have
            24 to 40 slices, `columns` are the rows and columns of a slice, and `instances` of the scans are different.
        epochs: So many are timed.
        device: By default that of the config.
        kept: Of `Turns`.
        keys: Of the config.
    """
    cohort = Path(home)
    if not cohort.exists():
        (write_scans if kind == SCANS else write_cohort)(cohort, kind, bags, instances, columns)
    places = {"dataset_dir": home, "ckpt_dir": f"{home}/out", "output_dir": f"{home}/out"}
    settings = {**places, "max_epochs": epochs + 1, "val_interval": 0, **keys}
    settings["image_size" if kind == SCANS else "in_features"] = columns
    if device is not None:
        settings["device"] = f"$torch.device('{device}')"
        settings["amp"] = device != "cpu"
    clock = Turns(config_of(kind, settings), kept)
    trainer = config_of(kind, settings).get_parsed_content("train#trainer")
    clock.attach(trainer)
    trainer.run()
    seconds = {name: each[1:] for name, each in clock.seconds.items()}  # the first warms up
    middle = {name: median(each) for name, each in seconds.items()}
    return {"bags": bags, **seconds, "ratio": middle["epoch"] / middle["bare"]}


def config_of(kind: str, settings: Mapping[str, Any]) -> ConfigParser:
    """The training of a bundle, by its files in FILES."""
    config, task = ConfigParser(), kind.split()[0]
    config.read_config([str(ROOT / "configs" / task / name) for name in FILES[kind]])
    config.update({"bundle_root": str(ROOT / "bundle" / BUNDLES[task]), **settings})
    return config


def write_scans(home: Path, kind: str, bags: int, different: int, size: int) -> None:
    """Phantoms in DICOM, each of the different ones several times under other names."""
    datalist = []
    for case in range(bags):
        folder = home / f"scan_{case}"
        if case < different:
            folder.mkdir(parents=True)
            write_series(Head(plan_head(SEED, case, positive=case % 2 == 1), SEED), folder.name, SEED, folder)
        else:
            folder.symlink_to(home / f"scan_{case % different}", target_is_directory=True)
        datalist.append({"image": folder.name, "label": case % 2})
    _write_datalist(home, datalist)


def write_cohort(home: Path, kind: str, bags: int, instances: int, columns: int) -> None:
    """Bags of noise, of 0.7 to 1.3 times as many instances."""
    home.mkdir(parents=True)
    rng = np.random.default_rng(SEED)
    datalist = []
    for number in range(bags):
        count = round(instances * rng.uniform(0.7, 1.3))
        features = rng.normal(size=(count, columns)).astype(np.float32)
        path = home / f"{number}.h5"
        if kind == "ct":
            about = {"tilt_degrees": 0.0, "spacing_mm": [5.0, 5.0], "warnings": [], "set_aside": []}
            uids = [f"1.2.840.{number}.{k}" for k in range(count)]
            write_slice_features(path, SliceFeatures(features, 5.0 * np.arange(count), uids, about, "noise", "{}"))
        else:
            coords = Level0Coords(tissue(count).T.numpy() * PITCH)
            width, height = (int(side) for side in coords.max(axis=0) + PITCH)
            write_features(
                path, PatchFeatures(features, coords, PITCH, PITCH, None, "noise", path.stem, (width, height))
            )
        datalist.append({"image": path.name, "label": number % 2})
    _write_datalist(home, datalist)


def _write_datalist(home: Path, datalist: list[dict[str, Any]]) -> None:
    sections = {"training": datalist, "validation": datalist[:2]}
    (home / "datalist.json").write_text(json.dumps(sections))
