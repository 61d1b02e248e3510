# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m MODULE` in a new process that need not import MONAI anew, which is most of what a small command takes.

The process is a fork of one that has imported MONAI and nothing of ours; test_readme.py types the same commands.
"""

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).parents[2]
LONGEST = 400.0  # seconds
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["monai.bundle", "mlflow.store.db.utils", "sklearn.metrics", "scipy.stats"])
# What the server shall find where it imports, before the environment of any command is there.
OF_THE_SERVER = {"MLFLOW_DISABLE_TELEMETRY": "true", "OMP_NUM_THREADS": "1"}

Ended = subprocess.CompletedProcess[str]


def run_forked(words: Sequence[str], cwd: Path, environment: Mapping[str, str], ranks: int = 1) -> list[Ended]:
    """Run `python -m` these words, `ranks` times at once with what torchrun tells each; return how each ended.

    One that hangs is killed with the others, and subprocess.TimeoutExpired raised.
    """
    port = _free_port()
    with tempfile.TemporaryDirectory() as folder:
        started = []
        for rank in range(ranks):
            given = {**environment, **(_told_by_torchrun(rank, ranks, port) if ranks > 1 else {})}
            said = [Path(folder) / f"{rank}.{name}" for name in ("out", "err")]
            process = FORKS.Process(target=_become, args=(list(words), cwd, given, *said))
            with patch.dict(os.environ, OF_THE_SERVER):  # which the first one starts
                process.start()
            started.append((process, said))
        ended, command, until = [], ["python", "-m", *words], time.monotonic() + LONGEST
        for process, _ in started:
            process.join(max(0, until - time.monotonic()))
        hanging = [process for process, _ in started if process.exitcode is None]
        for process in hanging:
            process.kill()
            process.join()
        for process, said in started:
            out, err = (path.read_text() if path.exists() else "" for path in said)
            if hanging:
                raise subprocess.TimeoutExpired(command, LONGEST, out, err)
            ended.append(Ended(command, process.exitcode or 0, out, err))
        return ended


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _told_by_torchrun(rank: int, ranks: int, port: int) -> dict[str, str]:
    here, all_of_them = str(rank), str(ranks)
    places = {"RANK": here, "LOCAL_RANK": here, "WORLD_SIZE": all_of_them, "LOCAL_WORLD_SIZE": all_of_them}
    return {**places, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def _become(words: list[str], cwd: Path, environment: dict[str, str], out: Path, err: Path) -> None:
    """Be `python -m` these words."""
    import torch  # here, as this module is imported where nothing else of ours is

    for descriptor, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # as it is in a new python
    sys.path[:] = [str(cwd), *(path for path in sys.path if Path(path) != ROOT)]  # so that a bundle finds its own code
    sys.argv = words
    try:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    except Exception:
        sys.excepthook(*sys.exc_info())  # ours tells what a user did wrong in one line
        raise SystemExit(1) from None
