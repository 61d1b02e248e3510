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
"""The classes of a cohort, from labels as people write them: numbers from 0, or names."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.errors import InputError
from scripts.preparing.cohort import Label
from scripts.preparing.slide_tables import SlideLabel

_NUMBER = re.compile(r"(-?\d+)(\.0*)?")  # pandas writes 1.0 where another row has no label
_BRACS = ("N", "PB", "UDH", "FEA", "ADH", "DCIS", "IC")  # as configs/wsi/bracs.json has them
_PANDA = (0, 1, 2, 3, 4, 5)  # likewise
_WORDS = ("normal", "healthy", "negative", "neg", "n", "p?n0", "non?", "non[a-z]*", "none", "control", "wt",
          "wild[a-z]*", "benign")  # fmt: skip
_NEGATIVE = [re.compile(rf"(?<![a-z]){word}(?![a-z0-9])", re.IGNORECASE) for word in _WORDS]  # the surest first


def class_list(given: Any) -> list[str] | None:
    """What was typed behind --classes."""
    if given is None:
        return None
    given = given.split(",") if isinstance(given, str) else given
    names = [str(name).strip() for name in given] if isinstance(given, (list, tuple)) else []
    if len(names) < 2 or "" in names or len(set(names)) < len(names):
        raise InputError(f"--classes {given!r}: give two names or more, such as --classes \"['normal','tumor']\"")
    return names


def as_classes(rows: Sequence[SlideLabel], classes: Sequence[str] | None, path: Path) -> dict[int, Label]:
    """Line -> label of the rows that have one: a number, or the name of one of three or more classes."""
    labelled = [row for row in rows if row.label]
    if not labelled:
        raise InputError(f"{path} has no label in any row: give one per slide")
    if classes is not None:
        return {row.line: _of_the_list(row, classes, path) for row in labelled}
    numbers = {row.line: _number(row.label) for row in labelled}
    if all(number is None for number in numbers.values()):
        _require_three({row.label for row in labelled}, path)
        return {row.line: row.label for row in labelled}
    whole: dict[int, Label] = {}
    for row in labelled:
        number = numbers[row.line]
        if number is None or number < 0:
            raise InputError(
                f"{path}, line {row.line}: the label {row.label!r} is no number from 0, as others are: mend it, "
                "or name the classes with --classes"
            )
        whole[row.line] = number
    found = sorted({number for number in numbers.values() if number is not None})
    if len(found) > 1 and found[0] > 0:
        raise InputError(
            f"{path} has the labels {', '.join(map(str, found))}: number the classes from 0, or name them, "
            f"--classes {_typed(map(str, found))}"
        )
    return whole


def _number(text: str) -> int | None:
    match = _NUMBER.fullmatch(text)
    return None if match is None else int(match[1])


def _of_the_list(row: SlideLabel, classes: Sequence[str], path: Path) -> Label:
    """Two classes become 0 and 1, more keep their names; a number counts for the class it numbers."""
    number = _number(row.label)
    if row.label in classes:
        place = classes.index(row.label)
    elif number is not None and number in range(len(classes)):
        place = number
    else:
        raise InputError(
            f"{path}, line {row.line}: the label {row.label!r} is not one of the classes: give {', '.join(classes)}"
        )
    return place if len(classes) == 2 else classes[place]


def _require_three(names: set[str], path: Path) -> None:
    if len(names) == 1:
        (name,) = names
        raise InputError(f"{path} has the label {name!r} alone: add slides of another class, or give --classes")
    if len(names) == 2:
        ordered = _negative_first(names)
        raise InputError(
            f"{path} has the labels {' and '.join(ordered)}: say which is negative and which is positive, in this "
            f"order, --classes {_typed(ordered)}"
        )


def _negative_first(names: Iterable[str]) -> list[str]:
    """By alphabet, but before all others the one that most clearly says that nothing was found."""
    ordered = sorted(names)
    surest = min(ordered, key=lambda name: next((k for k, word in enumerate(_NEGATIVE) if word.search(name)), math.inf))
    return [surest, *(name for name in ordered if name != surest)]


def training_note(classes: Sequence[Label]) -> str:
    """How a network is trained on three classes or more."""
    if tuple(classes) == _BRACS:
        kind, names = ", those of BRACS", " (or hmil.json) and configs/bracs.json"
    elif tuple(classes) == _PANDA:
        kind, names = ", taken for ISUP grades", " (or hmil.json) and configs/panda.json"
    else:
        kind, names = "", f" and give --class_names {_typed(map(str, classes))}"
    return (
        f"{len(classes)} classes{kind}: behind train.json name configs/classes.json{names}; {classes[0]}, the first, "
        "counts as the class without a finding, --negative_class none says that every class is a finding"
    )


def _typed(names: Iterable[str]) -> str:
    """As a shell takes it."""
    return '"[' + ",".join(f"'{name}'" for name in names) + ']"'


def in_order(labels: Iterable[Label], classes: Sequence[str] | None) -> list[Label]:
    """Each class once: numbers ascending, names as the user listed them, or by alphabet behind the negative one."""
    found = set(labels)
    if classes is not None and len(classes) > 2:
        return list(classes)
    numbers = [label for label in found if isinstance(label, int)]
    if numbers:
        return list(range(max(*numbers, 1) + 1))
    return list(_BRACS if found == set(_BRACS) else _negative_first(map(str, found)))


def coarse_of(rows: Sequence[SlideLabel], labels: Mapping[int, Label], path: Path) -> dict[Label, str]:
    """The coarse class of each fine one, which must always be the same."""
    seen: dict[Label, SlideLabel] = {}
    for row in rows:
        if not row.coarse or row.line not in labels:
            continue
        before = seen.setdefault(labels[row.line], row)
        if before.coarse != row.coarse:
            raise InputError(
                f"{path}, line {row.line} puts {row.label} under {row.coarse}, line {before.line} under "
                f"{before.coarse}: a fine class has one coarse class, mend them"
            )
    return {label: row.coarse for label, row in seen.items()}
