# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Read labels and splits of slides as CLAM, torchmil, STAMP and people write them in csv files, and name classes."""

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scripts.core.errors import InputError
from scripts.datalist.split import Label
from scripts.datalist.tables import SECTIONS, column_names, read_rows, require_all_or_none, require_named_once
from scripts.wsi.datalist.files import slide_name

SLIDE = ("slide_id", "slide", "image", "image_id", "bag_name", "wsi_name", "wsi", "filename")  # of columns
PATIENT = ("patient", "patient_id", "case_id")
LABEL = "label"
NOT_KNOWN = frozenset({"na", "n/a", "nan"})  # a label, as R and pandas write
SECTION = ("section", "split")
COARSE = ("coarse", "coarse_label")
FOLD = re.compile(r"splits_(\d+)\.csv")  # of CLAM, one of several

_SECTION_NAMES = {
    name: section
    for section, names in zip(SECTIONS, ("train training", "val valid validation", "test testing"), strict=True)
    for name in names.split()
}
_FLOAT = re.compile(r"^(\d+)\.0$")  # so pandas writes the number of a slide in a column that has gaps


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
    named = _one_of(SLIDE, columns) is not None and _one_of(SECTION, columns) is not None
    return LABEL not in columns and (named or len(_section_columns(columns)) > 1)


def read_slide_labels(path: Path, label: str = LABEL) -> list[SlideLabel]:
    """Read a csv with the columns slide and `label`, and if wanted patient, section, coarse and annotation."""
    rows = _read_labels(path, label, SLIDE, "slide")
    require_named_once([(row.line, row.name) for row in rows], path, "slide")
    return rows


def read_patient_labels(path: Path, slide_table: Path, label: str = LABEL) -> tuple[list[SlideLabel], list[str]]:
    """Read two csvs, as STAMP's: a row for each slide in the order of the second; and who of the first has no slide.

    The first has the columns patient and `label`, and if wanted section and coarse; a slide of nobody in it has no
    label. The second has the columns patient and slide.
    """
    patients = _read_labels(path, label, PATIENT, "patient")
    require_named_once([(row.line, row.patient) for row in patients], path, "patient")
    columns = column_names(slide_table)
    patient, slide = _one_of(PATIENT, columns), _one_of(SLIDE, columns)
    if patient is None or slide is None:
        raise InputError(f"{slide_table} has no columns patient and slide: name them in its first line")
    slides = list(read_rows(slide_table, (patient, slide)))
    require_named_once([(line, slide_name(name)) for line, (_, name) in slides], slide_table, "slide")
    known, blank = {row.patient: row for row in patients}, SlideLabel(0, "", "")
    rows = [known.get(who, blank)._replace(slide=name, patient=who) for _, (who, name) in slides]
    without_slide = known.keys() - {row.patient for row in rows}
    if len(without_slide) == len(known):
        raise InputError(f"{slide_table} names no patient of {path}: give the slide table of these labels")
    return rows, sorted(without_slide)


def _read_labels(path: Path, label: str, named: Sequence[str], what: str) -> list[SlideLabel]:
    """Read a row for each slide or patient, whose column is called one of `named`."""
    columns = column_names(path)
    if _one_of(named, columns) is None or label.casefold() not in columns:
        there = ", ".join(sorted(columns)[:12])
        other = " or --slide_table" if what == "slide" else ""
        raise InputError(f"{path} has no columns {what} and {label} ({there}): rename, or give --label_column{other}")
    optional = [_one_of(names, columns) or names[0] for names in (SLIDE, PATIENT, SECTION, COARSE, ("annotation",))]
    rows = []
    for line, (value, slide, patient, section, coarse, annotation) in read_rows(path, (label,), optional):
        known = "" if value.casefold() in NOT_KNOWN else value
        rows.append(SlideLabel(line, slide, known, patient, _section(section, path, line), coarse, annotation))
    for column in ("patient", "section", "coarse"):
        require_all_or_none([(row.line, getattr(row, column)) for row in rows], path, column, what)
    return rows


