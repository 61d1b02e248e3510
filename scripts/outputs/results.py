# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Results read back from the tables of a cohort: what is computed of several runs, or long after one, begins here."""

import csv
import json
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from scripts.core.errors import InputError
from scripts.core.record import FIELDS, BagResult, Classes
from scripts.core.scoring import ATTENTION
from scripts.metrics.faithfulness import faithfulness_in


def read_results(folder: Path, instances: bool = True) -> list[BagResult]:
    """Return the results in summary.csv, with metrics.json and instances.csv as far as they are there.

    Bags that failed or are empty have none. What an instance is (its `instances`) stays in the table,
    but that it is a patch.

    Args:
        folder: the output folder of a run.
        instances: False leaves instances.csv alone, which is long.
    """
    table = folder / "instances.csv"
    try:
        rows = [row for row in rows_in(folder / "summary.csv") if row["status"] == "done"]
        metrics = read_metrics(folder)
        of_bag = dict(_columns_of_bags(table)) if instances and table.is_file() else {}
        return [_result(row, of_bag.get(row["bag_id"], {}), metrics) for row in rows]
    except OSError as error:
        raise InputError(
            f"{folder} holds no results ({error.strerror}: summary.csv): give the output_dir of an evaluation"
        ) from error
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"the tables in {folder} are no results of this version ({error!r}): evaluate again"
        ) from error


def read_metrics(folder: Path) -> dict[str, Any]:
    """Return what metrics.json holds; nothing where no bag had a label."""
    path = folder / "metrics.json"
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def figures_in(metrics: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the figures of metrics.json, each with its value and interval."""
    return {name: each for name, each in metrics.items() if isinstance(each, dict) and "value" in each}


def known_values(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the values of those figures that are defined."""
    return {name: each["value"] for name, each in figures_in(metrics).items() if each["value"] is not None}


def rows_in(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table, each by the names of its columns."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _columns_of_bags(path: Path) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yield the numbers of one bag after the other, whose rows stand together: a cohort of slides has millions."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        place = {name: number for number, name in enumerate(next(rows))}
        for bag_id, of_bag in groupby(rows, lambda row: row[place["bag_id"]]):
            columns = list(zip(*of_bag, strict=True))
            numbers = {name: columns[place[name]] for name in (*FIELDS, "truth", "x") if name in place}
            yield bag_id, {name: np.array(list(map(float, of))) for name, of in numbers.items() if of[0]}


def _result(row: Mapping[str, str], instances: Mapping[str, np.ndarray], metrics: Mapping[str, Any]) -> BagResult:
    classes = None
    if "threshold" not in row:  # several classes, of which the likeliest is called
        names = tuple(key[2:-1] for key in row if key.startswith("p(") and not key.startswith("p(coarse "))
        kinds = metrics.get("classes", {"groups": (), "negative": None})
        probabilities = np.array([float(row[f"p({name})"]) for name in names])
        classes = Classes(names, probabilities, tuple(kinds["groups"]), kinds["negative"])
    label = row["label"]
    told: dict[str, Any] = {
        field: instances[name].astype(np.float32) for name, field in FIELDS.items() if name in instances
    }
    if "score_name" not in row and "scores" in told:  # of a version that knew of attention alone
        told["attention_logits"] = told["scores"]
    return BagResult(
        bag_id=row["bag_id"],
        source="",
        probability=float(row["probability"]),
        threshold=float(row["threshold"]) if classes is None else None,
        threshold_origin=metrics.get("threshold_origin", ""),
        logits=tuple(float(value) for key, value in row.items() if key.startswith("logit")),
        **dict.fromkeys(("scores", "attention"), np.zeros(0, np.float32)) | told,
        score_name=row.get("score_name", ATTENTION),
        score_smoothing=float(row.get("score_smoothing", 0)),
        flag_above=float(row["flagged_above"]) if row.get("flagged_above") else None,
        truth=instances["truth"].astype(int) if "truth" in instances else None,
        instances=[{"x": None} if "x" in instances else {}] * len(instances.get("score", ())),
        slots=metrics.get("slots"),
        about=faithfulness_in(row),
        label_set=tuple(filter(None, row["label_set"].split("|"))) if "label_set" in row else None,
        label=None if label == "" else int(label) if classes is None else classes.names.index(label),
        classes=classes,
    )
