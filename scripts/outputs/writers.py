# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""All that a run writes of one bag, in one transform, which those leave out who answer a viewer and write nothing."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from monai.data import ImageWriter
from monai.transforms import SaveImaged

Writer = Callable[[Mapping[Hashable, Any]], dict[Hashable, Any]]


class SaveImageResultsd(SaveImaged):
    """The writers of a bag's files, one after the other.

    MONAI Label takes what is a SaveImaged out of the postprocessing, MONAI Deploy what has SaveImage in its name.

    Args:
        writers: each gets the bag as the one before returned it.
    """

    def __init__(self, writers: Sequence[Writer]) -> None:
        super().__init__("bag_result", writer=ImageWriter, print_log=False)  # never asked: none need be installed
        self.writers = writers

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for write in self.writers:
            item = write(item)
        return item
