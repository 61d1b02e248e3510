# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Synthetic head CT: a phantom that is a function of patient coordinates, sliced into a real DICOM series."""

from dataclasses import dataclass, replace
from functools import lru_cache
from math import cos, pi, radians, sin
from pathlib import Path
from typing import Literal

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, generate_uid
from scipy.ndimage import gaussian_filter

from scripts.core.units import Millimetres

SIZE = 512
CENTRE = (SIZE - 1) / 2
POSITIVE_AREA = 30.0  # mm^2 of blood that make a slice positive: a reader would not call less
RESCALE_INTERCEPT = -1024
PADDING = -2000  # stored value outside the reconstruction circle, as some scanners write it

AIR, SCALP, FAT, DIPLOE, BONE, CSF = -1000.0, 25.0, -70.0, 550.0, 1000.0, 7.0
SCALP_DEPTH = 5.0  # mm from skin to skull
WIDEST_Z = 45.0  # mm above the skull base where the head is widest
DEPTH_STEPS = 8  # tissue profiles are tabulated at this many steps per mm

InstanceNumbers = Literal["ascending", "descending", "missing"]
BleedKind = Literal["intraparenchymal", "subdural", "epidural", "ventricular"]


@dataclass(frozen=True)
class HeaderStyle:
    """The habits of one scanner, which a reader of DICOM must survive."""

    tilt_degrees: float
    instance_numbers: InstanceNumbers
    shuffled_names: bool
    padded: bool


@dataclass(frozen=True)
class ScanGeometry:
    slices: int
    table_step: Millimetres
    pixel: Millimetres
    tilt_degrees: float
    lowest: Millimetres  # z of the centre of the lowest slice

    @property
    def column_direction(self) -> tuple[float, float, float]:
        """Where rows go: towards the back of the head, and upwards as far as the gantry is tilted."""
        return 0.0, cos(radians(self.tilt_degrees)), sin(radians(self.tilt_degrees))

    def height(self, index: int) -> float:
        """z of the centre of a slice: the table moves along z, whatever the tilt."""
        return self.lowest + index * self.table_step

    def first_pixel(self, index: int) -> tuple[float, float, float]:
        reach = CENTRE * self.pixel
        _, y, z = self.column_direction
        return -reach, -reach * y, self.height(index) - reach * z


@dataclass(frozen=True)
class Ellipsoid:
    """In millimetres of the head's own frame: x to the left, y to the back, z up from the skull base."""

    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    turn: float = 0.0  # radians about z

    def mirrored(self) -> "Ellipsoid":
        x, y, z = self.centre
        return Ellipsoid((-x, y, z), self.radii, -self.turn)


@dataclass(frozen=True)
class Bleed:
    """Blood as bodies inside the brain, or as a layer under the skull."""

    kind: BleedKind
    hu: float
    bodies: tuple[Ellipsoid, ...] = ()
    level: float = -np.inf  # blood settles behind this y (the patient lies on the back)
    thickness: float = 0.0
    direction: float = 0.0  # of the layer, radians in the head's frame
    half_angle: float = 0.0
    middle: float = 0.0  # z
    half_height: float = 0.0


@dataclass(frozen=True)
class HeadPlan:
    """Everything that makes one scan, small enough to compare and to reason about."""

    geometry: ScanGeometry
    header: HeaderStyle
    half_width: float
    half_length: float
    skull: float
    dome: float  # mm from the widest level to the vertex
    turn: float
    shift: tuple[float, float]
    lopsided: tuple[float, float, float]  # amplitude, phase of two lobes, phase of three
    ventricles: float  # scale
    grey: float
    white: float
    noise: float
    texture_roll: tuple[int, int]
    noise_rolls: tuple[tuple[int, int, int], ...]  # frame, rows, columns for each slice
    file_numbers: tuple[int, ...]
    falx: float  # HU, or that of brain where it does not show
    calcifications: tuple[Ellipsoid, ...]
    bleeds: tuple[Bleed, ...]


def header_style(case: int) -> HeaderStyle:
    """Periods that are prime to each other, so that every habit meets every other one."""
    numbers: tuple[InstanceNumbers, ...] = ("ascending", "missing", "descending", "ascending", "missing")
    tilt = (0.0, 0.0, 12.0, 0.0, -8.0, 0.0, 18.0)[case % 7]
    return HeaderStyle(tilt, numbers[case % 5], shuffled_names=case % 3 == 2, padded=case % 4 in (1, 2))


