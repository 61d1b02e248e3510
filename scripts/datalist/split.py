# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""A cohort of labelled bags: split by patient, and written as a MONAI datalist with a check of what was written."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from scripts.core.errors import InputError
from scripts.datalist.tables import SECTIONS

EXAMPLES = 20  # of each kind of trouble, that the written check shows
MAX_SHARE_OF_ONE_PATIENT = 0.5  # beyond it a PatientID says "anonymous" rather than who it is

Shares = tuple[float, float, float]
Datalist = dict[str, list[dict[str, Any]]]
Label = int | str  # the number of a class, or its name


class Labelled(Protocol):
    """What a split needs to know of a bag, be it a scan or a slide."""

    @property
    def bag_id(self) -> str: ...
    @property
    def label(self) -> Label: ...
    @property
    def patient(self) -> str: ...
    @property
    def section(self) -> str: ...


Bag = TypeVar("Bag", bound=Labelled)


@dataclass(frozen=True)
class Scan:
    """One labelled scan that can be read."""

    bag_id: str
    label: int
    image: str | list[str]  # relative to the folder of the cohort where it lies in it
    slices: int
    patient: str  # what the split goes by; never written
    sops: frozenset[str] = frozenset()
    instance_label: dict[str, int] | None = None  # SOPInstanceUID -> 0 or 1
    section: str = ""  # where the user chose one
    patient_in_headers: bool = True


class Remarks:
    """Remarks by kind, each with the things it was made on."""

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


@dataclass
class Cohort:
    """What was found, and what was thought of it on the way."""

    scans: list[Scan] = field(default_factory=list)
    rejected: Remarks = field(default_factory=Remarks)
    warnings: Remarks = field(default_factory=Remarks)

    def patients_not_in_headers(self) -> dict[str, str]:
        return {scan.bag_id: scan.patient for scan in self.scans if not scan.patient_in_headers}

    def scans_of_busiest_patient(self) -> int:
        return max(Counter(scan.patient for scan in self.scans).values())


def without_copies(cohort: Cohort) -> Cohort:
    """Without scans whose slices another scan holds too: in two sections they would leak."""
    owner: dict[str, Scan] = {}
    kept = []
    for scan in sorted(cohort.scans, key=lambda scan: scan.bag_id):
        other = next((owner[sop] for sop in scan.sops if sop in owner), None)
        if other is None:
            kept.append(scan)
            owner.update(dict.fromkeys(scan.sops, scan))
        elif other.label == scan.label:
            cohort.rejected.add("copy of another scan's slices", [f"{scan.bag_id} (of {other.bag_id})"])
        else:
            raise InputError(
                f"{other.bag_id} and {scan.bag_id} hold the same slices and have two labels: mend the labels"
            )
    return Cohort(kept, cohort.rejected, cohort.warnings)


def split(bags: Sequence[Bag], shares: Shares, seed: int) -> dict[str, list[Bag]]:
    """Each patient in one section, patients of every class spread alike; or the sections that the user gave.

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
        for patients in _alike({name: {bag.label for bag in own} for name, own in by_patient.items()}):
            patients.sort(key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
            for section, count in zip(SECTIONS, _counts(len(patients), shares), strict=True):
                sections[section] += [bag for name in patients[:count] for bag in by_patient[name]]
                del patients[:count]
    return {section: sorted(own, key=lambda bag: bag.bag_id) for section, own in sections.items()}


def _alike(labels: Mapping[str, set[Label]]) -> Iterable[list[str]]:
    """Patients of one class each; who has several counts for the highest number, or for the name that fewest have."""
    patients_with = Counter(label for own in labels.values() for label in own)

    def rank(label: Label) -> tuple[int, str]:
        return (-label, "") if isinstance(label, int) else (patients_with[label], label)

    groups: dict[Label, list[str]] = defaultdict(list)
    for name, own in labels.items():
        groups[min(own, key=rank)].append(name)
    return groups.values()


def _counts(total: int, shares: Shares) -> list[int]:
    """Whole numbers in proportion to the shares; where there are enough, no section is left without."""
    exact = [total * share for share in shares]
    counts = [int(count) for count in exact]
    while sum(counts) < total:
        counts[max(range(len(shares)), key=lambda k: exact[k] - counts[k])] += 1
    for k, share in enumerate(shares):
        if share > 0 and counts[k] == 0 and max(counts) > 1:
            counts[counts.index(max(counts))] -= 1
            counts[k] = 1
    return counts


def as_datalist(sections: Mapping[str, Sequence[Scan]]) -> Datalist:
    return {section: [_bag(scan) for scan in scans] for section, scans in sections.items()}


def _bag(scan: Scan) -> dict[str, Any]:
    bag: dict[str, Any] = {"bag_id": scan.bag_id, "label": scan.label, "image": scan.image}
    return bag if scan.instance_label is None else {**bag, "instance_label": scan.instance_label}


def as_text(datalist: Datalist) -> str:
    """JSON with one line per bag: with one per slice it would have a million."""
    sections = [
        f"    {json.dumps(section)}: [" + ",".join(f"\n        {json.dumps(bag)}" for bag in bags) + "\n    ]"
        for section, bags in datalist.items()
    ]
    return "{\n" + ",\n".join(sections) + "\n}\n"


def figures(sections: Mapping[str, Sequence[Scan]]) -> dict[str, dict[str, float]]:
    """Counts of each section and of all."""
    total = [scan for scans in sections.values() for scan in scans]
    return {name: _figures(scans) for name, scans in {**sections, "total": total}.items()}


def _figures(scans: Sequence[Scan]) -> dict[str, float]:
    positive = sum(scan.label for scan in scans)
    return {
        "scans": len(scans),
        "patients": len({scan.patient for scan in scans}),
        "slices": sum(scan.slices for scan in scans),
        "positive_scans": positive,
        "prevalence": round(positive / len(scans), 4) if scans else 0.0,
    }


def notes(sections: Mapping[str, Sequence[Scan]]) -> list[str]:
    """What a person should know before training."""
    found = []
    for section, scans in sections.items():
        labels = {scan.label for scan in scans}
        if not scans:
            found.append(f"{section} is empty")
        elif len(labels) == 1:
            found.append(f"{section} has {'positive' if labels == {1} else 'negative'} scans alone")
    return found
