# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Labels as people and public cohorts give them: csv files, read with the line of each mistake."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TextIO

from scripts.core.errors import InputError

RSNA_SUBTYPES = ("any", "epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")
SECTIONS = ("training", "validation", "test")

_DELIMITERS = ",;\t"
_READERS = ("R1:ICH", "R2:ICH", "R3:ICH")  # of CQ500


class SliceLabels(NamedTuple):
    """What the csv of RSNA 2019 says of its slices."""

    labels: dict[str, int]  # SOPInstanceUID -> 0 or 1
    contradictory: set[str]  # slices with two rows that disagree; they are in no `labels`
    repeated_rows: list[str]  # that stand there again


class ScanLabel(NamedTuple):
    """One row of a csv with a scan's label."""

    line: int
    scan: str
    label: int
    patient: str  # "" where the csv does not say
    section: str  # likewise


def read_slice_labels(path: Path, subtype: str) -> SliceLabels:
    """Of stage_2_train.csv, six rows `ID_<hex>_<subtype>` per slice."""
    if subtype not in RSNA_SUBTYPES:
        raise InputError(f"--subtype {subtype!r} is not known: give {', '.join(RSNA_SUBTYPES)}")
    # A bit for each row a slice has, and six bits higher one for its value: 4.5 million rows must fit into memory.
    known_bit = {name: 1 << place for place, name in enumerate(RSNA_SUBTYPES)}
    rows: dict[str, int] = {}
    contradictory: set[str] = set()
    repeated: list[str] = []
    for line, (name, value) in read_rows(path, ("ID", "Label")):
        sop, _, kind = name.rpartition("_")
        if not sop or kind not in known_bit:
            raise InputError(f"{path}, line {line}: {name!r} is not ID_<hex>_<subtype>: give RSNA's stage_2_train.csv")
        known = known_bit[kind]
        entry = known | known << 6 if _zero_or_one(value, path, line) else known
        before = rows.get(sop, 0)
        if before & known:
            repeated.append(name)
            if before & (known << 6) != entry & (known << 6):
                contradictory.add(sop)
        rows[sop] = before | entry
    wanted = known_bit[subtype]
    labels = {sop: int(bool(bits & wanted << 6)) for sop, bits in rows.items() if bits & wanted}
    for sop in contradictory:
        labels.pop(sop, None)
    return SliceLabels(labels, contradictory, repeated)


def read_majority_labels(path: Path) -> list[ScanLabel]:
    """Of CQ500's reads.csv, where three readers each said whether there is a hemorrhage."""
    rows = []
    for line, (name, *votes) in read_rows(path, ("name", *_READERS)):
        positive = sum(_zero_or_one(vote, path, line) for vote in votes)
        rows.append(ScanLabel(line, name, int(positive > len(votes) / 2), patient=name, section=""))
    return _named_once(rows, path)


def read_scan_labels(path: Path) -> list[ScanLabel]:
    """Of a csv with the columns `scan` and `label`, and if wanted `patient` and `section`."""
    rows = []
    for line, (scan, label, patient, section) in read_rows(path, ("scan", "label"), ("patient", "section")):
        if section not in ("", *SECTIONS):
            raise InputError(f"{path}, line {line}: the section {section!r} is none: give {', '.join(SECTIONS)}")
        rows.append(ScanLabel(line, scan, _zero_or_one(label, path, line), patient, section))
    for column in ("patient", "section"):
        require_all_or_none([(row.line, getattr(row, column)) for row in rows], path, column, "scan")
    return _named_once(rows, path)


def require_all_or_none(values: Sequence[tuple[int, str]], path: Path, column: str, what: str) -> None:
    without = [line for line, value in values if not value]
    if 0 < len(without) < len(values):
        raise InputError(
            f"{path}, line {without[0]} has no {column}, other lines have: give every {what} one, or leave it out"
        )


def _named_once(rows: list[ScanLabel], path: Path) -> list[ScanLabel]:
    if not rows:
        raise InputError(f"{path} has no rows: give one per scan")
    require_named_once([(row.line, row.scan) for row in rows], path, "scan")
    return rows


def require_named_once(names: Iterable[tuple[int, str]], path: Path, what: str) -> None:
    """Of each row its line and the name in it."""
    lines: dict[str, int] = {}
    for line, name in names:
        if not name:
            raise InputError(f"{path}, line {line} names no {what}: name it, or take the line out")
        if name in lines:
            raise InputError(f"{path}, line {line} names {name!r} as line {lines[name]} does: keep one")
        lines[name] = line


def _zero_or_one(value: str, path: Path, line: int) -> int:
    if value not in ("0", "1"):
        raise InputError(f"{path}, line {line}: the label {value!r} is not one of the classes: give 0 or 1")
    return int(value)


def column_names(path: Path) -> set[str]:
    """In lower case."""
    with _opened(path) as (_, names, _):
        return set(names)


def read_rows(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> Iterator[tuple[int, list[str]]]:
    """The line and the named columns of each row; an optional column that is not there is empty.

    Columns are split by comma, semicolon or tab, as the first line shows; their names may differ in case.
    """
    with _opened(path) as (file, names, delimiter):
        missing = [name for name in required if name.casefold() not in names]
        if missing:
            raise InputError(
                f"{path} has no column {', '.join(missing)}: its first line must name {', '.join(required)}"
            )
        columns = [name.casefold() for name in (*required, *optional)]
        places = [names.index(name) if name in names else -1 for name in columns]
        rows = csv.reader(file, delimiter=delimiter)
        for values in rows:
            if not any(values):
                continue
            line = rows.line_num + 1
            if len(values) < len(names):
                raise InputError(f"{path}, line {line} has {len(values)} of {len(names)} columns: complete it")
            yield line, [values[place].strip() if place >= 0 else "" for place in places]


@contextmanager
def _opened(path: Path) -> Iterator[tuple[TextIO, list[str], str]]:
    """A csv behind its first line, the names of its columns in lower case, and what splits them."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # -sig: Excel begins a file with a mark
            heading = file.readline()
            delimiter = max(_DELIMITERS, key=heading.count)
            names = next(csv.reader([heading], delimiter=delimiter), [])
            yield file, [name.strip().casefold() for name in names], delimiter
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}): give the labels with --labels FILE") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is no csv in UTF-8: save it as one") from error
