# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The public data of the ledger, read from a folder that is never committed: `../shared/data`, or SMOOTH_MIL_DATA."""

import csv
import os
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scripts.core.errors import InputError
from scripts.core.files import sha256_of

ROOT = Path(__file__).parents[2]
WHICH = "benchmarks/README.md says which files a table needs, and where from"
FEATURES = tuple(f"feature_{k}" for k in range(8))


class Scans(NamedTuple):
    """Scans by their slices, from the lowest to the highest."""

    names: list[str]
    slices: list[np.ndarray]  # (N, D) features of each scan
    labels: np.ndarray  # (scans,)
    truth: list[np.ndarray]  # (N,) of each scan; empty where slices have no label


def folder() -> Path:
    """Where the data are, or an error that says what to set."""
    path = Path(os.environ.get("SMOOTH_MIL_DATA", ROOT / ".." / "shared" / "data")).resolve()
    if not path.is_dir():
        raise InputError(f"the public data are not in {path}: set SMOOTH_MIL_DATA to the folder that holds them")
    return path


def file(name: str) -> Path:
    """Return the path of a file of the data, or say that it is not there."""
    path = folder() / name
    if not path.exists():
        raise InputError(f"{path} is not there: {WHICH}")
    return path


def feature_runs() -> list[str]:
    """Return the runs of the slice network whose features there are, of both cohorts: "0", "1", ..."""
    tables = (folder() / "ct_features" / "cq500").glob("cq500_test_*.csv")
    runs = sorted(path.stem.removeprefix("cq500_test_") for path in tables)
    runs = [run for run in runs if (folder() / "ct_features" / "rsna_test" / f"rsna_test_{run}.csv").exists()]
    if not runs:
        raise InputError(f"{folder() / 'ct_features'} has no run of both cohorts: {WHICH}")
    return runs


@cache
def sha256_of_run(run: str) -> str:
    """Return a short text that changes with the tables of a run."""
    return "".join(sha256_of(path)[:8] for path in (_cq500_table(run), _rsna_table(run), _rsna_order()))


@cache
def cq500(run: str) -> Scans:
    """490 scans with scan labels alone; the rows of a scan are in order."""
    slices, labels = defaultdict[str, list[list[float]]](list), dict[str, int]()
    for row in _rows(_cq500_table(run)):
        slices[row["bag_name"]].append([float(row[name]) for name in FEATURES])
        labels[row["bag_name"]] = int(row["bag_label"])
    features = [np.array(rows, dtype=np.float32) for rows in slices.values()]
    return Scans(list(slices), features, np.array(list(labels.values())), [])


@cache
def rsna(run: str) -> Scans:
    """150 test scans with slice labels, put into the order that the table of the paper's authors gives them."""
    features = {row["instance_name"]: [float(row[name]) for name in FEATURES] for row in _rows(_rsna_table(run))}
    scans = defaultdict[str, list[tuple[int, list[float], int]]](list)
    for row in _rows(_rsna_order()):
        if row["instance_name"] in features:
            where = int(row["order"]), features[row["instance_name"]], int(row["instance_label"])
            scans[row["bag_name"]].append(where)
    ordered = {name: sorted(rows) for name, rows in scans.items()}
    slices = [np.array([each for _, each, _ in rows], dtype=np.float32) for rows in ordered.values()]
    truth = [np.array([label for _, _, label in rows]) for rows in ordered.values()]
    return Scans(list(ordered), slices, np.array([own.max() for own in truth]), truth)


def _cq500_table(run: str) -> Path:
    return file(f"ct_features/cq500/cq500_test_{run}.csv")


def _rsna_order() -> Path:
    return file("sa_mil/tables/testing_example.csv")


def _rsna_table(run: str) -> Path:
    return file(f"ct_features/rsna_test/rsna_test_{run}.csv")


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(newline="") as file:
        yield from csv.DictReader(file)
