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
"""Files that may hold an image: below a folder, in a list, or within a zip that is read where it lies."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from scripts.errors import InputError

MAX_ZIP_BYTES = 4 * 1024**3  # unpacked


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A file on disk, or a member of a zip."""

    path: Path
    member: str | None = None

    @property
    def name(self) -> str:
        name = self.path.name if self.member is None else self.member.rsplit("/", 1)[-1]
        return "".join(character if character.isprintable() else "?" for character in name)

    def open(self) -> BinaryIO:
        if self.member is None:
            return self.path.open("rb")
        with Opener() as opener:
            return io.BytesIO(opener.open(self).read())

    def relative_to(self, folder: Path) -> str:
        """As text for `open_image`: a zip is one more folder."""
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


def open_image(source: str | Sequence[str], file: str) -> BinaryIO:
    """Opens a slice of a scan again.

    Args:
        source: the path of the scan, or the list of its files.
        file: the text that its `instances` keep for this slice.
    """
    base = folder_of(Path(source if isinstance(source, str) else source[0]))
    try:
        return _image_file(base, file).open()
    except Exception as error:  # a zip that was damaged since fails in many ways
        raise InputError(f"cannot open {file} of {base} again: leave the scan where it was read") from error


def folder_of(source: Path) -> Path:
    """What the `file` texts of a scan's slices are relative to."""
    return source if source.is_dir() or is_zip(source) else source.parent


def _image_file(base: Path, file: str) -> ImageFile:
    if base.is_file():
        return ImageFile(base, file)
    for slash in (place for place, character in enumerate(file) if character == "/"):
        if (base / file[:slash]).is_file():
            return ImageFile(base / file[:slash], file[slash + 1 :])
    return ImageFile(base / file)


def is_zip(path: Path) -> bool:
    try:
        if not path.is_file():
            return False  # a pipe would be waited for without end
        with path.open("rb") as stream:
            return stream.read(4) == b"PK\3\4"
    except OSError:
        return False


def walk(root: Path) -> Iterator[Path]:
    """Files in an order that lasts; hidden ones are passed over, and a folder that links lead to twice is read once."""
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
    """The files in it, hidden ones passed over."""
    names = {info.filename for info in archive.infolist() if not info.is_dir()}
    return sorted(name for name in names if all(map(_is_shown, name.split("/"))))


def unpacked_bytes(archive: zipfile.ZipFile) -> int:
    return sum(info.file_size for info in archive.infolist())


def _is_shown(name: str) -> bool:
    is_hidden = name.startswith(".") and name not in (".", "..")
    return not is_hidden and name.upper() not in ("DICOMDIR", "__MACOSX")
