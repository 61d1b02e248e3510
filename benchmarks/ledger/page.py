# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""docs/results.md, made of the figures in benchmarks/results and of nothing else."""

from pathlib import Path

from benchmarks.ledger import figure
from benchmarks.report import page, read
from scripts.core.files import write_whole

ORDER = (*("rsna", "rsna_smooth", "rsna_losses", "images", "chains", "lattices"), *("classical", "digits", "peers"))
PREFACE = (
    "Made by `make reproduce`, by no hand: every figure here is in `benchmarks/results`. Networks, losses and metrics "
    "are those of the bundles, from their JSON, but for the rows that say otherwise (torchmil's heads, the first axis "
    "of the features, logistic regression) and for the encoders of digits and classical sets; the loop that trains is "
    "a short one of its own, on bags in memory. What was chosen on what stands with each table. AUC is the area under "
    "the ROC curve; where there are intervals, they are 95 %, over scans, the trained networks held fixed. The data "
    "are public and never part of the repository: `benchmarks/README.md` says which files each table needs."
)


PICTURE = (
    "![Scan AUC against slice AUC of every head by every score](images/results.svg)\n\n"
    "Each head of the table below by four scores, as far as it has them, mean and deviation of its models: whether "
    "there is bleeding, against where."
)


def write_page(results: Path, path: Path) -> None:
    """Write the page of all parts that there are, in the order in which they are made, and its picture."""
    found = [read(file, "ledger") for file in sorted(results.glob("*.json"))]
    sections = sorted((section for section in found if section is not None), key=lambda own: ORDER.index(own.name))
    preface = PREFACE
    for section in sections:
        if section.name == ORDER[0] and "height alone" in section.measured:
            (path.parent / "images").mkdir(exist_ok=True)
            figure.draw(section.measured, path.parent / "images" / "results.svg")
            preface = f"{PREFACE}\n\n{PICTURE}"
    write_whole(path, page(sections, preface, "Results"))
