# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""A synthetic cohort in the layout of RSNA 2019, with that data set's own flaws: one file is cut short, rows repeat."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.uid import UID

from tests.ct.series import phantom, tilted, write_slice

SUBTYPES = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")
CORRUPT = "ID_6431af929"  # RSNA's own corrupt file
TWICE = 4  # slices whose six rows stand twice in the csv
FIELD_OF_VIEW = 230.0  # mm
TILTS = (0.0, -15.0, 8.0, 0.0, 20.0)  # degrees
NOISE_FRAMES = 64
BLOOD = 45  # HU above the brain
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
    step = rng.uniform(4.0, 5.5)
    row, column = (rng.uniform(0.3, 0.5, 2) * size).astype(int)  # of a corner of its bleed
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
        stored = phantom(1, size)[0] + frames[int(rng.integers(len(frames)))] + np.int16(1024)
        if bleeds:
            stored[row : row + size // 6, column : column + size // 6] += BLOOD
        if number % 3 == 1:
            stored[0] = PADDING
        first_pixel = np.array([-1.0, -np.cos(tilt), np.sin(tilt)]) * FIELD_OF_VIEW / 2 + (0, 0, index * step)
        place = {"SOPInstanceUID": UID(sop), "ImagePositionPatient": [f"{value:.6f}" for value in first_pixel]}
        write_slice(folder / f"{sop}.dcm", stored, implicit=number % 2 == 1, **{**own, **place})


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
