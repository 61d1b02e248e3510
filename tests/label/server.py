# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""A real MONAI Label server for the tests, on this machine alone, and a look at the maps it answers with."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from scripts.ct.reader import load_scan
from tests.shared_data import ROOT, free_port


@contextmanager
def serve(app: Path, studies: Path, conf: dict[str, str], **settings: str) -> Iterator[str]:
    """Start a server, yield its address once it answers, and end it; its log is server.log beside the studies."""
    port, place = free_port(), studies.parent
    words = [word for key, value in conf.items() for word in ("--conf", key, value)]
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(app), "--studies", str(studies)]
    path = os.pathsep.join([str(ROOT / "tests" / "label" / "shim"), str(ROOT)])
    with (place / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, *words, "-i", "127.0.0.1", "-p", str(port)],
            cwd=place, env={**os.environ, **settings, "PYTHONPATH": path}, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            yield wait_for(f"http://127.0.0.1:{port}", process, place / "server.log")
        finally:
            process.terminate()
            process.wait(30)


def wait_for(url: str, process: subprocess.Popen, log: Path) -> str:
    for _ in range(240):
        try:
            if httpx.get(f"{url}/info/", timeout=60).status_code == 200:
                return url
        except httpx.HTTPError:
            assert process.poll() is None, log.read_text()[-3000:]
            time.sleep(0.5)
    raise AssertionError(log.read_text()[-3000:])


def check_map(file: str | Path, image: Path, told: dict[str, Any]) -> None:
    """The flagged slices of the input, from edge to edge, in its own geometry."""
    scan, marked = load_scan(image), load_scan(Path(file))
    np.testing.assert_allclose(marked.stored_affine, scan.stored_affine, atol=1e-4)
    assert marked.stored_shape == scan.stored_shape
    flagged = np.array([row["flagged"] for row in told["slices"]])
    np.testing.assert_array_equal(marked.array, np.broadcast_to(flagged, marked.array.shape))
