# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""slideflow: `<slide>.pt` of one tensor, beside `<slide>.index.npz` of the centres of its tiles at level 0."""

import json
from pathlib import Path

from scripts.core.errors import InputError
from scripts.wsi.features.arrays import npz_arrays, one_line_damage
from scripts.wsi.features.base import Head, Stored

CONFIG = "bags_config.json"  # of the folder, names the encoder


class Slideflow:
    """The tiles' size is stated in micrometres, if at all, so that their distance is taken from the centres."""

    name = "slideflow"

    def reads(self, head: Head) -> bool:
        return head.kind == "torch" and "" in head.arrays and index_beside(head.path).is_file()

    def read(self, head: Head) -> Stored:
        index = index_beside(head.path)
        with one_line_damage(index):
            centres = npz_arrays(index).get("arr_0")
        if centres is None or len(centres.shape) != 2:
            raise InputError(f"{index} does not hold the places of tiles, but `arr_0` of none; export the bags again")
        return Stored(head.array(""), centres.whole(), encoder=_encoder_of(head.path.parent), of_centres=True)


def index_beside(path: Path) -> Path:
    return path.with_name(f"{path.stem}.index.npz")


def _encoder_of(folder: Path) -> str | None:
    """Return the last part of the class of the encoder, such as UNIFeatures."""
    try:
        return str(json.loads((folder / CONFIG).read_text())["extractor"]["class"]).rpartition(".")[2]
    except (OSError, ValueError, LookupError, TypeError):
        return None