def read_splits(path: Path) -> dict[str, str]:
    """Return name of a slide -> its section, of CLAM's two formats or of torchmil's."""
    columns = column_names(path)
    if not holds_splits(columns):
        raise InputError(f"{path} has no columns train, val, test or bag_name, split: give others with --splits FILE")
    if path.stem.endswith("_descriptor"):
        raise InputError(f"{path} counts slides, it does not name them: give CLAM's splits_0.csv beside it")
    sections: dict[str, str] = {}
    for line, slide, section in _split_rows(path, columns):
        name = slide_name(_FLOAT.sub(r"\1", slide))
        if sections.setdefault(name, section) != section:
            raise InputError(f"{path}, line {line} puts {name} into {section}, before {sections[name]}: keep one")
    if not sections:
        raise InputError(f"{path} puts no slide into a section: give another with --splits FILE")
    return sections


def _split_rows(path: Path, columns: Collection[str]) -> Iterator[tuple[int, str, str]]:
    """Yield line, slide and section."""
    slide, section = _one_of(SLIDE, columns), _one_of(SECTION, columns)
    if slide is not None and section is not None:
        for line, (name, where) in read_rows(path, (slide, section)):
            if where:
                yield line, name, _section(where, path, line)
        return
    names = _section_columns(columns)
    rows = list(read_rows(path, names, (slide or "",)))
    are_booleans = {cell.casefold() for _, (*cells, _) in rows for cell in cells} <= {"true", "false", ""}
    for line, (*cells, name) in rows:
        for column, cell in zip(names, cells, strict=True):
            chosen = cell if not are_booleans else name if cell.casefold() == "true" else ""
            if chosen:
                yield line, chosen, _SECTION_NAMES[column]


def _section_columns(columns: Collection[str]) -> list[str]:
    return [name for name in _SECTION_NAMES if name in columns]


def _one_of(names: Sequence[str], columns: Collection[str]) -> str | None:
    return next((name for name in names if name in columns), None)


def _section(text: str, path: Path, line: int) -> str:
    found = _SECTION_NAMES.get(text.casefold(), "")
    if text and not found:
        raise InputError(f"{path}, line {line}: the section {text!r} is none: give {', '.join(SECTIONS)}")
    return found


_NUMBER = re.compile(r"(-?\d+)(\.0*)?")  # pandas writes 1.0 where another row has no label
_BRACS = ("N", "PB", "UDH", "FEA", "ADH", "DCIS", "IC")  # as configs/wsi/bracs.json has them
_PANDA = (0, 1, 2, 3, 4, 5)  # likewise
_WORDS = ("normal", "healthy", "negative", "neg", "n", "p?n0", "non?", "non[a-z]*", "none", "control", "wt",
          "wild[a-z]*", "benign")  # fmt: skip
_NEGATIVE = [re.compile(rf"(?<![a-z]){word}(?![a-z0-9])", re.IGNORECASE) for word in _WORDS]  # the surest first


def class_list(given: Any) -> list[str] | None:
    """Return what was typed behind --classes, or refuse it."""
    if given is None:
        return None
    given = given.split(",") if isinstance(given, str) else given
    names = [str(name).strip() for name in given] if isinstance(given, (list, tuple)) else []
    if len(names) < 2 or "" in names or len(set(names)) < len(names):
        raise InputError(f"--classes {given!r}: give two names or more, such as --classes \"['normal','tumor']\"")
    return names


