# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The thousand small experiments behind a table: done by processes, each kept as a file, so that a stop loses none."""

import hashlib
import importlib
import json
import os
import platform
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from benchmarks.ledger.answers import Arrays
from scripts.core.errors import InputError
from scripts.core.files import whole_file

EVERY = 5.0  # seconds between two lines of progress
LEDGER, ROOT = Path(__file__).parent, Path(__file__).parents[2]
BESIDES = {  # what an experiment runs besides networks, losses and the modules of all experiments
    "cq500": [ROOT / "scripts/studies/crossval.py"],
    "images": [ROOT / "scripts/ct/transforms.py"],
    "peers_run": [LEDGER / "cq500.py", LEDGER / "madeup.py", ROOT / "scripts/studies/crossval.py"],
}
VERSIONS = ("torch", "numpy", "monai", "scikit-learn")
WHERE = {"Python": platform.python_version(), "torch": version("torch")}  # of a table
Row = TypeVar("Row")  # how a table names it


@cache
def sources(module: str) -> str:
    """Return the sha256 of the code that an experiment of this module runs."""
    networks = [path for name in ("networks", "losses") for path in sorted((ROOT / "scripts" / name).glob("*.py"))]
    of_all = [LEDGER / f"{name}.py" for name in ("learning", "answers", "data", module)]
    paths = [*networks, ROOT / "scripts/metrics/faithfulness.py", *of_all, *BESIDES.get(module, ())]
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


@dataclass(frozen=True)
class Cell:
    """One experiment: a function of a module of this folder, from options to arrays."""

    module: str
    function: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """A short text that changes with whatever is asked for, and with the code and the packages that answer."""
        asked = [asdict(self), sources(self.module), *map(version, VERSIONS)]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:20]

    def arrays(self) -> Arrays:
        """Do it; on one thread, as sums of several come out in another order each time."""
        torch.set_num_threads(1)
        module = importlib.import_module(f"benchmarks.ledger.{self.module}")
        found: Arrays = getattr(module, self.function)(**self.options)
        return found


def end_with_parent(parent: int) -> None:
    """Let this process end when the one that started it does, even by a signal that nobody hears, or before this."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Store:
    """Where the arrays of cells are kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, cell: Cell) -> Path:
        return self.folder / f"{cell.key}.npz"

    def read(self, cell: Cell) -> Arrays:
        with np.load(self.path(cell)) as file:
            return dict(file)

    def keep(self, cell: Cell, arrays: Arrays) -> None:
        with whole_file(self.path(cell)) as beside, beside.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)

    def complete(self, cells: Sequence[Cell], processes: int, title: str) -> None:
        """Do what is not there yet, with a line of progress now and then."""
        left = [cell for cell in {cell.key: cell for cell in cells}.values() if not self.path(cell).exists()]
        print(f"{title}: {len(cells)} experiments, {len(left)} to do", flush=True)
        if not left:
            return
        started = told = time.monotonic()
        with ProcessPoolExecutor(processes, get_context("spawn"), end_with_parent, (os.getpid(),)) as pool:
            futures = [pool.submit(self.do, cell) for cell in left]
            try:
                for done, future in enumerate(as_completed(futures), 1):
                    future.result()
                    now = time.monotonic()
                    if now - told > EVERY or done == len(left):
                        told = now
                        minutes = (now - started) / done * (len(left) - done) / 60
                        print(f"{title}: {done} of {len(left)}, about {minutes:.0f} min left", flush=True)
            except BaseException as error:
                pool.shutdown(wait=False, cancel_futures=True)
                if isinstance(error, BrokenProcessPool):
                    raise InputError(
                        f"a process was killed, as for want of memory: give fewer --jobs than {processes}"
                    ) from None
                raise

    def models(self, asked: Mapping[Row, Sequence[Cell]], processes: int, title: str) -> dict[Row, list[Arrays]]:
        """Return the arrays of all cells of each row, done now as far as they are not there yet."""
        self.complete([cell for of_row in asked.values() for cell in of_row], processes, title)
        return {row: [self.read(cell) for cell in of_row] for row, of_row in asked.items()}

    def do(self, cell: Cell) -> None:
        """Do one and keep it."""
        self.keep(cell, cell.arrays())
