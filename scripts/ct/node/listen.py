# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m scripts listen ct`: studies come in, are read when they are whole, and are listed by their probability."""

import errno
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from scripts.core.errors import InputError, input_error_message
from scripts.core.files import alone_with, writable_folder
from scripts.ct.node.inbox import INCOMING, Inbox
from scripts.ct.node.reading import StudyReader
from scripts.ct.node.receiver import Watched, sender, start_receiver
from scripts.ct.node.worklist import Worklist

PAUSE_S = 0.5  # between two looks
TRY_AGAIN_S = 30.0  # where a disk was full, or another node did not take a result

logger = logging.getLogger(__name__)  # warnings, as MONAI's way of logging drops errors that end in one line


class Node:
    """The loop: what is whole is read, written and put away.

    Args:
        home: folder of everything.
        read: (study, its images) → the results are written below home/results.
        inbox: of the images.
        send: sends the results in a folder on; None keeps them here.
    """

    def __init__(
        self,
        home: Path,
        read: Callable[[str, Path], object],
        inbox: Inbox,
        send: Callable[[Path], object] | None = None,
    ) -> None:
        self.home = home
        self.read = read
        self.inbox = inbox
        self.send = send
        self.worklist = Worklist(home)
        self.not_before: dict[str, float] = {}  # when a study that could not be put away is tried again

    def step(self) -> int:
        """Read all that is whole; return how many studies were put away."""
        ended = 0
        for study in self.inbox.whole():
            if time.monotonic() >= self.not_before.get(study, 0.0):
                ended += self.read_study(study)
                self.worklist.write()
        return ended

    def read_study(self, study: str) -> bool:
        """Read one study, unless a run before this one was killed just after it had; tell whether it is put away."""
        folder = self.inbox.begin(study)
        result = self.home / "results" / study / "result.json"
        images = [path.stat().st_mtime for path in folder.glob("*.dcm")]
        reason = None
        if not result.exists() or result.stat().st_mtime <= max(images, default=0.0):
            try:
                self.read(study, folder)
                logger.info("%s: read", study)
            except Exception as error:
                if is_full(error):
                    raise
                reason = input_error_message(error) or "a fault of the program, see its log"
                logger.warning("%s: set apart: %s", study, reason, exc_info=input_error_message(error) is None)
                shutil.rmtree(result.parent, ignore_errors=True)  # of a reading before more of it came
        if self.send is not None and reason is None:
            try:
                self.send(result.parent)
            except InputError as error:
                logger.warning("%s: not sent yet: %s", study, error)
                self.not_before[study] = time.monotonic() + TRY_AGAIN_S
                return False
        self.inbox.finish(study, reason)
        return True


def is_full(error: BaseException | None) -> bool:
    """Return whether an error comes of a disk without room."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def run_node(
    output_dir: Path,
    bundle: Path,
    keys: Mapping[str, Any],
    watch: Path | None,
    receive: tuple[str, str, int] | None,
    quiet_s: float = 30.0,
    study_ends: str = "quiet",
    send_to: str | None = None,
    once: bool = False,
) -> None:
    """Run until it is interrupted; see `python -m scripts listen ct --help`.

    Args:
        output_dir: folder of everything.
        bundle: folder of the bundle.
        keys: of its inference.json.
        watch: a folder that images come into; receive: AE title, host and port of a receiver. One of the two.
        quiet_s: a study is whole when no image of it has come for so long.
        study_ends: "quiet" or "release".
        send_to: TITLE@host:port that report and segmentation are sent to.
        once: end when everything there is was read.
    """
    if (watch is None) == (receive is None):
        raise InputError("nothing would come in: give --watch FOLDER, or --port NUMBER to receive by DICOM")
    if study_ends not in ("quiet", "release"):
        raise InputError(f"study_ends is {study_ends!r}: give quiet, or release")
    home = writable_folder(output_dir)
    send = None if send_to is None else sender(send_to, "SMOOTHMIL" if receive is None else receive[0])
    with ExitStack() as stack:
        (home / ".node").touch()
        stack.enter_context(alone_with(home / ".node"))  # another node on the same folder waits
        inbox = Inbox(home, quiet_s)
        node = Node(home, StudyReader(bundle, home / "results", keys).read, inbox, send)
        watched = None if watch is None else Watched(watch, inbox)
        if receive is not None:
            server = start_receiver(inbox, *receive, study_ends)
            stack.callback(server.shutdown)
            inbox.open_since = time.time()
            logger.info("receives as %s on %s:%d", *receive)
        node.worklist.write()
        while True:
            try:
                growing = 0 if watched is None else watched.look()
                ended = node.step()
            except Exception as error:
                if not is_full(error):
                    raise
                logger.warning("there is no room in %s: make some, nothing is lost meanwhile", home)
                time.sleep(TRY_AGAIN_S)
                continue
            if once and ended + growing == 0 and not any((home / INCOMING).iterdir()):
                return
            time.sleep(0 if ended else PAUSE_S)
