# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m scripts search`: one training for each combination of keys, compared on the validation bags."""

import json
import math
import random as draws
import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.core.cli import aligned
from scripts.core.errors import InputError
from scripts.core.files import sha256_of
from scripts.engine.run_record import read_record, run_file
from scripts.outputs.report import LOGGED, write_table
from scripts.outputs.results import known_values, read_metrics
from scripts.studies.runs import Run, Study, at_least, perform, refuse_failures

MOST = 1000  # trainings that nobody asks for by mistake


def search_grid(study: Study, tried: Mapping[str, Sequence[Any]], random: int | None, seed: int) -> None:
    """Do the runs of all combinations that are left, and rank them."""
    candidates = choose_candidates(tried, random, seed)
    study.keep_settings("search", datalist_sha256=sha256_of(study.datalist), grid=tried, random=random, seed=seed)
    runs = [
        Run(path.name, path, study.datalist, "validation", {**own, "seed": seed})
        for number, own in candidates.items()
        for path in [study.output_dir / f"candidate_{number}"]
    ]
    best_by = str(study.value_of("best_by"))
    failures = perform(study, runs, lambda run: f"{best_by} {figures_of(run, best_by)[best_by]:.4g}")
    figures = {run.name: {} if run.name in failures else figures_of(run, best_by) for run in runs}
    sign = 1 if best_by == "val_loss" else -1
    runs.sort(key=lambda run: sign * figures[run.name].get(best_by, sign * math.inf))
    rows = [{"candidate": run.name, **{key: run.keys[key] for key in tried}, **figures[run.name]} for run in runs]
    path = study.output_dir / "search.csv"
    columns = list(dict.fromkeys(name for row in rows for name in row))
    write_table(path, columns, rows)
    print(aligned([columns, *([str(row.get(name, "")) for name in columns] for row in rows)]))
    if len(failures) < len(runs):
        print(f"best by {best_by} on the validation bags: {runs[0].model}, trained in {study.bundle} by")
        print(shlex.join(["python", *study.command(runs[0])[1:]]))
        print("The test section was not opened. Evaluate the best there, once: the best of several looks better here.")
    print(f"written to {path}")
    refuse_failures(failures, len(runs))


def read_grid(path: Path, given: Collection[str] = ()) -> dict[str, list[Any]]:
    """Return key → the values to try.

    Args:
        given: keys that all trainings have alike.
    """
    try:
        grid = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no JSON file that can be read ({error}): give one with keys and values") from error
    if not isinstance(grid, dict) or not grid or not all(isinstance(tried, list) and tried for tried in grid.values()):
        raise InputError(f'{path} does not list values to try: write {{"learning_rate": [0.001, 0.0001]}}')
    if grid.keys() & {"best_by", "seed", *given}:
        raise InputError(f"{path}: seed, best_by and what is a flag of this command cannot be searched: take it out")
    return grid


def choose_candidates(grid: Mapping[str, Sequence[Any]], random: int | None, seed: int) -> dict[int, dict[str, Any]]:
    """Return all combinations of a grid by their number from 1, or as many of them as are drawn."""
    total = math.prod(map(len, grid.values()))
    numbers: Sequence[int] = range(total)
    if random is not None:
        at_least(random, 1, "random")
        numbers = sorted(draws.Random(seed).sample(numbers, min(random, total)))
    if len(numbers) > MOST:
        raise InputError(f"the grid has {total} combinations: leave some values out, or draw some with --random N")
    candidates = {}
    for number in numbers:
        rest, own = number, {}
        for key, tried in grid.items():
            rest, place = divmod(rest, len(tried))
            own[key] = tried[place]
        candidates[number + 1] = own
    return candidates


def figures_of(run: Run, best_by: str) -> dict[str, float]:
    """Return what a network is compared by, of the epoch that was kept, and what its evaluation tells besides."""
    kept = (read_record(run_file(run.model)) or {}).get("kept") or {}
    if best_by not in kept:
        raise InputError(f"best_by is {best_by}, which the training does not record: give val_loss or val_bag_auroc")
    values = known_values(read_metrics(run.results))
    return {best_by: kept[best_by]} | {name: values[name] for name in LOGGED if name in values}