def plan_head(seed: int, case: int, positive: bool) -> HeadPlan:
    """The anatomy does not depend on `positive`, so it cannot give the label away."""
    rng = np.random.default_rng([seed, case])
    header = header_style(case)
    geometry = _plan_geometry(rng, header.tilt_degrees)
    grey = rng.uniform(35, 39)
    half_width = rng.uniform(70, 78)
    plan = HeadPlan(
        geometry=geometry,
        header=header,
        half_width=half_width,
        half_length=half_width * rng.uniform(1.14, 1.26),
        skull=rng.uniform(6, 9),
        dome=rng.uniform(84, 94),
        turn=radians(rng.uniform(-12, 12)),
        shift=(rng.uniform(-8, 8), rng.uniform(-6, 6)),
        lopsided=(rng.uniform(0.005, 0.03), rng.uniform(0, 2 * pi), rng.uniform(0, 2 * pi)),
        ventricles=rng.uniform(0.85, 1.35),
        grey=grey,
        white=grey - rng.uniform(7, 10),
        noise=rng.uniform(2.5, 4.5),
        texture_roll=(int(rng.integers(SIZE)), int(rng.integers(SIZE))),
        noise_rolls=tuple((int(f), int(r), int(c)) for f, r, c in rng.integers(SIZE, size=(geometry.slices, 3))),
        file_numbers=_file_numbers(rng, geometry.slices, header.shuffled_names),
        falx=rng.uniform(44, 54) if rng.random() < 0.5 else grey,
        calcifications=_plan_calcifications(rng),
        bleeds=(),
    )
    return replace(plan, bleeds=_plan_bleeds(np.random.default_rng([seed, case, 1]), plan)) if positive else plan


def _plan_geometry(rng: np.random.Generator, tilt_degrees: float) -> ScanGeometry:
    step = rng.uniform(4, 6)
    slices = int(np.clip(round(rng.uniform(134, 150) / step), 24, 40))
    return ScanGeometry(
        slices, Millimetres(step), Millimetres(rng.uniform(0.43, 0.49)), tilt_degrees, Millimetres(rng.uniform(-8, 2))
    )


def _file_numbers(rng: np.random.Generator, slices: int, shuffled: bool) -> tuple[int, ...]:
    numbers = np.arange(1, slices + 1)
    return tuple(int(number) for number in (rng.permutation(numbers) if shuffled else numbers))


def _plan_calcifications(rng: np.random.Generator) -> tuple[Ellipsoid, ...]:
    """Pineal gland and choroid plexus: bright, small and harmless, so that brightness alone is no answer."""
    usual = (
        Ellipsoid((0, 22, 60), (2.5, 3, 3)),
        Ellipsoid((22, 30, 68), (2, 4, 3)),
        Ellipsoid((-22, 30, 68), (2, 4, 3)),
    )
    return tuple(body for body in usual if rng.random() < 0.5)


def _plan_bleeds(rng: np.random.Generator, plan: HeadPlan) -> tuple[Bleed, ...]:
    planners = (_plan_intraparenchymal, _plan_intraparenchymal, _plan_layer, _plan_layer, _plan_ventricular)
    count = 2 if rng.random() < 0.5 else 1
    return tuple(planners[int(rng.integers(len(planners)))](rng, plan) for _ in range(count))


def _plan_intraparenchymal(rng: np.random.Generator, plan: HeadPlan) -> Bleed:
    subtle = rng.random() < 0.3
    width = rng.uniform(8, 12) if subtle else rng.uniform(13, 26)
    angle, reach = rng.uniform(0, 2 * pi), 0.55 * rng.uniform(0.25, 1) ** 0.5
    centre = (reach * plan.half_width * cos(angle), reach * plan.half_length * sin(angle), rng.uniform(50, 88))
    # Tall enough for at least three slices, wherever they happen to cut it.
    height = max(2.6 * plan.geometry.table_step, width * rng.uniform(0.7, 1.1))
    body = Ellipsoid(centre, (width, width * rng.uniform(0.8, 1.5), height), rng.uniform(0, pi))
    return Bleed("intraparenchymal", hu=33 + 15 if subtle else rng.uniform(56, 78), bodies=(body,))


