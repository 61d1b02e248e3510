# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks`: speed and memory of ours beside the peers', and what intervals and scaling are worth.

Figures and page are written to benchmarks/results. `--quick` asks in minutes whether anything became slower.
"""

import argparse
import sys
from pathlib import Path

from benchmarks import peers
from benchmarks.guard import guard, keep
from benchmarks.report import Section, number, page, read
from benchmarks.runner import Runner
from benchmarks.sections import OF_PEERS, SECTIONS, TRAININGS

RESULTS = peers.ROOT / "benchmarks" / "results"
GUARD = "guard"
PREFACE = (
    "Made by `make bench`; [how it is measured](../README.md). Each case ran in processes of its own, "
    "ours and theirs in turn, on one machine. Times are the median of the processes, each the median of its calls. "
    "Peak memory is the highest resident memory while the case ran, less that just before it, when libraries, network "
    "and bag were in place and a small bag had been through: of the process that took most."
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "parts",
        nargs="*",
        metavar="PART",
        help=f"{', '.join(SECTIONS)}; without any, all but those that train for many minutes; {GUARD} is --quick",
    )
    parser.add_argument("--quick", action="store_true", help="ratios beside the kept ones: did anything become slower?")
    parser.add_argument("--keep", action="store_true", help=f"of the part {GUARD}: keep the ratios measured now")
    parser.add_argument("--small", action="store_true", help="small bags, once: does it run? nothing is installed")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="of the part gpu, by default the GPU if there is one")
    parser.add_argument("--rounds", type=int, default=3, help="how often each case is run")
    parser.add_argument("--patience", type=float, default=0, help="seconds to wait for other work, before each process")
    parser.add_argument("--no-peers", action="store_true", help="ours alone")
    parser.add_argument("--into", type=Path, help="folder for the figures and the page; --small writes none by default")
    asked = parser.parse_args()
    if unknown := set(asked.parts) - {*SECTIONS, GUARD}:  # choices would refuse that there are none
        parser.error(f"no part {', '.join(sorted(unknown))}: choose from {', '.join([*SECTIONS, GUARD])}")
    guards = asked.quick or GUARD in asked.parts
    if guards and set(asked.parts) - {GUARD}:
        parser.error(f"the part {GUARD} goes by itself: name it alone, or leave out --quick")
    if asked.keep and (asked.small or not guards):
        parser.error(f"--keep is for the part {GUARD} at full size: python -m benchmarks {GUARD} --keep")
    into = asked.into or RESULTS
    if guards:
        own = Runner(
            asked.small, False, 1, threads=1, patience=asked.patience
        )  # which other work disturbs less than two
        return (keep if asked.keep else guard)(own, into / f"{GUARD}.json")
    parts = asked.parts or [name for name in SECTIONS if name not in TRAININGS]
    if not asked.small and not asked.no_peers and OF_PEERS.intersection(parts):
        peers.build()
    threads = 1 if asked.small else 2  # small bags leave a second thread nothing to do but wait
    with_peers = peers.ready() and not asked.no_peers
    runner = Runner(asked.small, with_peers, asked.rounds, threads, asked.patience, asked.device)
    sections = []
    for name in parts:
        section = SECTIONS[name](runner)
        sections.append(section)
        if asked.into or not asked.small:
            section.write(into)
        for target in section.targets:
            verdict = "not judged" if section.quick else target.verdict
            runner.say(f"{target.what}: {number(target.value, target.unit)}, {verdict}")
    if asked.into or not asked.small:
        (into / "README.md").write_text(page(written(into), PREFACE))
        runner.say(f"written to {into}/README.md")
    return int(any(section.name == "parity" and section.missed for section in sections))  # a missed speed is no failure


def written(folder: Path) -> list[Section]:
    """All parts there are, also those of an earlier run, in the order of the run."""
    found = (read(path) for path in folder.glob("*.json"))
    order = list(SECTIONS)
    return sorted((section for section in found if section is not None), key=lambda section: order.index(section.name))


if __name__ == "__main__":
    sys.exit(main())