def as_classes(rows: Sequence[SlideLabel], classes: Sequence[str] | None, path: Path) -> dict[int, Label]:
    """Return line -> label of the rows that have one: a number, or the name of one of three or more classes."""
    labelled = [row for row in rows if row.label]
    if not labelled:
        raise InputError(f"{path} has no label in any row: give one per slide")
    if classes is not None:
        return {row.line: _of_the_list(row, classes, path) for row in labelled}
    numbers = {row.line: _as_number(row.label) for row in labelled}
    if set(numbers.values()) == {None}:
        found = _negative_first({row.label for row in labelled})
        if len(found) == 1:
            raise InputError(f"{path} has the label {found[0]!r} alone: add slides of another class, or give --classes")
        if len(found) == 2:
            text = f"{path} has two labels: say which is negative and which positive"
            raise InputError(f"{text}, --classes {_typed(found)}")
        return {row.line: row.label for row in labelled}
    whole: dict[int, Label] = {}
    for row in labelled:
        number = numbers[row.line]
        if number is None or number < 0:
            text = f"{path}, line {row.line}: the label {row.label!r} is no number from 0, as others are"
            raise InputError(f"{text}: correct it, or name the classes with --classes")
        whole[row.line] = number
    if len(set(whole.values())) > 1 and 0 not in whole.values():
        names = _typed(sorted(set(whole.values())))
        raise InputError(f"{path} has no label 0: number the classes from 0, or name them, --classes {names}")
    return whole


def _as_number(text: str) -> int | None:
    match = _NUMBER.fullmatch(text)
    return None if match is None else int(match[1])


def _of_the_list(row: SlideLabel, classes: Sequence[str], path: Path) -> Label:
    """Return 0 or 1 for one of two classes, else its name; a number counts for the class it numbers."""
    number = classes.index(row.label) if row.label in classes else _as_number(row.label)
    if number is None or number not in range(len(classes)):
        text = f"{path}, line {row.line}: the label {row.label!r} is not one of the classes"
        raise InputError(f"{text}: give {', '.join(classes)}")
    return number if len(classes) == 2 else classes[number]


def _negative_first(names: Iterable[str]) -> list[str]:
    """Order names by alphabet, but before all others the one that most clearly says that nothing was found."""
    ordered = sorted(names)
    surest = min(ordered, key=lambda name: next((k for k, word in enumerate(_NEGATIVE) if word.search(name)), math.inf))
    return [surest, *(name for name in ordered if name != surest)]


def training_note(classes: Sequence[Label]) -> str:
    """Return how a network is trained on three classes or more."""
    kind, names = {
        _BRACS: (", those of BRACS", " (or hmil.json) and configs/bracs.json"),
        _PANDA: (", taken for ISUP grades", " (or hmil.json) and configs/panda.json"),
    }.get(tuple(classes), ("", f" and give --class_names {_typed(classes)}"))
    return (
        f"{len(classes)} classes{kind}: behind train.json name configs/classes.json{names}; {classes[0]}, the first, "
        "counts as the class without a finding, --negative_class none says that every class is a finding"
    )


def _typed(names: Iterable[object]) -> str:
    """Return a list as a shell takes it."""
    return '"[' + ",".join(f"'{name}'" for name in names) + ']"'


def in_order(labels: Iterable[Label], classes: Sequence[str] | None) -> list[Label]:
    """Return each class once: numbers ascending, names as listed, or by alphabet behind the negative one."""
    found = set(labels)
    if classes is not None and len(classes) > 2:
        return list(classes)
    numbers = [label for label in found if isinstance(label, int)]
    if numbers:
        return list(range(max(*numbers, 1) + 1))
    return list(_BRACS if found == set(_BRACS) else _negative_first(map(str, found)))


def coarse_of(rows: Sequence[SlideLabel], labels: Mapping[int, Label], path: Path) -> dict[Label, str]:
    """Return the coarse class of each fine one, which must always be the same."""
    seen: dict[Label, SlideLabel] = {}
    for row in (row for row in rows if row.coarse and row.line in labels):
        before = seen.setdefault(labels[row.line], row)
        if before.coarse != row.coarse:
            text = f"{path}, line {row.line} puts {row.label} under {row.coarse}, line {before.line} under"
            raise InputError(f"{text} {before.coarse}: give each class one coarse class")
    return {label: row.coarse for label, row in seen.items()}
