# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""AtlasPatch: `patches/<slide>.h5` with `features/<encoder>`, and coords of x, y at level 0, width, height, level."""

import h5py

from scripts.core.errors import InputError
from scripts.wsi.features.base import Head, Stored
from scripts.wsi.features.clam import pitch_and_tile

UNFINISHED = "__tmp_"  # how the name of features begins while they are written


class AtlasPatch:
    """A dataset of features for each encoder, in a group; the root states how the patches were cut."""

    name = "AtlasPatch"

    def reads(self, head: Head) -> bool:
        return isinstance(head.hdf5.get("features"), h5py.Group)

    def read(self, head: Head) -> Stored:
        encoders = [name for name in sorted(head.hdf5["features"]) if not name.startswith(UNFINISHED)]
        if len(encoders) != 1:
            way = "write those of one: python -m scripts adopt FOLDER --features_key features/ENCODER"
            raise InputError(f"{head.path} holds features of {' and '.join(encoders) or 'no encoder'}; {way}")
        features, coords = head.array(f"features/{encoders[0]}"), head.array("coords").whole()
        attributes = head.stated("/", "coords")
        return Stored(features, coords[..., :2], attributes, *pitch_and_tile(attributes), encoder=encoders[0])
