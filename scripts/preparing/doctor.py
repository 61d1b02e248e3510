# Copyright (c) 2026 the smooth MIL bundle authors
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""What would stop a run on head CT, or spoil it, told before an hour is spent."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tqdm import tqdm

from scripts.data.bags import load_bags
from scripts.data.scans import find_scans
from scripts.data.volumes import is_volume
from scripts.errors import InputError
from scripts.preparing.computer import examine_computer
from scripts.preparing.datalist import INDEX
from scripts.preparing.examination import examine_dicom, examine_volume
from scripts.preparing.findings import Finding, Level, ScanFinding, folded
from scripts.preparing.images import Images, Leakage, by_place
from scripts.preparing.tables import SECTIONS

SLOW_SECONDS = 5  # after them a progress bar is shown

Bag = dict[str, Any]


def examine_ct(path: Path, datalist: Path | None, output_dir: Path) -> Iterator[Finding]:
    """The computer, a datalist where there is one, and the scans it names, or else those below a folder."""
    yield from examine_computer(output_dir)
    if not path.exists():
        yield Finding(Level.FAIL, f"{path} does not exist", "check the path")
        return
    if datalist is None and (path / "datalist.json").is_file():
        datalist = path / "datalist.json"
    bags: list[Bag] = []
    try:
        if datalist is None:
            bags = find_scans(path) if path.is_dir() else [{"image": str(path), "bag_id": path.name}]
            yield Finding(Level.PASS, f"{path} holds {len(bags)} scan{'s' * (len(bags) > 1)}")
            images = _images(bags, None)
        else:
            sections = {}
            for section, given in sections_in(datalist).items():
                finding, sections[section] = _examine_section(datalist, section, given, path)
                bags += sections[section]
                yield finding
            images = _images(bags, datalist.with_name(INDEX))
            yield _examine_leakage(images.leakage(sections, {}))
        yield from folded(_examine_scans(bags, images))
    except InputError as error:
        yield Finding(Level.FAIL, str(error))


def told(findings: Iterable[Finding]) -> bool:
    """Prints findings as they come, and their count; whether none of them fails."""
    counts: Counter[Level] = Counter()
    for finding in findings:
        counts[finding.level] += 1
        print(finding, flush=True)
    print(", ".join(f"{counts[level]} {level}" for level in (Level.PASS, Level.WARN, Level.FAIL)))
    return not counts[Level.FAIL]


def sections_in(datalist: Path) -> dict[str, object]:
    """As they stand in the file."""
    try:
        content = json.loads(datalist.read_text())
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        load_bags(str(datalist), SECTIONS[0], "")  # says what is wrong
    return {section: content.get(section) or [] for section in SECTIONS}


def _examine_section(datalist: Path, section: str, given: object, folder: Path) -> tuple[Finding, list[Bag]]:
    if not given:
        what = "evaluation" if section == "test" else "training"
        return Finding(Level.WARN, f'{datalist} has no bags under "{section}"', f"add them before {what}"), []
    try:
        bags = load_bags(str(datalist), section, str(folder), labelled=section != "test")
    except InputError as error:
        return Finding(Level.FAIL, str(error)), []
    labels = Counter(bag.get("label") for bag in bags)
    text = f"{section}: {len(bags)} scans, {labels[1]} positive, {labels[0]} negative"
    if labels[0] and labels[1]:
        return Finding(Level.PASS, text), bags
    level = Level.FAIL if section == "training" else Level.WARN
    return Finding(level, text, "put scans of both classes into it"), bags


def _examine_leakage(leaks: Leakage) -> Finding:
    if leaks.slices_in_several_sections or (leaks.patients_in_several_sections and leaks.patients > 1):
        text = (
            f"{leaks.patients_in_several_sections} of {leaks.patients} patients and "
            f"{leaks.slices_in_several_sections} of {leaks.slices} slices are in more than one section "
            f"(of {' and '.join(leaks.example)})"
        )
        return Finding(Level.FAIL, text, "make the datalist again, with python -m scripts datalist ct")
    if leaks.patients < 2:
        text = f"the scans tell of {leaks.patients or 'no'} patient, so it is not known who is in two sections"
        return Finding(Level.WARN, text, "make sure that nobody is")
    return Finding(Level.PASS, f"none of {leaks.patients} patients and {leaks.slices} slices is in two sections")


def _images(bags: Sequence[Bag], index: Path | None) -> Images:
    """Of bags whose paths are whole; headers that are remembered from before are not read again."""
    with TemporaryDirectory() as scratch:  # an index forgets what it is not asked for, so it is left alone
        copy = Path(scratch, INDEX)
        if index is not None and index.is_file():
            shutil.copyfile(index, copy)
        return Images(Path(), [path for bag in bags for path in _paths(bag)], copy)


def _paths(bag: Bag) -> list[Path]:
    return [Path(path) for path in ([bag["image"]] if isinstance(bag["image"], str) else bag["image"])]


def _examine_scans(bags: Sequence[Bag], images: Images) -> Iterator[ScanFinding]:
    places = {path for bag in bags for path in _paths(bag)}
    headers, rejected = by_place(images.headers, places), by_place(images.rejected, places)
    for bag in tqdm(bags, desc="scans", unit="scan", delay=SLOW_SECONDS):
        paths = _paths(bag)
        if is_volume(paths[0]):
            yield examine_volume(bag, paths[0])
        else:
            yield examine_dicom(
                bag,
                [each for path in paths for each in headers[path]],
                [each for path in paths for each in rejected[path]],
            )
