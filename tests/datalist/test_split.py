# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.core.errors import InputError
from scripts.datalist.split import (
    EXAMPLES,
    Cohort,
    Remarks,
    Scan,
    _counts,
    as_datalist,
    as_text,
    figures,
    notes,
    split,
    without_copies,
)
from scripts.datalist.tables import SECTIONS

USUAL = (0.7, 0.1, 0.2)


def scan(number: int, label: int = 0, patient: str | None = None, sops: str = "", section: str = "") -> Scan:
    patient = f"patient {number}" if patient is None else patient
    return Scan(f"s{number:04d}", label, f"s{number:04d}", 30, patient, frozenset(sops), section=section)


def many(seed: int = 0, count: int = 400) -> list[Scan]:
    """Some patients have several scans, and not all of theirs are positive."""
    rng = np.random.default_rng(seed)
    patients = rng.integers(count // 2, size=count)
    ill = rng.random(count) < 0.3
    return [scan(n, int(ill[p] and rng.random() < 0.7), f"p{p}") for n, p in enumerate(patients)]


@pytest.mark.parametrize("seed", range(5))
def test_no_patient_is_in_two_sections_and_no_scan_is_lost(seed: int) -> None:
    scans = many(seed)
    sections = split(scans, USUAL, seed)
    assert Counter(scan for own in sections.values() for scan in own) == Counter(scans)
    patients = [{scan.patient for scan in own} for own in sections.values()]
    assert sum(map(len, patients)) == len(set.union(*patients))
    assert list(sections) == list(SECTIONS)


@pytest.mark.parametrize("shares", [USUAL, (0.5, 0.25, 0.25), (0.8, 0.2, 0.0), (0.0, 0.0, 1.0)])
def test_patients_of_both_kinds_are_shared_out(shares: tuple[float, float, float]) -> None:
    scans = many()
    ill = {scan.patient for scan in scans if scan.label}
    everybody = {scan.patient for scan in scans}
    sections = split(scans, shares, 0)
    for group in (ill, everybody - ill):
        for section, share in zip(SECTIONS, shares, strict=True):
            here = {scan.patient for scan in sections[section]} & group
            assert abs(len(here) - share * len(group)) < 1


def test_the_split_depends_on_patients_and_seed_alone() -> None:
    scans = many()
    once = split(scans, USUAL, 3)
    shuffled = [scans[index] for index in np.random.default_rng(1).permutation(len(scans))]
    assert split(shuffled, USUAL, 3) == once
    places = {scan.bag_id: section for section, own in once.items() for scan in own}
    renamed = split([replace(scan, image="elsewhere") for scan in scans], USUAL, 3)
    assert {scan.bag_id: section for section, own in renamed.items() for scan in own} == places
    other = split(scans, USUAL, 4)
    moved = [scan for section, own in other.items() for scan in own if places[scan.bag_id] != section]
    assert len(moved) > 0.3 * len(scans)


@pytest.mark.parametrize("seed", range(5))
def test_two_classes_are_split_as_positive_and_negative(seed: int) -> None:
    """The rule that head CT was split by before there were more classes, written down a second time."""
    scans = many(seed)
    wanted: dict[str, list[Scan]] = {section: [] for section in SECTIONS}
    for positive in (True, False):
        patients = sorted(
            {one.patient for one in scans if any(o.label for o in scans if o.patient == one.patient) == positive},
            key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest(),
        )
        for section, count in zip(SECTIONS, _counts(len(patients), USUAL), strict=True):
            wanted[section] += [one for one in scans if one.patient in patients[:count]]
            patients = patients[count:]
    assert split(scans, USUAL, seed) == {
        section: sorted(own, key=lambda one: one.bag_id) for section, own in wanted.items()
    }


class Slide(NamedTuple):
    bag_id: str
    label: int | str
    patient: str
    section: str = ""


SLIDES = st.lists(
    st.tuples(st.sampled_from(["N", "PB", "UDH", "ADH", "IC"]), st.integers(0, 25)), min_size=1, max_size=60
).map(lambda drawn: [Slide(f"s{n:02d}", label, f"p{patient}") for n, (label, patient) in enumerate(drawn)])


@given(SLIDES, st.integers(0, 3), st.randoms(use_true_random=False))
def test_slides_of_named_classes_are_split_by_patient_whatever_their_order(
    slides: list[Slide], seed: int, random: Any
) -> None:
    sections = split(slides, USUAL, seed)
    assert sorted(slide for own in sections.values() for slide in own) == sorted(slides)
    places = defaultdict(set)
    for section, own in sections.items():
        for slide in own:
            places[slide.patient].add(section)
    assert all(len(where) == 1 for where in places.values())
    shuffled = list(slides)
    random.shuffle(shuffled)
    assert split(shuffled, USUAL, seed) == sections


@given(st.dictionaries(st.sampled_from("ABCDE"), st.integers(3, 40), min_size=2))
def test_every_class_is_spread_by_the_shares(patients: dict[str, int]) -> None:
    slides = [Slide(f"{label}{n}", label, f"{label}{n}") for label, count in patients.items() for n in range(count)]
    for section, share in zip(SECTIONS, USUAL, strict=True):
        counts = Counter(slide.label for slide in split(slides, USUAL, 0)[section])
        for label, count in patients.items():
            assert counts[label] >= 1
            assert abs(counts[label] - share * count) < 2


def test_a_patient_of_several_classes_counts_for_the_rarest_name_and_the_highest_number() -> None:
    """So no section lacks the rare class though all of its patients have common slides too."""
    for rare, common in (("ADH", "N"), ("ZZ", "N"), (2, 0)):
        both = [Slide(f"r{n}{label}", label, f"r{n}") for n in range(10) for label in (rare, common)]
        others = [Slide(f"c{n}", common, f"c{n}") for n in range(90)]
        sections = split(both + others, USUAL, 0)
        assert [sum(slide.label == rare for slide in own) for own in sections.values()] == [7, 1, 2]


def test_a_patient_who_joins_moves_few_others() -> None:
    scans = many()
    places = {scan.bag_id: section for section, own in split(scans, USUAL, 0).items() for scan in own}
    joined = split([*scans, scan(9999, 1)], USUAL, 0)
    moved = [s for section, own in joined.items() for s in own if places.get(s.bag_id, section) != section]
    assert len({scan.patient for scan in moved}) <= 2


@pytest.mark.parametrize(("ill", "well"), product(range(8), range(0, 12, 3)))
def test_small_cohorts_leave_no_section_out_that_can_be_filled(ill: int, well: int) -> None:
    scans = [scan(n, 1) for n in range(ill)] + [scan(100 + n, 0) for n in range(well)]
    sections = split(scans, USUAL, 0)
    for label, count in ((1, ill), (0, well)):
        here = [sum(scan.label == label for scan in own) for own in sections.values()]
        assert sum(here) == count
        if count >= 3:
            assert min(here) >= 1
        assert max(here) == here[0]


def test_sections_of_the_user_are_kept() -> None:
    scans = [scan(n, n % 2, section=SECTIONS[n % 3]) for n in range(12)]
    for section, own in split(scans, USUAL, 0).items():
        assert own == [scan for scan in scans if scan.section == section]


def test_copies_of_a_scan_are_left_out() -> None:
    cohort = Cohort([scan(2, 1, sops="bx"), scan(1, 1, sops="abc"), scan(3, 1, sops="x"), scan(4)])
    kept = without_copies(cohort)
    assert [scan.bag_id for scan in kept.scans] == ["s0001", "s0003", "s0004"]
    assert kept.rejected.as_json() == {
        "copy of another scan's slices": {"count": 1, "examples": ["s0002 (of s0001)"]},
    }


def test_copies_with_two_labels_are_told() -> None:
    message = "^s0001 and s0002 hold the same slices and have two labels: mend the labels$"
    with pytest.raises(InputError, match=message):
        without_copies(Cohort([scan(2, 0, sops="b"), scan(1, 1, sops="ab")]))


def test_the_text_is_json_with_a_line_per_bag() -> None:
    labelled = replace(scan(1, 1), image=["a/1.dcm", "ä/2.dcm"], instance_label={"1.2": 0, "1.3": 1})
    datalist = as_datalist({"training": [labelled, scan(2)], "validation": [], "test": [scan(3)]})
    assert datalist["training"] == [
        {"bag_id": "s0001", "label": 1, "image": ["a/1.dcm", "ä/2.dcm"], "instance_label": {"1.2": 0, "1.3": 1}},
        {"bag_id": "s0002", "label": 0, "image": "s0002"},
    ]
    text = as_text(datalist)
    assert json.loads(text) == datalist
    lines = [line.strip(" ,") for line in text.splitlines() if "bag_id" in line]
    assert [json.loads(line)["bag_id"] for line in lines] == ["s0001", "s0002", "s0003"]
    assert "patient" not in text


def test_figures_and_notes() -> None:
    sections = {
        "training": [scan(1, 1, "a"), scan(2, 0, "a"), scan(3, 0), scan(4, 0)],
        "validation": [scan(5, 1)],
        "test": [],
    }
    counts = figures(sections)
    assert counts["training"] == {"scans": 4, "patients": 3, "slices": 120, "positive_scans": 1, "prevalence": 0.25}
    assert counts["test"] == {"scans": 0, "patients": 0, "slices": 0, "positive_scans": 0, "prevalence": 0}
    assert counts["total"] == {"scans": 5, "patients": 4, "slices": 150, "positive_scans": 2, "prevalence": 0.4}
    assert notes(sections) == ["validation has positive scans alone", "test is empty"]
    assert notes({**sections, "test": [scan(1), scan(2)]})[-1] == "test has negative scans alone"
    assert notes({"training": sections["training"]}) == []


def test_of_each_kind_of_remark_some_examples_are_shown() -> None:
    remarks = Remarks()
    remarks.add("none", [])
    remarks.add("few", ["b"])
    remarks.add("few", ["a"])
    remarks.add("many", (f"{number:03d}" for number in range(100)))
    assert remarks.as_json() == {
        "few": {"count": 2, "examples": ["a", "b"]},
        "many": {"count": 100, "examples": [f"{number:03d}" for number in range(EXAMPLES)]},
    }
    assert remarks.as_lines() == ["few: 2, such as a", "many: 100, such as 000"]
