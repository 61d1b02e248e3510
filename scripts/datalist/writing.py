# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""How the datalist of either task is written: options are checked, and nothing of the user's is overwritten."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from scripts.core.errors import InputError
from scripts.core.files import writable_folder
from scripts.datalist.tables import SECTIONS


def require_shares(shares: Any) -> None:
    is_list = isinstance(shares, (list, tuple)) and len(shares) == len(SECTIONS)
    if (
        not is_list
        or not all(isinstance(share, (int, float)) for share in shares)
        or min(shares) < 0
        or not math.isclose(sum(shares), 1, abs_tol=1e-6)
    ):
        raise InputError(f"--shares {shares!r}: give three numbers that add up to 1, for {', '.join(SECTIONS)}")


def as_given(labels: Path, folder: Path) -> Path:
    """A path from where the user is, else from the folder of the cohort."""
    return folder / labels if not labels.exists() and (folder / labels).exists() else labels


def destination(folder: Path, output: Path | None, force: bool) -> tuple[Path, Path]:
    """Where the datalist and its check go; what somebody wrote by hand is not overwritten."""
    output = _writable(folder, output)
    check_file = output.with_name(f"{output.stem}_check.json")
    if output.exists() and not check_file.exists() and not force:
        raise InputError(f"{output} is there, and no work of this command: give another --output, or --force")
    return output, check_file


def _writable(folder: Path, output: Path | None) -> Path:
    if output is None:
        try:
            return writable_folder(folder) / "datalist.json"
        except InputError as error:
            raise InputError(f"{folder} takes no files: say with --output FILE where the datalist goes") from error
    if output.is_dir():
        output = output / "datalist.json"
    writable_folder(output.parent)
    return output


def as_table(counts: dict[str, dict[str, float]]) -> str:
    columns = list(counts["total"])
    rows = [
        ["section", *columns],
        *([name, *(f"{own[column]:.9g}" for column in columns)] for name, own in counts.items()),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
