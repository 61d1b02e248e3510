# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The published csv becomes feature files that head CT reads."""

from pathlib import Path

import numpy as np

from benchmarks.cq500_features import write_cohort
from scripts.core.bags import load_bags
from scripts.ct.features import read_slice_features


def test_each_scan_keeps_its_slices_in_order_and_its_label(tmp_path: Path) -> None:
    names: list[object] = [*(f"feature_{k}" for k in range(8)), "bag_label", "bag_name"]
    rows = [
        [*(10 * scan + place + k for k in range(8)), scan % 2, f"CT-{scan}"] for scan in range(7) for place in range(3)
    ]
    (tmp_path / "run.csv").write_text("\n".join(",".join(str(cell) for cell in row) for row in [names, *rows]))
    assert write_cohort(tmp_path / "run.csv", tmp_path / "out") == 7
    sections = [
        load_bags(str(tmp_path / "out" / "datalist.json"), s, str(tmp_path / "out")) for s in ("training", "validation")
    ]
    assert [[bag["bag_id"] for bag in bags] for bags in sections] == [
        ["CT-1", "CT-2", "CT-3", "CT-4", "CT-6"],
        ["CT-0", "CT-5"],
    ]
    assert [bag["label"] for bag in sections[0]] == [1, 0, 1, 0, 0]
    scan = read_slice_features(sections[0][2]["image"])
    np.testing.assert_array_equal(scan.features[:, 0], [30, 31, 32])
    np.testing.assert_array_equal(scan.positions_mm, [0, 5, 10])
