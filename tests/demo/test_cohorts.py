# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The cohorts on disk: balanced, complete, true to their files, and written once."""

import json
from pathlib import Path
from typing import Any

import openslide
import pydicom
import pytest

from demo.cohorts import SECTIONS, Case, plan_cases, write_demo_data
from scripts.core.errors import InputError

COUNTS = (2, 1, 1)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("demo")
    write_demo_data(directory, ct_cases=COUNTS, wsi_cases=COUNTS)
    return directory


def modified(root: Path) -> dict[str, int]:
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in root.rglob("*")}


def planned(seed: int, *counts: int) -> list[Case]:
    return plan_cases(Path("ct"), "scans/scan_{:03d}", seed, counts)  # type: ignore[arg-type]


@pytest.mark.parametrize("counts", [(64, 16, 24), (3, 2, 5)])
def test_every_section_is_balanced_whatever_the_seed(counts: tuple[int, int, int]) -> None:
    for seed in range(5):
        cases = planned(seed, *counts)
        assert len({case.name for case in cases}) == sum(counts)
        for section, count in zip(SECTIONS, counts, strict=True):
            positives = [case.positive for case in cases if case.section == section]
            assert len(positives) == count
            assert count // 2 <= sum(positives) <= (count + 1) // 2


def test_a_case_depends_neither_on_the_parity_of_its_number_nor_on_how_many_follow() -> None:
    few, many = planned(0, 4, 0, 0), planned(0, 64, 0, 0)
    assert few == many[:4]
    assert 16 < sum(case.positive == (case.number % 2 == 0) for case in many) < 48


@pytest.mark.slow
def test_labels_are_those_of_the_slices_and_annotations_and_a_second_run_changes_nothing(cohort: Path) -> None:
    listed = [json.loads((cohort / task / "datalist.json").read_text()) for task in ("ct", "wsi")]
    assert [tuple(len(bags[section]) for section in SECTIONS) for bags in listed] == [COUNTS, COUNTS]
    scans, slides = ([bag for section in SECTIONS for bag in bags[section]] for bags in listed)
    patients = set()
    for bag in scans:
        headers = [pydicom.dcmread(p, stop_before_pixels=True) for p in (cohort / "ct" / bag["image"]).iterdir()]
        assert {header.SOPInstanceUID for header in headers} == set(bag["instance_label"])
        assert max(bag["instance_label"].values()) == bag["label"]
        patients |= {header.PatientID for header in headers}
    assert len(patients) == sum(COUNTS)
    for bag in slides:
        assert bag["image"] == f"features/{bag['bag_id']}.h5"
        regions = json.loads((cohort / "wsi" / bag["annotation"]).read_text())["features"]
        assert bool(regions) == bool(bag["label"])
        with openslide.OpenSlide(cohort / "wsi" / "slides" / f"{bag['bag_id']}.tif") as slide:
            assert slide.level_count >= 3
    before = modified(cohort)
    assert not [path for path in before if ".partial" in path]
    write_demo_data(cohort, ct_cases=COUNTS, wsi_cases=COUNTS)
    assert modified(cohort) == before


@pytest.mark.slow
def test_a_run_cut_short_is_completed_and_another_seed_replaces_what_is_its_own(tmp_path: Path, cohort: Path) -> None:
    keys: dict[str, Any] = {"ct_cases": (2, 0, 0), "wsi": False}
    write_demo_data(tmp_path, **keys)
    root = tmp_path / "ct"
    lost = root / "scans" / "scan_001"
    content = {path.name: path.read_bytes() for path in lost.iterdir()}
    elsewhere = cohort / "ct" / "scans" / "scan_001"
    assert content == {path.name: path.read_bytes() for path in elsewhere.iterdir()}
    kept, listed = modified(root / "scans" / "scan_000"), (root / "datalist.json").read_text()
    lost.rename(lost.with_name(".partial_scan_001"))
    next(lost.with_name(".partial_scan_001").iterdir()).write_bytes(b"half a fi")
    (root / "datalist.json").unlink()

    write_demo_data(tmp_path, **keys)
    assert {path.name: path.read_bytes() for path in lost.iterdir()} == content
    assert modified(root / "scans" / "scan_000") == kept
    assert (root / "datalist.json").read_text() == listed
    assert not list(root.rglob(".partial*"))

    (root / "features").mkdir()
    (root / "features" / "scan_000.h5").write_bytes(b"features of the first seed")
    (root / "notes.txt").write_text("mine")
    write_demo_data(tmp_path, seed=1, **keys)
    assert not content.items() & {path.name: path.read_bytes() for path in lost.iterdir()}.items()
    assert not (root / "features").exists()
    assert (root / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "wsi").exists()


def test_a_folder_of_something_else_is_left_alone_and_the_impossible_is_refused(tmp_path: Path) -> None:
    asked: list[tuple[dict[str, Any], str]] = [
        ({"ct_cases": (0, 0, 0)}, "case counts"),
        ({"ct_cases": (2, -1, 1)}, "case counts"),
        ({"seed": -1}, "seed is -1"),
        ({"ct_cases": (1, 0, 0), "wsi": False}, "not demo data"),
    ]
    (tmp_path / "ct" / "scans").mkdir(parents=True)
    for keys, message in asked:
        with pytest.raises(InputError, match=message):
            write_demo_data(tmp_path, **keys)
    assert list((tmp_path / "ct").iterdir()) == [tmp_path / "ct" / "scans"]
