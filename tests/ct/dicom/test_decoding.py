# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
import io
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEGLosslessSV1
from torch.utils.data import DataLoader

from scripts.ct.dicom import decoding
from scripts.ct.dicom.decoding import Decoder, own_decoder
from scripts.ct.reader import load_series
from tests.ct.series import STUDY_UID, compress, couch, phantom, ramp, write_series, write_slice

pytestmark = pytest.mark.slow  # each starts real processes


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("slice") / "one.dcm"
    write_slice(path, phantom(1)[0], StudyInstanceUID=STUDY_UID)
    compress(path, JPEGLosslessSV1)
    return path.read_bytes()


def test_a_stream_that_ends_its_process_costs_one_slice_and_no_process_is_left(
    intact: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    dataset, deadly = pydicom.dcmread(io.BytesIO(intact)), io.BytesIO()
    dataset.BitsAllocated = 32  # header and stream do not agree, over which the codec ends the process
    dataset.save_as(deadly)
    with closing(Decoder()) as decoder:
        for content in (deadly.getvalue(), b"nonsense"):
            np.testing.assert_array_equal(decoder.decode(intact), phantom(1)[0])
            with pytest.raises(ValueError, match="the pixels cannot be decoded"):
                decoder.decode(content)
        np.testing.assert_array_equal(decoder.decode(intact), phantom(1)[0])
        process = decoder._process
        assert process is not None
    assert process.poll() is not None
    assert capfd.readouterr() == ("", "")  # the codec's own cries stay with it


def test_a_stream_that_never_ends_is_given_up(intact: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    with closing(Decoder()) as decoder:
        with monkeypatch.context() as patch:
            patch.setattr(decoding, "_start", lambda: subprocess.Popen(sleep, stdin=-1, stdout=-1))
            patch.setattr(decoding, "SECONDS_PER_FILE", 0.3)
            begun = time.monotonic()
            with pytest.raises(ValueError, match="cannot be decoded"):
                decoder.decode(intact)
            assert time.monotonic() - begun < 20
        np.testing.assert_array_equal(decoder.decode(intact), phantom(1)[0])


def test_one_process_serves_scan_after_scan_and_another_one_if_it_was_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, started = decoding._start, []

    def told() -> "subprocess.Popen[bytes]":
        started.append(start())
        return started[-1]

    monkeypatch.setattr(decoding, "_decoder_of", {})
    monkeypatch.setattr(decoding, "_start", told)
    for k in range(4):
        folder = write_series(tmp_path / str(k), ramp(3) + 100 * k, couch(3), StudyInstanceUID=STUDY_UID)
        plain = load_series(folder).array
        for path in folder.iterdir():
            compress(path, JPEGLosslessSV1)
        np.testing.assert_array_equal(load_series(folder).array, plain)
        if k == 2:
            assert len(started) == 1
            started[0].terminate()  # as Ctrl-C in a notebook does, or a computer short of memory
            started[0].wait()
    assert len(started) == 2
    own_decoder().close()


def test_threads_that_share_a_decoder_get_each_the_file_it_gave(intact: bytes) -> None:
    files = []
    for k in range(4):
        dataset, content = pydicom.dcmread(io.BytesIO(intact)), io.BytesIO()
        dataset.decompress()
        dataset.PixelData = (dataset.pixel_array + k).tobytes()
        dataset.save_as(content)
        files.append(content.getvalue())
    with closing(Decoder()) as decoder, ThreadPoolExecutor(4) as pool:
        for k, found in enumerate(pool.map(decoder.decode, 5 * files)):
            np.testing.assert_array_equal(found, phantom(1)[0] + k % 4)


def test_an_answer_that_nobody_waited_for_is_not_that_of_the_next_file(
    intact: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(stream: object) -> bytes:
        raise KeyboardInterrupt

    with closing(Decoder()) as decoder:
        with monkeypatch.context() as patch:
            patch.setattr(decoding, "_receive", interrupted)
            with pytest.raises(KeyboardInterrupt):
                decoder.decode(intact)
        with pytest.raises(ValueError, match="cannot be decoded"):
            decoder.decode(b"another")


class Decoded:
    """Of each item the process that decoded it, and by which it was asked."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[int, int]:
        np.testing.assert_array_equal(own_decoder().decode(self.content), phantom(1)[0])
        process = own_decoder()._process
        assert process is not None
        return os.getpid(), process.pid


def test_each_worker_has_a_process_of_its_own_that_ends_with_it(intact: bytes) -> None:
    bags = Decoded(intact)
    parent = bags[0]
    loader: Any = DataLoader(bags, None, num_workers=2, persistent_workers=True)  # type: ignore[arg-type]
    pairs = {tuple(pair) for _ in range(2) for pair in loader}
    assert len(pairs) == len({worker for worker, _ in pairs}) == len({decoder for _, decoder in pairs}) == 2
    assert parent not in pairs
    del loader  # which waits for its workers
    for _, decoder in pairs:
        assert not Path(f"/proc/{decoder}").exists()  # not even as a zombie
    assert bags[0] == parent


def test_a_program_that_decoded_ends_at_once_and_leaves_no_process(intact: bytes, tmp_path: Path) -> None:
    (tmp_path / "one.dcm").write_bytes(intact)
    program = (
        "from pathlib import Path; from scripts.ct.dicom.decoding import own_decoder\n"
        f"own_decoder().decode(Path({str(tmp_path / 'one.dcm')!r}).read_bytes()); print(own_decoder()._process.pid)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60,
        cwd=Path(decoding.__file__).parents[3],
    )  # fmt: skip
    assert ended.stderr == ""
    assert not Path(f"/proc/{int(ended.stdout)}").exists()
