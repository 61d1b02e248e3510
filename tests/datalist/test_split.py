# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
import hashlib
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.datalist.split import EXAMPLES, Remarks, section_notes, split
from scripts.datalist.tables import SECTIONS

USUAL = (0.7, 0.1, 0.2)


class Bag(NamedTuple):
    bag_id: str
    label: int | str
    patient: str
    section: str = ""


def bag(number: int, label: int | str = 0, section: str = "") -> Bag:
    return Bag(f"s{number:04d}", label, f"patient {number}", section)


def many(seed: int = 0, count: int = 400) -> list[Bag]:
    """Some patients have several scans, and not all of theirs are positive."""
    rng = np.random.default_rng(seed)
    patients = rng.integers(count // 2, size=count)
    ill = rng.random(count) < 0.3
    return [Bag(f"s{n:04d}", int(ill[p] and rng.random() < 0.7), f"p{p}") for n, p in enumerate(patients)]


@pytest.mark.parametrize("shares", [USUAL, (0.5, 0.25, 0.25), (0.8, 0.2, 0.0), (0.0, 0.0, 1.0)])
def test_two_classes_are_split_as_positive_and_negative(shares: tuple[float, float, float]) -> None:
    """The rule written down a second time: patients of a class in the order of their hashes, cut by the shares."""
    scans = many()
    ill = {scan.patient for scan in scans if scan.label}
    wanted: dict[str, list[Bag]] = {section: [] for section in SECTIONS}
    for group in (ill, {scan.patient for scan in scans} - ill):
        order = sorted(group, key=lambda name: hashlib.sha256(f"3 {name}".encode()).digest())
        exact = np.array(shares) * len(group)
        counts = np.floor(exact).astype(int)
        counts[np.argsort(counts - exact, kind="stable")[: len(group) - counts.sum()]] += 1  # the largest remainders
        for section, names in zip(SECTIONS, np.split(np.array(order), np.cumsum(counts)[:-1]), strict=True):
            wanted[section] += [scan for scan in scans if scan.patient in names]
    assert split(scans, shares, 3) == {section: sorted(own) for section, own in wanted.items()}


SLIDES = st.lists(
    st.tuples(st.sampled_from(["N", "PB", "UDH", "ADH", "IC"]), st.integers(0, 25)), min_size=1, max_size=60
).map(lambda drawn: [Bag(f"s{n:02d}", label, f"p{patient}") for n, (label, patient) in enumerate(drawn)])


@given(SLIDES, st.randoms(use_true_random=False))
def test_no_patient_is_in_two_sections_whatever_the_order_of_the_bags(slides: list[Bag], random: Any) -> None:
    sections = split(slides, USUAL, 0)
    assert sorted(slide for own in sections.values() for slide in own) == sorted(slides)
    patients = [{slide.patient for slide in own} for own in sections.values()]
    assert sum(map(len, patients)) == len(set.union(*patients))
    assert split(random.sample(slides, len(slides)), USUAL, 0) == sections


@given(st.dictionaries(st.sampled_from("ABCDE"), st.integers(1, 40)))
def test_every_class_is_spread_by_the_shares(patients: dict[str, int]) -> None:
    slides = [Bag(f"{label}{n}", label, f"{label}{n}") for label, count in patients.items() for n in range(count)]
    sections = split(slides, USUAL, 0)
    for label, count in patients.items():
        here = [sum(slide.label == label for slide in own) for own in sections.values()]
        assert min(here) >= (count >= 3)  # no section is left without that can have one
        assert max(here) == here[0]
        assert np.abs(np.array(here) - np.array(USUAL) * count).max() < 2


@pytest.mark.parametrize(("rare", "common"), [("ADH", "N"), ("ZZ", "N"), (2, 0)])
def test_a_patient_counts_for_the_rarest_name_or_the_highest_number(rare: int | str, common: int | str) -> None:
    """So no section lacks the rare class though all of its patients have common slides too."""
    both = [Bag(f"r{n}{label}", label, f"r{n}") for n in range(10) for label in (rare, common)]
    sections = split(both + [bag(n, common) for n in range(90)], USUAL, 0)
    assert [sum(slide.label == rare for slide in own) for own in sections.values()] == [7, 1, 2]


def test_another_seed_moves_many_and_a_patient_who_joins_few() -> None:
    scans = many()
    places = {scan.bag_id: section for section, own in split(scans, USUAL, 0).items() for scan in own}

    def moved(sections: dict[str, list[Bag]]) -> set[str]:
        return {s.patient for name, own in sections.items() for s in own if places.get(s.bag_id, name) != name}

    assert len(moved(split(scans, USUAL, 4))) > 0.3 * len({scan.patient for scan in scans})
    assert len(moved(split([*scans, bag(9999, 1)], USUAL, 0))) <= 2


def test_sections_of_the_user_are_kept() -> None:
    scans = [bag(n, n % 2, section=SECTIONS[n % 3]) for n in range(12)]
    assert split(scans, USUAL, 0) == {section: scans[k::3] for k, section in enumerate(SECTIONS)}


def test_of_each_kind_of_remark_some_examples_are_shown() -> None:
    remarks = Remarks()
    for kind, things in (("none", []), ("few", ["b"]), ("few", ["a"]), ("many", [f"{n:03d}" for n in range(100)])):
        remarks.add(kind, things)
    assert remarks.as_json() == {
        "few": {"count": 2, "examples": ["a", "b"]},
        "many": {"count": 100, "examples": [f"{number:03d}" for number in range(EXAMPLES)]},
    }
    assert remarks.as_lines() == ["few: 2, such as a", "many: 100, such as 000"]


def test_sections_that_are_empty_or_lack_a_class_are_noted() -> None:
    sections = {"training": [bag(1, 1), bag(2), bag(3)], "validation": [bag(5, 1)], "test": []}
    assert section_notes(sections, [0, 1], "scans") == ["validation has positive scans alone", "test is empty"]
    assert section_notes({"test": [bag(1)]}, [0, 1], "bags") == ["test has negative bags alone"]
    assert section_notes({"test": [bag(1)]}, [0, 1, 2], "bags") == ["test has no bag of 1, 2"]
