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
"""What a doctor says: PASS, INFO, WARN or FAIL, and the fix."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import NamedTuple

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
