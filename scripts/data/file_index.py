# Copyright (c) 2026 the smooth MIL bundle authors
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""What was found in each file of a cohort, remembered from one walk to the next."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.errors import InputError
from scripts.files import write_whole

SAVED_EVERY = 4000  # files read; later every tenth of what is known, so that saving never costs more than reading


class FileIndex:
    """Rows per file in a JSON-lines file; a file that was replaced since, or a damaged index, is as if never read.

    Args:
        path: where it lies; None remembers nothing.
        layout: names what a row holds, so that rows of another version are not mistaken for ours.
    """

    def __init__(self, path: Path | None, layout: Sequence[object]) -> None:
        self.path = path
        self.layout = list(layout)
        self._known = _load(path, self.layout) if path else {}
        self._unsaved = 0

    def get(self, file: Path) -> list[Any] | None:
        entry = self._known.get(_key(file))
        return entry[1] if entry and entry[0] == _stamp(file) else None

    def put(self, file: Path, rows: list[Any]) -> None:
        if self.path is None:
            return
        self._known[_key(file)] = (_stamp(file), rows)
        self._unsaved += 1
        if self._unsaved >= max(SAVED_EVERY, len(self._known) // 10):
            self._save()

    def close(self, files: Sequence[Path]) -> None:
        """Forgets all but these files and writes the rest."""
        seen = {_key(file) for file in files}
        gone = [key for key in self._known if key not in seen]
        for key in gone:
            del self._known[key]
        if gone or self._unsaved:
            self._save()

    def _save(self) -> None:
        if self.path is None:
            return
        lines = [json.dumps([key, *entry]) for key, entry in self._known.items()]
        body = "".join(f"{line}\n" for line in lines)
        try:
            write_whole(self.path, json.dumps([self.layout, _digest(body)]) + "\n" + body)
        except OSError as error:
            raise InputError(f"cannot write the index {self.path} ({error.strerror}): give another place") from error
        self._unsaved = 0


def _load(path: Path, layout: list[object]) -> dict[str, tuple[list[int], list[Any]]]:
    try:
        head, body = path.read_text(encoding="utf-8").split("\n", 1)
        if json.loads(head) != [layout, _digest(body)]:
            return {}
        return {key: (stamp, rows) for key, stamp, rows in map(json.loads, body.splitlines())}
    except (OSError, ValueError):
        return {}


def _digest(body: str) -> str:
    return hashlib.blake2b(body.encode(), digest_size=16).hexdigest()


def _key(file: Path) -> str:
    return os.path.abspath(file)


def _stamp(file: Path) -> list[int]:
    """Changes when the file does, also when its size and times are made to look the same (then ctime tells)."""
    try:
        status = file.stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
