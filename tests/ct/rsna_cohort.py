# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""A synthetic cohort in the layout of RSNA 2019, with that data set's own flaws: one file is cut short, rows repeat."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.uid import UID

from tests.ct.series import tilted, write_slice

SUBTYPES = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")
CORRUPT = "ID_6431af929"  # RSNA's own corrupt file
TWICE = 4  # slices whose six rows stand twice in the csv
FIELD_OF_VIEW = 230.0  # mm
TILTS = (0.0, -15.0, 8.0, 0.0, 20.0)  # degrees
NOISE_FRAMES = 64
AIR, BRAIN, SKULL, BLOOD = -1000, 35, 900, 75  # HU
PADDING = -2000


@dataclass(frozen=True)
class Scan:
    """What is true of one series."""

    patient: str
    study: str
    slices: tuple[str, ...]  # SOPInstanceUID from inferior to superior
    subtype: str | None  # of its bleed
    bleeding: tuple[bool, ...]  # per slice

    @property
    def positive(self) -> bool:
        return any(self.bleeding)


def write_rsna_cohort(
    folder: Path, series: int = 40, slices: int = 30, image_size: int = 32, seed: int = 0, prevalence: float = 0.4
) -> list[Scan]:
    """The same seed writes the same files. The corrupt file is a slice of the first scan."""
    rng = np.random.default_rng(seed)
    frames = rng.normal(0, 6, (NOISE_FRAMES, image_size, image_size)).astype(np.int16)
    files = folder / "stage_2_train"
    files.mkdir(parents=True, exist_ok=True)
    scans: list[Scan] = []
    for number in range(series):
        scan = _plan(rng, number, scans, slices, prevalence)
        with pydicom.config.disable_value_validation():  # RSNA's UIDs are none
            _write(files, scan, rng, frames, number)
        scans.append(scan)
    if scans:
        corrupt = files / f"{CORRUPT}.dcm"
        corrupt.write_bytes(corrupt.read_bytes()[: -image_size * image_size])  # half of its pixels are missing
    _write_csv(folder / "stage_2_train.csv", scans, rng)
    return scans


def _plan(rng: np.random.Generator, number: int, before: list[Scan], usual: int, prevalence: float) -> Scan:
    comes_again = before and rng.random() < 0.25
    patient = before[int(rng.integers(len(before)))].patient if comes_again else _name(rng, 8)
    count = max(3, usual + int(rng.integers(-2, 3)))
    names = [_name(rng, 9) for _ in range(count)]
    if number == 0:
        names[count // 2] = CORRUPT
    subtype, bleeding = None, [False] * count
    if rng.random() < prevalence:
        subtype = SUBTYPES[int(rng.integers(len(SUBTYPES) - 1))]
        length = int(rng.integers(max(2, count // 8), max(3, count // 3)))
        first = int(rng.integers(count // 5, count - count // 5 - length + 1))
        bleeding[first : first + length] = [True] * length
    return Scan(patient, _name(rng, 10), tuple(names), subtype, tuple(bleeding))


def _name(rng: np.random.Generator, digits: int) -> str:
    return f"ID_{int(rng.integers(16**digits)):0{digits}x}"


def _write(folder: Path, scan: Scan, rng: np.random.Generator, frames: np.ndarray, number: int) -> None:
    size = frames.shape[-1]
    degrees = TILTS[number % len(TILTS)]
    tilt = np.radians(degrees)
    step, padded = rng.uniform(4.0, 5.5), number % 3 == 1
    spot = rng.uniform(-0.12, 0.12, 2)  # where every slice that may bleed shows brain
    own = {
        "PatientName": None,
        "PatientID": scan.patient,
        "StudyID": "",
        "SliceThickness": None,
        "StudyInstanceUID": scan.study,
        "SeriesInstanceUID": _name(rng, 10),
        "ImageOrientationPatient": list(tilted(degrees)),
        "PixelSpacing": [f"{FIELD_OF_VIEW / size:.6f}"] * 2,
        "WindowCenter": ["00036", "00036"],
        "WindowWidth": ["00080", "00080"],
        "RescaleIntercept": "-1024",
    }  # the few tags that RSNA left
    for index, (sop, bleeds) in enumerate(zip(scan.slices, scan.bleeding, strict=True)):
        noise = frames[int(rng.integers(len(frames)))]
        hounsfield = _slice(size, index / len(scan.slices), spot if bleeds else None) + noise
        stored = hounsfield + np.int16(1024)
        if padded:
            stored[_spread(size, 1.0) > 1] = PADDING
        first_pixel = np.array([-1.0, -np.cos(tilt), np.sin(tilt)]) * FIELD_OF_VIEW / 2 + (0, 0, index * step)
        place = {"SOPInstanceUID": UID(sop), "ImagePositionPatient": [f"{value:.6f}" for value in first_pixel]}
        write_slice(folder / f"{sop}.dcm", stored, implicit=number % 2 == 1, **{**own, **place})


def _slice(size: int, height: float, spot: np.ndarray | None) -> np.ndarray:
    """int16 HU: skull around brain in air, and blood around `spot` (a share of the field of view off its middle)."""
    radius = 0.75 * np.sqrt(max(0.15, 1 - ((height - 0.35) / 0.75) ** 2))
    spread = _spread(size, radius)
    image = np.full((size, size), AIR, dtype=np.int16)
    image[spread < 1] = SKULL
    image[spread < 0.85] = BRAIN
    if spot is not None:
        image[(_spread(size, 0.2, spot) < 1) & (spread < 0.85)] = BLOOD
    return image


def _spread(size: int, radius: float, centre: np.ndarray | tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    """[rows, columns] squared distance to `centre` over squared `radius`; 1 is half the field of view."""
    axis = (np.arange(size) + 0.5) * 2 / size - 1
    return ((axis[:, None] - 2 * centre[0]) ** 2 + (axis[None] - 2 * centre[1]) ** 2) / radius**2


def _write_csv(path: Path, scans: list[Scan], rng: np.random.Generator) -> None:
    labels = [
        (sop, [bleeds and subtype in (scan.subtype, "any") for subtype in SUBTYPES])
        for scan in scans
        for sop, bleeds in zip(scan.slices, scan.bleeding, strict=True)
    ]
    labels = [labels[int(row)] for row in rng.permutation(len(labels))]
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["ID", "Label"])
        for sop, values in labels + labels[:TWICE]:
            writer.writerows((f"{sop}_{name}", int(value)) for name, value in zip(SUBTYPES, values, strict=True))
