# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""What libraries say of a full disk, a lost process or foreign weights is told in one line."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.core.errors import input_error_message


def lost_process() -> None:
    raise RuntimeError("[.../gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:26850")


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (
            lambda: torch.save(torch.zeros(9), "/dev/full"),
            "a file cannot be written, perhaps a prepared bag in --cache",
        ),
        (lambda: Path("/dev/full").write_text("x"), "a file cannot be written, perhaps a prepared bag"),
        (lambda: sqlite3.connect("/dev/null/mlruns.db"), "the database of MLflow cannot be written (unable to open"),
        (lost_process, "another process of this run has ended: its own message says why"),
        (lambda: torch.nn.Linear(2, 1).load_state_dict({}), "the weights do not fit the network of the configs: give"),
        (lambda: Path("/dev/null/x").read_text(), "None"),
        (lambda: 1 / 0, "None"),
    ],
)
def test_an_error_of_a_library_is_one_line_and_a_fault_has_none(action: Callable[[], Any], message: str) -> None:
    with pytest.raises(Exception) as raised:  # noqa: PT011
        action()
    line = str(input_error_message(raised.value))
    assert line.startswith(message)
    assert "\n" not in line
