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
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from scripts.errors import InputError, input_error_message
from scripts.files import writable_folder


class _WithoutInputErrors(logging.Filter):
    """Engines log the traceback of what they pass on; for bad input the one line at the end is enough."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        arguments = record.args if isinstance(record.args, tuple) else ()
        errors = [error, *(a for a in arguments if isinstance(a, BaseException))]
        return not any(isinstance(e, KeyboardInterrupt) or input_error_message(e) for e in errors)


def one_line_errors() -> None:
    """From here on an InputError that ends the process is one line on stderr; any other error keeps its traceback."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(_WithoutInputErrors())

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
