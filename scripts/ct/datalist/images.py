# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The images below the folder of a cohort: which of them a scan is read from, and how a datalist names them."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from scripts.core.errors import InputError
from scripts.ct.dicom.files import ImageFile
from scripts.ct.dicom.headers import Header, read_headers
from scripts.ct.dicom.series import Choice, by_study, choose_series
from scripts.ct.reader import is_volume
from scripts.datalist.split import MAX_SHARE_OF_ONE_PATIENT, Cohort, Datalist

_NUMBERS = re.compile(r"\d+(\.\d+)?")


class Images:
    """Every DICOM image below a folder, its header read once.

    Args:
        folder: what the paths of a datalist are relative to.
        root: where the images lie.
        index: remembers the headers for the next time.
    """

    def __init__(self, folder: Path, root: Path | Sequence[Path], index: Path) -> None:
        self.folder = folder
        self.headers, self.rejected = read_headers(root, index, progress=True)
        files = {header.file.path for header in self.headers} | {rejected.file.path for rejected in self.rejected}
        self._files_below: Counter[Path] = Counter()
        for parent, count in Counter(file.parent for file in files).items():
            self._files_below.update(dict.fromkeys((parent, *parent.parents), count))

    def relative(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix() if path.is_relative_to(self.folder) else str(path.absolute())

    def choose(self, cohort: Cohort, bag_id: str, planes: Sequence[Header]) -> Choice | None:
        """The series to read of a scan, if there is one; what is to be said of it, or of none, the cohort is told."""
        try:
            studies = len(by_study(planes))
            if studies != 1:
                raise InputError(f"holds {studies} studies" if studies else "holds no images that can be read")
            choice = choose_series(planes)
        except InputError as error:
            text = str(error).strip()
            cohort.rejected.add(f"scan that {_NUMBERS.sub('N', text)}", [f"{bag_id}: {text}"])
            return None
        for text in (*choice.warnings, *choice.skipped):
            cohort.warnings.add(_NUMBERS.sub("N", text), [f"{bag_id}: {text}"])
        return choice

    def patient_of(self, cohort: Cohort, bag_id: str, planes: Sequence[Header]) -> str:
        if not planes[0].patient:
            cohort.warnings.add("no PatientID, so its study is taken for a patient", [bag_id])
        return _patient(planes[0], bag_id)

    def named(self, planes: Sequence[Header]) -> str | list[str]:
        """The folder, zip or file that holds just these planes, or else the list of their files."""
        files = list(dict.fromkeys(plane.file.path for plane in planes))
        if len(files) == 1:
            return self.relative(files[0])
        folder = Path(os.path.commonpath([file.parent for file in files]))
        if self._files_below[folder] == len(files):
            return self.relative(folder)
        return [self.relative(file) for file in files]

    def leakage(self, datalist: Datalist, patients: Mapping[str, str]) -> Leakage:
        """By the headers of the files that a datalist names.

        Args:
            datalist: as it was read from its file.
            patients: bag_id -> patient, where that is known better than from the headers.
        """
        places: dict[Path, list[tuple[str, str]]] = defaultdict(list)  # section, bag_id
        of_patient: dict[str, dict[str, str]] = defaultdict(dict)  # section -> bag_id
        of_slice: dict[str, dict[str, str]] = defaultdict(dict)
        by_headers: dict[str, dict[str, str]] = defaultdict(dict)  # bag_id -> section
        for section, bags in datalist.items():
            for bag in bags:
                images = [bag["image"]] if isinstance(bag["image"], str) else bag["image"]
                for image in images:
                    places[self.folder / image].append((section, bag["bag_id"]))
                if is_volume(Path(images[0])):
                    of_slice[images[0]][section] = bag["bag_id"]
                if bag["bag_id"] in patients:
                    of_patient[patients[bag["bag_id"]]][section] = bag["bag_id"]
        for header in self.headers:
            place = _within(header.file.path, places)
            for section, bag_id in places[place] if place else ():
                of_slice[header.sop or str(header.file.path)][section] = bag_id
                by_headers[_patient(header, bag_id)][bag_id] = section
                if bag_id not in patients:
                    of_patient[_patient(header, bag_id)][section] = bag_id
        leaks = [[list(bags.values()) for bags in of.values() if len(bags) > 1] for of in (of_patient, of_slice)]
        at_most = MAX_SHARE_OF_ONE_PATIENT * sum(map(len, datalist.values()))
        return Leakage(
            len(of_patient),
            len(leaks[0]),
            len(of_slice),
            len(leaks[1]),
            next(iter(leaks[0] + leaks[1]), []),
            [
                " and ".join({section: bag_id for bag_id, section in bags.items()}.values())
                for bags in by_headers.values()
                if len(bags) <= at_most and len(set(bags.values())) > 1
            ],
        )


class Leakage(NamedTuple):
    """How many patients and slices a datalist names, and how many in more than one section; a volume is one slice."""

    patients: int
    patients_in_several_sections: int
    slices: int
    slices_in_several_sections: int
    example: list[str]  # bags that share a patient or a slice
    contradictions: list[str]  # bags in several sections that are of one patient by the headers, whatever else is known


class _Found(Protocol):
    @property
    def file(self) -> ImageFile: ...


Something = TypeVar("Something", bound=_Found)


def by_place(found: Iterable[Something], places: Iterable[Path]) -> dict[Path, list[Something]]:
    """What lies in each folder or zip, or is one of the files."""
    there: dict[Path, list[Something]] = {place: [] for place in places}
    for each in found:
        place = _within(each.file.path, there)
        if place is not None:
            there[place].append(each)
    return there


def _patient(header: Header, bag_id: str) -> str:
    """Who it is of, as far as the header tells: a study at least is of one patient."""
    return header.patient or header.study or bag_id


def _within(path: Path, places: Mapping[Path, object]) -> Path | None:
    """The one of the places, folders or files, that a path is or lies in."""
    return path if path in places else next((parent for parent in path.parents if parent in places), None)
