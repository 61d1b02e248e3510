# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""A case in a process of its own: `python -m benchmarks.measure [REQUEST]` ends with its figures as JSON on one line.

Peak memory is the highest resident memory while a case runs, less the resident memory just before it: libraries,
network and bag are then in place, a small bag has gone through the same code, and free memory was given back.
"""

import ctypes
import gc
import importlib
import json
import math
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

SMALL = 200  # instances of the bag that warms up: code is loaded, threads are started
ENOUGH_SECONDS = 0.3  # short calls are repeated until they are worth a median
MANY = 50


@dataclass(frozen=True)
class Request:
    module: str  # of this folder, which holds the case; "theirs" runs in the peers' environment
    case: str  # the function there
    sizes: Sequence[int]  # instances of the bags
    options: dict[str, Any] = field(default_factory=dict)
    runs: Sequence[str] = ("step",)
    calls: int = 3  # at least so many are timed
    untimed: int = 1  # calls of the full size before the first run
    warm: int = SMALL  # instances of the bag that goes before
    threads: int = 2
    figures: bool = False  # the function gives figures itself, and nothing is timed


@dataclass(frozen=True)
class Record:
    run: str
    n: int
    seconds: float  # median of the calls
    peak_bytes: int  # above what was there before


def measure(request: Request) -> list[Record]:
    case = getattr(importlib.import_module(f"benchmarks.{request.module}"), request.case)
    small = case(n=request.warm, **request.options)
    for run in request.runs:
        small[run]()
    del small
    records = []
    for n in request.sizes:
        runs = case(n=n, **request.options)
        for place, run in enumerate(request.runs):
            seconds, peak = _timed(runs[run], request, request.untimed if place == 0 else 0)
            records.append(Record(run, n, seconds, peak))
        del runs
    return records


def _timed(call: Callable[[], object], request: Request, untimed: int) -> tuple[float, int]:
    device = request.options.get("device", "cpu")
    settled, finish = _device(device)
    before = settled()
    for _ in range(untimed):
        call()
    seconds: list[float] = []
    while len(seconds) < request.calls or (sum(seconds) < ENOUGH_SECONDS and len(seconds) < MANY):
        finish()
        start = time.perf_counter()
        call()
        finish()
        seconds.append(time.perf_counter() - start)
    return median(seconds), _peak(device) - before


def in_turns(
    runs: Mapping[str, Callable[[], object]], turns: int, device: str = "cpu", at_least: float = 0
) -> list[dict[str, float]]:
    """Seconds of each run in each turn, one after the other, so that other work on the machine meets all alike.

    Each goes once untimed; a short one is repeated in every turn until that takes `at_least` seconds.
    """
    _, finish = _device(device)

    def seconds(run: Callable[[], object], calls: int) -> float:
        finish()
        start = time.perf_counter()
        for _ in range(calls):
            run()
        finish()
        return (time.perf_counter() - start) / calls

    for run in runs.values():
        seconds(run, 1)
    calls = {name: max(1, math.ceil(at_least / seconds(run, 1))) if at_least else 1 for name, run in runs.items()}
    return [{name: seconds(run, calls[name]) for name, run in runs.items()} for _ in range(turns)]


def peak_of(call: Callable[[], object], device: str) -> int:
    """Bytes that a call takes above what was there, if it has been called before."""
    settled, finish = _device(device)
    before = settled()
    call()
    finish()
    return _peak(device) - before


def _device(name: str) -> tuple[Callable[[], int], Callable[[], object]]:
    """What settles the memory and tells how much is taken, and what waits until the work is done."""
    if name == "cpu":
        return _settled, lambda: None
    import torch

    def settled() -> int:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()

    return settled, torch.cuda.synchronize


def _settled() -> int:
    """Give free memory back, reset the high-water mark to what is left, and return that."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak(device: str) -> int:
    if device != "cpu":
        import torch

        return torch.cuda.max_memory_allocated()
    return _status("VmHWM")


def _status(key: str) -> int:
    said = bytes_in("/proc/self/status", key)
    if said is None:
        raise OSError(f"/proc/self/status says no {key}: memory is measured on Linux alone")
    return said


def bytes_in(file: str, key: str) -> int | None:
    """What a file of the kernel says of a key."""
    found = re.search(rf"^{key}:\s+(\d+) kB", Path(file).read_text(), re.MULTILINE)
    return 1024 * int(found[1]) if found else None


def answer(request: Request) -> Any:
    import torch

    torch.set_num_threads(request.threads)
    # float32 is float32, ours and theirs: cuDNN would else round to TF32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    if request.figures:
        return getattr(importlib.import_module(f"benchmarks.{request.module}"), request.case)(**request.options)
    return [asdict(record) for record in measure(request)]


if __name__ == "__main__":
    print(json.dumps([answer(Request(**request)) for request in json.loads(sys.argv[1])]))
