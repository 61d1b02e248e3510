# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""CLAM: h5 with `features` and `coords`, or a .pt of the features alone; `patches/<id>.h5` states the pitch.

TRIDENT and the makers of UNI2-h lay their files out alike.
"""

from pathlib import Path

from scripts.core.errors import InputError
from scripts.wsi.features.arrays import one_line_damage
from scripts.wsi.features.base import Attributes, Head, Stored, opened_hdf5, positive

TRIDENT_ATTRIBUTES = {"patch_size_level0", "target_magnification", "level0_magnification"}
SIZE_OF_PATCH = "patch_size x downsample"  # CLAM states no step, which may be smaller


class Clam:
    """Whatever no other format reads."""

    name = "CLAM"

    def reads(self, head: Head) -> bool:
        return head.kind in ("hdf5", "torch")

    def read(self, head: Head) -> Stored:
        return _read_torch(head) if head.kind == "torch" else _read_hdf5(head)


class Trident(Clam):
    """`features_<encoder>/<id>.h5` whose `coords` have attributes as `patch_size_level0`; or one tensor."""

    name = "TRIDENT"

    def reads(self, head: Head) -> bool:
        if head.kind == "torch":
            return "" in head.arrays and not TRIDENT_ATTRIBUTES.isdisjoint(attributes_of_patches(head.path))
        return "coords" in head.hdf5 and not TRIDENT_ATTRIBUTES.isdisjoint(head.stated("coords"))


class Uni2h(Clam):
    """One slide as a batch of one: both arrays have a leading axis of 1."""

    name = "UNI2-h"

    def reads(self, head: Head) -> bool:
        return {"features", "coords"} <= {*head.hdf5} and len(getattr(head.hdf5["features"], "shape", None) or ()) == 3


def _read_hdf5(head: Head) -> Stored:
    """Return `features` and `coords`; how the patches were cut is stated in the file, or in the one of the patches."""
    features, coords = head.array("features"), head.array("coords")
    attributes = head.stated("features", "/", "coords")
    if "patch_size" not in attributes:
        attributes = {**attributes, **attributes_of_patches(head.path)}
    return Stored(features, coords.whole(), attributes, *pitch_and_tile(attributes))


def _read_torch(head: Head) -> Stored:
    """Return the features of a .pt with the coords of the h5 file that has as many patches."""
    path, features = head.path, head.array("")
    candidates = [h5_beside(path), *files_of_patches(path)]
    if not (found := [candidate for candidate in candidates if candidate.is_file()]):
        wanted = ", ".join(map(str, candidates))
        raise InputError(f"{path} holds features alone, and there is none of {wanted}; put one there, or give the h5")
    for candidate in found:
        with opened_hdf5(candidate) as beside, one_line_damage(candidate):
            coords = beside.array("coords")
            if features.shape[:1] == coords.shape[:1]:
                attributes = {**attributes_of_patches(path), **beside.stated("coords")}
                return Stored(features, coords.whole(), attributes, *pitch_and_tile(attributes))
            patches = coords.shape[0] if coords.shape else 0
    raise InputError(
        f"{path} holds features {features.shape} and {found[-1]} the coords of {patches} patches; "
        "extract them again: they are not of one run"
    )


def pitch_and_tile(attributes: Attributes) -> tuple[tuple[float, str] | None, float | None]:
    """Return them in level-0 pixels, as far as the attributes of CLAM or TRIDENT state them."""
    size, at_level0 = positive(attributes, "patch_size"), positive(attributes, "patch_size_level0")
    downsample, overlap = positive(attributes, "downsample"), positive(attributes, "overlap") or 0.0
    if at_level0 is not None:
        pitch, tile = at_level0 - overlap * (at_level0 / size if size else 1.0), at_level0
        name = "patch_size_level0 less overlap"
    elif size is not None and downsample is not None:
        pitch, tile, name = downsample * (size - overlap), size * downsample, SIZE_OF_PATCH
    else:
        return None, None
    return (pitch, name) if pitch > 0 else None, tile


def h5_beside(path: Path) -> Path:
    """Return the h5 file of the features that a .pt of CLAM holds a second time."""
    return path.parent.parent / "h5_files" / f"{path.stem}.h5"


def files_of_patches(path: Path) -> list[Path]:
    """Return where CLAM and TRIDENT state how the patches of a feature file were cut."""
    names = (f"{path.stem}.h5", f"{path.stem}_patches.h5")
    return [above / "patches" / name for above in path.parents[1:3] for name in names]


def attributes_of_patches(path: Path) -> Attributes:
    """Return what the file of the patches states; empty where there is none."""
    candidate = next((candidate for candidate in files_of_patches(path) if candidate.is_file()), None)
    if candidate is None:
        return {}
    with opened_hdf5(candidate) as patches, one_line_damage(candidate):
        if "imgs" not in patches.hdf5:
            patches.array("coords")  # says what is wrong with it
            return patches.stated("coords")
        attributes = patches.stated("imgs")
    # CLAM once stored the patches themselves, and divided the coords by all that they were made smaller by
    if positive(attributes, "patch_level") or attributes.get("level_dim") != attributes.get("downsampled_level_dim"):
        raise InputError(
            f"the coords of {path} are not at level 0, as {candidate} is of CLAM's older way; "
            "cut the patches anew with create_patches_fp.py"
        )
    return attributes
