# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Decodes compressed pixels in a process of its own, for a damaged stream can end or halt the one that decodes it.

To start it takes as long as a scan takes, so it stays for the scans that follow.
"""

import io
import os
import subprocess
import sys
from contextlib import suppress
from multiprocessing.util import Finalize
from threading import Lock, Timer
from typing import IO, Any, cast

import numpy as np
import pydicom

SECONDS_PER_FILE = 20.0  # more than any codec needs for a slice, and for the start of the process
SECONDS_PER_FRAME = 0.2
MAX_MEMORY = 6 * 1024**3  # a damaged stream may claim any size

PIXEL_TAGS: list[Any] = [
    *("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel"),
    *("PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "PixelData"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit"),
]


class Decoder:
    """A process that decodes one DICOM file after the other; it starts with the first, and ends when it is closed.

    Several threads may share it: it decodes one file at a time.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = Lock()

    def decode(self, content: bytes, frames: int = 1) -> np.ndarray:
        """Return [rows, columns] or [frames, rows, columns] of the file with this content, or raise a ValueError."""
        with self._lock:
            reply = self._ask(content, SECONDS_PER_FILE + SECONDS_PER_FRAME * frames)
        if not reply:
            raise ValueError("the pixels cannot be decoded")
        return cast(np.ndarray, np.load(io.BytesIO(reply), allow_pickle=False))

    def _ask(self, content: bytes, seconds: float) -> bytes:
        """Return what the process answers; where it fails nothing, and the next file has a process of its own."""
        if self._process is not None and self._process.poll() is not None:
            self.close()  # it was ended since the last file
        process = self._process = self._process or _start()
        assert process.stdin
        assert process.stdout
        reply = b""
        timer = Timer(seconds, process.kill)
        timer.start()
        try:
            with suppress(OSError):  # the process has ended
                _send(process.stdin, content)
                reply = _receive(process.stdout)
        finally:
            timer.cancel()
            if not reply:  # after Ctrl-C too: a late answer must not be taken for that of the next file
                self.close()
        return reply

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


_decoder_of: dict[int, Decoder] = {}  # by process: one that was forked must not read the answers to its parent


def own_decoder() -> Decoder:
    """Return the decoder of this process, which ends with it."""
    own = _decoder_of.get(os.getpid())
    if own is None:
        own = _decoder_of.setdefault(os.getpid(), Decoder())
        Finalize(None, own.close, exitpriority=0)  # not atexit, which workers of multiprocessing pass over
    return own


def _start() -> subprocess.Popen[bytes]:
    # -P, because the modules beside this one must not be found under their bare names.
    command = [sys.executable, "-P", os.path.abspath(__file__)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def _send(stream: IO[bytes], content: bytes) -> None:
    stream.write(len(content).to_bytes(8, "little"))
    stream.write(content)
    stream.flush()


def _receive(stream: IO[bytes]) -> bytes:
    length = int.from_bytes(stream.read(8), "little")
    content = stream.read(length)
    return content if len(content) == length else b""


def _serve() -> None:
    with suppress(ImportError):  # there is no such module on Windows
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a codec prints is no part of an answer
    with suppress(KeyboardInterrupt):
        while content := _receive(sys.stdin.buffer):
            reply = io.BytesIO()
            with suppress(Exception):  # each codec raises its own
                np.save(reply, pydicom.dcmread(io.BytesIO(content), specific_tags=PIXEL_TAGS).pixel_array)
            _send(answers, reply.getvalue())


if __name__ == "__main__":
    _serve()
