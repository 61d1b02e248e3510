# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""What hostile input must not do: start a program, open a connection, write elsewhere, or never end."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

PROGRAMS = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pty.spawn")
_watchers: list[tuple[str, list[str]]] = []  # an audit hook stays for good: this says whether it looks


class TooSlowError(BaseException):
    """Not an Exception, which a reader may catch."""

    @staticmethod
    def throw(*_: object) -> None:
        raise TooSlowError


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    for folder, seen in _watchers:
        if arguments[:1] == (sys.executable,):
            continue  # a process of ours, which decodes images
        if event in PROGRAMS or (event == "socket.connect" and isinstance(arguments[1], tuple)):  # to a host
            seen.append(f"{event} {arguments[:1]}")
        elif event == "open" and isinstance(arguments[0], (str, bytes)) and _writes(arguments[2]):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            if not path.startswith((folder, "/dev/")):
                seen.append(f"open {path} to write")


def _writes(flags: object) -> bool:
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))


@cache
def _look() -> None:
    sys.addaudithook(_note)


@contextmanager
def watched(folder: Path, seconds: int) -> Iterator[list[str]]:
    """List programs started, connections made and files opened outside a folder to write; end what takes too long."""
    _look()
    watcher: tuple[str, list[str]] = (os.path.realpath(folder), [])
    before = signal.signal(signal.SIGALRM, TooSlowError.throw)
    signal.alarm(seconds)
    _watchers.append(watcher)
    try:
        yield watcher[1]
    finally:
        _watchers.remove(watcher)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