def _plan_layer(rng: np.random.Generator, plan: HeadPlan) -> Bleed:
    """A long crescent under the dura or a short lens outside of it."""
    subdural = rng.random() < 0.5
    return Bleed(
        kind="subdural" if subdural else "epidural",
        hu=rng.uniform(55, 72) if subdural else rng.uniform(60, 80),
        thickness=rng.uniform(8, 14) if subdural else rng.uniform(13, 24),
        direction=rng.choice((0, pi)) + rng.uniform(-0.6, 0.6),
        half_angle=rng.uniform(0.8, 1.2) if subdural else rng.uniform(0.35, 0.55),
        middle=rng.uniform(55, 82),
        half_height=max(3.2 * plan.geometry.table_step, rng.uniform(20, 35)),
    )


def _plan_ventricular(rng: np.random.Generator, plan: HeadPlan) -> Bleed:
    horns = _lateral_ventricle(plan.ventricles)
    side = tuple(body.mirrored() for body in horns) if rng.random() < 0.5 else horns
    return Bleed("ventricular", hu=rng.uniform(55, 72), bodies=side, level=rng.uniform(-10, 12))


def _lateral_ventricle(scale: float) -> tuple[Ellipsoid, ...]:
    return (
        Ellipsoid((10, -22, 72), (4.5 * scale, 15 * scale, 12 * scale), 0.3),
        Ellipsoid((12, 4, 82), (5.5 * scale, 24 * scale, 9 * scale), -0.1),
        Ellipsoid((21, 30, 71), (7 * scale, 17 * scale, 14 * scale), -0.45),
    )


