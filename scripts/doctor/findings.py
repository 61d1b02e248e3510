# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The findings of both doctors: PASS, INFO, WARN or FAIL with the fix, and what they find in a datalist."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from scripts.core.bags import load_bags
from scripts.core.errors import InputError, printable
from scripts.datalist.split import Leakage, without_numbers
from scripts.datalist.tables import SECTIONS

SHOWN_WELL = 10  # scans without trouble; more are one line
SHOWN_ILL = 5  # scans with the same trouble; the others are counted

Entries = list[dict[str, Any]]  # bags as load_bags returns them


class Level(StrEnum):
    """How bad a finding is."""

    PASS = "PASS"
    INFO = "INFO"
    WARN = "WARN"
    FAIL = "FAIL"


class Finding(NamedTuple):
    """One line of a doctor, with the fix where there is one."""

    level: Level
    text: str
    fix: str = ""
    name: str = ""  # of the one scan or slide it is on
    size: int = 0  # its slices, patches or megapixels

    def __str__(self) -> str:
        return printable(f"{self.level}  {': '.join(filter(None, (self.name, self.text, self.fix)))}")

    @property
    def kind(self) -> str:
        """Return the same text for all scans without trouble, and for those with the same trouble."""
        return "" if self.level == Level.PASS else f"{self.level} {without_numbers(self.text.replace(self.name, ''))}"


def folded(found: Iterable[Finding], things: str = "scans", parts: str = "slices") -> Iterator[Finding]:
    """Yield the findings of many scans in few lines."""
    kinds: dict[str, list[Finding]] = {}
    for each in found:
        kinds.setdefault(each.kind, []).append(each)
    for kind, alike in sorted(kinds.items()):
        if not kind and len(alike) > SHOWN_WELL:
            sizes = [each.size for each in alike]
            ends = " to ".join(dict.fromkeys((str(min(sizes)), str(max(sizes)))))
            yield Finding(Level.PASS, f"{len(alike)} {things} of {ends} {parts}")
            continue
        shown = alike if not kind else alike[:SHOWN_ILL]
        yield from shown
        if len(alike) > len(shown):
            yield Finding(alike[0].level, f"{len(alike) - len(shown)} more {things} like {shown[-1].name}")


def print_findings(findings: Iterable[Finding]) -> bool:
    """Print findings as they come, and their count; return whether none of them fails."""
    counts: Counter[Level] = Counter()
    for finding in findings:
        counts[finding.level] += 1
        print(finding, flush=True)
    print(", ".join(f"{counts[level]} {level}" for level in (Level.PASS, Level.WARN, Level.FAIL)))
    return not counts[Level.FAIL]


def sections_in(datalist: Path) -> dict[str, Any]:
    """Return the sections of a datalist as they are in the file, or refuse what is no datalist."""
    try:
        content = json.loads(datalist.read_text())
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        load_bags(str(datalist), SECTIONS[0], "")  # says what is wrong
    return {section: content.get(section) or [] for section in SECTIONS}


def examine_section(
    datalist: Path, section: str, given: object, folder: Path, class_names: Sequence[str] | None, what: str
) -> tuple[Finding, Entries]:
    """Return a finding on one section of a datalist, `given` as in the file, and the bags that can be read of it."""
    if not given:
        purpose = "evaluation" if section == "test" else "training"
        return Finding(Level.WARN, f'{datalist} has no bags under "{section}"', f"add them before {purpose}"), []
    try:
        bags = load_bags(str(datalist), section, str(folder), labelled=section != "test", class_names=class_names)
    except InputError as error:
        return Finding(Level.FAIL, str(error)), []
    counts = Counter(bag.get("label") for bag in bags)
    names = ["negative", "positive"] if class_names is None else class_names
    text = f"{section}: {len(bags)} {what}, " + ", ".join(f"{counts[k]} {name}" for k, name in enumerate(names))
    present = sum(counts[k] > 0 for k in range(len(names)))
    if present == len(names):
        return Finding(Level.PASS, text), bags
    level = Level.FAIL if section == "training" and present < 2 else Level.WARN
    return Finding(level, text, f"put {what} of {'both classes' if present < 2 else 'every class'} into it"), bags


def examine_leakage(leakage: Leakage, wing: str) -> Finding:
    """Return whether a patient or an image is in more than one section."""
    if leakage.example:
        return Finding(Level.FAIL, leakage.as_line(), f"make it again, python -m scripts datalist {wing}")
    text = f"none of {leakage.patients} patients and {leakage.total_images} {leakage.images} is in two sections"
    return Finding(Level.PASS, text)
