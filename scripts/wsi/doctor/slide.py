# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Examine one slide or one feature file: whether it can be used, and what there is to know about it."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import openslide

from scripts.core.errors import InputError
from scripts.core.lesions import contradiction
from scripts.core.units import Level0Coords, MicronsPerPixel
from scripts.doctor.findings import Finding, Level
from scripts.wsi.annotations.annotation import read_annotation
from scripts.wsi.features.base import (
    ADOPT,
    ENOUGH_TO_TELL,
    MICROMETRES,
    PIXELS,
    FeatureFile,
    FeatureHeader,
    SlidePatches,
    identical,
    impossible,
)
from scripts.wsi.features.clam import SIZE_OF_PATCH
from scripts.wsi.features.files import open_features
from scripts.wsi.features.lattice import distinct, mean_degree, on_lattice
from scripts.wsi.slides.slide import SlideFolder, damaged, open_slide, read_mpp

FEW_NEIGHBOURS = 4.0  # of 8
_BLOCK = 4096  # patches that are read at once
PROBE = 64  # pixels of the square that is read of a slide

_LOOK = "it is read as it is; look at it, and correct what is wrong"
_AGAIN = "extract the features again"


@dataclass
class Examined:
    """What was found in a feature file."""

    path: Path
    finding: Finding
    stated: FeatureHeader | None = None  # by the file itself; None where it cannot be read
    header: FeatureHeader | None = None  # with the scale of the slide, or the user's
    degree: float = 0.0  # neighbours of a patch on average
    content: str = ""  # the same for files of the same features; "" where they were not read


@dataclass(frozen=True)
class ExamOptions:
    """How files are examined, which is as a run would read them."""

    slides: Path | None = None  # the folder of the slides of the features
    quick: bool = False  # do not read the features themselves
    slide_mpp: float | None = None  # micrometres per pixel of slides whose features do not state it
    annotation_values: Any = None  # which values of a mask or classes of polygons count

    def require_valid(self) -> None:
        mpp = self.slide_mpp
        if mpp is not None and not (type(mpp) in (int, float) and 0 < mpp < math.inf):
            raise InputError(f"--slide_mpp {mpp!r}: give the micrometres per pixel, a number above 0")

    @cached_property
    def slide_folder(self) -> SlideFolder:
        return SlideFolder(None if self.slides is None else str(self.slides))


def examine_features(path: Path, name: str, options: ExamOptions, bag: Mapping[str, Any] | None = None) -> Examined:
    """Examine a feature file of a slide called `name`; `bag` holds what a datalist states of it."""
    examined = Examined(path, Finding(Level.PASS, "", name=name))
    try:
        with open_features(path) as file:
            examined.finding = _examine(file, examined, options, bag or {})._replace(name=name)
    except InputError as error:
        examined.finding = Finding(Level.FAIL, str(error), name=name)
    return examined


def _examine(file: FeatureFile, examined: Examined, options: ExamOptions, bag: Mapping[str, Any]) -> Finding:
    header, coords = file.header, file.coords
    examined.stated = examined.header = header
    if header.patches == 0:
        fix = "leave it out of training, inference reports it"
        return Finding(Level.WARN, "no patches, a slide without tissue", fix)
    completed = options.slide_folder.completed(file.slide, options.slide_mpp)
    examined.header = header = replace(header, mpp=completed.header.mpp)
    nodes = on_lattice(coords, header.pitch)
    examined.degree = degree = mean_degree(nodes)
    scale = "micrometres per pixel not known" if header.mpp is None else f"{header.mpp:.4g} micrometres per pixel"
    text = (
        f"{header.patches} patches of {header.dimension} numbers ({header.format}), "
        f"{header.pitch:.6g} {header.unit} apart ({header.pitch_from}), {scale}, {degree:.1f} of 8 neighbours"
    )
    if header.patches > 1 and degree == 0:
        raise InputError(f"no patch has a neighbour: the pitch is wrong ({text}): {_AGAIN}")
    twice = header.patches - len(distinct(nodes))
    if twice:
        raise InputError(f"{twice} of {header.patches} patches lie where another lies: {_AGAIN}, each patch once")
    if not options.quick:
        examined.content = _digest(file)
    remarks = _examine_truth(completed, bag, options)
    if degree < FEW_NEIGHBOURS and header.patches >= ENOUGH_TO_TELL:
        remarks.append("few patches have neighbours, so the tissue is scattered or the pitch is wrong")
    if not options.quick and identical(file):
        refused = ", so that training refuses them" * (header.patches >= ENOUGH_TO_TELL)
        remarks.append(f"the features of all patches are the same{refused}")
    may_overlap = SIZE_OF_PATCH in header.pitch_from and header.pitch < header.tile  # as CLAM states no step
    if "as the patches" in header.pitch_from and not may_overlap:
        remarks.append("the pitch that the file states is not that of its patches")
    if remarks:
        return Finding(Level.WARN, f"{'; '.join(remarks)} ({text})", _LOOK, size=header.patches)
    return Finding(Level.PASS, text, size=header.patches)


