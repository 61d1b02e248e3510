# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Reads features of slices that another program wrote: a row per slice, in csv, parquet, npz, h5 or npy.

In a csv or parquet file every feature is a column, ``feature_0``, ``feature_1``, …; in npz and h5 all are one array
``features`` (S, D), an npy file is that array. Beside them stand columns, or arrays of (S,), by the names of `Roles`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from scripts.core.errors import InputError
from scripts.core.hdf5 import require_all_own
from scripts.ct.features import is_feature_file
from scripts.datalist.tables import column_names, read_rows

SUFFIXES_OF_ARRAYS = (".npy", ".npz", ".h5", ".hdf5", ".parquet")  # which a folder may hold, one file per scan
TABLES = (".csv", ".tsv", *SUFFIXES_OF_ARRAYS)
AS_THEY_STAND = "rows"  # instead of a column of the order
HELP = "python -m scripts features ct --help"  # other commands that read a table cannot name its columns


@dataclass(frozen=True)
class Roles:
    """What the columns of a table are called, by what they say of a slice or of its scan."""

    scan: str = "scan"  # name; without it a file is a scan
    order: str = "order"  # a number that grows from the lowest slice up
    position: str = "position_mm"  # millimetres from the lowest slice up, where they are known
    slice_id: str = "slice"  # such as the SOPInstanceUID
    slice_label: str = "slice_label"  # 0 or 1
    label: str = "label"  # 0 or 1, of the scan
    patient: str = "patient"
    section: str = "section"


class SliceTable(NamedTuple):
    """The features of S slices, and what stands beside them."""

    path: Path
    features: np.ndarray  # (S, D) float32
    columns: dict[str, list[str]]  # role → a text per slice; a role that no column has is not there
    places: Sequence[str]  # of each slice, where it stands in the file

    def where(self, row: int) -> str:
        return f"{self.path}, {self.places[row]}"

    def taken(self, rows: Sequence[int]) -> "SliceTable":
        columns = {role: [values[row] for row in rows] for role, values in self.columns.items()}
        return SliceTable(self.path, self.features[list(rows)], columns, [self.places[row] for row in rows])


def read_slice_tables(source: Path, roles: Roles, prefix: str) -> list[SliceTable]:
    """Read a file, or every file of arrays in a folder."""
    if not source.is_dir():
        return [_read_table(source, roles, prefix)]
    paths = [path for path in sorted(source.iterdir()) if path.suffix.lower() in SUFFIXES_OF_ARRAYS]
    if not paths:
        raise InputError(
            f"{source} holds no {', '.join(SUFFIXES_OF_ARRAYS)}: give the folder of the features, or a csv"
        )
    return [_read_table(path, roles, prefix) for path in paths]


def _read_table(path: Path, roles: Roles, prefix: str) -> SliceTable:
    if not path.is_file():
        raise InputError(f"{path} does not exist: check the path")
    if is_feature_file(path):
        raise InputError(f"{path} is a feature file already: train on its folder as it is")
    suffix = path.suffix.lower()
    reader = _csv if suffix in (".csv", ".tsv") else _parquet if suffix == ".parquet" else _array_file
    if suffix not in TABLES:
        raise InputError(f"{path} is no csv, parquet, npz, npy or h5: save the features as one of these")
    table = reader(path, roles, prefix)
    features = table.features
    if features.ndim != 2 or 0 in features.shape:
        raise InputError(f"{path} holds features {features.shape}: a row per slice, (slices, features), is wanted")
    if any(len(values) != len(features) for values in table.columns.values()):
        counts = ", ".join(f"{role} {len(values)}" for role, values in table.columns.items())
        raise InputError(f"{path} holds features of {len(features)} slices, but {counts}: give one of each per slice")
    strange = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(strange):
        raise InputError(
            f"{table.where(strange[0])}: features that are NaN or infinite: correct or leave out the slice"
        )
    table.columns.setdefault("scan", [path.stem] * len(features))
    return table


def _csv(path: Path, roles: Roles, prefix: str) -> SliceTable:
    names = _feature_columns(path, column_names(path), prefix.casefold())
    present = _present(roles, column_names(path))
    if "scan" not in present:
        raise InputError(
            f"{path} has no column {roles.scan}: name the one that says of which scan a slice is, --scan ({HELP})"
        )
    rows = list(read_rows(path, (*names, *present.values())))
    places = [f"line {line}" for line, _ in rows]
    try:
        features = np.array([values[: len(names)] for _, values in rows], dtype=np.float32)
    except ValueError as error:
        raise InputError(f"{path}: a feature is no number ({error}): correct or leave out the slice") from error
    columns = {role: [values[len(names) + place] for _, values in rows] for place, role in enumerate(present)}
    return SliceTable(path, features.reshape(len(rows), len(names)), columns, places)