class Head:
    """A plan laid on the pixel grid; slices are rendered one at a time."""

    def __init__(self, plan: HeadPlan, seed: int) -> None:
        self.plan = plan
        self.noise_frames, self.textures = _random_fields(seed)
        columns, rows = np.meshgrid(*[(np.arange(SIZE, dtype=np.float32) - CENTRE) * plan.geometry.pixel] * 2)
        _, y_step, self.rise = plan.geometry.column_direction
        self.x, self.y = self._to_head(columns, rows * y_step)
        self.z_offset = rows[:, :1] * self.rise
        self.radius = (plan.half_width + plan.half_length) / 2
        self.across, self.along = self.x / plan.half_width, self.y / plan.half_length
        self.spread = (self.across**2 + self.along**2) / self._lopsidedness() ** 2
        self.in_circle = columns**2 + rows**2 <= (CENTRE * plan.geometry.pixel) ** 2

    def _to_head(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        c, s = cos(self.plan.turn), sin(self.plan.turn)
        x, y = x - self.plan.shift[0], y - self.plan.shift[1]
        return c * x + s * y, c * y - s * x

    def _lopsidedness(self) -> np.ndarray:
        amplitude, two, three = self.plan.lopsided
        angle = np.arctan2(self.along, self.across)
        return 1 + amplitude * (np.cos(2 * angle + two) + 0.6 * np.cos(3 * angle + three))

    def z(self, index: int) -> np.ndarray:  # (rows, 1): under a tilt it changes from row to row
        return self.plan.geometry.height(index) + self.z_offset

    def hounsfield(self, index: int) -> np.ndarray:  # (rows, columns)
        """One slice: head, organs, harmless bright spots, blood and last of all the scanner's noise."""
        depth = self._depth(index)
        inside = depth > SCALP_DEPTH + self.plan.skull
        hu = self._layers(index, depth, inside)
        self._paint_base(hu, index)
        self._paint_brain_bodies(hu, index, inside)
        blood = self._blood(index, depth)
        for bleed, opacity in blood:
            hu += opacity * (bleed.hu - hu)
        return hu + self._noise(index)

    def bleed_area(self, index: int) -> float:
        """mm^2 of the slice where blood is more than half of the voxel."""
        bloody = np.zeros((SIZE, SIZE), bool)
        for _, opacity in self._blood(index, None):
            bloody |= opacity > 0.5
        return float(bloody.sum()) * self.plan.geometry.pixel**2

    def _depth(self, index: int) -> np.ndarray:
        """Approximate mm under the skin. Below its widest level the head tapers slowly."""
        above = self.z(index) - WIDEST_Z
        return (1 - np.sqrt(self.spread + np.where(above > 0, above / self.plan.dome, above / 190) ** 2)) * self.radius

    def _layers(self, index: int, depth: np.ndarray, inside: np.ndarray) -> np.ndarray:
        plan = self.plan
        folds, grain = self._texture(index)
        under_skull = depth - (SCALP_DEPTH + plan.skull)
        # Sulci follow the zero lines of a smooth random field, and end some way under the surface.
        from_csf = np.minimum(under_skull, np.abs(folds) * 9 + np.maximum(under_skull - 16, 0) * 0.5)
        brain = _tabulated(from_csf, (0, 0.6, 1.6, 4, 6.5), (CSF + 4, CSF + 10, plan.grey, plan.grey, plan.white))
        outer, inner = SCALP_DEPTH, SCALP_DEPTH + plan.skull
        shell = _tabulated(
            depth,
            (-0.5, 0.5, 1.5, 2.5, outer - 1, outer, outer + 1, outer + 2, outer + 3, inner - 3, inner - 2, inner - 0.5),
            (AIR, SCALP, SCALP, FAT, SCALP, SCALP, BONE, BONE, DIPLOE, DIPLOE, BONE, BONE),
        )
        return np.where(inside, brain + grain, shell)

    def _texture(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Fields that change along the slices slowly, because gyri are longer than a slice is thick."""
        phase = self.plan.geometry.height(index) / 14
        rolled = [np.roll(field, self.plan.texture_roll, (0, 1)) for field in self.textures]
        return rolled[0] * np.float32(cos(phase)) + rolled[1] * np.float32(sin(phase)), rolled[2]

    def _paint_base(self, hu: np.ndarray, index: int) -> None:
        petrous = Ellipsoid((36, 14, 4), (27, 8, 11), -0.5)
        front = self.plan.half_length - 100
        orbit = Ellipsoid((31, -62 - front, -4), (18, 22, 14))
        globe = Ellipsoid((32, -72 - front, -4), (11.5, 11.5, 11.5))
        floor = Ellipsoid((0, -15, -16), (14, 16, 20))
        sinus = Ellipsoid((0, -66 - front, -3), (9, 18, 13))
        for body, value in ((petrous, BONE - 200), (orbit, FAT), (globe, 15.0)):
            self._paint(hu, index, body, value)
            self._paint(hu, index, body.mirrored(), value)
        self._paint(hu, index, floor, DIPLOE)
        self._paint(hu, index, sinus, AIR + 50)

    def _paint_brain_bodies(self, hu: np.ndarray, index: int, inside: np.ndarray) -> None:
        plan = self.plan
        deep_grey = (Ellipsoid((11, 12, 64), (8, 14, 10), 0.2), Ellipsoid((24, -6, 65), (8, 18, 11), -0.2))
        for body in deep_grey:
            self._paint(hu, index, body, plan.grey)
            self._paint(hu, index, body.mirrored(), plan.grey)
        midline = (
            Ellipsoid((0, 0, 60), (2, 13, 9)),
            Ellipsoid((0, 38, 26), (7, 5, 9)),
            Ellipsoid((0, -8, 30), (13, 10, 9)),
        )
        lateral = _lateral_ventricle(plan.ventricles)
        for body in (*midline, *lateral, *(horn.mirrored() for horn in lateral)):
            self._paint(hu, index, body, CSF)
        self._paint_falx(hu, index, inside)
        for body in plan.calcifications:
            self._paint(hu, index, body, 190.0)

    def _paint_falx(self, hu: np.ndarray, index: int, inside: np.ndarray) -> None:
        """The fold between the hemispheres: a thin line in front and behind, all along it near the vertex."""
        z = self.z(index)
        shows = inside & (z > 55) & ((np.abs(self.along) > 0.5) | (z > 98))
        opacity = np.clip(1.6 - np.abs(self.x + 1.5 * self.textures[2]), 0, 1) * shows
        hu += opacity * (self.plan.falx - hu)

    def _paint(self, hu: np.ndarray, index: int, body: Ellipsoid, value: float) -> None:
        window = self._window(body, index)
        if window is not None:
            hu[window] += self._opacity(body, index, window) * (value - hu[window])

    def _window(self, body: Ellipsoid, index: int) -> tuple[slice, slice] | None:
        """The pixels that a body may touch: painting whole slices would take most of the time."""
        geometry, reach = self.plan.geometry, 1.25 * max(body.radii[:2]) + 2
        c, s = cos(self.plan.turn), sin(self.plan.turn)
        x, y, z = body.centre
        column = (c * x - s * y + self.plan.shift[0]) / geometry.pixel + CENTRE
        row = (s * x + c * y + self.plan.shift[1]) / (geometry.pixel * geometry.column_direction[1]) + CENTRE
        rows, columns = (_pixels_around(middle, 1.1 * reach / geometry.pixel) for middle in (row, column))
        near = np.abs(self.z(index)[rows] - z) < 1.25 * body.radii[2]
        return (rows, columns) if near.any() else None

    def _opacity(self, body: Ellipsoid, index: int, window: tuple[slice, slice], rough: float = 0.0) -> np.ndarray:
        """1 inside, 0 outside, soft over a millimetre; `rough` lets a random field move the surface."""
        c, s = cos(body.turn), sin(body.turn)
        x, y = self.x[window] - body.centre[0], self.y[window] - body.centre[1]
        z = (self.z(index)[window[0]] - body.centre[2]) / body.radii[2]
        distance = np.sqrt(((c * x + s * y) / body.radii[0]) ** 2 + ((c * y - s * x) / body.radii[1]) ** 2 + z**2)
        if rough:
            distance += rough * self._texture(index)[0][window]
        return np.clip(0.5 + (1 - distance) * min(body.radii[:2]), 0, 1)

    def _blood(self, index: int, depth: np.ndarray | None) -> list[tuple[Bleed, np.ndarray]]:
        """The bleeds that reach this slice, with how much of each voxel they fill."""
        near = [bleed for bleed in self.plan.bleeds if self._reaches(bleed, index)]
        if not near:
            return []
        under_skull = (self._depth(index) if depth is None else depth) - (SCALP_DEPTH + self.plan.skull)
        return [
            (bleed, self._filled(bleed, index) if bleed.bodies else self._layer(bleed, index, under_skull))
            for bleed in near
        ]

    def _reaches(self, bleed: Bleed, index: int) -> bool:
        z = self.z(index)
        if bleed.bodies:
            return any(self._window(body, index) is not None for body in bleed.bodies)
        return bool((np.abs(z - bleed.middle) < bleed.half_height).any())

    def _filled(self, bleed: Bleed, index: int) -> np.ndarray:
        opacity = np.zeros((SIZE, SIZE), np.float32)
        rough = 0.12 if bleed.kind == "intraparenchymal" else 0.0
        for body in bleed.bodies:
            window = self._window(body, index)
            if window is not None:
                opacity[window] = np.maximum(opacity[window], self._opacity(body, index, window, rough))
        return opacity * np.clip(0.5 + self.y - bleed.level, 0, 1)

    def _layer(self, bleed: Bleed, index: int, under_skull: np.ndarray) -> np.ndarray:
        """Between the inner table and a surface that bulges inwards: evenly if subdural, like a lens if epidural."""
        facing = self.across * cos(bleed.direction) + self.along * sin(bleed.direction)
        angle = np.arccos(np.clip(facing / np.sqrt(self.across**2 + self.along**2 + 1e-6), -1, 1))
        off_centre = (angle / bleed.half_angle) ** 2 + ((self.z(index) - bleed.middle) / bleed.half_height) ** 2
        shape = 1 - (off_centre**3 if bleed.kind == "subdural" else off_centre)
        thickness = bleed.thickness * np.maximum(shape, 0)
        return np.clip(thickness - under_skull + 0.5, 0, 1) * (under_skull > 0) * (shape > 0)

    def _noise(self, index: int) -> np.ndarray:
        frame, rows, columns = self.plan.noise_rolls[index]
        return self.plan.noise * np.roll(self.noise_frames[frame % len(self.noise_frames)], (rows, columns), (0, 1))


def _tabulated(distance: np.ndarray, at: tuple[float, ...], values: tuple[float, ...]) -> np.ndarray:
    """`np.interp` by table: ten times faster over a whole slice."""
    first = int(np.floor(at[0] * DEPTH_STEPS))
    steps = np.arange(first, int(np.ceil(at[-1] * DEPTH_STEPS)) + 1)
    table = np.interp(steps / DEPTH_STEPS, at, values).astype(np.float32)
    return table[np.clip(distance * DEPTH_STEPS - first, 0, len(table) - 1).astype(np.int16)]


def _pixels_around(middle: float, reach: float) -> slice:
    return slice(max(0, int(middle - reach)), min(SIZE, int(middle + reach) + 2))


@lru_cache(maxsize=2)
def _random_fields(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise frames and smooth periodic fields: drawn once and rolled, since drawing is the slow part."""
    rng = np.random.default_rng([seed])
    noise = [_unit(gaussian_filter(_white(rng), 0.6, mode="wrap")) for _ in range(4)]
    smooth = [_unit(gaussian_filter(_white(rng), width, mode="wrap")) for width in (11, 11, 16)]
    return np.stack(noise), np.stack(smooth)


def _white(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((SIZE, SIZE), dtype=np.float32)


def _unit(field: np.ndarray) -> np.ndarray:
    return (field / field.std()).astype(np.float32)


def slice_uids(name: str, seed: int, slices: int) -> list[UID]:
    """From the lowest slice to the highest."""
    return [_uid(name, seed, f"slice {index}") for index in range(slices)]


def _uid(name: str, seed: int, what: str) -> UID:
    return generate_uid(entropy_srcs=["synthetic head CT", str(seed), name, what])


def slice_labels(head: Head, uids: list[UID]) -> dict[str, int]:
    return {str(uid): int(head.bleed_area(index) >= POSITIVE_AREA) for index, uid in enumerate(uids)}


def write_series(head: Head, name: str, seed: int, folder: Path) -> None:
    """One file per slice; their names follow the table only where the header style lets them."""
    geometry, header = head.plan.geometry, head.plan.header
    dataset = _series_dataset(head.plan, name, seed)
    uids = slice_uids(name, seed, geometry.slices)
    for index, (uid, number) in enumerate(zip(uids, head.plan.file_numbers, strict=True)):
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid
        dataset.ImagePositionPatient = [f"{value:.6f}" for value in geometry.first_pixel(index)]
        if header.instance_numbers != "missing":
            dataset.InstanceNumber = index + 1 if header.instance_numbers == "ascending" else geometry.slices - index
        dataset.PixelData = stored_values(head, index).tobytes()
        dataset.save_as(folder / f"IM{number:04d}.dcm")


def stored_values(head: Head, index: int) -> np.ndarray:
    stored = np.rint(head.hounsfield(index) - RESCALE_INTERCEPT).astype("<i2")
    if head.plan.header.padded:
        stored[~head.in_circle] = PADDING
    return stored


def _series_dataset(plan: HeadPlan, name: str, seed: int) -> FileDataset:
    """All that the slices of a series share. It says in several places that no patient was scanned."""
    meta = FileMetaDataset()
    meta.FileMetaInformationGroupLength = 0  # the writer puts the true length
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = UID("")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = _uid("", 0, "implementation")
    shared = Dataset()
    _fill_patient_and_study(shared, name, seed)
    _fill_image(shared)
    _fill_geometry(shared, plan)
    return FileDataset("", shared, preamble=b"\0" * 128, file_meta=meta, is_implicit_VR=False, is_little_endian=True)


def _fill_patient_and_study(dataset: Dataset, name: str, seed: int) -> None:
    dataset.PatientName = f"SYNTHETIC^{name}"
    dataset.PatientID = f"SYNTHETIC-{seed}-{name}"
    dataset.PatientBirthDate = dataset.PatientSex = dataset.ReferringPhysicianName = dataset.AccessionNumber = ""
    dataset.StudyInstanceUID = _uid(name, seed, "study")
    dataset.SeriesInstanceUID = _uid(name, seed, "series")
    dataset.FrameOfReferenceUID = _uid(name, seed, "frame of reference")
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID = "20000101", "000000", "1"
    dataset.SeriesNumber = dataset.AcquisitionNumber = 1
    dataset.PositionReferenceIndicator = ""
    dataset.Manufacturer = "SYNTHETIC"
    dataset.ImageComments = "SYNTHETIC phantom, not a patient"


def _fill_image(dataset: Dataset) -> None:
    dataset.SOPClassUID = CTImageStorage
    dataset.Modality, dataset.BodyPartExamined, dataset.PatientPosition = "CT", "HEAD", "HFS"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.BurnedInAnnotation = "NO"
    dataset.KVP = "120"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows = dataset.Columns = SIZE
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 1
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = RESCALE_INTERCEPT, 1, "HU"
    dataset.WindowCenter, dataset.WindowWidth = 40, 80


def _fill_geometry(dataset: Dataset, plan: HeadPlan) -> None:
    geometry = plan.geometry
    dataset.PixelSpacing = [f"{geometry.pixel:.6f}"] * 2
    dataset.SliceThickness = f"{geometry.table_step * geometry.column_direction[1]:.4f}"
    dataset.ImageOrientationPatient = ["1", "0", "0", *(f"{value:.8f}" for value in geometry.column_direction)]
    dataset.GantryDetectorTilt = f"{geometry.tilt_degrees:.1f}"
    if plan.header.padded:
        dataset.add_new("PixelPaddingValue", "SS", PADDING)
