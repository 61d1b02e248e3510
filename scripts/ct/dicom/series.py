# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Chooses the series of a study that is the head CT to read, and puts its slices in order."""

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
_ALL_HAVE = (  # the warning where every stack has a drawback, so that one of them is read nevertheless
    "only series of another part of the body, or longer than a head, are there",
    "",
    "only series with a bone kernel are there: its noise looks like blood and hides it",
    "only series with a contrast agent are there: the agent looks like blood",
    "only derived or secondary series are there",
)
_GEOMETRY = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
_SHARP_KERNEL = re.compile(  # what makers call their kernels for bone, inner ear and lung
    r"BONE|EDGE|LUNG|SHARP"  # GE, and all who use words
    r"|^(?!FC)[A-Z]{1,2}(59|[6-9]\d)(?!\d)"  # Siemens: H60s, Hr60, J70h, Qr59
    r"|^FC[358]\d"  # Toshiba, Canon; their FC64 is for brain
    r"|^(D|E|F|L|Y[C-E])$",  # Philips
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Choice:
    """The slices to read, from inferior to superior, and what was skipped and why."""

    headers: list[Header]
    skipped: list[str]
    warnings_of_choice: list[str]

    @property
    def warnings(self) -> list[str]:
        return self.warnings_of_choice + spacing_warnings(self.headers)


def by_study(headers: Iterable[Header]) -> dict[str, list[Header]]:
    """Group slices by StudyInstanceUID; those that name none ("") belong to the only study that is named."""
    headers = list(headers)
    named = {header.study for header in headers} - {""}
    only = named.pop() if len(named) == 1 else ""
    return _grouped(headers, lambda header: header.study or only)


def choose_series(headers: Sequence[Header], series: str | None = None, where: str = "") -> Choice:
    """Choose of a study the plain, axial, soft-tissue series whose spacing is closest to 5 mm, and order its slices.

    `series` is the SeriesInstanceUID or SeriesNumber of another one to read, `where` the study's path, for errors.
    """
    if not headers:
        raise InputError(f"{where} holds no DICOM images: give the folder that holds the scan")
    skipped: list[str] = []
    warnings: list[str] = []
    # By their numbers, so that the names of the files decide as little as can be.
    in_order = sorted(headers, key=lambda each: (float(each.series_number or math.inf), each.series, _taken(each)))
    by_series = _grouped(in_order, lambda header: header.series or header.series_number)
    stacks = [stack for group in by_series.values() for stack in _main_stacks(group, skipped)]
    if series is not None:
        stacks = _asked_for(stacks, series, where, skipped)
    stacks = _without(stacks, [flaw(stack.first) for stack in stacks], skipped)
    if not stacks:
        listed = "; ".join(skipped[:5]) + (f"; and {len(skipped) - 5} more" if len(skipped) > 5 else "")
        raise InputError(f"{where} holds no axial CT series that can be read ({listed}): give one")
    if len(stacks) > 1 or series is None:
        for number, warning in enumerate(_ALL_HAVE):
            reasons = [stack.drawbacks[number] for stack in stacks]
            if all(reasons):
                warnings += [warning] if warning else []
            else:
                stacks = _without(stacks, reasons, skipped)
        stacks = _closest_to_usual(stacks, skipped)
    chosen = stacks[0]
    if extra := len(chosen.slices) - len(chosen.ordered):
        warnings.append(f"{_slices(extra)} at the position of another left out")
    return Choice(chosen.ordered, skipped, warnings)


def upwards(normal: np.ndarray) -> np.ndarray:
    """Return the normal in unit length and towards the head, so that positions grow from inferior to superior."""
    return normal / np.linalg.norm(normal) * (-1.0 if normal[2] < 0 else 1.0)


def tilt_degrees(normal: np.ndarray) -> float:
    """Return the angle between a slice normal and the patient's long axis."""
    return float(np.degrees(np.arccos(np.clip(normal[2], -1.0, 1.0))))


def slice_normal(header: Header) -> np.ndarray:
    """Return the unit normal (3,) of a slice, towards the head."""
    return upwards(np.cross(*np.array(header.orientation).reshape(2, 3)))


def positions_mm(headers: Sequence[Header]) -> np.ndarray:
    """Return (slices,), the positions along the slice normal."""
    return np.array([header.position for header in headers]) @ slice_normal(headers[0])


def spacings_mm(headers: Sequence[Header]) -> np.ndarray:
    """Return (slices - 1,), the distances from the first pixel of a slice to that of the next one."""
    return np.linalg.norm(np.diff([header.position for header in headers], axis=0).reshape(-1, 3), axis=1)


def spacing_warnings(headers: Sequence[Header]) -> list[str]:
    """Return what is uneven about the spacing of slices in order, with each gap in which slices may be missing."""
    spacings = spacings_mm(headers)
    if not spacings.size or spacings.max() <= MAX_EVEN_SPACING_RATIO * spacings.min():
        return []
    found = [f"the slices are unevenly spaced, {spacings.min():.2f} to {spacings.max():.2f} mm"]
    for index, spacing in enumerate(spacings):
        # Usual among its neighbours, for many heads are scanned thinner below than above.
        usual = float(np.median(spacings[max(index - 4, 0) : index + 5]))
        if spacing >= MIN_GAP_RATIO * usual:
            found.append(
                f"{spacing:.2f} mm between slices {index + 1} and {index + 2}, where {usual:.2f} mm is usual: "
                f"{_slices(max(round(spacing / usual) - 1, 1))} may be missing"
            )
    return found


def flaw(header: Header) -> str | None:
    """Return why a slice is none of an axial CT, whatever else there is; None if it is one."""
    if header.modality != "CT":
        return f"Modality {_as_code(header.modality) or 'missing'}"
    if _LOCALIZERS & set(header.image_type):
        return "localizer"
    if header.samples != 1:
        return "in colour"
    for keyword, value in zip(_GEOMETRY, (header.position, header.orientation, header.pixel_spacing), strict=True):
        if value is None:
            return f"no usable {keyword}"
    tilt = tilt_degrees(slice_normal(header))
    return f"not axial, {tilt:.0f} degrees off" if tilt > MAX_TILT_DEGREES else None


@dataclass(frozen=True)
class _Stack:
    """The slices of one series that have one size and one direction."""

    slices: list[Header]

    @property
    def first(self) -> Header:
        return self.slices[0]

    @property
    def label(self) -> str:
        """The number, as free text or UIDs may tell who the patient is."""
        return f"series {self.first.series_number}" if self.first.series_number else "a series without a number"

    @property
    def name(self) -> str:
        return f"{self.label} ({_slices(len(self.slices))})"

    @cached_property
    def ordered(self) -> list[Header]:
        """The slices from inferior to superior, one per position: of several the first that was taken."""
        positions = positions_mm(self.slices)
        order = np.argsort(positions, kind="stable")
        starts = np.diff(positions[order], prepend=-np.inf) >= SAME_POSITION_MM
        at_one_position = np.split(order, np.flatnonzero(starts)[1:])
        return [min((self.slices[index] for index in indices), key=_taken) for indices in at_one_position]

    @cached_property
    def spacing(self) -> float:
        """The median of the millimetres between slices."""
        alone = len(self.ordered) == 1
        return self.first.thickness or math.inf if alone else float(np.median(spacings_mm(self.ordered)))

    @property
    def rank(self) -> tuple[float, int, float, str]:
        number = float(self.first.series_number or math.inf)
        return round(abs(self.spacing - USUAL_SPACING_MM), 2), -len(self.ordered), number, self.first.series

    @cached_property
    def drawbacks(self) -> tuple[str, ...]:
        """Why other stacks are better, the worst first: as `_ALL_HAVE` lists them, "" for what is not so."""
        first, part, length = self.first, self.first.body_part, np.ptp(positions_mm(self.ordered))
        is_below = BELOW_HEAD.search(part) and not HEAD.search(part)
        too_long = f"{length:.0f} mm long, more than a head" if length > MAX_LENGTH_MM else ""
        return (
            f"body part {_as_code(part)}" if is_below else too_long,
            f"fewer than {MIN_SLICES} positions" if len(self.ordered) < MIN_SLICES else "",
            f"bone kernel {_as_code(first.kernel)}" if _SHARP_KERNEL.search(first.kernel) else "",
            "contrast agent" if first.contrast else "",
            "derived or secondary" if _SECONDARY & set(first.image_type[:2]) else "",
        )


def _taken(header: Header) -> tuple[float, float, str, str]:
    """Return what sorts slices by when they were taken, as far as their numbers tell."""
    acquisition, instance = (math.inf if number is None else number for number in (header.acquisition, header.instance))
    return acquisition, instance, header.file.name, str(header.file.path)


def _main_stacks(series: Sequence[Header], skipped: list[str]) -> list[_Stack]:
    """Return most of a series; what differs from it is skipped: copies, a localizer, slices of another size.

    Where it has slices of a soft and of a sharp kernel, as two series without a UID have, return most of each.
    """
    distinct: dict[tuple, Header] = {}
    for index, header in enumerate(series):
        distinct.setdefault((header.sop or index, header.frame, header.position), header)
    if copies := len(series) - len(distinct):
        skipped.append(f"{_Stack(list(series)).label} ({_slices(copies)}): copies of slices that are there")

    stacks: list[_Stack] = []
    # A slice without a kernel is like any: those that have one come first, so that the first of a stack tells it.
    for header in sorted(distinct.values(), key=lambda header: not header.kernel):
        like = next((stack for stack in stacks if _are_alike(stack.first, header)), None)
        if like is None:
            stacks.append(like := _Stack([]))
        like.slices.append(header)
    main: dict[bool, _Stack] = {}
    for stack in sorted(stacks, key=lambda stack: (-len(stack.slices), flaw(stack.first) is not None)):
        largest = main.setdefault(bool(_SHARP_KERNEL.search(stack.first.kernel)), stack)
        if stack is not largest:
            other = f"another size or direction than the other {len(largest.slices)}"
            skipped.append(f"{stack.name}: {flaw(stack.first) or other}")
    return list(main.values())


def _are_alike(one: Header, other: Header) -> bool:
    return (
        (one.rows, one.columns, one.samples) == (other.rows, other.columns, other.samples)
        and (one.position is None) == (other.position is None)
        and bool(_LOCALIZERS & set(one.image_type)) == bool(_LOCALIZERS & set(other.image_type))
        and len({bool(_SHARP_KERNEL.search(kernel)) for kernel in (one.kernel, other.kernel) if kernel}) < 2
        and _are_close(one.orientation, other.orientation)
        and _are_close(one.pixel_spacing, other.pixel_spacing)
    )


def _are_close(one: tuple[float, ...] | None, other: tuple[float, ...] | None) -> bool:
    return one is other if one is None or other is None else np.allclose(one, other, rtol=0, atol=1e-3)


def _asked_for(stacks: list[_Stack], series: str, where: str, skipped: list[str]) -> list[_Stack]:
    found = [stack for stack in stacks if stack.first.series == series]
    found = found or [stack for stack in stacks if stack.first.series_number == series]
    count = len({stack.first.series for stack in found})
    if count > 1:
        raise InputError(f"{where} holds {count} series of the number {series}: give a SeriesInstanceUID")
    if not found:
        raise InputError(f"{where} holds no series {series}: name one of {', '.join(stack.name for stack in stacks)}")
    skipped += [f"{stack.name}: another series was asked for" for stack in stacks if stack not in found]
    return found


def _without(stacks: Sequence[_Stack], reasons: Sequence[str | None], skipped: list[str]) -> list[_Stack]:
    """Return the stacks for which there is no reason to skip them, and note the others."""
    skipped += [f"{stack.name}: {reason}" for stack, reason in zip(stacks, reasons, strict=True) if reason]
    return [stack for stack, reason in zip(stacks, reasons, strict=True) if not reason]


def _closest_to_usual(stacks: Sequence[_Stack], skipped: list[str]) -> list[_Stack]:
    best, *others = sorted(stacks, key=lambda stack: stack.rank)
    for other in others:
        reason = "fewer slices than" if other.rank[1] > best.rank[1] else "no better than"
        if other.rank[0] > best.rank[0]:
            reason = f"its spacing of {other.spacing:.2f} mm is further from {USUAL_SPACING_MM:g} mm than"
        skipped.append(f"{other.name}: {reason} {best.label}")
    return [best]


def _grouped(headers: Iterable[Header], key: Callable[[Header], str]) -> dict[str, list[Header]]:
    groups: dict[str, list[Header]] = {}
    for header in headers:
        groups.setdefault(key(header), []).append(header)
    return groups


def _as_code(text: str) -> str:
    """Return a code as scanners write it, whatever a file holds in its place."""
    return re.sub(r"[^A-Za-z0-9+./\\ _-]", "", text)[:16]


def _slices(number: int) -> str:
    return "1 slice" if number == 1 else f"{number} slices"
