# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Read csv files of labels, however a spreadsheet wrote them, and name the line of each mistake."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from scripts.core.errors import InputError

SECTIONS = ("training", "validation", "test")


def require_all_or_none(values: Sequence[tuple[int, str]], path: Path, column: str, what: str) -> None:
    """Refuse a column that some rows leave empty; each row is its line and its value."""
    without = [line for line, value in values if not value]
    if 0 < len(without) < len(values):
        raise InputError(f"{path}, line {without[0]} has no {column}: give every {what} one, or none")


def require_named_once(names: Iterable[tuple[int, str]], path: Path, what: str) -> None:
    """Refuse a csv without rows, rows without a name, and a name in two rows; each row is its line and its name."""
    lines: dict[str, int] = {}
    for line, name in names:
        if not name:
            raise InputError(f"{path}, line {line} names no {what}: name it, or take the line out")
        if name in lines:
            raise InputError(f"{path}, line {line} names {name!r} as line {lines[name]} does: keep one")
        lines[name] = line
    if not lines:
        raise InputError(f"{path} has no rows: give one per {what}")


def zero_or_one(value: str, path: Path, line: int) -> int:
    """Return a label, or refuse what is none."""
    if value not in ("0", "1"):
        raise InputError(f"{path}, line {line}: the label {value!r} is not one of the classes: give 0 or 1")
    return int(value)


def column_names(path: Path) -> set[str]:
    """Return the names in the first line of a csv, in lower case."""
    with _opened_csv(path) as (_, names, _):
        return set(names)


def read_rows(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> Iterator[tuple[int, list[str]]]:
    """Yield the line and the named columns of each row; an optional column that is not there is empty.

    Columns are split by comma, semicolon or tab, as the first line shows; their names may differ in case.
    """
    with _opened_csv(path) as (file, names, delimiter):
        missing = [name for name in required if name.casefold() not in names]
        if missing:
            raise InputError(f"{path} has no column {', '.join(missing)}: name it in the first line")
        columns = [name.casefold() for name in (*required, *optional)]
        indices = [names.index(name) if name in names else -1 for name in columns]
        rows = csv.reader(file, delimiter=delimiter)
        for values in filter(any, rows):
            line = rows.line_num + 1
            if len(values) < len(names):
                raise InputError(f"{path}, line {line} has {len(values)} of {len(names)} columns: complete it")
            yield line, [values[index].strip() if index >= 0 else "" for index in indices]


@contextmanager
def _opened_csv(path: Path) -> Iterator[tuple[TextIO, list[str], str]]:
    """Open a csv behind its first line; yield it, the names of its columns in lower case, and the delimiter."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # -sig: Excel begins a file with a mark
            heading = file.readline()
            delimiter = max(",;\t", key=heading.count)
            names = next(csv.reader([heading], delimiter=delimiter), [])
            yield file, [name.strip().casefold() for name in names], delimiter
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}): give the labels with --labels FILE") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is no csv in UTF-8: save it as one") from error
