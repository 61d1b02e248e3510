# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Looks up values of DICOM tags, whatever was written where they belong."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pydicom
from pydicom import Dataset

MAX_TEXT = 128  # a UID has 64 characters; a damaged tag may have millions


class Tags:
    """The tags of several data sets, the first first; one that is missing, empty or senseless is "", () or None."""

    def __init__(self, *sources: Dataset) -> None:
        self.sources = sources

    def value(self, keyword: str) -> Any:
        for source in self.sources:
            with suppress(Exception):  # bytes that its type cannot be made of
                if (value := source.get(keyword)) not in (None, "", b""):
                    return value
        return None

    def texts(self, keyword: str) -> tuple[str, ...]:
        value = self.value(keyword)
        if value is None:
            return ()
        values = [value] if isinstance(value, str) or not isinstance(value, Sequence) else value
        return tuple(str(each).strip(" \0")[:MAX_TEXT] for each in values)

    def text(self, keyword: str) -> str:
        return next(iter(self.texts(keyword)), "")

    def integer(self, keyword: str) -> int | None:
        with suppress(ValueError):
            (text,) = self.texts(keyword)
            return int(text)
        return None

    def numbers(self, keyword: str, count: int, above: float = -1e6) -> tuple[float, ...] | None:
        with suppress(ValueError):
            numbers = tuple(map(float, self.texts(keyword)))
            if len(numbers) == count and all(above < number < 1e6 for number in numbers):  # which NaN is not
                return numbers
        return None

    def items(self, keyword: str) -> list[Dataset]:
        value = self.value(keyword)
        return list(value) if isinstance(value, pydicom.Sequence) else []


@contextmanager
def quietly(library: str = "pydicom") -> Iterator[None]:
    """Silence a library's warnings: research data number slices with UIDs that are none ("ID_0a1b...")."""
    logger = logging.getLogger(library)
    before, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings(), pydicom.config.disable_value_validation():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before
