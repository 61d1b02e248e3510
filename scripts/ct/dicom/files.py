# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Finds and opens files that may hold an image: below a folder, in a list, or within a zip, read where it lies."""

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from scripts.core.errors import InputError, printable
from scripts.core.files import write_whole

MAX_ZIP_BYTES = 4 * 1024**3  # unpacked


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A file on disk, or a member of a zip."""

    path: Path
    member: str | None = None

    @property
    def name(self) -> str:
        return printable(self.path.name if self.member is None else self.member.rsplit("/", 1)[-1])

    def open(self) -> BinaryIO:
        with Opener() as opener:
            return opener.open(self) if self.member is None else io.BytesIO(opener.open(self).read())

    def relative_to(self, folder: Path) -> str:
        """Return the text by which `open_image` finds the file: a zip is one more folder."""
        path = os.path.relpath(self.path, folder)
        if self.member is None:
            return path
        return self.member if path == "." else f"{path}/{self.member}"


class Opener(ExitStack):
    """Opens many image files; a zip stays open until the end, so that its list of members is read once."""

    def __init__(self) -> None:
        super().__init__()
        self._zips: dict[Path, zipfile.ZipFile] = {}

    def open(self, file: ImageFile) -> BinaryIO:
        if file.member is None:
            return file.path.open("rb")
        if file.path not in self._zips:
            self._zips[file.path] = self.enter_context(zipfile.ZipFile(file.path))
        return cast(BinaryIO, self._zips[file.path].open(file.member))


def open_image(source: str, file: str) -> BinaryIO:
    """Open a slice of a scan, given by its path, again by the text that its `instances` keep for it."""
    base = folder_of(Path(source))
    parts = file.split("/")
    of_zips = (ImageFile(base.joinpath(*parts[:k]), "/".join(parts[k:])) for k in range(len(parts)))
    try:
        return next((found for found in of_zips if found.path.is_file()), ImageFile(base / file)).open()
    except Exception as error:  # a zip that was damaged since fails in many ways
        raise InputError(f"cannot open {file} of {base} again: leave the scan where it was read") from error


def folder_of(source: Path) -> Path:
    """Return what the `file` texts of a scan's slices are relative to."""
    return source if source.is_dir() or is_zip(source) else source.parent


def is_zip(path: Path) -> bool:
    """Tell by its first bytes."""
    with suppress(OSError):
        if path.is_file():  # a pipe would be waited for without end
            with path.open("rb") as stream:
                return stream.read(4) == b"PK\3\4"
    return False


def walk(root: Path) -> Iterator[Path]:
    """Yield files in an order that lasts; no hidden ones, and a folder that links lead to twice once."""
    if not root.is_dir():
        yield root
    entered: set[str] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in entered:
            subfolders.clear()
            continue
        entered.add(real)
        subfolders[:] = sorted(filter(_is_shown, subfolders))
        yield from (Path(folder, name) for name in sorted(filter(_is_shown, names)))


def members(archive: zipfile.ZipFile) -> list[str]:
    """Return the names of the files in a zip, without hidden ones."""
    names = {info.filename for info in archive.infolist() if not info.is_dir()}
    return sorted(name for name in names if all(map(_is_shown, name.split("/"))))


def _is_shown(name: str) -> bool:
    is_hidden = name.startswith(".") and name not in (".", "..")
    return not is_hidden and name.upper() not in ("DICOMDIR", "__MACOSX")


SAVED_EVERY = 4000  # files read; later every tenth of what is known, so that saving never costs more than reading


class FileIndex:
    """A memory of what was read of each file, in a JSON-lines file; what was replaced since, or damaged, is forgotten.

    Without a path nothing is remembered. The layout is what a row holds, so that no other version's is taken for ours.
    """

    def __init__(self, path: Path | None, layout: list[Any]) -> None:
        self.path = path
        self.layout = layout
        self._known = self._loaded()
        self._unsaved = 0

    def get(self, file: Path) -> list[Any] | None:
        """Return the rows of a file, if it is as it was."""
        state, rows = self._known.get(os.path.abspath(file), ([], None))
        return rows if state and state == _file_state(file) else None

    def put(self, file: Path, rows: list[Any]) -> None:
        if self.path is None:
            return
        self._known[os.path.abspath(file)] = (_file_state(file), rows)
        self._unsaved += 1
        if self._unsaved >= max(SAVED_EVERY, len(self._known) // 10):
            self._save()

    def close(self, files: Sequence[Path]) -> None:
        """Forget all but these files and write the rest."""
        gone = self._known.keys() - set(map(os.path.abspath, files))
        for file in gone:
            del self._known[file]
        if gone or self._unsaved:
            self._save()

    def _save(self) -> None:
        assert self.path
        body = "".join(f"{json.dumps([file, *entry])}\n" for file, entry in self._known.items())
        write_whole(self.path, json.dumps([self.layout, _checksum(body)]) + "\n" + body)
        self._unsaved = 0

    def _loaded(self) -> dict[str, tuple[list[int], list[Any]]]:
        with suppress(OSError, ValueError):
            head, body = self.path.read_text(encoding="utf-8").split("\n", 1) if self.path else ("", "")
            if json.loads(head) == [self.layout, _checksum(body)]:
                return {file: (state, rows) for file, state, rows in map(json.loads, body.splitlines())}
        return {}


def _checksum(body: str) -> str:
    return hashlib.blake2b(body.encode(), digest_size=16).hexdigest()


def _file_state(file: Path) -> list[int]:
    """Return what changes when the file does, also when its size and times are made to look the same (by ctime)."""
    with suppress(OSError):
        status = file.stat()
        return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    return []
