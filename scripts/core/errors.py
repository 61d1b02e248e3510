# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""One kind of error for bad input: it says what is wrong, where, and what to do."""

import re
import sqlite3
import traceback
from collections.abc import Iterator
from urllib.parse import quote

# control characters, what ends a line, surrogates, and what turns the direction of a text
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Return a text as any terminal, table and picture takes it: control characters and the like as %1B."""
    return _UNPRINTABLE.sub(_escaped, text)


def printable_name(name: str) -> str:
    """Return a name as `printable` does a text; where something is escaped, so is %, which else stays."""
    return printable(name.replace("%", "%25")) if _UNPRINTABLE.search(name) else name


def _escaped(found: re.Match[str]) -> str:
    is_a_byte = "\udc80" <= found[0] <= "\udcff"  # of a file's name that is not UTF-8
    return quote(found[0].encode(errors="surrogateescape" if is_a_byte else "surrogatepass"))


class InputError(ValueError):
    """What the user gave cannot be read or used; the message is one line: what, where, what to do."""

    def __str__(self) -> str:
        return printable(super().__str__())


class EmptyBagError(InputError):
    """A bag holds nothing, as a slide without tissue: no fault where bags are read, but it cannot be trained on."""


# a DataLoader worker hands over the text of an error, not the error
_IN_A_WORKER = re.compile(
    rf"^{InputError.__module__}\.(?:{InputError.__name__}|{EmptyBagError.__name__}): (.*)$", re.MULTILINE
)


# what an error of a library says → what the user is told
_FULL = "a file cannot be written, perhaps a prepared bag in --cache_dir: make room on its disk"
_ANOTHER = "another process of this run has ended: its own message says why"
_SAID = {
    "loading state_dict": (
        "the weights do not fit the network of the configs: "
        "give the override files they were trained with, and keys such as --in_features, or other weights"
    ),
    "No space left on device": _FULL,
    "iostream error": _FULL,  # torch, which does not say why
    "Connection closed by peer": _ANOTHER,  # gloo
    "Connection reset by peer": _ANOTHER,
    "remote process exited": _ANOTHER,  # nccl
}


def input_error_message(error: BaseException | None) -> str | None:
    """Return the one line for the user where bad input is behind an error; None where it is a fault of ours."""
    for each in _causes(error):
        if isinstance(each, InputError) or _refused_by_torch_alone(each):
            return str(each)
        if isinstance(each, sqlite3.OperationalError):
            return f"the database of MLflow cannot be written ({each}): make room there, or give another --tracking_uri"
        passed_on = _IN_A_WORKER.search(str(each))
        if passed_on:
            return passed_on.group(1)
        if isinstance(each, (RuntimeError, OSError)):
            for said, message in _SAID.items():
                if said in str(each):
                    return message
    return None


def is_empty_bag(error: BaseException) -> bool:
    """Return whether what is behind an error is a bag that holds nothing."""
    return any(isinstance(each, EmptyBagError) for each in _causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and what led to it."""
    while error is not None:
        yield error
        # A fault that happens while bad input is handled is still a fault; MONAI wraps what it passes on.
        error = error.__cause__ or (error.__context__ if isinstance(error, RuntimeError) else None)


def _refused_by_torch_alone(error: BaseException) -> bool:
    """Networks and losses import torch alone, so they refuse a bag with a plain ValueError."""
    modules = [str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    ours = ("scripts.networks.", "scripts.losses.")
    return isinstance(error, ValueError) and bool(modules) and modules[-1].startswith(ours)
