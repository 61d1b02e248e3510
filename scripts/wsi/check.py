# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The check of the feature files of a cohort before a run: what they are is logged, what cannot be used is refused."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from tqdm import tqdm

from scripts.core.errors import InputError
from scripts.core.units import MicronsPerPixel
from scripts.engine.provenance import Origin
from scripts.wsi.features.base import FeatureHeader
from scripts.wsi.features.files import files_of, read_header
from scripts.wsi.reader import no_patches, paths_of

SLOW_SECONDS = 5  # after which a bar is shown

logger = logging.getLogger(__name__)


def checked_bags(
    bags: Sequence[Mapping[str, Any]],
    encoder: str | None = None,
    trained_with: Origin | None = None,
    in_features: int | None = None,
    slide_mpp: float | None = None,
    require_all: bool = False,
) -> list[dict[str, Any]]:
    """Return the bags, having logged in one line what their features are and refused what the network cannot take.

    Each gains `encoder` ("" = nobody says), `patch_um` (micrometres from patch to patch, 0 = nobody says), the same for
    all; and `stamp`, which changes with its files, so that nothing kept of others is taken for it.

    Args:
        bags: entries of a datalist, or of a folder.
        encoder: what the user says it is, whatever the files say.
        trained_with: what is known of the features that the network was trained on.
        in_features: features of a patch that the network takes.
        slide_mpp: micrometres per level-0 pixel of slides where nothing says it.
        require_all: a slide that cannot be read, or has no patch, is told now and not where it is read.
    """
    headers: list[tuple[str, FeatureHeader]] = []
    unusable: list[str] = []
    for bag in tqdm(bags, desc="headers", unit="slide", delay=SLOW_SECONDS):
        own, failed = _headers_of(bag)
        headers += own
        unusable += failed or ([] if any(header.patches for _, header in own) else [no_patches(own[0][0])])
    if require_all and unusable:
        more = f" ({len(unusable) - 1} more cannot be used: python -m scripts doctor wsi names them)"
        raise InputError(unusable[0] + more * (len(unusable) > 1))
    name = encoder or _one_encoder(headers)
    if headers:
        logger.info(_summary_line([header for _, header in headers], name))
        _require_dimension(headers, in_features)
    patch_um = _patch_um([header for _, header in headers], slide_mpp)
    if headers and trained_with is not None:
        trained_with.compare(name, patch_um)
    return [
        {**bag, "encoder": name, "patch_um": patch_um, "stamp": _files_stamp(paths_of(bag["image"]))} for bag in bags
    ]


def _headers_of(bag: Mapping[str, Any]) -> tuple[list[tuple[str, FeatureHeader]], list[str]]:
    """Return the headers of a bag's files, and why the others have none."""
    found, failed = [], []
    for path in paths_of(bag["image"]):
        try:
            found.append((path, read_header(path)))
        except InputError as error:
            failed.append(str(error))
    return found, failed


def _require_dimension(headers: Sequence[tuple[str, FeatureHeader]], wanted: int | None) -> None:
    for path, header in headers:
        if wanted is not None and header.patches and header.dimension != wanted:
            raise InputError(
                f"{path} has {header.dimension} features for each patch, the network takes {wanted}: "
                f"give --in_features {header.dimension}, or the features it was trained on"
            )


def _patch_um(headers: Sequence[FeatureHeader], slide_mpp: float | None) -> float:
    """Micrometres from one patch to the next, in the middle slide of those that say."""
    of_user = None if slide_mpp is None else MicronsPerPixel(slide_mpp)
    filled = (replace(header, mpp=header.mpp or of_user) for header in headers if header.patches)
    known = [pitch for header in filled if (pitch := header.pitch_um) is not None]
    return median(known) if known else 0.0


def _files_stamp(paths: Sequence[str]) -> str:
    """Size and time of the files, and of those beside them that are read too."""
    states = (os.stat(file) for path in paths for file in files_of(path))
    return " ".join(f"{state.st_size}.{state.st_mtime_ns}" for state in states)


def _one_encoder(headers: Sequence[tuple[str, FeatureHeader]]) -> str:
    """Its name, empty where no file says one; encoders of the same dimension are not told apart by a network."""
    known = [(path, header.encoder) for path, header in headers if header.encoder]
    for path, encoder in known:
        if encoder.lower() != known[0][1].lower():
            raise InputError(
                f"the features in {path} are of the encoder {encoder}, those in {known[0][0]} of {known[0][1]}: "
                "give those of one encoder"
            )
    return known[0][1] if known else ""


def _summary_line(headers: Sequence[FeatureHeader], encoder: str) -> str:
    """No path: a folder may be named after a patient."""
    formats = ", ".join(f"{count} {name}" for name, count in Counter(header.format for header in headers).most_common())
    slides = "1 slide" if len(headers) == 1 else f"{len(headers)} slides"
    pitches = Counter((f"{header.pitch:.6g}", header.unit, header.pitch_from) for header in headers if header.patches)
    told = [f"{pitch} {unit} ({why})" for (pitch, unit, why), _ in pitches.most_common(2)]
    more = f" and {len(pitches) - 2} more" if len(pitches) > 2 else ""
    empty = sum(header.patches == 0 for header in headers)
    parts = [
        f"{slides}: {formats}",
        f"encoder {encoder or 'not stated'}",
        f"pitch {' or '.join(told)}{more}" if told else "",
        f"{empty} without patches" if empty else "",
    ]
    return "; ".join(part for part in parts if part)
