# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The experiment behind the table of real images: slices of PHE-SICH through the slice network, from bag labels."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.transforms import Compose
from torch import Tensor

from benchmarks.ledger import data
from benchmarks.ledger.answers import Arrays, answers, deletions
from benchmarks.ledger.learning import Bags, System, fit, padded, parts_of
from scripts.core.files import sha256_of
from scripts.ct.transforms import RandSliceDropd, SliceWindowsd

FOLDS = 5
PREPARED_BY = ("preprocessing", "augmentation")  # keys of the config that a training here takes besides
HU = 80 / 255  # of a step of grey: the images are the brain window


class Window(NamedTuple):
    """A bag of neighbouring slices of one scan."""

    scan: str
    start: int
    slices: int
    label: int
    fold: int


class Cohort(NamedTuple):
    """Scans by their slices, from the lowest up, and the bags cut out of them."""

    scans: dict[str, np.ndarray]  # [N, rows, columns] uint8
    truth: dict[str, np.ndarray]  # (N,)
    windows: list[Window]

    def of_fold(self, fold: int) -> list[Window]:
        return [window for window in self.windows if window.fold == fold]

    def scans_of_fold(self, fold: int) -> list[str]:
        return list(dict.fromkeys(window.scan for window in self.of_fold(fold)))


@cache
def cohort() -> Cohort:
    """96 scans, and windows with and without bleeding at the same heights."""
    images, windows = _paths()
    with np.load(images) as file:
        names, order, label, image = (file[name] for name in ("scan", "order", "label", "image"))
    at = {name: np.flatnonzero(names == name) for name in dict.fromkeys(names.tolist())}
    at = {str(name): where[np.argsort(order[where], kind="stable")] for name, where in at.items()}
    cut = [Window(*(window[name] for name in Window._fields)) for window in json.loads(windows.read_text())]
    return Cohort({n: image[where] for n, where in at.items()}, {n: label[where] for n, where in at.items()}, cut)


def sha256_of_images() -> str:
    """Return a short text that changes with the data."""
    return "".join(sha256_of(path)[:8] for path in _paths())


def _paths() -> tuple[Path, Path]:
    return data.file("ct_images/phe_sich.npz"), data.file("ct_images/matched_windows.json")


class Augmented(Bags):
    """Bags that the bundle's own augmentation changes anew whenever they are chosen."""

    transform: Compose

    def chosen(self, which: np.ndarray) -> Bags:
        own = Bags(*self).chosen(which)
        return own._replace(image=torch.stack([self._changed(image) for image in own.image]))

    def _changed(self, image: Tensor) -> Tensor:
        changed: Tensor = self.transform({"image": image})["image"]
        return changed


def train(wing: str, files: Sequence[str], keys: dict[str, Any], config: str, data_sha256: str, fold: int) -> Arrays:
    """One network: its answers to the bags and to the whole scans of a fold that it did not see."""
    system, known = System(wing, tuple(files), keys), cohort()
    parser = system.parser()
    slices = {name: _windowed(parser, scan) for name, scan in known.scans.items()}  # [N, windows, rows, columns]

    def bags_of(windows: Sequence[Window]) -> Bags:
        cut = [slices[own.scan][own.start : own.start + own.slices] for own in windows]
        return padded(cut, [own.label for own in windows])

    choosing = (fold + 1) % FOLDS
    learned = bags_of([own for own in known.windows if own.fold not in (fold, choosing)])
    training = Augmented(*learned)
    made = parts_of(system, seed=fold)
    changes = parser.get_parsed_content("augmentation")
    training.transform = Compose([each for each in changes if not isinstance(each, RandSliceDropd)])  # 8 slices stay 8
    training.transform.set_random_state(fold)
    made.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network, course = fit(made, training, bags_of(known.of_fold(choosing)), fold)
    of_windows = [answers(network, bags_of([window]))["logit"] for window in known.of_fold(fold)]
    whole = [padded([slices[name]], [1]) for name in known.scans_of_fold(fold)]
    of_scans = [{**(own := answers(network, scan)), **deletions(network, scan, own)} for scan in whole]
    together = {name: np.concatenate([own[name] for own in of_scans]) for name in of_scans[0]}
    return {"course": np.array(course), "window_logit": np.concatenate(of_windows), **together}


def _windowed(parser: Any, scan: np.ndarray) -> np.ndarray:
    """Return the slices as the bundle's preprocessing makes them of Hounsfield units: [N, windows, rows, columns]."""
    (transform,) = (
        parser.get_parsed_content(f"preprocessing#transforms#{place}")
        for place, own in enumerate(parser["preprocessing#transforms"])
        if own["_target_"].endswith(SliceWindowsd.__name__)  # no file is read here
    )
    volume = torch.from_numpy(scan.astype(np.float32) * HU).permute(2, 1, 0)[None]  # [1, X, Y, N]
    image: np.ndarray = transform({"image": volume})["image"].numpy()
    return np.moveaxis(image, -1, 0)
