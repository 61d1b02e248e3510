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
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from scripts.errors import InputError
from scripts.files import writable_folder

# a DataLoader worker hands over the text of an error, not the error
_IN_A_WORKER = re.compile(rf"^{InputError.__module__}\.{InputError.__name__}: (.*)$", re.MULTILINE)


def input_error_message(error: BaseException | None) -> str | None:
    """What to tell the user, if it is the input that is somewhere behind an error."""
    while error is not None:
        if isinstance(error, InputError) or _refused_by_a_network(error):
            return str(error)
        if isinstance(error, RuntimeError) and "loading state_dict" in str(error):
            return (
                "the weights do not fit the network of the configs: "
                "give the override files they were trained with (such as configs/small.json, or --in_features), "
                "or other weights"
            )
        told = _IN_A_WORKER.search(str(error))
        if told:
            return told.group(1)
        error = error.__cause__ or error.__context__
    return None


def _refused_by_a_network(error: BaseException) -> bool:
    """Networks import torch alone, so they refuse a bag with a plain ValueError."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__"))
    return isinstance(error, ValueError) and where.startswith("scripts.networks.")


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
