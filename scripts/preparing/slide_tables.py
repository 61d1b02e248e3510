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
"""Labels and splits of slides as CLAM, torchmil and people write them: csv files, told apart by their columns."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from scripts.errors import InputError
from scripts.preparing.slide_files import slide_name
from scripts.preparing.tables import SECTIONS, column_names, read_rows, require_all_or_none, require_named_once

SLIDE = ("slide_id", "slide", "image", "bag_name", "wsi_name", "wsi", "filename")  # what the column is called
PATIENT = ("patient", "patient_id", "case_id")
LABEL = "label"
NOT_KNOWN = frozenset({"na", "n/a", "nan"})  # a label, as R and pandas write
SECTION = ("section", "split")
COARSE = ("coarse", "coarse_label")
FOLD = re.compile(r"splits_(\d+)\.csv")  # of CLAM, one of several

_SECTION_NAMES = {
    "train": "training", "training": "training",
    "val": "validation", "valid": "validation", "validation": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
_BOOLEANS = {"true", "false"}
_FLOAT = re.compile(r"(\d+)\.0")  # so pandas writes the number of a slide in a column that has gaps


class SlideLabel(NamedTuple):
    """One row of a csv with a slide's label; "" is what the csv does not say."""

    line: int
    slide: str  # as it is written: a name, or a path of its features
    label: str
    patient: str = ""
    section: str = ""
    coarse: str = ""
    annotation: str = ""

    @property
    def name(self) -> str:
        return slide_name(self.slide)


def holds_labels(columns: Collection[str], label: str = LABEL) -> bool:
    return label.casefold() in columns and _one_of(SLIDE, columns) is not None


def holds_splits(columns: Collection[str]) -> bool:
    if LABEL in columns:
        return False
    named = _one_of(SLIDE, columns) is not None and _one_of(SECTION, columns) is not None
    return named or len(_section_columns(columns)) > 1


def read_slide_labels(path: Path, label: str = LABEL) -> list[SlideLabel]:
    """Of a csv with the columns slide and label, and if wanted patient, section, coarse and annotation.

    Args:
        path: the csv.
        label: name of the column of the labels.
    """
    rows = _read_labels(path, label, SLIDE, "slide")
    require_named_once([(row.line, row.name) for row in rows], path, "slide")
    return rows


def read_patient_labels(path: Path, slide_table: Path, label: str = LABEL) -> tuple[list[SlideLabel], list[str]]:
    """Of two csvs, as STAMP's: a row for each slide in the order of the second; and who of the first has no slide.

    A slide of nobody in the first has no label.

    Args:
        path: with the columns patient and label, and if wanted section and coarse.
        slide_table: with the columns patient and slide.
        label: name of the column of the labels.
    """
    patients = _read_labels(path, label, PATIENT, "patient")
    require_named_once([(row.line, row.patient) for row in patients], path, "patient")
    columns = column_names(slide_table)
    patient, slide = _one_of(PATIENT, columns), _one_of(SLIDE, columns)
    if patient is None or slide is None:
        raise InputError(
            f"{slide_table} names none of {', '.join(PATIENT)}, or none of {', '.join(SLIDE)} in its first line: "
            "name its columns patient and slide"
        )
    slides = list(read_rows(slide_table, (patient, slide)))
    require_named_once([(line, slide_name(name)) for line, (_, name) in slides], slide_table, "slide")
    told = {row.patient: row for row in patients}
    owners = {who for _, (who, _) in slides}
    if not told.keys() & owners:
        raise InputError(f"{slide_table} names no patient of {path}: give the slide table of these labels")
    blank = SlideLabel(0, "", "")
    rows = [told.get(who, blank)._replace(slide=name, patient=who) for _, (who, name) in slides]
    return rows, [who for who in told if who not in owners]