def _parquet(path: Path, roles: Roles, prefix: str) -> SliceTable:
    try:
        pandas: Any = import_module("pandas")
        frame = pandas.read_parquet(path)
    except ImportError as error:
        raise InputError(f"{path} needs pandas and pyarrow: pip install them, or save the table as csv") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no parquet file that can be read: save it again, or as csv") from error
    names = _feature_columns(path, map(str, frame.columns), prefix)
    columns = {role: _texts(frame[name].to_numpy()) for role, name in _present(roles, frame.columns).items()}
    return _numbered(path, frame[names].to_numpy(), columns)


def _array_file(path: Path, roles: Roles, prefix: str) -> SliceTable:
    try:
        if path.suffix.lower() == ".npy":
            return _numbered(path, np.load(path, allow_pickle=False), {})
        if path.suffix.lower() == ".npz":
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
        else:
            with h5py.File(path) as file:
                require_all_own(path, file)
                arrays = {name: data[()] for name, data in file.items() if isinstance(data, h5py.Dataset)}
    except InputError:
        raise
    except (OSError, EOFError) as error:
        raise InputError(f"{path} is damaged, or no {path.suffix[1:]} file: save it again") from error
    except ValueError as error:
        raise InputError(f"{path} holds objects: save arrays of numbers and texts alone") from error
    name = "features" if "features" in arrays else prefix
    if name not in arrays:
        raise InputError(f"{path} holds no array `features`: save the features as (slices, features) under that name")
    columns = {role: _texts(np.atleast_1d(arrays[its])) for role, its in _present(roles, arrays).items()}
    return _numbered(path, arrays[name], columns)


def _numbered(path: Path, features: np.ndarray, columns: dict[str, list[str]]) -> SliceTable:
    try:
        numbers = features.astype(np.float32)
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: a feature is no number ({error}): correct or leave out the slice") from error
    return SliceTable(path, numbers, columns, [f"row {row}" for row in range(len(numbers) if numbers.ndim else 0)])


def _feature_columns(path: Path, names: Iterable[str], prefix: str) -> list[str]:
    """Return the columns of features in the order of their numbers."""
    numbered = {name: re.fullmatch(rf"{re.escape(prefix)}[_ .]?(\d+)", name) for name in names}
    found = sorted((int(match[1]), name) for name, match in numbered.items() if match)
    if not found:
        raise InputError(
            f"{path} has no columns {prefix}_0, {prefix}_1, …: name what stands before the number, --feature ({HELP})"
        )
    return [name for _, name in found]


def _present(roles: Roles, names: Iterable[str]) -> dict[str, str]:
    """Return role → column, of the columns that are there; one that the user named must be."""
    folded = {str(name).casefold(): str(name) for name in names}
    return {role: folded[name.casefold()] for role, name in asdict(roles).items() if name.casefold() in folded}


def _texts(values: np.ndarray) -> list[str]:
    """Return numbers and bytes as a csv would hold them; NaN is empty."""
    texts = []
    for value in values.tolist():
        if isinstance(value, float):
            whole = value.is_integer()
            texts.append("" if np.isnan(value) else str(int(value)) if whole else repr(value))
        else:
            texts.append("" if value is None else value.decode() if isinstance(value, bytes) else str(value))
    return texts


def joined_by_slice(table: SliceTable, path: Path, roles: Roles) -> tuple[SliceTable, list[str], list[str]]:
    """Return the table with the columns of a second one, whose rows have the same slices.

    Return also the slices that the second one lacks, which are left out, and those that it has alone.
    """
    own = table.columns.get("slice_id")
    present = _present(roles, column_names(path))
    if own is None or "slice_id" not in present:
        lacking = table.path if own is None else path
        raise InputError(
            f"{lacking} has no column {roles.slice_id}, by which two tables are joined: name it, --slice_id"
        )
    rows: dict[str, dict[str, str]] = {}  # slice → role → text
    for line, values in read_rows(path, [*present.values()]):
        row = dict(zip(present, values, strict=True))
        if rows.setdefault(row["slice_id"], row) != row:
            raise InputError(f"{path}, line {line}: another row says something else of the same slice: keep one")
    kept = [row for row, name in enumerate(own) if name in rows]
    found = table.taken(kept)
    more = {role: [rows[name][role] for name in found.columns["slice_id"]] for role in present}
    for role in sorted(more.keys() & found.columns.keys()):
        for place, (ours, theirs) in enumerate(zip(found.columns[role], more[role], strict=True)):
            if ours != theirs:
                raise InputError(
                    f"{found.where(place)}: the {role} is {ours!r}, in {path} {theirs!r}: leave the column out of one"
                )
    without = sorted(set(own) - rows.keys())
    return found._replace(columns={**found.columns, **more}), without, sorted(rows.keys() - set(own))


def grouped(tables: Sequence[SliceTable]) -> Mapping[str, SliceTable]:
    """Return the slices of each scan, in the order in which they stand."""
    scans: dict[str, SliceTable] = {}
    for table in tables:
        rows: dict[str, list[int]] = {}
        for row, name in enumerate(table.columns["scan"]):
            rows.setdefault(name, []).append(row)
        for name, own in rows.items():
            if name in scans:
                raise InputError(f"{scans[name].path} and {table.path} both hold the scan {name}: keep one")
            scans[name] = table.taken(own)
    return scans
