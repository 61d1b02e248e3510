# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Published checkpoints by their URL: downloaded for as long as they are read, and only if they are the ones meant."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from urllib.parse import urlparse
from urllib.request import urlopen

from scripts.core.errors import InputError
from scripts.core.files import sha256_of
from scripts.weights.sa_dmil import DATA_SUFFIX, data_path

SECONDS = 60  # without an answer


@contextmanager
def at_hand(checkpoint: str, sha256: str | None) -> Iterator[Path]:
    """Give the path of a checkpoint; of one that a URL names, for as long as it is read.

    Args:
        checkpoint: a path; or a URL of a torch file, or of an .index with its .data beside it.
        sha256: that of the file that holds the numbers; a URL needs it.
    """
    if "://" not in checkpoint:
        yield _the_one_meant(Path(checkpoint), sha256)
        return
    if not sha256:
        raise InputError(f"{checkpoint}: say with --sha256 which weights are meant (of an .index, that of its .data)")
    url = urlparse(checkpoint)
    paths = [url.path, *([data_path(Path(url.path)).as_posix()] if url.path.endswith(".index") else [])]
    with tempfile.TemporaryDirectory() as folder:
        for each in paths:
            wanted = url._replace(path=each).geturl()
            try:
                with urlopen(wanted, timeout=SECONDS) as answer, Path(folder, Path(each).name).open("wb") as file:
                    shutil.copyfileobj(answer, file)
            except (OSError, ValueError) as error:
                by_hand = "download it in another way, and give the file"
                raise InputError(f"{wanted} cannot be downloaded ({error}): {by_hand}") from error
        yield _the_one_meant(Path(folder, PurePosixPath(url.path).name), sha256)


def _the_one_meant(checkpoint: Path, sha256: str | None) -> Path:
    """Return a checkpoint, or refuse one of other numbers; one that is not there is told of where it is read."""
    of = data_path(checkpoint) if checkpoint.name.endswith((".index", DATA_SUFFIX)) else checkpoint
    if sha256 and of.is_file() and sha256_of(of) != str(sha256).lower():
        raise InputError(f"{of.name} has the sha256 {sha256_of(of)}, not {sha256}: these are other weights")
    return checkpoint