def _read_labels(path: Path, label: str, named: Sequence[str], what: str) -> list[SlideLabel]:
    """One for each slide or patient, whose column is called one of `named`."""
    columns = column_names(path)
    if _one_of(named, columns) is None or label.casefold() not in columns:
        there = ", ".join(sorted(columns)[:12])
        other = ", or a csv of patients and slides with --slide_table" if what == "slide" else ""
        raise InputError(
            f"{path} names no column {label}, or none of {', '.join(named[:3])} in its first line ({there}): "
            f"name its columns {what} and label, or give the name of the labels with --label_column{other}"
        )
    optional = [_one_of(names, columns) or names[0] for names in (SLIDE, PATIENT, SECTION, COARSE, ("annotation",))]
    rows = []
    for line, (value, slide, patient, section, coarse, annotation) in read_rows(path, (label,), optional):
        known = "" if value.casefold() in NOT_KNOWN else value
        rows.append(SlideLabel(line, slide, known, patient, _section(section, path, line), coarse, annotation))
    if not rows:
        raise InputError(f"{path} has no rows: give one per {what}")
    for column in ("patient", "section", "coarse"):
        require_all_or_none([(row.line, getattr(row, column)) for row in rows], path, column, what)
    return rows


def read_splits(path: Path) -> dict[str, str]:
    """Name of a slide -> its section, of CLAM's two forms or of torchmil's."""
    columns = column_names(path)
    if not holds_splits(columns):
        raise InputError(
            f"{path} names neither train, val, test (CLAM) nor bag_name, split (torchmil) in its first line: "
            "give such a csv with --splits FILE"
        )
    if path.stem.endswith("_descriptor"):
        raise InputError(
            f"{path} counts the slides of CLAM's sections, it does not name them: give the splits_0.csv beside it"
        )
    sections: dict[str, str] = {}
    lines: dict[str, int] = {}
    for line, slide, section in _split_rows(path, columns):
        name = slide_name(_FLOAT.sub(r"\1", slide) if _FLOAT.fullmatch(slide) else slide)
        if sections.setdefault(name, section) != section:
            raise InputError(
                f"{path}, line {line} puts {name} into {section}, line {lines[name]} into {sections[name]}: keep one"
            )
        lines.setdefault(name, line)
    if not sections:
        raise InputError(f"{path} puts no slide into a section: give another with --splits FILE")
    return sections


def _split_rows(path: Path, columns: Collection[str]) -> Iterator[tuple[int, str, str]]:
    """Line, slide and section."""
    slide, section = _one_of(SLIDE, columns), _one_of(SECTION, columns)
    if slide is not None and section is not None:
        for line, (name, where) in read_rows(path, (slide, section)):
            if where:
                yield line, name, _section(where, path, line)
        return
    names = _section_columns(columns)
    rows = list(read_rows(path, names, (slide or "",)))
    if _are_booleans(cell for _, cells in rows for cell in cells[: len(names)]):
        for line, (*cells, name) in rows:
            yield from ((line, name, _SECTION_NAMES[k]) for k, cell in zip(names, cells, strict=True) if _true(cell))
        return
    for line, (*cells, _) in rows:
        yield from ((line, cell, _SECTION_NAMES[k]) for k, cell in zip(names, cells, strict=True) if cell)


def _are_booleans(cells: Iterable[str]) -> bool:
    return {cell.casefold() for cell in cells if cell} <= _BOOLEANS


def _true(cell: str) -> bool:
    return cell.casefold() == "true"


def _section_columns(columns: Collection[str]) -> list[str]:
    return [name for name in _SECTION_NAMES if name in columns]


def _one_of(names: Sequence[str], columns: Collection[str]) -> str | None:
    return next((name for name in names if name in columns), None)


def _section(text: str, path: Path, line: int) -> str:
    if not text:
        return ""
    if text.casefold() not in _SECTION_NAMES:
        raise InputError(f"{path}, line {line}: the section {text!r} is none: give {', '.join(SECTIONS)}")
    return _SECTION_NAMES[text.casefold()]
