# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""How images come in: by DICOM's C-STORE, or as files in a folder that somebody else fills."""

import logging
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pydicom
from pydicom import uid

from scripts.core.errors import InputError
from scripts.ct.node.inbox import Inbox

TAKEN = (
    *(uid.CTImageStorage, uid.EnhancedCTImageStorage, uid.LegacyConvertedEnhancedCTImageStorage),
    uid.SecondaryCaptureImageStorage,
)
ANSWER_S = 10  # for another node
SUCCESS, OUT_OF_RESOURCES, NO_STUDY = 0x0000, 0xA700, 0xA900

logger = logging.getLogger(__name__)


def start_receiver(inbox: Inbox, title: str, host: str, port: int, study_ends: str) -> Any:
    """Start a receiver of CT images in a thread; `.shutdown()` ends it.

    Args:
        inbox: where images go.
        title: AE title.
        host, port: where it listens.
        study_ends: "quiet", or "release": studies are whole when the association that sent them is released.
    """
    network = _network()
    evt = network.evt
    sent: dict[Any, set[str]] = {}

    def store(event: Any) -> int:
        try:
            study = str(event.dataset.get("StudyInstanceUID", ""))
            if not study:
                return NO_STUDY
            image = str(event.request.AffectedSOPInstanceUID)
            new = inbox.put(study, image, lambda path: path.write_bytes(event.encoded_dataset()))
        except (OSError, InputError) as error:  # a full disk: the sender is told, and keeps it
            logger.warning("an image is not kept: %s", error)
            return OUT_OF_RESOURCES
        sent.setdefault(event.assoc, set()).add(study)
        if not new:
            logger.info("an image came again, and is left out")
        return SUCCESS

    def release(event: Any) -> None:
        for study in sent.pop(event.assoc, set()):
            if study_ends == "release":
                inbox.end_study(study)

    def abort(event: Any) -> None:
        sent.pop(event.assoc, None)  # nobody said that these are whole

    entity = network.AE(title)
    entity.add_supported_context(network.sop_class.Verification)
    for kind in TAKEN:
        entity.add_supported_context(kind, [*uid.AllTransferSyntaxes])
    handlers = [(evt.EVT_C_STORE, store), (evt.EVT_RELEASED, release), (evt.EVT_ABORTED, abort)]
    try:
        return entity.start_server((host, port), block=False, evt_handlers=handlers)
    except OSError as error:
        raise InputError(f"cannot listen on {host}:{port} ({error.strerror}): give another --port") from error


def sender(address: str, own_title: str) -> Callable[[Path], None]:
    """Return what sends the DICOM files of a folder to another node, or raises InputError.

    Args:
        address: TITLE@host:port.
        own_title: AE title of this one.
    """
    parts = re.fullmatch(r"([^@]{1,16})@(.+):(\d+)", address)
    if parts is None:
        raise InputError(f"send_to is {address!r}: give TITLE@host:port")
    title, host, port = parts[1], parts[2], int(parts[3])
    network = _network()

    def send(folder: Path) -> None:
        files = [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"))]
        if not files:
            return
        entity = network.AE(own_title)
        entity.connection_timeout = ANSWER_S
        for kind in {file.SOPClassUID for file in files}:
            entity.add_requested_context(kind, uid.ExplicitVRLittleEndian)
        association = entity.associate(host, port, ae_title=title)
        if not association.is_established:
            raise InputError(f"{address} does not answer, or refuses")
        try:
            for file in files:
                status = association.send_c_store(file)
                if getattr(status, "Status", None) != SUCCESS:
                    raise InputError(f"{address} does not take {file.SOPClassUID.name}")
        except (ValueError, RuntimeError) as error:  # a kind that was not agreed upon, a connection that is lost
            raise InputError(f"{address} does not take all of it ({error})") from error
        finally:
            association.release()

    return send


def _network() -> Any:
    try:
        import pynetdicom
    except ImportError as error:
        raise InputError("pynetdicom, which sends and receives, is not installed: pip install pynetdicom") from error
    return pynetdicom


class Watched:
    """A folder that somebody else fills; its files are copied once they have stopped growing, and stay as they are.

    Args:
        folder: with images at any depth.
        inbox: where they go.
    """

    def __init__(self, folder: Path, inbox: Inbox) -> None:
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder: give the one that images come into")
        self.folder = folder
        self.inbox = inbox
        self.before: set[tuple[Path, int, int]] = set()  # files at the last look, with size and time
        self.taken: dict[Path, tuple[Path, int, int]] = {}

    def look(self) -> int:
        """Take what has not changed since the last look; return how many files may still grow."""
        now = set()
        for path in self.folder.rglob("*"):
            with suppress(OSError):  # one that another program moves meanwhile
                if path.is_file():
                    status = path.stat()
                    now.add((path, status.st_size, status.st_mtime_ns))
        still, self.before = now & self.before, now
        for file in sorted(still - {*self.taken.values()}):
            self._take(file[0])
            self.taken[file[0]] = file
        return len(now - still)

    def _take(self, path: Path) -> None:
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True)
            study, image = str(header.StudyInstanceUID), str(header.SOPInstanceUID)
        except Exception:  # no DICOM, or none of an image: it is not ours
            return
        self.inbox.put(study, image, lambda beside: shutil.copyfile(path, beside))
