# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
import io
import subprocess
import sys
import time
from contextlib import closing

import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEGLosslessSV1

from scripts.ct.dicom import decoding
from scripts.ct.dicom.decoding import Decoder
from tests.ct.series import STUDY_UID, compress, phantom, write_slice

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
