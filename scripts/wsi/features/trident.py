# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""TRIDENT: `features_<encoder>/<id>.h5` whose `coords` have attributes as `patch_size_level0`; or one tensor."""

from scripts.wsi.features.base import Head, attributes_of
from scripts.wsi.features.clam import Clam, attributes_of_patches

TRIDENT_ATTRIBUTES = {"patch_size_level0", "target_magnification", "level0_magnification"}


class Trident(Clam):
    """Laid out as CLAM's files are, with the magnification and the size of a patch at level 0."""

    name = "TRIDENT"

    def reads(self, head: Head) -> bool:
        if head.kind == "torch":
            return "" in head.arrays and not TRIDENT_ATTRIBUTES.isdisjoint(attributes_of_patches(head.path))
        return "coords" in head.hdf5 and not TRIDENT_ATTRIBUTES.isdisjoint(attributes_of(head.hdf5["coords"]))
