# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The guard: has anything become slower? Ratios of times measured in turn, beside the kept ones."""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks import ours
from benchmarks.measure import in_turns
from benchmarks.report import Table, number
from benchmarks.runner import Runner
from benchmarks.slices import bare, slice_network
from scripts.core.files import write_whole

ALLOWED = 1.25  # times the kept ratio
TURNS = 11
AT_LEAST = 0.05  # seconds of each side in a turn
PROCESSES = 5  # of whose ratios the median is kept
KEEP = "python -m benchmarks guard --keep"
Side = Callable[[], object]
Turn = tuple[float, float]  # seconds of what is guarded, and of what it stands beside


class Ratio(NamedTuple):
    of: str  # the file or folder to look into
    turns: Callable[[bool, str], list[Turn]]  # (small, a folder) → seconds


def smoothing(small: bool, _: str) -> list[Turn]:
    size = (300, 16) if small else (20_000, 256)
    return _turns(small, ours.smap(*size)["step"], ours.attention_pool(*size)["step"])


def transformer(small: bool, _: str) -> list[Turn]:
    n, columns = (100, 16) if small else (1_000, 256)
    side = round((ours.smtap_operations(n, columns)["step"] / 2) ** (1 / 3))
    return _turns(small, ours.smtap(n, columns)["step"], ours.matmul(side)["multiply"])


def slices(run: str, small: bool, _: str) -> list[Turn]:
    options: dict[str, Any] = {"size": 64, "channels": (16, 32, 32, 32)} if small else {"size": 256}
    return _turns(small, slice_network(4, **options)[run], bare(4, **options)[run])


def exact_chain(small: bool, _: str) -> list[Turn]:
    (n, columns), side = ((300, 16), 32) if small else ((5_000, 64), 512)
    return _turns(small, ours.exact_chain(n, columns)["forward"], ours.matmul(side)["multiply"])


def neighbours(small: bool, _: str) -> list[Turn]:
    n, side = (300, 32) if small else (100_000, 1024)
    return _turns(small, ours.graph(n)["build"], ours.matmul(side)["multiply"])


def evidence(small: bool, _: str) -> list[Turn]:
    runs = ours.evidence(*((300, 16) if small else (20_000, 256)))
    return _turns(small, runs["with evidence"], runs["without"])


def blocks(small: bool, folder: str) -> list[Turn]:
    from benchmarks.streaming import in_blocks, in_memory  # these three load MONAI, for seconds

    n, columns = (300, 16) if small else (20_000, 256)
    return _turns(small, *(way(n, folder, columns)["predict"] for way in (in_blocks, in_memory)))


def epoch(small: bool, folder: str) -> list[Turn]:
    from benchmarks.loop import turns

    told = turns(f"{folder}/cohort", "ct", 8 if small else 400, 34, 1152, epochs=1 if small else TURNS)
    return list(zip(told["epoch"], told["bare"], strict=True))


def reading(small: bool, folder: str) -> list[Turn]:
    from benchmarks.ct import read_pixels, write_scans
    from scripts.ct.reader import load_scan

    scans = Path(folder) / "scans"
    write_scans(scans, 1)
    return _turns(small, lambda: load_scan(scans / "scan_0"), lambda: read_pixels(scans))


RATIOS = {
    "SmAP step, 20,000 × 256: with / without smoothing": Ratio("scripts/networks/smooth.py", smoothing),
    "SmTAP step, 1,000 × 256 / a matrix product of as many operations": Ratio(
        "scripts/networks/transformer.py", transformer
    ),
    "slice network, step, 4 × 256² / bare stack": Ratio("scripts/networks/encoders.py", partial(slices, "step")),
    "slice network, forward, 4 × 256² / bare stack": Ratio("scripts/networks/encoders.py", partial(slices, "forward")),
    "exact operator on a chain of 5,000 × 64 / a matrix product of 512²": Ratio(
        "scripts/networks/smooth.py", exact_chain
    ),
    "graph of 100,000 patches / a matrix product of 1024²": Ratio("scripts/networks/graph.py", neighbours),
    "20,000 × 256: with / without evidence": Ratio("scripts/networks/evidence.py", evidence),
    "20,000 × 256 in a file: in blocks / in memory": Ratio("scripts/networks/streaming.py", blocks),
    "an epoch of heads on features / bare steps": Ratio("scripts/engine", epoch),
    "reading a scan / pydicom alone": Ratio("scripts/ct/reader.py", reading),
}


def _turns(small: bool, guarded: Side, beside: Side) -> list[Turn]:
    runs = {"guarded": guarded, "beside": beside}
    took = in_turns(runs, 1, at_least=0) if small else in_turns(runs, TURNS, at_least=AT_LEAST)
    return [(turn["guarded"], turn["beside"]) for turn in took]


