# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Split a cohort of labelled bags by patient, and count what each section holds and whether a patient leaks."""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol, TypeVar

from scripts.datalist.tables import SECTIONS

EXAMPLES = 20  # of each kind of trouble, that the written check shows
MAX_SHARE_OF_ONE_PATIENT = 0.5  # beyond it a PatientID says "anonymous" rather than who it is

Shares = tuple[float, float, float]
Datalist = dict[str, list[dict[str, Any]]]
Label = int | str  # the number of a class, or its name


class Labelled(Protocol):
    """What a split needs to know of a bag, be it a scan or a slide."""

    @property
    def bag_id(self) -> str:
        """Its name."""

    @property
    def label(self) -> Label:
        """Of the whole bag."""

    @property
    def patient(self) -> str:
        """Whose it is; empty where that is not known."""

    @property
    def section(self) -> str:
        """In which it must be; empty where that is open."""


Bag = TypeVar("Bag", bound=Labelled)


def without_numbers(text: str) -> str:
    """Return the kind of a remark, in which every number is N."""
    return re.sub(r"\d+(\.\d+)?", "N", text)


class Remarks:
    """Remarks by kind, each with the names of what it was made on."""

    def __init__(self) -> None:
        self.kinds: dict[str, list[str]] = defaultdict(list)

    def add(self, kind: str, things: Iterable[str]) -> None:
        self.kinds[kind] += things

    def as_json(self) -> dict[str, Any]:
        return {
            kind: {"count": len(things), "examples": sorted(things)[:EXAMPLES]}
            for kind, things in sorted(self.kinds.items())
            if things
        }

    def as_lines(self) -> list[str]:
        return [f"{kind}: {about['count']}, such as {about['examples'][0]}" for kind, about in self.as_json().items()]


@dataclass(kw_only=True)
class CohortRemarks:
    """What a person should know of a cohort: notes, what was rejected, and warnings."""

    notes: list[str] = field(default_factory=list)
    rejected: Remarks = field(default_factory=Remarks)
    warnings: Remarks = field(default_factory=Remarks)


def split(bags: Sequence[Bag], shares: Shares, seed: int) -> dict[str, list[Bag]]:
    """Put each patient into one section, patients of every class spread alike; or keep the sections of the user.

    The order of the bags does not matter, and a patient who joins later moves few others: patients are drawn by a
    hash of their own.
    """
    sections: dict[str, list[Bag]] = {section: [] for section in SECTIONS}
    if any(bag.section for bag in bags):
        for bag in bags:
            sections[bag.section].append(bag)
    else:
        by_patient: dict[str, list[Bag]] = defaultdict(list)
        for bag in bags:
            by_patient[bag.patient].append(bag)
        for patients in patients_by_class({name: {bag.label for bag in own} for name, own in by_patient.items()}):
            patients.sort(key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
            drawn = iter(patients)
            for section, count in zip(SECTIONS, _whole_numbers(len(patients), shares), strict=True):
                sections[section] += [bag for name in islice(drawn, count) for bag in by_patient[name]]
    return {section: sorted(own, key=lambda bag: bag.bag_id) for section, own in sections.items()}


def patients_by_class(labels: Mapping[str, set[Label]]) -> Iterable[list[str]]:
    """Group patients by class; one of several counts for the highest number, or for the name that fewest have."""
    patients_with = Counter(label for own in labels.values() for label in own)

    def rank(label: Label) -> tuple[int, str]:
        return (-label, "") if isinstance(label, int) else (patients_with[label], label)

    groups: dict[Label, list[str]] = defaultdict(list)
    for name, own in labels.items():
        groups[min(own, key=rank)].append(name)
    return groups.values()


def _whole_numbers(total: int, shares: Shares) -> list[int]:
    """Return whole numbers in proportion to the shares; where there are enough, no section is left without."""
    exact = [total * share for share in shares]
    counts = [int(count) for count in exact]
    while sum(counts) < total:
        counts[max(range(len(shares)), key=lambda k: exact[k] - counts[k])] += 1
    for k, share in enumerate(shares):
        if share > 0 and counts[k] == 0 and max(counts) > 1:
            counts[counts.index(max(counts))] -= 1
            counts[k] = 1
    return counts


def count_sections(
    sections: Mapping[str, Sequence[Bag]], count: Callable[[Sequence[Bag]], dict[str, float]]
) -> dict[str, dict[str, float]]:
    """Return the counts of each section and of all."""
    total = [bag for bags in sections.values() for bag in bags]
    return {name: count(bags) for name, bags in {**sections, "total": total}.items()}


def section_notes(sections: Mapping[str, Sequence[Labelled]], classes: Sequence[Label], bags: str) -> list[str]:
    """Name the sections that are empty or lack a class, before somebody trains on them."""
    notes = []
    for section, own in sections.items():
        absent = [str(label) for label in classes if label not in {bag.label for bag in own}]
        if not own:
            notes.append(f"{section} is empty")
        elif classes == [0, 1] and absent:
            notes.append(f"{section} has {'negative' if absent == ['1'] else 'positive'} {bags} alone")
        elif absent:
            notes.append(f"{section} has no bag of {', '.join(absent)}")
    return notes


Owners = dict[str, dict[str, str]]  # patient or image -> section -> a bag that holds it there


class Leakage:
    """How many patients and images a datalist names, and how many of them in more than one section."""

    def __init__(self, images: str, of_patient: Owners, of_image: Owners) -> None:
        self.images = images  # what they are, "slices" or "slides"
        self.patients, self.total_images = len(of_patient), len(of_image)
        patients = [list(own.values()) for own in of_patient.values() if len(own) > 1]
        shared = [list(own.values()) for own in of_image.values() if len(own) > 1]
        self.shared_patients, self.shared_images = len(patients), len(shared)
        self.example = next(iter(patients + shared), [])  # bags that share a patient or an image

    def as_json(self) -> dict[str, int]:
        return {
            "patients": self.patients,
            "patients_in_several_sections": self.shared_patients,
            self.images: self.total_images,
            f"{self.images}_in_several_sections": self.shared_images,
        }

    def as_line(self, verb: str = "are") -> str:
        example = f" (of {' and '.join(self.example)})" if self.example else ""
        patients = f"{self.shared_patients} of {self.patients} patients"
        images = f"{self.shared_images} of {self.total_images} {self.images}"
        return f"{patients} and {images} {verb} in more than one section{example}"
