# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Examine one slide or one feature file: whether it can be used, and what there is to know about it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import openslide

from scripts.core.errors import InputError
from scripts.doctor.findings import Level, ScanFinding
from scripts.wsi.annotations.annotation import read_annotation
from scripts.wsi.features.base import MICROMETRES, FeatureFile, FeatureHeader
from scripts.wsi.features.files import open_features
from scripts.wsi.features.lattice import distinct, lattice_places, mean_degree
from scripts.wsi.slides.folder import Completed, SlideFolder
from scripts.wsi.slides.slide import damaged, open_slide, read_mpp
from scripts.wsi.transforms import contradiction

FEW_NEIGHBOURS, ENOUGH_TO_TELL = 4.0, 16  # of 8; a handful of patches has few whatever the pitch
_BLOCK = 4096  # patches that are read at once
PROBE = 64  # pixels of the square that is read of a slide

_LOOK = "it is read as it is; look at it, and correct what is wrong"
_AGAIN = "extract the features again"


class Examined(NamedTuple):
    """What was found in a feature file."""

    finding: ScanFinding
    header: FeatureHeader | None = None
    degree: float = 0.0  # neighbours of a patch on average
    content: str = ""  # the same for files of the same features; "" where they were not read


class How(NamedTuple):
    """How a file is examined, which is as a run would read it."""

    quick: bool = False  # the features themselves are not read
    slides: SlideFolder = SlideFolder(None)
    slide_mpp: float | None = None  # of slides that do not say it
    annotation_values: Sequence[int | str] | None = None


def examine_features(path: Path, name: str, how: How, bag: Mapping[str, Any] | None = None) -> Examined:
    """Examine a feature file of any format.

    Args:
        path: the file.
        name: what the slide is called.
        how: what is looked at.
        bag: its annotation, instance_label and label, where a datalist gives them.
    """
    try:
        with open_features(path) as file:
            return _examined(file, name, how, bag or {})
    except InputError as error:
        return Examined(ScanFinding(name, Level.FAIL, str(error)))


def _examined(file: FeatureFile, name: str, how: How, bag: Mapping[str, Any]) -> Examined:
    header, coords = file.header, file.coords
    if header.patches == 0:
        fix = "leave it out of training, inference reports it"
        return Examined(ScanFinding(name, Level.WARN, "no patches, a slide without tissue", fix), header)
    completed = how.slides.completed(header, coords, file.path, how.slide_mpp)
    header = replace(header, mpp=completed.header.mpp)
    nodes = lattice_places(coords, header.pitch)
    degree = mean_degree(nodes)
    scale = "micrometres per pixel not known" if header.mpp is None else f"{header.mpp:.4g} micrometres per pixel"
    text = (
        f"{header.patches} patches of {header.dimension} numbers ({header.format}), "
        f"{header.pitch:.6g} {header.unit} apart ({header.pitch_from}), {scale}, {degree:.1f} of 8 neighbours"
    )
    if header.patches > 1 and degree == 0:
        alone = f"no patch has a neighbour: the pitch is wrong ({text})"
        return Examined(ScanFinding(name, Level.FAIL, alone, _AGAIN), header)
    twice = header.patches - len(distinct(nodes))
    if twice:
        crowded = f"{twice} of {header.patches} patches lie where another lies"
        return Examined(ScanFinding(name, Level.FAIL, crowded, f"{_AGAIN}, each patch once"), header, degree)
    spoilt, content = (0, "") if how.quick else _read_all(file)
    if spoilt:
        broken = f"{spoilt} of {header.patches} patches hold NaN or infinite values"
        return Examined(ScanFinding(name, Level.FAIL, broken, _AGAIN), header, degree)
    try:
        remarks = _examine_truth(completed, bag, how)
    except InputError as error:
        return Examined(ScanFinding(name, Level.FAIL, str(error)), header, degree, content)
    if degree < FEW_NEIGHBOURS and header.patches >= ENOUGH_TO_TELL:
        remarks.append("few patches have neighbours, so the tissue is scattered or the pitch is wrong")
    if "as the patches" in header.pitch_from:
        remarks.append("the pitch that the file states is not that of its patches")
    if remarks:
        finding = ScanFinding(name, Level.WARN, f"{'; '.join(remarks)} ({text})", _LOOK, header.patches)
    else:
        finding = ScanFinding(name, Level.PASS, text, slices=header.patches)
    return Examined(finding, header, degree, content)


def _read_all(file: FeatureFile) -> tuple[int, str]:
    """Return how many patches are not finite, and a digest of all."""
    digest = hashlib.blake2b(str((file.header.patches, file.header.dimension)).encode(), digest_size=16)
    spoilt = 0
    for start in range(0, file.header.patches, _BLOCK):
        block = np.ascontiguousarray(file.read(start, start + _BLOCK))
        spoilt += len(block) - int(np.isfinite(block).all(axis=1).sum())
        digest.update(block.data)
    return spoilt, digest.hexdigest()


def _examine_truth(slide: Completed, bag: Mapping[str, Any], how: How) -> list[str]:
    """Return remarks on the labels of patches, or refuse those that cannot be read."""
    if bag.get("annotation") is not None:
        return _examine_annotation(slide.header, slide.coords, bag, how.annotation_values)
    if bag.get("instance_label") is not None:
        return contradiction(bag.get("label"), _positive(bag["instance_label"], slide.header.patches), "positive")
    return []


def _examine_annotation(
    header: FeatureHeader, coords: Any, bag: Mapping[str, Any], values: Sequence[int | str] | None
) -> list[str]:
    if header.unit == MICROMETRES:
        raise InputError(
            "its annotation is in pixels and its features in micrometres: give the slides, --slides, or their "
            "micrometres per pixel, --slide_mpp, here and to a run"
        )
    reach = tuple((coords + header.tile / 2).max(axis=0).tolist())
    annotation = read_annotation(bag["annotation"], header.slide_size, values, header.origin, reach)
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
        raise InputError(f"instance_label has {counts[1]} numbers, {counts[0]} of them 0 or 1, for {patches} patches")
    return int(labels.sum())


def examine_slide(path: Path, header: FeatureHeader | None = None) -> ScanFinding:
    """Examine a slide as OpenSlide sees it, and whether features are of it.

    Args:
        path: the slide.
        header: of its features, where there are some.
    """
    name = path.stem
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
            millions = width * height // 10**6
            unknown: Any = math.nan
            mpp = read_mpp(slide, path, unknown)
    except InputError as error:
        return ScanFinding(name, Level.FAIL, str(error))
    if math.isnan(mpp):
        fix = "say how many there are, --slide_mpp, when its features are extracted"
        return ScanFinding(name, Level.WARN, f"no micrometres per pixel that can be true ({text})", fix, millions)
    text += f", {mpp:.4g} micrometres per pixel"
    if header is not None and header.slide_size not in (None, (width, height)):
        return ScanFinding(
            name,
            Level.FAIL,
            f"its features are of a slide of {header.slide_size[0]} x {header.slide_size[1]} pixels ({text})",
            _AGAIN,
        )
    return ScanFinding(name, Level.PASS, text, slices=millions)
