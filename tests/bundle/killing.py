# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""A training that kills itself at a moment drawn from a seed; run_path of this file is a step of its config."""

import os
import random
import resource
import shutil
import signal
from itertools import count
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

MOMENTS = ("in a step", "in the validation", "with half a file written", "behind a file")


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_a_random_moment(trainer: Engine, evaluator: Engine, seed: int) -> None:
    """Let this process kill itself within the next epochs; of several processes one does."""
    drawn = random.Random(seed)  # the training's own numbers stay as they are
    moment, calls = drawn.choice(MOMENTS), count(1)
    last, rank = (
        drawn.randint(1, 6 if moment == "in a step" else 4),
        drawn.randrange(int(os.environ.get("WORLD_SIZE", 1))),
    )
    replace = os.replace

    def killed_replace(source: Path, target: Path) -> None:
        fatal = next(calls) == last
        if fatal and moment == "with half a file written":
            source.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
            kill()
        replace(source, target)
        if fatal:
            kill()

    def killed_step(*engine: Any) -> None:
        if next(calls) == last and rank == int(os.environ.get("RANK", 0)):
            kill()

    print(f"killed {moment}, number {last} of this start", flush=True)
    if "file" in moment:
        os.replace = killed_replace  # type: ignore[assignment]
    else:
        engine = trainer if moment == "in a step" else evaluator
        engine.add_event_handler(Events.ITERATION_COMPLETED, killed_step)


def let_files_be_small(model: str) -> None:
    """From here on no file can grow beyond 2 kB, as on a full disk; what the model is then lies beside it."""
    shutil.copy(model, Path(model).with_suffix(".before"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