def _digest(file: FeatureFile) -> str:
    """Return a digest of all features, or refuse those that no network takes."""
    patches, spoilt = file.header.patches, 0
    digest = hashlib.blake2b(str((patches, file.header.dimension)).encode(), digest_size=16)
    for start in range(0, patches, _BLOCK):
        block = np.ascontiguousarray(file.read(start, start + _BLOCK))
        spoilt += int(impossible(block).any(axis=1).sum())
        digest.update(block.data)
    if spoilt:
        raise InputError(f"{spoilt} of {patches} patches hold NaN, infinite or impossible values: {_AGAIN}")
    return digest.hexdigest()


def _examine_truth(slide: SlidePatches, bag: Mapping[str, Any], options: ExamOptions) -> list[str]:
    """Return remarks on the labels of patches, or refuse those that cannot be read."""
    header = slide.header
    if bag.get("annotation") is None:
        given = bag.get("instance_label")
        return [] if given is None else contradiction(bag.get("label"), _positive(given, header.patches), "positive")
    if header.unit != PIXELS:
        text = f"its annotation is in pixels and its features in {header.unit}"
        way = "give --slides or --slide_mpp, here and to a run" if header.unit == MICROMETRES else ADOPT
        raise InputError(f"{text}: {way}")
    coords = Level0Coords(slide.coords)
    given = options.annotation_values
    values = [given] if isinstance(given, (int, str)) else given and list(given)
    annotation = read_annotation(bag["annotation"], header.slide_size, values, header.origin, coords)
    remarks = contradiction(bag.get("label"), int(annotation.tile_labels(coords, header.tile).sum()), "annotated")
    if header.origin is None and annotation.counts_from_bounds:
        remarks.append("its GeoJSON counts from the bounds of the slide, which are not known without --slides")
    return remarks


def _positive(given: Any, patches: int) -> int:
    """Return how many patches are positive, of a .npy or a list."""
    try:
        labels = np.load(given, allow_pickle=False) if isinstance(given, (str, Path)) else np.asarray(given)
        counts = np.isin(labels, (0, 1)).sum(), labels.size
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"instance_label {given} cannot be read: give a .npy with a number per patch") from error
    if counts != (patches, patches):
        text = f"instance_label has {counts[1]} numbers, {counts[0]} of them 0 or 1, for {patches} patches"
        raise InputError(f"{text}: give each patch 0 or 1, or leave it out")
    return int(labels.sum())


def examine_slide(path: Path, header: FeatureHeader | None = None, name: str | None = None) -> Finding:
    """Examine a slide as OpenSlide sees it, called `name` or else as its file, and whether features are of it."""
    name = name or path.stem
    try:
        with open_slide(path) as slide:
            width, height = slide.dimensions
            try:
                slide.read_region((width // 2, height // 2), 0, (PROBE, PROBE))
            except openslide.OpenSlideError as error:
                raise damaged(path, error) from error
            levels = ", ".join(f"{downsample:.4g}" for downsample in slide.level_downsamples)
            vendor = slide.properties.get(openslide.PROPERTY_NAME_VENDOR, "a vendor not known")
            text = f"{width} x {height} pixels, levels at {levels}, {vendor}"
            mpp = read_mpp(slide, path, MicronsPerPixel(math.nan))
        if header is not None and header.slide_size not in (None, (width, height)):
            size = f"{header.slide_size[0]} x {header.slide_size[1]} pixels"
            raise InputError(f"its features are of a slide of {size} ({text}): {_AGAIN}")
    except InputError as error:
        return Finding(Level.FAIL, str(error), name=name)
    megapixels = width * height // 10**6
    if math.isnan(mpp):
        fix = "give them with --slide_mpp when extracting features"
        return Finding(Level.WARN, f"no plausible micrometres per pixel ({text})", fix, name, megapixels)
    return Finding(Level.PASS, f"{text}, {mpp:.4g} micrometres per pixel", "", name, megapixels)
