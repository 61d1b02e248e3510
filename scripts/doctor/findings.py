# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""What a doctor says: PASS, INFO, WARN or FAIL, and the fix."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from scripts.core.bags import load_bags
from scripts.datalist.tables import SECTIONS

SHOWN_WELL = 10  # scans without trouble; more are one line
SHOWN_ILL = 5  # scans with the same trouble; the others are counted

_NUMBERS = re.compile(r"\d+(\.\d+)?")


class Level(StrEnum):
    PASS = "PASS"
    INFO = "INFO"
    WARN = "WARN"
    FAIL = "FAIL"


class Finding(NamedTuple):
    level: Level
    text: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.level}  {self.text}" + (f": {self.fix}" if self.fix else "")


class ScanFinding(NamedTuple):
    """What was found in one scan, or one slide."""

    scan: str
    level: Level
    text: str
    fix: str = ""
    slices: int = 0  # or patches

    @property
    def kind(self) -> str:
        """The same for all scans without trouble, and for those with the same trouble."""
        return "" if self.level == Level.PASS else f"{self.level} {_NUMBERS.sub('N', self.text.replace(self.scan, ''))}"

    @property
    def finding(self) -> Finding:
        return Finding(self.level, f"{self.scan}: {self.text}", self.fix)


def folded(found: Iterable[ScanFinding], things: str = "scans", parts: str = "slices") -> Iterator[Finding]:
    """The findings of many scans in few lines."""
    kinds: dict[str, list[ScanFinding]] = {}
    for each in found:
        kinds.setdefault(each.kind, []).append(each)
    for kind, alike in sorted(kinds.items()):
        if not kind and len(alike) > SHOWN_WELL:
            slices = sorted(each.slices for each in alike)
            yield Finding(Level.PASS, f"{len(alike)} {things} of {slices[0]} to {slices[-1]} {parts}")
            continue
        shown = alike if not kind else alike[:SHOWN_ILL]
        yield from (each.finding for each in shown)
        if len(alike) > len(shown):
            yield Finding(alike[0].level, f"{len(alike) - len(shown)} more {things} like {shown[-1].scan}")


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
