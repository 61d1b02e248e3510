# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Feature files of any form, written once in this project's own: `python -m scripts adopt FOLDER`."""

import math
from pathlib import Path

import numpy as np
from tqdm import tqdm

from scripts.core.cli import PROGRESS_AFTER_S
from scripts.core.errors import InputError
from scripts.core.files import writable_folder
from scripts.core.units import Level0Coords
from scripts.wsi.features.base import MICROMETRES, PIXELS, FeatureFile, Keys, SlidePatches, require_possible
from scripts.wsi.features.files import feature_paths, nothing_found, open_features
from scripts.wsi.features.smooth_mil import PatchFeatures, SmoothMil, write_features
from scripts.wsi.slides.slide import SlideFolder

UNITS = ("level0", "micrometres")


def adopt_features(
    folder: Path, output_dir: Path, keys: Keys, encoder: str | None, slides: str | None, slide_mpp: float | None
) -> None:
    """Write a file of each slide, and print what became of them.

    Files that are of the own form already stay where they are.

    Args:
        folder: of the files.
        output_dir: of those that are written.
        keys: what the files do not say.
        encoder: whatever the files state.
        slides: the folder of the slides.
        slide_mpp: micrometres per pixel of slides where nothing states it.
    """
    _require_usable(folder, output_dir, keys, slide_mpp)
    paths = feature_paths(folder, any_place=True)
    if not paths:
        raise InputError(nothing_found(folder))
    of_slides, is_new = SlideFolder(slides), not output_dir.exists()
    writable_folder(output_dir)
    done: dict[str, Path] = {}
    warned: list[str] = []
    failed: list[str] = []
    for path in tqdm(paths, desc="slides", unit="slide", delay=PROGRESS_AFTER_S):
        try:
            with open_features(path, keys) as file:
                if file.header.format == SmoothMil.name:
                    continue
                slide = of_slides.completed(file.slide, slide_mpp)
                own = _owned(file, slide, encoder)
            if other := done.get(own.slide_id):
                raise InputError(f"{path} and {other} are of one slide, {own.slide_id}; give the folder of one of them")
            write_features(output_dir / f"{own.slide_id}.h5", own)
            done[own.slide_id] = path
            warned += [f"{path}: {warning}" for warning in slide.warnings]
        except InputError as error:
            failed.append(str(error))
    for line in (*warned, *failed):
        print(line)
    print(f"{len(done)} slides written to {output_dir}, {len(failed)} not")
    if failed and not done:
        if is_new:
            output_dir.rmdir()
        raise InputError(f"no file of {folder} could be adopted; mend what is said above")


def _require_usable(folder: Path, output_dir: Path, keys: Keys, slide_mpp: float | None) -> None:
    if isinstance(keys.unit, str) and keys.unit not in UNITS:
        raise InputError(f"--coords_unit {keys.unit!r} is none: give level0, micrometres, or how many one of them is")
    for name, number in {"coords_unit": keys.unit, "pitch": keys.pitch, "slide_mpp": slide_mpp}.items():
        if not isinstance(number, (str, type(None))) and not 0 < number < math.inf:
            raise InputError(f"--{name} {number!r}: give a number above 0")
    if output_dir.absolute().is_relative_to(folder.absolute()):
        raise InputError(f"{output_dir} lies in {folder}, and would be read with it: give another folder")


def _owned(file: FeatureFile, slide: SlidePatches, encoder: str | None) -> PatchFeatures:
    """Return what the own form holds of a file and what is known of its slide; refused without level-0 pixels."""
    header = slide.header
    if header.patches and header.unit != PIXELS:
        way = "give --slides or --slide_mpp" if header.unit == MICROMETRES else "give --coords_unit, and --slides"
        problem = f"the coords of {file.path} are {header.unit}, not level-0 pixels"
        raise InputError("; ".join([problem, *slide.warnings, way]))
    features = file.read(0, header.patches)
    require_possible(file.path, features)
    return PatchFeatures(
        features=features,
        coords=Level0Coords(np.rint(slide.coords).astype(np.int64)),
        pitch=header.pitch,
        tile=header.tile,
        mpp=header.mpp,
        encoder=encoder or header.encoder,
        slide_id=header.slide_id.replace("/", "_").replace("\\", "_"),
        slide_size=header.slide_size or (0, 0),
        origin=header.origin,
    )
