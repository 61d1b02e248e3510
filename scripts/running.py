# Copyright (c) 2026 the smooth MIL bundle authors
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""What stands before and around a run that a person started: checks, and errors in one line."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from scripts.errors import InputError, input_error_message
from scripts.files import writable_folder


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


def prepare_run(writes_to: str | Sequence[str], reads: Sequence[str] = ()) -> None:
    """The first step of every `run`: bad input is told in one line, and before hours are spent.

    Args:
        writes_to: folders of the results, made if they are missing.
        reads: files without which the run makes no sense.
    """
    one_line_errors()
    warnings.filterwarnings("ignore", message=".*nvImageCodec")  # a decoder of MONAI's that nobody here asked for
    for path in reads:
        if not Path(path).is_file():
            raise InputError(f"{path} is missing: train first, or give its place (--ckpt_path FILE)")
    for folder in [writes_to] if isinstance(writes_to, str) else writes_to:
        writable_folder(folder)
