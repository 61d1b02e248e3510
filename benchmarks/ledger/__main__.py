# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.ledger`: where the networks find what nobody showed them, measured on public and made-up data.

Figures go to benchmarks/results/NAME.json, and docs/results.md is made of them. Every experiment is kept as soon as it
is done: given again after an interruption the command does what is left, and given again after its end it only judges.
"""

import argparse
import os
import sys
from pathlib import Path

from benchmarks.ledger import chains, ilse, peers, phe_sich, rsna
from benchmarks.ledger.cells import Store
from benchmarks.ledger.page import write_page
from benchmarks.report import number
from scripts.core.errors import InputError

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PARTS = {
    "rsna": rsna.heads,
    "rsna_smooth": rsna.placements,
    "rsna_losses": rsna.penalties,
    "chains": chains.chains,
    "lattices": chains.lattices,
    "images": phe_sich.images,
    "classical": ilse.classical,
    "digits": ilse.digits,
    "peers": peers.peers,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ledger", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="these tables alone; without any, all")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="experiments at a time, each on one core")
    parser.add_argument("--quick", action="store_true", help="a few rows, once: does it run? nothing is concluded")
    parser.add_argument("--kept", type=Path, default=ROOT / "benchmarks" / "kept", help="folder of the experiments")
    parser.add_argument(
        "--into", type=Path, default=RESULTS, help="folder of the figures; with another no page is made"
    )
    asked = parser.parse_args()
    if asked.quick and asked.into == RESULTS:
        parser.error("a quick run concludes nothing: give --into a folder of its own")
    try:
        for name in asked.parts or PARTS:
            section = PARTS[name](Store(asked.kept), asked.jobs, asked.quick)
            section.write(asked.into)
            for target in section.targets:
                print(f"{target.what}: {number(target.value)}, {'not judged' if asked.quick else target.verdict}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if asked.into == RESULTS:
        write_page(RESULTS, ROOT / "docs" / "results.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
