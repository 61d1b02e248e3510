# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""docs/results.md, made of the figures in benchmarks/results and of nothing else."""

from pathlib import Path

from benchmarks.report import page, read

PREFACE = (
    "Made by `make reproduce`, by no hand: every figure here is in `benchmarks/results`, and every experiment ran "
    "through the networks, losses and metrics of the bundles, from their JSON. What was chosen on what stands with "
    "each table. AUC is the area under the ROC curve; intervals are 95 %, over scans. The data are public and never "
    "part of the repository: set SMOOTH_MIL_DATA to the folder that holds them."
)


def write_page(results: Path, path: Path) -> None:
    """Write the page of all parts that there are."""
    found = [read(file, "ledger") for file in sorted(results.glob("*.json"))]
    path.write_text(page([section for section in found if section is not None], PREFACE, "Results"))
