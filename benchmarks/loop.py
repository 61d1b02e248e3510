# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Epochs of `train.json` on features, timed beside bare forward, backward and step on the batches of each."""

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
from scripts.core.units import Level0Coords, Level0Pixels
from scripts.ct.features import SliceFeatures, write_slice_features
from scripts.studies.runs import BUNDLES
from scripts.wsi.features.smooth_mil import PatchFeatures, write_features

ROOT = Path(__file__).parents[1]
FILES = {"ct": ["train.json", "on_features.json"], "wsi": ["train.json"]}
SEED = 0
PITCH = Level0Pixels(256)


class Turns:
    """A handler of the trainer that runs the batches of each epoch once more, bare, and keeps the seconds of both.

    An epoch lasts from the end of the bare one before it to the end of what every other handler does after it: seeds,
    reading, batches, steps, the log, MLflow and the state to resume from.

    Args:
        config: Of the training, from which the bare epochs have a network, loss and optimizer of their own.
    """

    def __init__(self, config: ConfigParser) -> None:
        self.network, self.loss, self.optimizer, self.prepare, self.device = (
            config.get_parsed_content(name) for name in ("network", "loss", "optimizer", "prepare_batch", "device")
        )
        self.amp = bool(config.get_parsed_content("amp"))
        self.dtype = getattr(torch, config.get_parsed_content("amp_dtype"))
        self.batches: list[Any] = []
        self.seconds: dict[str, list[float]] = {"epoch": [], "bare": []}
        self.began = 0.0

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.begin)
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, lambda engine: self.batches.append(engine.state.batch))
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.end)

    def begin(self) -> None:
        self.batches.clear()
        self.began = self._now()

    def end(self) -> None:
        self.seconds["epoch"].append(self._now() - self.began)
        ready = [self.prepare(batch, self.device) for batch in self.batches]
        self.network.train()
        began = self._now()
        for image, label, _, named in ready:
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


def loop_profile(folder: str, cohorts: Mapping[str, tuple[str, int, int, int]], epochs: int) -> dict[str, Any]:
    """What `turns` tells of cohorts: name → the bundle, bags, instances of one, features of each."""
    return {name: turns(Path(folder) / cohort[0], *cohort, epochs) for name, cohort in cohorts.items()}


def turns(home: Path, task: str, bags: int, instances: int, columns: int, epochs: int) -> dict[str, Any]:
    """Seconds of each epoch but the first, of the bare ones between them, and the ratio of their medians."""
    if not home.exists():
        write_cohort(home, task, bags, instances, columns)
    places = {"dataset_dir": str(home), "ckpt_dir": str(home / "out"), "output_dir": str(home / "out")}
    places["bundle_root"] = str(ROOT / "bundle" / BUNDLES[task])
    settings = {**places, "in_features": columns, "max_epochs": epochs + 1, "val_interval": 0}
    clock = Turns(_config(task, settings))
    trainer = _config(task, settings).get_parsed_content("train#trainer")
    clock.attach(trainer)
    trainer.run()
    seconds = {name: each[1:] for name, each in clock.seconds.items()}  # the first warms up
    middle = {name: median(each) for name, each in seconds.items()}
    return {"bags": bags, **seconds, "ratio": middle["epoch"] / middle["bare"]}


def _config(task: str, settings: Mapping[str, Any]) -> ConfigParser:
    config = ConfigParser()
    config.read_config([str(ROOT / "configs" / task / name) for name in FILES[task]])
    config.update(dict(settings))
    return config


def write_cohort(home: Path, task: str, bags: int, instances: int, columns: int) -> None:
    """Bags of noise, of 0.7 to 1.3 times as many instances."""
    home.mkdir(parents=True)
    rng = np.random.default_rng(SEED)
    datalist = []
    for number in range(bags):
        count = round(instances * rng.uniform(0.7, 1.3))
        features = rng.normal(size=(count, columns)).astype(np.float32)
        path = home / f"{number}.h5"
        if task == "ct":
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
    sections = {"training": datalist, "validation": datalist[:2]}
    (home / "datalist.json").write_text(json.dumps(sections))
