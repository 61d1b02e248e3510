# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Check the words of the command line before a verb runs, convert its arguments, and align what it prints."""

import difflib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.core.errors import InputError

PROGRESS_AFTER_S = 5  # seconds until a progress bar is shown
_FLAG = re.compile(r"--|-[a-zA-Z]")  # -1 is a number

Verb = Callable[..., None]
Verbs = Mapping[str, Verb | Mapping[str, Verb]]  # name → function, or → verbs below it


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
