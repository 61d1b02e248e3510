# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""What ends a command is one line, in the log too, and a fault of ours keeps its traceback."""

import logging
import sys
from pathlib import Path

import pytest

from scripts.core.cli import one_line_errors
from scripts.core.errors import InputError


def bad_transform(_: object) -> None:
    raise InputError("scan_7 is empty: copy it again")


def caught(action: object) -> BaseException:
    try:
        action()  # type: ignore[operator]
    except BaseException as error:
        return error
    raise AssertionError("no error")


@pytest.mark.usefixtures("restored")
def test_bad_input_is_one_line_and_a_bug_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    one_line_errors()
    for error in (caught(lambda: bad_transform(0)), caught(lambda: 1 / 0)):
        sys.excepthook(type(error), error, error.__traceback__)
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    printed = capsys.readouterr().err
    assert printed.endswith("error: interrupted\n")
    assert printed.startswith("error: scan_7 is empty: copy it again\nTraceback")
    assert "ZeroDivisionError" in printed


@pytest.mark.usefixtures("restored")
def test_an_interrupted_training_is_told_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = tmp_path / "unfinished.pt"
    one_line_errors(str(state))
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    state.touch()
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert capsys.readouterr().err.splitlines() == [
        "error: interrupted",
        f"error: interrupted: the same command goes on after the last whole epoch ({state})",
    ]


@pytest.mark.usefixtures("restored")
def test_logged_tracebacks_of_bad_input_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """Also of an f-string, as MONAI and ignite have them."""
    logger = logging.getLogger("engine")
    one_line_errors()
    one_line_errors()  # each run of a process asks for it
    try:
        bad_transform(0)
    except InputError as error:
        logger.exception("Exception: bad input")
        logger.error(f"Engine run is terminating due to exception: {error}")
        logger.warning("a warning")
    try:
        1 / 0  # noqa: B018
    except ZeroDivisionError:
        logger.exception("Exception: a bug")
    logger.error("a plain error")
    assert caplog.messages == ["a warning", "Exception: a bug", "a plain error"]
