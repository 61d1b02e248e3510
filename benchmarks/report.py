# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Measurements judged against their targets and written as JSON and as a page."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import linear_regression, median
from typing import Any

from scripts.core.files import plain, write_whole

LARGE = 10_000  # instances from which on fixed costs no longer count


@dataclass(frozen=True)
class Target:
    what: str
    value: float | None  # None: could not be measured here
    limit: float
    unit: str = ""
    at_least: bool = False  # else at most

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "not measured"
        reached = self.value >= self.limit if self.at_least else self.value <= self.limit
        return "reached" if reached else "missed"


@dataclass(frozen=True)
class Table:
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    def markdown(self) -> str:
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


@dataclass(frozen=True)
class Section:
    """A part of the run; each lies in a file of its own, so that one can be measured again alone."""

    name: str
    title: str
    how: str
    quick: bool  # small bags, once: shows that it runs, says nothing of speed
    where: Mapping[str, str]  # processor, cores, versions
    targets: Sequence[Target] = ()
    tables: Sequence[Table] = ()
    measured: Mapping[str, Any] = field(default_factory=dict)  # every figure behind the tables
    format: str = "speed"  # or "ledger": of which page it is a part

    @property
    def missed(self) -> list[str]:
        return [target.what for target in self.targets if target.verdict == "missed"]

    def write(self, folder: Path) -> None:
        targets = [{**asdict(target), "verdict": target.verdict} for target in self.targets]
        content = {**asdict(self), "targets": targets}
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / f"{self.name}.json", json.dumps(plain(content), indent=4, ensure_ascii=False) + "\n")


def read(path: Path, format: str = "speed") -> Section | None:
    """A section from its file; None for a file of another kind."""
    content = json.loads(path.read_text())
    if not isinstance(content, dict) or content.get("format") != format:
        return None
    targets = [Target(**{k: v for k, v in target.items() if k != "verdict"}) for target in content.pop("targets")]
    return Section(**{**content, "targets": targets, "tables": [Table(**table) for table in content["tables"]]})


def page(sections: Sequence[Section], preface: str, title: str = "Speed and memory") -> str:
    """All sections in markdown, what was aimed at first."""
    quick = any(section.quick for section in sections)
    verdicts = [
        [target.what, number(target.value, target.unit), _limit(target), "not judged" if quick else target.verdict]
        for section in sections
        for target in section.targets
    ]
    parts = [f"# {title}", preface]
    if quick:
        parts.append("**A quick run: small bags, measured once. Nothing here says how fast anything is.**")
    parts += ["## Targets", Table(["what", "measured", "target", "verdict"], verdicts).markdown()]
    for section in sections:
        parts += [f"## {section.title}", section.how]
        for table in section.tables:
            parts += [table.caption, table.markdown()] if table.caption else [table.markdown()]
        parts.append("Measured on " + ", ".join(f"{key} {value}" for key, value in section.where.items()) + ".")
    return "\n\n".join(parts) + "\n"


def _limit(target: Target) -> str:
    return f"{'≥' if target.at_least else '≤'} {number(target.limit, target.unit)}"


def number(value: float | None, unit: str = "") -> str:
    """Three digits are more than a shared machine repeats."""
    if value is None:
        return "–"
    if value == 0 or 0.001 <= abs(value) < 100_000:
        digits = 0 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
        text = f"{value:,.{digits}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    else:
        text = f"{value:.0e}"
    return f"{text} {unit}".strip() if unit != "×" else f"{text}×"


def spread(seconds: Sequence[float], unit: str = "s") -> str:
    """Median (fastest to slowest), of the processes."""
    return f"{number(median(seconds))} ({number(min(seconds))} to {number(max(seconds))}) {unit}"


def exponent(seconds: Mapping[int, float]) -> float | None:
    """p of seconds ~ N^p: the slope of log time over log N. None of fewer than two points."""
    if len(seconds) < 2:
        return None
    return linear_regression([math.log(n) for n in seconds], [math.log(s) for s in seconds.values()]).slope


def large(seconds: Mapping[int, float]) -> dict[int, float]:
    return {n: s for n, s in seconds.items() if n >= LARGE}


def ratio(numerator: float | None, denominator: float | None) -> float | None:
    return None if numerator is None or denominator is None else numerator / denominator
