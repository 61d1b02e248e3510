# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Write the datalist of either wing with its check: options are verified, and nothing of the user's is overwritten."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from scripts.core.errors import InputError
from scripts.core.files import writable_folder, write_whole
from scripts.datalist.split import CohortRemarks, Labelled, Leakage, Shares
from scripts.datalist.tables import SECTIONS


@dataclass(frozen=True, kw_only=True)
class DatalistRequest:
    """What both datalist verbs are asked for; refused where it cannot be done.

    Args:
        folder: what the paths in the datalist are relative to.
        labels: the csv of the labels; by default one in the folder.
        output: the datalist, or a folder for it.
        shares: of training, validation and test.
        seed: of the split.
        force: overwrite a datalist that no datalist verb wrote.
    """

    content: ClassVar[str]  # of the folder

    folder: Path
    labels: Path | None = None
    output: Path | None = None
    shares: Shares = (0.7, 0.1, 0.2)
    seed: int = 0
    force: bool = False

    def __post_init__(self) -> None:
        shares: Any = self.shares  # as Fire took it
        if (
            not (isinstance(shares, (list, tuple)) and len(shares) == len(SECTIONS))
            or not all(isinstance(share, (int, float)) for share in shares)
            or min(shares) < 0
            or not math.isclose(sum(shares), 1, abs_tol=1e-6)
        ):
            raise InputError(f"--shares {shares!r}: give three numbers that add up to 1, for {', '.join(SECTIONS)}")
        if not self.folder.is_dir():
            raise InputError(f"{self.folder} is not a folder: give the one that holds the {self.content}")


class Entry(Protocol):
    """A bag that a datalist can hold."""

    def entry(self) -> dict[str, Any]: ...


def as_text(sections: Mapping[str, Sequence[Entry]]) -> str:
    """Return a datalist as JSON with one line per bag: with one per slice it would have a million."""
    lines = [
        f"    {json.dumps(section)}: [" + ",".join(f"\n        {json.dumps(bag.entry())}" for bag in bags) + "\n    ]"
        for section, bags in sections.items()
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"


@dataclass(frozen=True)
class CheckedDatalist:
    """A datalist that is ready to be written, with what its check says of it.

    Args:
        text: the datalist.
        leakage: of the bags in that text.
        counts: of each section and of all.
        report: notes, rejections and warnings.
        about: entries of the check that one wing alone has.
        source: the csv of patients and sections.
    """

    text: str
    leakage: Leakage
    counts: Mapping[str, Mapping[str, float]]
    report: CohortRemarks
    about: Mapping[str, Any]
    source: Path | None

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
        return "\n".join(
            [
                as_table(self.counts),
                f"leakage: {self.leakage.as_line()}",
                *(f"note: {note}" for note in self.report.notes),
                *(f"rejected: {line}" for line in self.report.rejected.as_lines()),
                *(f"warning: {line}" for line in self.report.warnings.as_lines()),
            ]
        )


def relative_to_folder(path: Path, folder: Path) -> str:
    """Return a path as a datalist has it: relative where it lies in the folder of the cohort."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path.absolute())


def require_several_patients(bags: Sequence[Labelled], remarks: CohortRemarks, folder: Path, what: str) -> None:
    """Refuse a cohort of nobody, or of one patient where it is to be split."""
    if not bags:
        raise InputError(f"{folder} holds no {what} that can be used: {'; '.join(remarks.rejected.as_lines())}")
    to_be_split = len(bags) > 1 and not any(bag.section for bag in bags)
    if to_be_split and len({bag.patient for bag in bags}) == 1:
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
    columns = list(counts["total"])
    rows = [
        ["section", *columns],
        *([name, *(f"{own[column]:.9g}" for column in columns)] for name, own in counts.items()),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
