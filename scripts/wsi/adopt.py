# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Feature files of any form, written once in this project's own: `python -m scripts adopt FOLDER`."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from scripts.core.cli import PROGRESS_AFTER_S
from scripts.core.errors import InputError
from scripts.core.files import writable_folder
from scripts.core.units import Level0Coords
from scripts.wsi.features.base import MICROMETRES, PIXELS, FeatureFile, Keys, require_possible
from scripts.wsi.features.files import feature_paths, nothing_found, open_features
from scripts.wsi.features.smooth_mil import PatchFeatures, SmoothMil, write_features
from scripts.wsi.slides.slide import SlideFolder

UNITS = ("level0", "micrometres")


@dataclass(frozen=True)
class Adoption:
    """What `adopt` is asked for."""

    folder: Path
    output_dir: Path
    keys: Keys
    encoder: str | None = None  # whatever the files state
    slides: str | None = None  # the folder of the slides
    slide_mpp: float | None = None

    def __post_init__(self) -> None:
        unit, numbers = self.keys.unit, (self.keys.unit, self.keys.pitch, self.slide_mpp)
        if isinstance(unit, str) and unit not in UNITS:
            raise InputError(f"--coords_unit {unit!r} is none: give level0, micrometres, or how many one of them is")
        for name, number in zip(("coords_unit", "pitch", "slide_mpp"), numbers, strict=True):
            if not isinstance(number, (str, type(None))) and not 0 < number < math.inf:
                raise InputError(f"--{name} {number!r}: give a number above 0")
        if self.output_dir.absolute().is_relative_to(self.folder.absolute()):
            raise InputError(f"{self.output_dir} lies in {self.folder}, and would be read with it: give another folder")


class Adopted(NamedTuple):
    """Lines of text on what became of the files."""

    written: list[str]
    warnings: list[str]  # of files that were written without what their slides state
    failed: list[str]


def adopt_features(wanted: Adoption) -> Adopted:
    """Write a file of each slide; return a line for each written, and for each that failed.

    Files that are of the own form already stay where they are.
    """
    paths = feature_paths(wanted.folder, any_place=True)
    if not paths:
        raise InputError(nothing_found(wanted.folder))
    folder, slides = writable_folder(wanted.output_dir), SlideFolder(wanted.slides)
    done: dict[str, Path] = {}
    warned: list[str] = []
    failed: list[str] = []
    for path in tqdm(paths, desc="slides", unit="slide", delay=PROGRESS_AFTER_S):
        try:
            with open_features(path, wanted.keys) as file:
                if file.header.format == SmoothMil.name:
                    continue
                own, warnings = _owned(file, slides, wanted)
            if other := done.get(own.slide_id):
                raise InputError(f"{path} and {other} are of one slide, {own.slide_id}; give the folder of one of them")
            write_features(folder / f"{own.slide_id}.h5", own)
            done[own.slide_id] = path
            warned += [f"{path}: {warning}" for warning in warnings]
        except InputError as error:
            failed.append(str(error))
    return Adopted([f"{slide}: {path}" for slide, path in done.items()], warned, failed)


def _owned(file: FeatureFile, slides: SlideFolder, wanted: Adoption) -> tuple[PatchFeatures, tuple[str, ...]]:
    """Return what the own form holds of a file, completed by its slide or the user, and why its slide was not used.

    It is refused without level-0 pixels.
    """
    header, coords, warnings = slides.completed(file.header, file.coords, file.path, wanted.slide_mpp)
    if header.patches and header.unit != PIXELS:
        way = "give --slides or --slide_mpp" if header.unit == MICROMETRES else "give --coords_unit, and --slides"
        raise InputError(
            "; ".join([f"the coords of {file.path} are {header.unit}, not level-0 pixels", *warnings, way])
        )
    features = file.read(0, header.patches)
    require_possible(file.path, features)
    own = PatchFeatures(
        features=features,
        coords=Level0Coords(np.rint(coords).astype(np.int64)),
        pitch=header.pitch,
        tile=header.tile,
        mpp=header.mpp,
        encoder=wanted.encoder or header.encoder,
        slide_id=header.slide_id.replace("/", "_").replace("\\", "_"),
        slide_size=header.slide_size or (0, 0),
        origin=header.origin,
    )
    return own, warnings
