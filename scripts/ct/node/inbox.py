# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Where images wait until their study is whole: a state is a folder, and a step a rename, so that no kill loses any."""

import hashlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from threading import Lock

from scripts.core.files import whole_file, write_whole

STATES = INCOMING, READING, DONE, FAILED = "incoming", "reading", "done", "failed"
ENDED = ".ended"  # in a study whose sender said that it is whole
REASON = "reason.txt"


def short_name(uid: str) -> str:
    """Return a name for a study or an image that tells nobody who it is of."""
    return hashlib.sha256(uid.encode()).hexdigest()[:16]


class Inbox:
    """The images of studies, in `incoming`, then `reading`, then `done` or `failed`.

    Args:
        folder: of these four.
        quiet_s: a study is whole when no image of it has come for so long.
    """

    def __init__(self, folder: Path, quiet_s: float) -> None:
        self.folder = folder
        self.quiet_s = quiet_s
        self.open_since = 0.0  # before that nobody could send what a study lacks
        self.lock = Lock()  # receiver and reader share the folders
        for state in STATES:
            (folder / state).mkdir(parents=True, exist_ok=True)

    def put(self, study_uid: str, image_uid: str, write: Callable[[Path], object]) -> bool:
        """Keep an image; False for one that is there already. Once this returns, a kill does not lose it.

        Args:
            study_uid, image_uid: as the image has them.
            write: writes it to a path.
        """
        study, name = short_name(study_uid), f"{short_name(image_uid)}.dcm"
        with self.lock:
            if any((self.folder / state / study / name).exists() for state in STATES):
                return False
            with whole_file(self.folder / INCOMING / study / name) as beside:
                write(beside)
        return True

    def end_study(self, study_uid: str) -> None:
        """Take a study for whole, as its sender says."""
        folder = self.folder / INCOMING / short_name(study_uid)
        if folder.is_dir():
            (folder / ENDED).touch()

    def whole(self) -> list[str]:
        """Return the studies that may be read, those that came first ahead; then what was begun, and not ended."""
        now, waiting = time.time(), []
        for path in (self.folder / INCOMING).iterdir():
            last = path.stat().st_mtime  # of the last image that was added
            is_whole = (path / ENDED).exists() or now - max(last, self.open_since) >= self.quiet_s
            if is_whole and any(path.glob("*.dcm")):
                waiting.append((last, path.name))
        new = [name for _, name in sorted(waiting)]
        return [*new, *sorted(path.name for path in (self.folder / READING).iterdir() if path.name not in new)]

    def begin(self, study: str) -> Path:
        """Return the folder of a study to read, with the images that came after an earlier reading of it.

        These are dated now: a result that is older than an image was made without it.
        """
        reading = self.folder / READING / study
        with self.lock:
            for state in (DONE, FAILED, INCOMING):
                earlier = self.folder / state / study
                if earlier.is_dir() and not reading.exists():
                    earlier.rename(reading)
                elif earlier.is_dir():
                    for image in earlier.glob("*.dcm"):
                        os.utime(image)
                        image.replace(reading / image.name)
                    shutil.rmtree(earlier)
        return reading

    def finish(self, study: str, reason: str | None = None) -> None:
        """Put a study away: as done, or set apart with the reason why it cannot be read."""
        reading = self.folder / READING / study
        for name in (ENDED, REASON):
            (reading / name).unlink(missing_ok=True)
        if reason is not None:
            write_whole(reading / REASON, reason + "\n")
        with self.lock:
            os.rename(reading, self.folder / (DONE if reason is None else FAILED) / study)
