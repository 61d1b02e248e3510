# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The two demo cohorts on disk: cases, labels and splits that depend on the seed alone."""

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

from demo import heads as phantoms
from demo import slides as synthetic_slides
from scripts.core.errors import InputError
from scripts.core.files import write_whole

RECIPE = 1  # raise it when the same seed begins to mean other images, so that old ones are not kept
WORKERS = 2
SECTIONS = ("training", "validation", "test")
MARKER = "demo.json"
# What is written here or computed from it: features of other slides would be taken for those of the new ones.
PRODUCTS = ("scans", "slides", "annotations", "features", "datalist.json")

Counts = tuple[int, int, int]  # training, validation, test
Entry = dict[str, object]  # one case of a datalist


@dataclass(frozen=True)
class Case:
    file: Path  # of a scan, the folder
    section: str
    seed: int
    number: int
    positive: bool

    @property
    def root(self) -> Path:
        return self.file.parents[1]

    @property
    def name(self) -> str:
        return self.file.stem


def write_demo_data(
    directory: Path,
    seed: int = 0,
    ct_cases: Counts = (64, 16, 24),
    wsi_cases: Counts = (28, 8, 20),
    ct: bool = True,
    wsi: bool = True,
) -> None:
    """Write what is missing; a second run with the same seed and counts changes nothing."""
    if seed < 0:
        raise InputError(f"seed is {seed}: give 0 or a positive number")
    if ct:
        _write_cohort(plan_cases(directory / "ct", "scans/scan_{:03d}", seed, ct_cases), ct_cases, write_scan)
    if wsi:
        _write_cohort(plan_cases(directory / "wsi", "slides/slide_{:03d}.tif", seed, wsi_cases), wsi_cases, write_slide)


def plan_cases(root: Path, pattern: str, seed: int, counts: Counts) -> list[Case]:
    """Of every two neighbours in a section one is positive, so each section is balanced whatever its size."""
    if min(counts) < 0 or sum(counts) == 0:
        raise InputError(
            f"case counts are {counts}: give training, validation and test counts, at least one case in all"
        )
    cases: list[Case] = []
    for section_number, (section, count) in enumerate(zip(SECTIONS, counts, strict=True)):
        for index in range(count):
            first_is_positive = np.random.default_rng([seed, section_number, index // 2]).random() < 0.5
            positive = bool(first_is_positive) == (index % 2 == 0)
            cases.append(Case(root / pattern.format(len(cases)), section, seed, len(cases), positive))
    return cases


def write_scan(case: Case) -> Entry:
    head = phantoms.Head(phantoms.plan_head(case.seed, case.number, case.positive), case.seed)
    if not case.file.exists():
        partial = _partial(case.file)
        partial.mkdir(parents=True)
        phantoms.write_series(head, case.name, case.seed, partial)
        partial.rename(case.file)
    uids = phantoms.slice_uids(case.name, case.seed, head.plan.geometry.slices)
    return {**_entry(case, f"scans/{case.name}"), "instance_label": phantoms.slice_labels(head, uids)}


def write_slide(case: Case) -> Entry:
    plan = synthetic_slides.plan_slide(case.seed, case.number, case.positive)
    annotation = f"annotations/{case.name}.geojson"
    _write_json(case.root / annotation, synthetic_slides.annotation(plan))
    if not case.file.exists():
        partial = _partial(case.file)
        partial.parent.mkdir(parents=True, exist_ok=True)
        synthetic_slides.write_slide(plan, case.seed, partial)
        partial.rename(case.file)
    return {**_entry(case, f"features/{case.name}.h5"), "annotation": annotation}


def _entry(case: Case, image: str) -> Entry:
    return {"image": image, "label": int(case.positive), "bag_id": case.name}


def _write_cohort(cases: list[Case], counts: Counts, write_case: Callable[[Case], Entry]) -> None:
    root = cases[0].root
    _start_afresh_unless_same(root, {"recipe": RECIPE, "seed": cases[0].seed, "cases": list(counts)})
    list_file = root / "datalist.json"  # written last of all
    if list_file.exists() and all(case.file.exists() for case in cases):
        return
    # Spawn, not fork: the caller may already run threads, of torch for one.
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool:
        entries = list(tqdm(pool.map(write_case, cases), total=len(cases), desc=f"demo {root.name}", unit="case"))
    datalist: dict[str, list[Entry]] = {section: [] for section in SECTIONS}
    for case, entry in zip(cases, entries, strict=True):
        datalist[case.section].append(entry)
    _write_json(list_file, datalist)


def _start_afresh_unless_same(root: Path, recipe: dict[str, object]) -> None:
    marker = root / MARKER
    if not marker.exists() and root.exists() and any(root.iterdir()):
        raise InputError(f"{root} holds files that are not demo data: name a new or an empty folder")
    if marker.exists() and json.loads(marker.read_text()) != recipe:
        _remove_products(root)
    _write_json(marker, recipe)


def _remove_products(root: Path) -> None:
    for product in map(root.joinpath, PRODUCTS):
        if product.is_dir():
            shutil.rmtree(product)
        else:
            product.unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    """A name to write under until the whole is there; what a crash left under it goes."""
    partial = path.with_name(f".partial_{path.name}")
    if partial.is_dir():
        shutil.rmtree(partial)
    return partial


def _write_json(path: Path, content: object) -> None:
    text = json.dumps(content, indent=4) + "\n"
    if not path.exists() or path.read_text() != text:
        write_whole(path, text)
