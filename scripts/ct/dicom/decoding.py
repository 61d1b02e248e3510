# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Decodes compressed pixels in a process of its own, for a damaged stream can end or halt the one that decodes it."""

import io
import os
import subprocess
import sys
from contextlib import suppress
from threading import Timer
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
    """A process that decodes one DICOM file after the other; it starts with the first, and ends when it is closed."""

    _process: subprocess.Popen[bytes] | None = None

    def decode(self, content: bytes, frames: int = 1) -> np.ndarray:
        """Return [rows, columns] or [frames, rows, columns] of the file with this content, or raise a ValueError."""
        process = self._process = self._process or _start()
        assert process.stdin
        assert process.stdout
        timer = Timer(SECONDS_PER_FILE + SECONDS_PER_FRAME * frames, process.kill)
        timer.start()
        try:
            _send(process.stdin, content)
            reply = _receive(process.stdout)
        except OSError:  # the process has ended
            reply = b""
        finally:
            timer.cancel()
        if not reply:
            self.close()
            raise ValueError("the pixels cannot be decoded")
        return cast(np.ndarray, np.load(io.BytesIO(reply), allow_pickle=False))

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


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
