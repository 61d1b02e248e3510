# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Slice features of CQ500 that were published as a csv, as head CT reads them: feature files and their datalist.

python -m benchmarks.cq500_features CSV FOLDER: the csv is one of github.com/YunanWu2168/Att-based-MIL-and-GPMIL (no
licence: for evaluation only), 8 features per slice, slices in their order, a label per scan. Every fifth scan goes into
the validation section.
"""

import csv
import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from scripts.core.files import write_whole
from scripts.ct.features import SliceFeatures, write_slice_features

SPACING_MM = 5.0  # which the csv does not say


def write_cohort(table: Path, folder: Path) -> int:
    """Write the files; return of how many scans."""
    scans: dict[str, list[list[float]]] = defaultdict(list)
    labels: dict[str, int] = {}
    with table.open(newline="") as file:
        for row in csv.DictReader(file):
            scans[row["bag_name"]].append([float(row[f"feature_{k}"]) for k in range(8)])
            labels[row["bag_name"]] = int(row["bag_label"])
    datalist: dict[str, list[dict[str, object]]] = {"training": [], "validation": []}
    for number, (name, rows) in enumerate(scans.items()):
        positions = np.arange(len(rows)) * SPACING_MM
        write_slice_features(
            folder / f"{name}.h5", SliceFeatures(np.array(rows, np.float32), positions, [], {}, table.stem, "{}")
        )
        entry = {"image": f"{name}.h5", "bag_id": name, "label": labels[name], "patient": name}
        datalist["validation" if number % 5 == 0 else "training"].append(entry)
    write_whole(folder / "datalist.json", json.dumps(datalist, indent=1) + "\n")
    return len(scans)


if __name__ == "__main__":
    print(f"{write_cohort(Path(sys.argv[1]), Path(sys.argv[2]))} scans in {sys.argv[2]}")
