# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""What stands before and around a run that a person started: checks, and errors in one line."""

from __future__ import annotations

import logging
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from types import TracebackType
from typing import Any

from monai.bundle import ConfigParser
from monai.bundle.scripts import run

from scripts.core.errors import InputError, input_error_message
from scripts.core.files import writable_folder


class _QuietRecords:
    """Makes log records, and drops errors that the one line at the end tells anyway.

    Engines and their handlers log what passes through them, with its traceback or in an f-string, each to a handler of
    its own: where a record is made is the only place that all of them share.
    """

    def __init__(self, make: Callable[..., logging.LogRecord]) -> None:
        self.make = make

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = self.make(*args, **kwargs)
        error = record.exc_info[1] if record.exc_info else sys.exc_info()[1]
        if record.levelno >= logging.ERROR and (isinstance(error, KeyboardInterrupt) or input_error_message(error)):
            record.levelno = -1  # below what any handler takes
        return record


def one_line_errors() -> None:
    """From here on an InputError that ends the process is one line on stderr; any other error keeps its traceback."""
    make = logging.getLogRecordFactory()
    if not isinstance(make, _QuietRecords):
        logging.setLogRecordFactory(_QuietRecords(make))

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        message = "interrupted" if kind is KeyboardInterrupt else input_error_message(error)
        if message is None:
            sys.__excepthook__(kind, error, trace)
        else:
            print(f"error: {message}", file=sys.stderr)

    sys.excepthook = show


def refuse_unknown_keys(arguments: Sequence[str]) -> None:
    """A mistyped `--max_epoch 2` would be a key of its own that nothing reads, and 50 epochs would run.

    Keys of the configs beside those that are run are let through: the same may be given to training and inference.

    Args:
        arguments: of a command line that runs a bundle; of any other nothing is said.
    """
    given = [word.split("=", 1) for word in arguments if re.match(r"--[A-Za-z_]", word)]
    names = [name.removeprefix("--").replace("-", "_") for name, *_ in given]
    if "config_file" not in names:
        return
    values = dict(zip(arguments, [*arguments[1:], ""], strict=True)) | {name: rest[0] for name, *rest in given if rest}
    files = re.findall(r"[^'\",\[\]\s]+\.(?:json|ya?ml)", values.get("--config_file", values.get("--config-file", "")))
    known = set(signature(run).parameters)
    try:
        beside = {str(path) for file in files for path in Path(file).parent.glob("*.json")}
        keys = {
            key.lstrip("+").split("#")[0] for file in {*files, *beside} for key in ConfigParser.load_config_file(file)
        }
    except (OSError, ValueError):
        return  # which MONAI tells
    for name in names:
        key = name.lstrip("+").split("#")[0].split("::")[0]
        if keys and key not in keys | known:
            near = get_close_matches(key, sorted(keys), 1)
            perhaps = f", perhaps {near[0]}" if near else ""
            configs = ", ".join(Path(file).name for file in files)
            raise InputError(f"--{name} is no key of {configs}{perhaps}: nothing would read it")


def prepare_run(writes_to: str | Sequence[str], reads: Sequence[str] = ()) -> None:
    """The first step of every `run`: bad input is told in one line, and before hours are spent.

    Args:
        writes_to: folders of the results, made if they are missing.
        reads: files without which the run makes no sense.
    """
    one_line_errors()
    refuse_unknown_keys(sys.argv[1:])
    warnings.filterwarnings("ignore", message=".*nvImageCodec")  # a decoder of MONAI's that nobody here asked for
    for path in reads:
        if not Path(path).is_file():
            raise InputError(f"{path} is missing: train first, or give its place (--ckpt_path FILE)")
    for folder in [writes_to] if isinstance(writes_to, str) else writes_to:
        writable_folder(folder)
