# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""What all commands share: words checked before a verb runs, arguments converted, tables, and errors in one line."""

import difflib
import inspect
import logging
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

from scripts.core.errors import InputError, input_error_message

PROGRESS_AFTER_S = 5  # seconds until a progress bar is shown
_FLAG = re.compile(r"--|-[a-zA-Z]")  # -1 is a number

Verb = Callable[..., None]
Verbs = Mapping[str, Verb | Mapping[str, Verb]]  # name → function, or → verbs below it


def _quiet_record(make: Callable[..., logging.LogRecord], *args: Any, **kwargs: Any) -> logging.LogRecord:
    """Make a log record, and drop errors that the one line at the end tells anyway.

    Engines and their handlers log what passes through them, with its traceback or in an f-string, each to a handler of
    its own: where a record is made is the only place that all of them share.
    """
    record = make(*args, **kwargs)
    error = record.exc_info[1] if record.exc_info else sys.exc_info()[1]
    if record.levelno >= logging.ERROR and (isinstance(error, KeyboardInterrupt) or input_error_message(error)):
        record.levelno = -1  # below what any handler takes
    return record


def one_line_errors(unfinished: str | None = None) -> None:
    """Print an InputError that ends the process as one line on stderr; any other error keeps its traceback.

    Args:
        unfinished: file of the state of an unfinished training, from which an interrupted one goes on.
    """
    make = logging.getLogRecordFactory()
    if getattr(make, "func", None) is not _quiet_record:
        logging.setLogRecordFactory(partial(_quiet_record, make))

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        message = input_error_message(error)
        if kind is KeyboardInterrupt:
            goes_on = unfinished is not None and Path(unfinished).is_file()
            message = "interrupted" + f": the same command goes on after the last whole epoch ({unfinished})" * goes_on
        if message is None:
            sys.__excepthook__(kind, error, trace)
        else:
            tqdm.write(f"error: {message}", file=sys.stderr)  # where a progress bar may stand

    sys.excepthook = show


def refuse_unknown(typed: Sequence[str], verbs: Verbs) -> None:
    """Refuse words of the command line that a verb does not take before it runs: Fire would complain afterwards."""
    verb: Any = verbs
    place = 0
    while isinstance(verb, Mapping) and place < len(typed) and typed[place] in verb:
        verb = verb[typed[place]]
        place += 1
    arguments = typed[place : typed.index("--") if "--" in typed else None]
    if isinstance(verb, Mapping) or {"-h", "--help"} & set(arguments):
        return  # Fire says which verbs there are, or what they take
    name = " ".join(typed[:place])
    parameters = inspect.signature(verb).parameters.values()
    takes = [each.name for each in parameters if each.kind is not each.VAR_KEYWORD]
    any_flag = len(takes) < len(parameters)  # the verb looks at the others itself
    bare = 0
    value = False  # the last flag may be followed by its value
    for argument in arguments:
        if not _FLAG.match(argument):
            bare += not value
            value = False
            continue
        flag, equals, _ = argument.lstrip("-").replace("-", "_").partition("=")
        value = not equals
        known = flag in takes or any_flag
        if not known and flag.removeprefix("no") not in takes and sum(one[0] == flag for one in takes) != 1:
            alike = difflib.get_close_matches(flag, takes, 1)
            raise InputError(
                f"{name} has no {argument.partition('=')[0]}{f', perhaps --{alike[0]}' if alike else ''}: "
                f"python -m scripts {name} --help lists what it takes"
            )
    if bare > len(takes):
        raise InputError(f"{name} does not take so many words: python -m scripts {name} --help lists what it takes")


def as_fire_reads(typed: Sequence[str]) -> list[str]:
    """Put a wish for help behind `--`, or a verb that takes any flag would take it for one."""
    wishes = [word for word in typed if word in ("-h", "--help")]
    return [*(word for word in typed if word not in wishes), "--", "--help"] if wishes else list(typed)


def path_or_none(given: object) -> Path | None:
    """Return a path of what Fire may have taken for a number."""
    return None if given is None else Path(str(given))


def yes_or_no(given: object, key: str) -> bool:
    """Return what a key of a config is: on the command line of MONAI's bundles `true` is a text."""
    if str(given).lower() not in ("true", "false"):
        raise InputError(f"{key} is {given!r}: give true or false")
    return str(given).lower() == "true"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as text, the columns one below the other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
