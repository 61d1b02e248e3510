# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""TRIDENT: `features_<encoder>/<id>.h5` whose `coords` have attributes as `patch_size_level0`; or one tensor."""

from scripts.wsi.features.base import Head, Stored, attributes_of
from scripts.wsi.features.clam import attributes_of_patches, read_hdf5, read_torch

TRIDENT_ATTRIBUTES = {"patch_size_level0", "target_magnification", "level0_magnification"}


class Trident:
    """Laid out as CLAM's files are, with the magnification and the size of a patch at level 0."""

    name = "TRIDENT"

    def reads(self, head: Head) -> bool:
        if head.kind == "torch":
            return not TRIDENT_ATTRIBUTES.isdisjoint(attributes_of_patches(head.path))
        return "coords" in head.hdf5 and not TRIDENT_ATTRIBUTES.isdisjoint(attributes_of(head.hdf5["coords"]))

    def read(self, head: Head) -> Stored:
        return read_torch(head) if head.kind == "torch" else read_hdf5(head)
