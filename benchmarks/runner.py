# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Cases in fresh processes, ours and theirs in turn."""

import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch

from benchmarks import peers
from benchmarks.measure import Request, answer, bytes_in
from benchmarks.report import Section, Table, Target, number, spread

ALONE = 0.05  # share of the cores that others may have while a process counts as undisturbed


@dataclass
class Outcome:
    """One run of one case, over all processes."""

    seconds: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)


class Outcomes(defaultdict[tuple[str, str, int], Outcome]):
    """Outcomes by (name of the case, run, instances)."""

    def __init__(self) -> None:
        super().__init__(Outcome)

    def seconds(self, name: str, run: str, n: int) -> float | None:
        """Median of the processes; None where it was not measured."""
        return median(self[name, run, n].seconds) if (name, run, n) in self else None

    def peak_gb(self, name: str, run: str, n: int) -> float | None:
        """Of the process that took most."""
        return max(self[name, run, n].peak_bytes) / 1e9 if (name, run, n) in self else None

    def by_size(self, name: str, run: str) -> dict[int, float]:
        return {n: median(outcome.seconds) for (a, b, n), outcome in self.items() if (a, b) == (name, run)}

    def table(self) -> Table:
        rows = [
            [name, f"{n:,}", run, spread(outcome.seconds), number(max(outcome.peak_bytes) / 1e9, "GB")]
            for (name, run, n), outcome in self.items()
        ]
        return Table(["case", "instances", "what", "median (fastest to slowest process)", "peak memory"], rows)

    def as_list(self) -> list[dict[str, Any]]:
        return [{"case": c, "run": r, "instances": n, **asdict(outcome)} for (c, r, n), outcome in self.items()]


@dataclass(frozen=True)
class Runner:
    small: bool  # small bags, once: does it run?
    with_peers: bool
    rounds: int
    threads: int = 2
    patience: float = 0  # seconds to wait before each process for others to leave the machine alone
    device: str | None = None  # of the part gpu, where it is not the GPU
    until: float = math.inf  # on the clock of time.monotonic: no process lasts longer
    started: float = field(default_factory=time.monotonic)
    disturbed: list[float] = field(default_factory=list)  # of each process: the share of the cores that others had

    def in_turn(self, requests: Mapping[str, Request], rounds: int | None = None) -> Outcomes:
        """Every case in a fresh process, and all of them again, `rounds` times; theirs only if they are there."""
        wanted = {name: request for name, request in requests.items() if not _theirs(request) or self.with_peers}
        outcomes = Outcomes()
        if self.small:  # ours together and theirs together
            for names in ([n for n in wanted if not _theirs(wanted[n])], [n for n in wanted if _theirs(wanted[n])]):
                self._add(outcomes, {name: wanted[name] for name in names}, "; ".join(names))
            return outcomes
        rounds = rounds or self.rounds
        for turn in range(1, rounds + 1):
            for name, request in wanted.items():
                self._add(outcomes, {name: request}, f"{name}, round {turn} of {rounds}")
        return outcomes

    def figures(self, case: str, module: str = "ours", what: str | None = None, **options: Any) -> Any:
        """What a function gives back, instead of what it costs."""
        return self._ask([Request(module, case, [], options, figures=True)], what or case)[0]

    def _add(self, outcomes: Outcomes, requests: Mapping[str, Request], what: str) -> None:
        answers = self._ask(list(requests.values()), what) if requests else []
        for name, records in zip(requests, answers, strict=True):
            for record in records:
                outcome = outcomes[name, record["run"], record["n"]]
                outcome.seconds.append(record["seconds"])
                outcome.peak_bytes.append(record["peak_bytes"])

    def _ask(self, requests: Sequence[Request], what: str) -> list[Any]:
        """The answers of one fresh process; with patience, of one that others left alone, if three tries find it."""
        if self.small and not _theirs(requests[0]):  # nothing is concluded, and most of a process is loading torch
            self.say(f"{what} ...")
            threads = torch.get_num_threads()  # as they are: a process that used several cannot be forked
            here: list[Any] = json.loads(json.dumps([answer(replace(each, threads=threads)) for each in requests]))
            return here
        python = str(peers.PYTHON) if _theirs(requests[0]) else sys.executable
        asked = json.dumps([{**asdict(request), "threads": self.threads} for request in requests])
        for tries_left in (2, 1, 0):
            self._wait()
            self.say(f"{what} ...")
            watch = Watch()
            command = [python, "-m", "benchmarks.measure", asked]
            left = None if math.isinf(self.until) else max(0.0, self.until - time.monotonic())
            try:
                done = subprocess.run(command, cwd=peers.ROOT, capture_output=True, text=True, timeout=left)
            except subprocess.TimeoutExpired as error:
                raise RuntimeError(f"{what} did not end in time") from error
            if done.returncode:
                raise RuntimeError(f"{what} failed:\n{done.stderr}")
            others = watch.others()
            if others < ALONE or not self.patience or not tries_left:
                break
            self.say(f"other work took {100 * others:.0f} % of the cores meanwhile: once more")
        self.disturbed.append(others)
        answers: list[Any] = json.loads(done.stdout.splitlines()[-1])
        return answers

    def _wait(self) -> None:
        """Until others left the machine alone for two seconds, or patience is at an end."""
        until = time.monotonic() + self.patience
        while time.monotonic() < until:
            watch = Watch()
            time.sleep(2)
            if watch.others() < ALONE:
                return

    def say(self, what: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self.started), 60)
        print(f"[{minutes:2}:{seconds:02}] {what}", flush=True)

    def where(self) -> dict[str, str]:
        """Of which machine the figures are, and how busy others kept it since this was last asked."""
        others = f"{100 * mean(self.disturbed):.0f} %" if self.disturbed else "unknown"
        self.disturbed.clear()
        return {
            "processor": _processor(),
            "cores": f"{len(os.sched_getaffinity(0))} ({self.threads} used)",
            "Python": platform.python_version(),
            "torch": version("torch"),
            "share of the cores that other work took": others,
        }

    def section(
        self,
        name: str,
        title: str,
        how: str,
        targets: Sequence[Target] = (),
        tables: Sequence[Table] = (),
        measured: Mapping[str, Any] | None = None,
    ) -> Section:
        """A part of this run."""
        return Section(name, title, how, self.small, self.where(), targets, tables, measured or {})


def _theirs(request: Request) -> bool:
    return request.module == "theirs"


class Watch:
    """How much of the machine's time goes to others than this process and its children."""

    def __init__(self) -> None:
        self.start = time.monotonic(), *self._spent()

    def others(self) -> float:
        start, busy_then, own_then = self.start
        busy, own = self._spent()
        available = (time.monotonic() - start) * (os.cpu_count() or 1)
        return max(0.0, (busy - busy_then) - (own - own_then)) / available

    @staticmethod
    def _spent() -> tuple[float, float]:
        """CPU seconds of all processes, and of this one with its children that ended."""
        user, nice, system = map(int, Path("/proc/stat").read_text().split()[1:4])
        own = os.times()
        return (user + nice + system) / os.sysconf("SC_CLK_TCK"), own[0] + own[1] + own[2] + own[3]


def _processor() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def sizes_that_fit(sizes: Sequence[int], bytes_each: int) -> list[int]:
    available = bytes_in("/proc/meminfo", "MemAvailable") or 0
    return [n for n in sizes if n * bytes_each < available]
