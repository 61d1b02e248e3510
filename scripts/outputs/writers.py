# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""All that a run writes of one bag, in one transform, which those leave out who answer a viewer and write nothing."""

import os
import traceback
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from monai.data import ImageWriter
from monai.transforms import SaveImaged

from scripts.core.errors import InputError, input_error_message
from scripts.core.record import BagResult
from scripts.outputs.result_json import SaveResultd

Writer = Callable[[Mapping[Hashable, Any]], dict[Hashable, Any]]


class SaveImageResultsd(SaveImaged):
    """The writers of a bag's files, one after the other; a fault of one is told as that bag's failure.

    Where one fails no result.json is left, so that no later run takes the new files for those of an earlier one.

    MONAI Label takes what is a SaveImaged out of the postprocessing, MONAI Deploy what has SaveImage in its name.

    Args:
        writers: each gets the bag as the one before returned it.
    """

    def __init__(self, writers: Sequence[Writer]) -> None:
        super().__init__("bag_result", writer=ImageWriter, print_log=False)  # never asked: none need be installed
        self.writers = writers

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for marking in self.writers:
            if isinstance(marking, SaveResultd):
                marking.withdraw(item["bag_id"])
        for write in self.writers:
            try:
                item = write(item)
            except Exception as error:
                if input_error_message(error) is None:
                    raise InputError(_fault(item, write, error)) from error
                raise
        return item


def with_warnings(data: Mapping[Hashable, Any], warnings: Sequence[str]) -> dict[Hashable, Any]:
    """Return the data with these warnings added to its `bag_result`, each once."""
    result: BagResult = data["bag_result"]
    all_warnings = list(dict.fromkeys([*result.about.get("warnings", []), *warnings]))
    return {**data, "bag_result": replace(result, about={**result.about, "warnings": all_warnings})}


def _fault(item: Mapping[Hashable, Any], write: Writer, error: Exception) -> str:
    """Return where one bag's files failed, for one line; not what the error says, which may quote a patient's name."""
    if isinstance(error, OSError) and error.errno:
        advice = "see that its files can be read and the output folder written, or give another --output_dir"
        return f"{item['bag_id']} cannot be drawn or written ({os.strerror(error.errno)}): {advice}"
    if isinstance(error, MemoryError):
        return f"{item['bag_id']} cannot be drawn or written (out of memory): end other programs, or read it elsewhere"
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{type(error).__name__} in {type(write).__name__}, {Path(place.filename).name} line {place.lineno}"
    return f"{item['bag_id']} cannot be drawn or written ({where}): a fault of the program, please report this line"
