# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The scans of a head CT cohort, the images that each is read from, and how a datalist names them."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from scripts.core.bags import paths_of
from scripts.core.errors import InputError
from scripts.ct.dicom.headers import Header, Rejected, read_headers
from scripts.ct.dicom.series import by_study, choose_series
from scripts.ct.reader import is_volume
from scripts.datalist.split import MAX_SHARE_OF_ONE_PATIENT, CohortRemarks, Datalist, Leakage, Owners, without_numbers
from scripts.datalist.writing import relative_to_folder


@dataclass(frozen=True)
class Scan:
    """A labelled scan that can be read."""

    bag_id: str
    label: int
    image: str | list[str]  # its path or those of its files, relative to the folder of the cohort if they lie in it
    slices: int
    patient: str  # what the split goes by; never written
    sops: tuple[str, ...] = ()  # SOPInstanceUIDs from inferior to superior, where it has some
    instance_label: dict[str, int] | list[int] | None = None  # SOPInstanceUID -> 0 or 1, or from inferior to superior
    section: str = ""  # where the user chose one
    patient_in_headers: bool = True

    def entry(self) -> dict[str, Any]:
        """Return the scan as a datalist has it."""
        bag: dict[str, Any] = {"bag_id": self.bag_id, "label": self.label, "image": self.image}
        return bag if self.instance_label is None else {**bag, "instance_label": self.instance_label}


@dataclass
class Cohort(CohortRemarks):
    """The scans that were collected, with remarks on the way."""

    scans: list[Scan] = field(default_factory=list)

    def patients_not_in_headers(self) -> dict[str, str]:
        return {scan.bag_id: scan.patient for scan in self.scans if not scan.patient_in_headers}

    def drop_copies(self) -> None:
        """Reject scans whose slices another scan holds too: in two sections they would leak."""
        owner: dict[str, Scan] = {}
        kept = []
        for scan in sorted(self.scans, key=lambda scan: scan.bag_id):
            other = next((owner[sop] for sop in scan.sops if sop in owner), None)
            if other is None:
                kept.append(scan)
                owner.update(dict.fromkeys(scan.sops, scan))
            elif other.label == scan.label:
                self.rejected.add("copy of another scan's slices", [f"{scan.bag_id} (of {other.bag_id})"])
            else:
                both = f"{other.bag_id} and {scan.bag_id}"
                raise InputError(f"{both} hold the same slices and have two labels: correct the labels")
        self.scans = kept


class Images:
    """Every DICOM image below `root`, its header read once; an index remembers the headers for the next time.

    The paths of a datalist are relative to `folder`.
    """

    def __init__(self, folder: Path, root: Path | Sequence[Path], index: Path) -> None:
        self.folder = folder
        self.headers, self.rejected = read_headers(root, index, progress=True)
        files = {header.file.path for header in self.headers} | {rejected.file.path for rejected in self.rejected}
        self._files_below: Counter[Path] = Counter()
        for parent, count in Counter(file.parent for file in files).items():
            self._files_below.update(dict.fromkeys((parent, *parent.parents), count))

    def relative(self, path: Path) -> str:
        return relative_to_folder(path, self.folder)

    def scan(
        self, cohort: Cohort, bag_id: str, label: int, planes: Sequence[Header], patient: str = "", section: str = ""
    ) -> Scan | None:
        """Return the scan to read of these slices, or None; warnings and the reason for none go to the cohort."""
        try:
            studies = len(by_study(planes))
            if studies != 1:
                raise InputError(f"holds {studies} studies" if studies else "holds no images that can be read")
            choice = choose_series(planes)
        except InputError as error:
            text = str(error).strip()
            cohort.rejected.add(f"scan that {without_numbers(text)}", [f"{bag_id}: {text}"])
            return None
        for text in (*choice.warnings, *choice.skipped):
            cohort.warnings.add(without_numbers(text), [f"{bag_id}: {text}"])
        first, sops = choice.headers[0], tuple(header.sop for header in choice.headers if header.sop)
        if not patient and not first.patient:
            cohort.warnings.add("no PatientID, so its study is taken for a patient", [bag_id])
        owner = patient or first.patient or first.study or bag_id  # a study at least is of one patient
        image, slices = self._named(choice.headers), len(choice.headers)
        return Scan(bag_id, label, image, slices, owner, sops, section=section, patient_in_headers=not patient)

    def _named(self, planes: Sequence[Header]) -> str | list[str]:
        """Return the folder, zip or file that holds just these planes, or else the list of their files."""
        files = list(dict.fromkeys(plane.file.path for plane in planes))
        if len(files) == 1:
            return self.relative(files[0])
        folder = Path(os.path.commonpath([file.parent for file in files]))
        all_of_it = self._files_below[folder] == len(files)
        return self.relative(folder) if all_of_it else [self.relative(file) for file in files]

    def leakage(self, datalist: Datalist, patients: Mapping[str, str]) -> tuple[Leakage, list[str]]:
        """Return the leakage by the headers of the files that a datalist names; a volume is one slice.

        Return also the bags in several sections that are of one patient by the headers alone: `patients`, bag_id ->
        patient, knows it better.
        """
        bags_at: dict[Path, list[tuple[str, str]]] = defaultdict(list)  # section, bag_id
        of_patient: Owners = defaultdict(dict)
        of_slice: Owners = defaultdict(dict)
        by_headers: dict[str, dict[str, str]] = defaultdict(dict)  # bag_id -> section
        for section, bags in datalist.items():
            for bag in bags:
                bag_id, images = bag["bag_id"], paths_of(bag["image"])
                for image in images:
                    bags_at[self.folder / image].append((section, bag_id))
                if is_volume(Path(images[0])):
                    of_slice[images[0]][section] = bag_id
                if bag_id in patients:
                    of_patient[patients[bag_id]][section] = bag_id
        for header in self.headers:
            place = _within(header.file.path, bags_at)
            for section, bag_id in bags_at[place] if place else ():
                patient = header.patient or header.study or bag_id
                of_slice[header.sop or str(header.file.path)][section] = bag_id
                by_headers[patient][bag_id] = section
                if bag_id not in patients:
                    of_patient[patient][section] = bag_id
        at_most = MAX_SHARE_OF_ONE_PATIENT * sum(map(len, datalist.values()))
        contradictions = [
            " and ".join({section: bag_id for bag_id, section in bags.items()}.values())
            for bags in by_headers.values()
            if len(bags) <= at_most and len(set(bags.values())) > 1
        ]
        return Leakage("slices", of_patient, of_slice), contradictions


Read = TypeVar("Read", Header, Rejected)


def by_place(found: Iterable[Read], places: Iterable[Path]) -> dict[Path, list[Read]]:
    """Group what was found by the folder, zip or file of `places` that it lies in."""
    there: dict[Path, list[Read]] = {place: [] for place in places}
    for each in found:
        if place := _within(each.file.path, there):
            there[place].append(each)
    return there


def _within(path: Path, places: Mapping[Path, object]) -> Path | None:
    """Return the one of the places, folders or files, that a path is or lies in."""
    return next((place for place in (path, *path.parents) if place in places), None)
