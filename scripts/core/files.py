# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Folders and files: written whole, or refused before an hour is spent."""

import fcntl
import glob
import hashlib
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from scripts.core.errors import InputError


def in_bundle(path: str | Path) -> Path:
    """Return a path; where a relative one leads nowhere but in the bundle that this code is of, that one.

    MONAI Deploy reads a bundle's config from another working directory, and does not say where the bundle is.
    """
    given, inside = Path(path), Path(__file__).parents[2] / path
    return inside if inside.exists() and not given.exists() else given


def sqlite_uri(path: str | Path) -> str:
    """Return by which URI SQLAlchemy finds a file of SQLite; MONAI has this since 1.6."""
    return f"sqlite:///{quote(Path(path).absolute().as_posix(), safe='/:')}"


def writable_folder(path: str | Path) -> Path:
    """Return the folder, made if it is missing, once it is known to take files."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise InputError(f"cannot write to {path} ({error.strerror}): give another folder") from error
    return Path(path)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write to; a reader of `path` sees the old file or the new one, never half of it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
            if not is_running(leftover.name.split(".")[-2]):
                leftover.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield beside
        os.replace(beside, path)
    except OSError as error:
        if error.filename not in (None, str(beside)):
            raise  # of another file
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):  # a read-only file system refuses it even where nothing is there
            beside.unlink(missing_ok=True)


def cannot_write(path: Path, error: OSError) -> InputError:
    """Return what the user is told of a file that the system refuses to write."""
    reason = os.strerror(error.errno) if error.errno else error
    return InputError(f"cannot write {path} ({reason}): make room there, or give another folder")


def is_running(process: str) -> bool:
    """Return whether there is a process of this number."""
    try:
        os.kill(int(process), 0)  # which sends nothing
    except PermissionError:
        return True  # of somebody else
    except (ProcessLookupError, OverflowError, ValueError):
        return False
    return True


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all."""
    with whole_file(path) as beside:
        beside.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def alone_with(path: Path) -> Iterator[None]:
    """Wait until no other process, or thread, is alone with a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        with suppress(OSError):  # by name, as a process that loads bags may have inherited the descriptor
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def plain(value: Any, digits: int = 9) -> Any:
    """Return a value as JSON takes it: so many digits of each number, null for NaN and infinity."""
    if isinstance(value, dict):
        return {key: plain(each, digits) for key, each in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(each, digits) for each in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def require_finite(path: str | Path, features: np.ndarray) -> None:
    if not np.isfinite(features).all():
        raise InputError(f"features hold NaN or infinite values (file {path}); extract the features again")


def sha256_of(path: str | Path) -> str:
    """Return the sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
