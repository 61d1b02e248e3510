# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""What libraries say of a full disk, a lost process or foreign weights is told in one line."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.core.errors import InputError, input_error_message, printable, printable_name


def test_whatever_an_error_names_is_told_in_characters_that_a_terminal_prints() -> None:
    told = {
        "scans/Müller 頭.nii": "scans/Müller 頭.nii",
        "a\u00a0b\u200c\u200d\u3000.nii": "a\u00a0b\u200c\u200d\u3000.nii",  # as names of people have
        "50 %\n": "50 %%0A",
        "\u2028": "%E2%80%A8",
        "\u200f": "%E2%80%8F",
        "caf\udce9": "caf%E9",  # a file's name in Latin-1, as Python reads it
        "\x1b[31mred\n": "%1B[31mred%0A",
        "\u202egnp": "%E2%80%AEgnp",
        "\ud800": "%ED%A0%80",
    }
    assert {name: str(InputError(name)) for name in told} == {name: printable(name) for name in told} == told


def test_two_names_do_not_become_one_by_what_is_escaped_and_others_stay() -> None:
    names = {
        "50 %": "50 %",
        "%C2%A0": "%C2%A0",
        "a\u00a0": "a\u00a0",
        "\n%": "%0A%25",
        "\n\n": "%0A%0A",
        "\n%0A": "%0A%250A",
    }
    assert {name: printable_name(name) for name in names} == names


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
