# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Write the datalist of either wing with its check: options are verified, and nothing of the user's is overwritten."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from scripts.core.cli import aligned
from scripts.core.errors import InputError
from scripts.core.files import writable_folder, write_whole
from scripts.datalist.split import CohortRemarks, Labelled, Leakage, Shares
from scripts.datalist.tables import SECTIONS


@dataclass(frozen=True, kw_only=True)
class DatalistRequest:
    """What both datalist verbs are asked for; refused where it cannot be done."""

    content: ClassVar[str]  # of the folder

    folder: Path  # what the paths in the datalist are relative to
    labels: Path | None = None  # the csv; by default one in the folder
    output: Path | None = None  # the datalist, or a folder for it
    shares: Shares = (0.7, 0.1, 0.2)
    seed: int = 0
    force: bool = False  # overwrite a datalist that no datalist verb wrote

    def __post_init__(self) -> None:
        shares: Any = self.shares  # as Fire took it
        seed: Any = self.seed
        are_three = isinstance(shares, (list, tuple)) and len(shares) == len(SECTIONS)
        are_numbers = are_three and all(isinstance(share, (int, float)) and share >= 0 for share in shares)
        if not are_numbers or not math.isclose(sum(shares), 1, abs_tol=1e-6):
            raise InputError(f"--shares {shares!r}: give three numbers that add up to 1, for {', '.join(SECTIONS)}")
        if not isinstance(seed, int):
            raise InputError(f"--seed {seed!r} is no whole number: give one")
        if not self.folder.is_dir():
            raise InputError(f"{self.folder} is not a folder: give the one that holds the {self.content}")


class Entry(Protocol):
    """A bag that a datalist can hold."""

    @property
    def patient(self) -> str:
        """Whose it is; empty where that is not known."""

    def entry(self) -> dict[str, Any]:
        """What the datalist says of it."""


def as_text(sections: Mapping[str, Sequence[Entry]]) -> str:
    """Return a datalist as JSON with one line per bag: with one per slice it would have a million.

    A patient is a number, which tells who belongs together and nothing else.
    """
    lines = []
    names = sorted({bag.patient for bags in sections.values() for bag in bags})
    numbers = {name: str(number) for number, name in enumerate(names, start=1)}
    for section, bags in sections.items():
        entries = ",".join(f"\n        {json.dumps({**bag.entry(), 'patient': numbers[bag.patient]})}" for bag in bags)
        lines.append(f"    {json.dumps(section)}: [{entries}\n    ]")
    return "{\n" + ",\n".join(lines) + "\n}\n"


@dataclass(frozen=True)
class CheckedDatalist:
    """A datalist that is ready to be written, with what its check says of it."""

    text: str
    leakage: Leakage  # of the bags in that text
    counts: Mapping[str, Mapping[str, float]]  # of each section and of all
    report: CohortRemarks
    about: Mapping[str, Any]  # entries of the check that one wing alone has
    source: Path | None  # the csv of patients and sections

    def write(self, request: DatalistRequest, output: Path, check_file: Path) -> str:
        """Write the datalist and its check unless a patient or an image leaks; return a summary for the screen."""
        if self.leakage.example:
            raise InputError(f"{self.leakage.as_line('would be')}: correct patient or section in {self.source}")
        check = {
            "datalist": output.name,
            **self.about,
            "shares": dict(zip(SECTIONS, request.shares, strict=True)),
            "seed": request.seed,
            "sections": self.counts,
            "leakage": self.leakage.as_json(),
            "notes": self.report.notes,
            "rejected": self.report.rejected.as_json(),
            "warnings": self.report.warnings.as_json(),
        }
        write_whole(check_file, json.dumps(check, indent=4) + "\n")
        write_whole(output, self.text)
        remarks = {
            "note": self.report.notes,
            "rejected": self.report.rejected.as_lines(),
            "warning": self.report.warnings.as_lines(),
        }
        lines = [f"{kind}: {line}" for kind, lines in remarks.items() for line in lines]
        return "\n".join([as_table(self.counts), f"leakage: {self.leakage.as_line()}", *lines])


def relative_to_folder(path: Path, folder: Path) -> str:
    """Return a path as a datalist has it: relative where it lies in the folder of the cohort."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path.absolute())


def require_several_patients(bags: Sequence[Labelled], remarks: CohortRemarks, folder: Path, what: str) -> None:
    """Refuse a cohort of nobody, or of one patient where it is to be split."""
    if not bags:
        raise InputError(f"{folder} holds no {what} that can be used: {'; '.join(remarks.rejected.as_lines())}")
    if len(bags) > 1 and len({bag.patient for bag in bags}) == 1 and not any(bag.section for bag in bags):
        raise InputError(f"the {len(bags)} {what}s in {folder} are of one patient: give a column patient or section")


def as_given(labels: Path, folder: Path) -> Path:
    """Return a path from where the user is, else from the folder of the cohort."""
    return folder / labels if not labels.exists() and (folder / labels).exists() else labels


def destination(request: DatalistRequest) -> tuple[Path, Path]:
    """Return the files of the datalist and of its check, or refuse to overwrite what somebody wrote by hand."""
    output = request.output or request.folder
    if output.is_dir():
        output = output / "datalist.json"
    try:
        writable_folder(output.parent)
    except InputError as error:
        if request.output is not None:
            raise
        raise InputError(f"{output.parent} takes no files: give the datalist's place with --output FILE") from error
    check_file = output.with_name(f"{output.stem}_check.json")
    if output.exists() and not check_file.exists() and not request.force:
        raise InputError(f"{output} is there, and no work of this command: give another --output, or --force")
    return output, check_file


def as_table(counts: Mapping[str, Mapping[str, float]]) -> str:
    """Return the counts as text, a line for each section."""
    rows = [["section", *counts["total"]]]
    rows += [[name, *(f"{value:.9g}" for value in own.values())] for name, own in counts.items()]
    return aligned(rows)