def turns_of(name: str, small: bool) -> list[Turn]:
    """Seconds of both sides of a ratio in each turn: what a process of its own measures."""
    with tempfile.TemporaryDirectory() as folder:
        return RATIOS[name].turns(small, folder)


def ratio_of(turns: Sequence[Turn]) -> float:
    """Under other work the ratio of the fastest calls spreads ten times as far: one side may find a quiet moment."""
    return median(guarded / beside for guarded, beside in turns)


@dataclass(frozen=True)
class Compared:
    name: str
    kept: float | None
    measured: Sequence[float]  # the second of a process of its own, where the first was too high

    @property
    def slower(self) -> bool:
        return self.kept is not None and min(self.measured) > ALLOWED * self.kept

    @property
    def verdict(self) -> str:
        if self.kept is None:
            return f"not kept yet: {KEEP}"
        return "slower" if self.slower else "as kept" if len(self.measured) == 1 else "as kept, the second time"


def compare(
    names: Sequence[str], kept: Mapping[str, float], measure: Callable[[str], float], say: Callable[[str], None]
) -> list[Compared]:
    """Each ratio beside the kept one, and one that is too high once more: noise seldom comes twice."""
    found = []
    for name in names:
        measured, limit = [measure(name)], ALLOWED * kept[name] if name in kept else None
        if limit is not None and measured[0] > limit:
            say(f"{name}: {number(measured[0], '×')}, more than {number(limit, '×')}: once more")
            measured.append(measure(name))
        found.append(Compared(name, kept.get(name), measured))
    return found


def told(found: Sequence[Compared]) -> str:
    """A table, and of what became slower where to look and what to do."""
    rows = [
        [each.name, number(each.kept, "×"), ", ".join(number(now, "×") for now in each.measured), each.verdict]
        for each in found
    ]
    slower = [
        f"{each.name}: {number(min(each.measured), '×')}, kept {number(each.kept, '×')} ({RATIOS[each.name].of})"
        for each in found
        if each.slower
    ]
    table = Table(["ratio", "kept", "now", ""], rows).markdown()
    if not slower:
        return table
    allowed = f"by more than {round(100 * (ALLOWED - 1))} %"
    return f"{table}\n\nslower than kept {allowed}: {'; '.join(slower)}; if this is meant, keep the new ratios: {KEEP}"


def read_kept(path: Path) -> dict[str, float]:
    if not path.exists():
        return {}
    return {name: each["ratio"] for name, each in json.loads(path.read_text(encoding="utf-8"))["ratios"].items()}


def guard(runner: Runner, path: Path) -> int:
    """Compare with the ratios kept in a file; 1 if one is too high twice, or not kept. Small sizes are run alone."""
    found = compare(
        list(RATIOS), {} if runner.small else read_kept(path), lambda name: _measured(runner, name), runner.say
    )
    if runner.small:
        runner.say(f"{len(found)} ratios measured once, at small sizes: not compared")
        return 0
    runner.say(f"share of the cores that other work took: {runner.where()['share of the cores that other work took']}")
    print(f"\n{told(found)}")
    return int(any(each.slower or each.kept is None for each in found))


def keep(runner: Runner, path: Path) -> int:
    """Keep the median of some processes, all ratios in turn.

    If one spreads as far as a ratio may grow, nothing is kept: 1.
    """
    got: dict[str, list[float]] = {name: [] for name in RATIOS}
    for _ in range(PROCESSES):
        for name in RATIOS:
            got[name].append(_measured(runner, name))
    rows = [
        [
            name,
            *(number(each, "×") for each in (median(of), min(of), max(of))),
            number(100 * (max(of) / min(of) - 1), "%"),
        ]
        for name, of in got.items()
    ]
    print("\n" + Table(["ratio", "median", "least", "most", "apart"], rows).markdown() + "\n")
    noisy = [name for name, of in got.items() if max(of) > ALLOWED * min(of)]
    if noisy:
        print(
            f"nothing kept: too far apart to tell what became slower: {'; '.join(noisy)}; wait until nothing else runs"
        )
        return 1
    ratios = {name: {"ratio": median(of), "least": min(of), "most": max(of), "of": of} for name, of in got.items()}
    content = {"format": "guard", "where": runner.where(), "ratios": ratios}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(content, indent=4, ensure_ascii=False) + "\n")
    print(f"kept in {path}")
    return 0


def _measured(runner: Runner, name: str) -> float:
    turns = runner.figures("turns_of", "guard", what=name, name=name, small=runner.small)
    each = [guarded / beside for guarded, beside in turns]
    runner.say(f"  {number(ratio_of(turns), '×')}, its turns {number(min(each), '×')} to {number(max(each), '×')}")
    return ratio_of(turns)
