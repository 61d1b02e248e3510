# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Features and coords by their names in one file: npz, safetensors, a dict in a .pt, or an h5 such as HEST's."""

from scripts.wsi.features.atlaspatch import AtlasPatch
from scripts.wsi.features.base import Head, Keys, Stored
from scripts.wsi.features.clam import pitch_and_tile
from scripts.wsi.features.tiatoolbox import TiaToolbox

FEATURES = ("features", "feats", "embeddings", "embedding", "feature")  # the first of them that is there
COORDS = ("coords", "coordinates", "coord", "positions", "position", "locations")
OF_MORE_COLUMNS = (AtlasPatch(), TiaToolbox())  # whose coords are x, y and more, also where the user names the arrays


class NamedArrays:
    """Any file with names, those of the user or usual ones; the pitch is stated as TRIDENT and CLAM state it."""

    def __init__(self, keys: Keys | None = None) -> None:
        self.keys = keys or Keys()

    name = "named arrays"

    def reads(self, head: Head) -> bool:
        if head.kind in ("npz", "safetensors", "zarr") or (head.kind == "torch" and "" not in head.arrays):
            return True
        return has_names(head) and not ("features" in head.hdf5 and "coords" in head.hdf5)

    def read(self, head: Head) -> Stored:
        names = head.names()
        of_features = self.keys.features or next((name for name in FEATURES if name in names), FEATURES[0])
        of_coords = self.keys.coords or next((name for name in COORDS if name in names), COORDS[0])
        features, coords = head.array(of_features), head.array(of_coords).whole()
        if any(format.reads(head) for format in OF_MORE_COLUMNS):
            coords = coords[..., :2]
        attributes = head.stated("/", of_features, of_coords) if head.kind == "hdf5" else head.attributes
        encoder = of_features.rpartition("/")[2] if "/" in of_features else None  # as AtlasPatch's features/ENCODER
        return Stored(features, coords, attributes, *pitch_and_tile(attributes), encoder=encoder)


def has_names(head: Head) -> bool:
    """Return whether an HDF5 file holds both features and coords by usual names."""
    return all(any(name in head.hdf5 for name in names) for names in (FEATURES, COORDS))
