# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Which series of a study is the head CT to read, and in which order its slices lie."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from scripts.core.errors import InputError
from scripts.ct.dicom.headers import BELOW_HEAD, HEAD, Header

USUAL_SPACING_MM = 5.0  # of the data that the published networks were trained on
MAX_TILT_DEGREES = 45.0  # beyond it the slices are coronal or sagittal
MAX_LENGTH_MM = 300.0  # along the normal; more is a head and what is below it, or no head
MIN_SLICES = 8  # fewer are a part of a head, where a longer series is there
MAX_EVEN_SPACING_RATIO = 1.5
MIN_GAP_RATIO = 1.6
SAME_POSITION_MM = 0.01

_LOCALIZERS = {"LOCALIZER", "SCOUT", "TOPOGRAM"}
_SECONDARY = {"DERIVED", "SECONDARY"}
_SHARP = re.compile(  # what makers call their kernels for bone, inner ear and lung
    r"BONE|EDGE|LUNG|SHARP"  # GE, and all who use words
    r"|^(?!FC)[A-Z]{1,2}(59|[6-9]\d)(?!\d)"  # Siemens: H60s, Hr60, J70h, Qr59
    r"|^FC[358]\d"  # Toshiba, Canon; their FC64 is for brain
    r"|^(D|E|F|L|Y[C-E])$",  # Philips
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Choice:
    """The slices to read, from inferior to superior, and what was left and why."""

    headers: list[Header]
    skipped: list[str]
    remarks: list[str]  # on the choice; what is to be said of the spacings follows from the slices

    @property
    def warnings(self) -> list[str]:
        return self.remarks + spacing_warnings(self.headers)


def by_study(headers: Iterable[Header]) -> dict[str, list[Header]]:
    """Slices that name no study ("") belong to the only one beside them that is named."""
    headers = list(headers)
    named = {header.study for header in headers} - {""}
    only = named.pop() if len(named) == 1 else ""
    return _grouped(headers, lambda header: header.study or only)


def choose_series(headers: Sequence[Header], series: str | None = None, where: str = "") -> Choice:
    """The plain, axial, soft-tissue series whose spacing is closest to 5 mm, with its slices in order.

    Args:
        headers: of one study.
        series: SeriesInstanceUID or SeriesNumber of another one to read.
        where: the study's path, for errors.
    """
    if not headers:
        raise InputError(f"{where} holds no DICOM images: give the folder that holds the scan")
    skipped: list[str] = []
    remarks: list[str] = []
    by_series = _grouped(sorted(headers, key=_numbered), lambda header: header.series or header.series_number)
    stacks = [stack for group in by_series.values() for stack in _main_stacks(group, skipped)]
    if series is not None:
        stacks = _asked_for(stacks, series, where, skipped)
    stacks = _without(stacks, lambda stack: flaw(stack.first), skipped)
    if not stacks:
        listed = "; ".join(skipped[:5]) + (f"; and {len(skipped) - 5} more" if len(skipped) > 5 else "")
        raise InputError(f"{where} holds no axial CT series that can be read ({listed}): give one")
    if len(stacks) > 1 or series is None:
        for reason, remark in _PREFERENCES:
            if all(map(reason, stacks)):
                remarks += [remark] if remark else []
            else:
                stacks = _without(stacks, reason, skipped)
        stacks = _closest_to_usual(stacks, skipped)
    chosen = stacks[0]
    if len(chosen.slices) > len(chosen.ordered):
        extra = _count(len(chosen.slices) - len(chosen.ordered), "slice")
        remarks.append(f"{extra} at the position of another left out")
    return Choice(chosen.ordered, skipped, remarks)


# where slices lie


def upwards(normal: np.ndarray) -> np.ndarray:
    """Unit length and towards the head, so that positions grow from inferior to superior."""
    return normal / np.linalg.norm(normal) * (-1.0 if normal[2] < 0 else 1.0)


def tilt_degrees(normal: np.ndarray) -> float:
    return float(np.degrees(np.arccos(np.clip(normal[2], -1.0, 1.0))))


def slice_normal(header: Header) -> np.ndarray:
    directions = np.array(header.orientation)
    return upwards(np.cross(directions[:3], directions[3:]))


def positions_mm(headers: Sequence[Header]) -> np.ndarray:
    """(slices,) along the slice normal."""
    return np.array([header.position for header in headers]) @ slice_normal(headers[0])


def spacings_mm(headers: Sequence[Header]) -> np.ndarray:
    """(slices - 1,) from the first pixel of a slice to that of the next one."""
    return np.linalg.norm(np.diff([header.position for header in headers], axis=0).reshape(-1, 3), axis=1)


def spacing_warnings(headers: Sequence[Header]) -> list[str]:
    spacings = spacings_mm(headers)
    if len(spacings) == 0 or spacings.max() <= MAX_EVEN_SPACING_RATIO * spacings.min():
        return []
    return [f"the slices are unevenly spaced, {spacings.min():.2f} to {spacings.max():.2f} mm", *_gaps(spacings)]


def _gaps(spacings: np.ndarray) -> list[str]:
    gaps = []
    for index, spacing in enumerate(spacings):
        # Usual among its neighbours, for many heads are scanned thinner below than above.
        usual = float(np.median(spacings[max(index - 4, 0) : index + 5]))
        if spacing >= MIN_GAP_RATIO * usual:
            missing = _count(max(round(spacing / usual) - 1, 1), "slice")
            gaps.append(
                f"{spacing:.2f} mm between slices {index + 1} and {index + 2}, where {usual:.2f} mm is usual: "
                f"{missing} may be missing"
            )
    return gaps


def flaw(header: Header) -> str | None:
    """Why a slice is none of an axial CT, whatever else there is."""
    if header.modality != "CT":
        return f"Modality {_plain(header.modality) or 'missing'}"
    if _LOCALIZERS & set(header.image_type):
        return "localizer"
    if header.samples != 1:
        return "in colour"
    geometry = {
        "ImagePositionPatient": header.position,
        "ImageOrientationPatient": header.orientation,
        "PixelSpacing": header.pixel_spacing,
    }
    for keyword, value in geometry.items():
        if value is None:
            return f"no usable {keyword}"
    tilt = tilt_degrees(slice_normal(header))
    return f"not axial, {tilt:.0f} degrees off" if tilt > MAX_TILT_DEGREES else None


# stacks


@dataclass(frozen=True)
class _Stack:
    """The slices of one series that have one size and one direction."""

    slices: list[Header]

    @property
    def first(self) -> Header:
        return self.slices[0]

    @property
    def name(self) -> str:
        """Without free text or UIDs, which may tell who the patient is."""
        return f"{self.label} ({_count(len(self.slices), 'slice')})"

    @property
    def label(self) -> str:
        return f"series {self.first.series_number}" if self.first.series_number else "a series without a number"

    @cached_property
    def ordered(self) -> list[Header]:
        """From inferior to superior, one per position: of several the first that was taken."""
        if flaw(self.first):
            return self.slices
        positions = positions_mm(self.slices)
        order = np.argsort(positions, kind="stable")
        starts = np.diff(positions[order], prepend=-np.inf) >= SAME_POSITION_MM
        places = np.split(order, np.flatnonzero(starts)[1:])
        return [min((self.slices[index] for index in place), key=_taken) for place in places]

    @cached_property
    def spacing(self) -> float:
        """Millimetres, the median."""
        if len(self.ordered) > 1:
            return float(np.median(spacings_mm(self.ordered)))
        return self.first.thickness or math.inf

    @property
    def rank(self) -> tuple[float, int, float, str]:
        number = float(self.first.series_number or math.inf)
        return round(abs(self.spacing - USUAL_SPACING_MM), 2), -len(self.ordered), number, self.first.series


def _taken(header: Header) -> tuple[float, float, str, str]:
    """When a slice was taken, as far as its numbers tell."""
    acquisition, instance = (math.inf if number is None else number for number in (header.acquisition, header.instance))
    return acquisition, instance, header.file.name, str(header.file.path)


def _numbered(header: Header) -> tuple[float, str, tuple[float, float, str, str]]:
    """So that the names of the files tell as little as can be of what is read and said."""
    return float(header.series_number or math.inf), header.series, _taken(header)


def _main_stacks(series: Sequence[Header], skipped: list[str]) -> list[_Stack]:
    """Most of a series; what differs from it is set aside: copies, a localizer, slices of another size.

    Where it has slices of a soft and of a sharp kernel, as two series without a UID have, most of each.
    """
    distinct: dict[tuple, Header] = {}
    for index, header in enumerate(series):
        distinct.setdefault((header.sop or index, header.frame, header.position), header)
    copies = len(series) - len(distinct)
    if copies:
        skipped.append(f"{_Stack(list(series)).label} ({_count(copies, 'slice')}): copies of slices that are there")

    stacks: list[_Stack] = []
    # A slice without a kernel is like any: those that have one come first, so that the first of a stack tells it.
    for header in sorted(distinct.values(), key=lambda header: not header.kernel):
        alike = next((stack for stack in stacks if _are_alike(stack.first, header)), None)
        if alike:
            alike.slices.append(header)
        else:
            stacks.append(_Stack([header]))
    main: dict[bool, _Stack] = {}
    for stack in sorted(stacks, key=lambda stack: (-len(stack.slices), flaw(stack.first) is not None)):
        largest = main.setdefault(_is_sharp(stack) is not None, stack)
        if stack is not largest:
            reason = flaw(stack.first) or f"another size or direction than the other {len(largest.slices)}"
            skipped.append(f"{stack.name}: {reason}")
    return list(main.values())


def _are_alike(one: Header, other: Header) -> bool:
    return (
        (one.rows, one.columns, one.samples) == (other.rows, other.columns, other.samples)
        and (one.position is None) == (other.position is None)
        and bool(_LOCALIZERS & set(one.image_type)) == bool(_LOCALIZERS & set(other.image_type))
        and ("" in (one.kernel, other.kernel) or bool(_SHARP.search(one.kernel)) == bool(_SHARP.search(other.kernel)))
        and _are_close(one.orientation, other.orientation)
        and _are_close(one.pixel_spacing, other.pixel_spacing)
    )


def _are_close(one: tuple[float, ...] | None, other: tuple[float, ...] | None) -> bool:
    if one is None or other is None:
        return one is other
    return all(abs(a - b) < 1e-3 for a, b in zip(one, other, strict=True))


def _asked_for(stacks: list[_Stack], series: str, where: str, skipped: list[str]) -> list[_Stack]:
    found = [stack for stack in stacks if stack.first.series == series]
    found = found or [stack for stack in stacks if stack.first.series_number == series]
    count = len({stack.first.series for stack in found})
    if count > 1:
        raise InputError(f"{where} holds {count} series of the number {series}: give a SeriesInstanceUID")
    if not found:
        names = ", ".join(stack.name for stack in stacks)
        raise InputError(f"{where} holds no series {series}: name one of {names}")
    return _without(stacks, lambda stack: None if stack in found else "another series was asked for", skipped)


def _without(stacks: Sequence[_Stack], reason: Callable[[_Stack], str | None], skipped: list[str]) -> list[_Stack]:
    """The stacks that nothing speaks against."""
    skipped += [f"{stack.name}: {reason(stack)}" for stack in stacks if reason(stack)]
    return [stack for stack in stacks if not reason(stack)]


def _is_elsewhere(stack: _Stack) -> str | None:
    part, length = stack.first.body_part, np.ptp(positions_mm(stack.ordered))
    if BELOW_HEAD.search(part) and not HEAD.search(part):
        return f"body part {_plain(part)}"
    return f"{length:.0f} mm long, more than a head" if length > MAX_LENGTH_MM else None


def _is_short(stack: _Stack) -> str | None:
    return f"fewer than {MIN_SLICES} positions" if len(stack.ordered) < MIN_SLICES else None


def _is_sharp(stack: _Stack) -> str | None:
    return f"bone kernel {_plain(stack.first.kernel)}" if _SHARP.search(stack.first.kernel) else None


def _is_enhanced(stack: _Stack) -> str | None:
    return "contrast agent" if stack.first.contrast else None


def _is_secondary(stack: _Stack) -> str | None:
    return "derived or secondary" if _SECONDARY & set(stack.first.image_type[:2]) else None


# What is set aside where a better series is there, and what is said where none is, the worst first.
_PREFERENCES: tuple[tuple[Callable[[_Stack], str | None], str], ...] = (
    (_is_elsewhere, "only series of another part of the body, or longer than a head, are there"),
    (_is_short, ""),
    (_is_sharp, "only series with a bone kernel are there: its noise looks like blood and hides it"),
    (_is_enhanced, "only series with a contrast agent are there: the agent looks like blood"),
    (_is_secondary, "only derived or secondary series are there"),
)


def _closest_to_usual(stacks: Sequence[_Stack], skipped: list[str]) -> list[_Stack]:
    best, *others = sorted(stacks, key=lambda stack: stack.rank)
    for other in others:
        if other.rank[0] > best.rank[0]:
            reason = f"its spacing of {other.spacing:.2f} mm is further from {USUAL_SPACING_MM:g} mm than"
        elif other.rank[1] > best.rank[1]:
            reason = "fewer slices than"
        else:
            reason = "no better than"
        skipped.append(f"{other.name}: {reason} {best.label}")
    return [best]


def _grouped(headers: Iterable[Header], key: Callable[[Header], str]) -> dict[str, list[Header]]:
    groups: dict[str, list[Header]] = {}
    for header in headers:
        groups.setdefault(key(header), []).append(header)
    return groups


def _plain(text: str) -> str:
    """A code as scanners write it, whatever a file holds in its place."""
    return re.sub(r"[^A-Za-z0-9+./\\ _-]", "", text)[:16]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
