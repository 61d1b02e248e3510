# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Results read back from the tables of a cohort: what is computed of several runs, or long after one, begins here."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scripts.core.errors import InputError
from scripts.core.record import BagResult, Classes


def read_results(folder: Path, instances: bool = True) -> list[BagResult]:
    """Return the results in summary.csv, with metrics.json and instances.csv as far as they are there.

    Bags that failed or are empty have none. What an instance is (its `instances`) is as the table says it, in texts.

    Args:
        folder: the output folder of a run.
        instances: False leaves instances.csv alone, which is long.
    """
    table_of_instances = folder / "instances.csv"
    try:
        rows = [row for row in _table(folder / "summary.csv") if row["status"] == "done"]
        metrics = json.loads((folder / "metrics.json").read_text()) if (folder / "metrics.json").is_file() else {}
        of_bag: dict[str, list[Mapping[str, str]]] = {row["bag_id"]: [] for row in rows}
        for instance in _table(table_of_instances) if instances and table_of_instances.is_file() else []:
            of_bag[instance["bag_id"]].append(instance)
        return [_result(row, of_bag[row["bag_id"]], metrics) for row in rows]
    except OSError as error:
        raise InputError(
            f"{folder} holds no results ({error.strerror}: summary.csv): give the output_dir of an evaluation"
        ) from error
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"the tables in {folder} are no results of this version ({error!r}): evaluate again"
        ) from error


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _result(row: Mapping[str, str], instances: list[Mapping[str, str]], metrics: Mapping[str, Any]) -> BagResult:
    classes = None
    if "threshold" not in row:  # several classes, of which the likeliest is called
        names = tuple(key[2:-1] for key in row if key.startswith("p(") and not key.startswith("p(coarse "))
        kinds = metrics.get("classes", {"groups": (), "negative": None})
        probabilities = np.array([float(row[f"p({name})"]) for name in names])
        classes = Classes(names, probabilities, tuple(kinds["groups"]), kinds["negative"])
    label = row["label"]
    return BagResult(
        bag_id=row["bag_id"],
        source="",
        probability=float(row["probability"]),
        threshold=float(row["threshold"]) if classes is None else None,
        threshold_origin=metrics.get("threshold_origin", ""),
        logits=tuple(float(value) for key, value in row.items() if key.startswith("logit")),
        label_set=tuple(filter(None, row["label_set"].split("|"))) if "label_set" in row else None,
        scores=np.array([float(each["score"]) for each in instances], dtype=np.float32),
        attention=np.array([float(each["attention"]) for each in instances], dtype=np.float32),
        truth=np.array([int(each["truth"]) for each in instances]) if instances and instances[0].get("truth") else None,
        instances=instances,
        label=None if label == "" else int(label) if classes is None else classes.names.index(label),
        classes=classes,
    )
