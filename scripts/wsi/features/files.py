# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Find feature files, and open one of any format."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import h5py

from scripts.core.errors import InputError
from scripts.core.files import require_finite
from scripts.core.units import Level0Coords
from scripts.wsi.features.base import (
    ZIP,
    FeatureFile,
    FeatureHeader,
    Format,
    Head,
    feature_file,
    one_line_damage,
    opened_hdf5,
    positive,
)
from scripts.wsi.features.clam import Clam, files_of_patches, h5_beside
from scripts.wsi.features.smooth_mil import OWN_FORMAT, PatchFeatures, SmoothMil
from scripts.wsi.features.stamp import Stamp
from scripts.wsi.features.torchmil import Torchmil, files_of_coords
from scripts.wsi.features.trident import Trident
from scripts.wsi.features.uni2h import Uni2h

FORMATS: Sequence[Format] = (SmoothMil(), Stamp(), Torchmil(), Trident(), Uni2h(), Clam())  # the first that reads it
KIND_OF_FILE = {b"\x89HDF\r\n\x1a\n": "hdf5", b"\x93NUMPY": "npy", ZIP: "torch", b"\x80": "torch"}  # by how files begin

FEATURE_SUFFIXES = (".h5", ".npy", ".pt")  # where a slide has two in one place, the first wins
DEEPEST = 3  # folders below the one that is given: torchmil's patches_512/features/features_UNI
OTHER_FOLDERS = frozenset({"patches", "coords", "labels", "patch_labels", "inst_labels", "masks", "models", "stitches"})
OTHER_FILES = frozenset({"scores.h5"})  # results of inference
HOLDS_ARRAYS = re.compile(r"features.*|pt_files")  # elsewhere a .pt is a network, and a .npy may be anything


@contextmanager
def open_features(path: str | Path) -> Iterator[FeatureFile]:
    """Open a feature file of any format, or raise one line that says why it is none."""
    path = Path(path)
    with _opened_head(path) as head:
        with one_line_damage(path):
            format = next(each for each in FORMATS if each.reads(head))
        yield feature_file(format, head)


def read_header(path: str | Path) -> FeatureHeader:
    """Return the units and the origin of the patches; the features are not read."""
    with open_features(path) as file:
        return file.header


def read_own_header(path: str | Path) -> FeatureHeader:
    """Return the header of a file of this project's own format; fails as ``read_features`` does, and is fast."""
    header = read_header(path)
    if header.format != SmoothMil.name:
        raise InputError(f"{path} is of {header.format}, not of the format {OWN_FORMAT}; extract its features again")
    return header


def read_features(path: str | Path) -> PatchFeatures:
    """Read one file of this project's own format, or raise one line that says why it is none."""
    header = read_own_header(path)
    with open_features(path) as file, h5py.File(path, "r") as raw:
        features = file.read(0, header.patches)
        require_finite(path, features)
        return PatchFeatures(
            features=features,
            coords=Level0Coords(file.coords),
            pitch=header.pitch,
            tile=header.tile,
            mpp=header.mpp,
            encoder=header.encoder,
            slide_id=header.slide_id,
            slide_size=header.slide_size or (0, 0),
            thumbnail=raw["thumbnail"][()] if "thumbnail" in raw else None,
            thumbnail_downsample=positive(raw.attrs, "thumbnail_downsample"),
            origin=header.origin or (0, 0),
        )


@contextmanager
def _opened_head(path: Path) -> Iterator[Head]:
    """Open a file by what it begins with, never by its name."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; give one of the feature files in it")
    if not path.is_file():
        raise InputError(f"no feature file {path}; correct the path or extract the features first")
    with one_line_damage(path), path.open("rb") as raw:
        begin = raw.read(8)
        kind = next((kind for start, kind in KIND_OF_FILE.items() if begin.startswith(start)), "")
        if not kind and h5py.is_hdf5(path):  # which may begin behind a block of the user's
            kind = "hdf5"
    if not kind:
        raise InputError(f"{path} is not an HDF5, npy or pt file, or is damaged; give a feature file, or extract again")
    with opened_hdf5(path) if kind == "hdf5" else nullcontext(Head(path, kind)) as head:
        yield head


def files_of(path: str | Path) -> list[Path]:
    """Return a feature file, and those beside it that state where its patches lie."""
    path = Path(path)
    every = [path, h5_beside(path), *files_of_patches(path), *files_of_coords(path)]
    return [file for file in dict.fromkeys(every) if file.is_file()]


def feature_paths(folder: str | Path) -> list[Path]:
    """Return the feature files below a folder, wherever CLAM, TRIDENT, torchmil or the user put them, in order.

    Of CLAM the h5 file of a slide is taken before its .pt file, which has no coords. Those of several encoders are all
    there.
    """
    best: dict[tuple[Path, str], Path] = {}
    for path in sorted(_files_below(Path(folder)), key=lambda path: FEATURE_SUFFIXES.index(path.suffix.lower())):
        where = path.parent.with_name("h5_files") if path.parent.name == "pt_files" else path.parent
        best.setdefault((where, path.stem), path)
    return sorted(best.values())


def _files_below(folder: Path) -> Iterator[Path]:
    for parent, subfolders, names in os.walk(folder, followlinks=True):
        below = Path(parent)
        deep = len(below.relative_to(folder).parts) == DEEPEST
        # TRIDENT's slide_features_… are of whole slides
        others = OTHER_FOLDERS | {name for name in subfolders if name.startswith((".", "slide_features"))}
        subfolders[:] = [] if deep else [name for name in subfolders if name not in others]
        suffixes = FEATURE_SUFFIXES if HOLDS_ARRAYS.fullmatch(below.resolve().name) else FEATURE_SUFFIXES[:1]
        for name in sorted(names):
            if Path(name).suffix.lower() in suffixes and not name.startswith(".") and name not in OTHER_FILES:
                yield below / name


def find_features(directory: str | Path) -> list[dict[str, str]]:
    """Return the bags of a folder of feature files of any format, in order; of no slide there may be two."""
    paths = feature_paths(directory)
    if not paths:
        raise InputError(
            f"no feature file (.h5, or .pt and .npy in a folder features… or pt_files) in {directory}; "
            "correct --dataset_dir, or extract the features first"
        )
    by_name: dict[str, Path] = {}
    for path in paths:
        other = by_name.setdefault(path.stem, path)
        if other != path:
            both = " and ".join(str(each.relative_to(directory).parent) for each in (other, path))
            raise InputError(f"{directory} holds features of {path.stem} in {both}; give the folder of one of them")
    return [{"image": str(path), "bag_id": path.stem} for path in paths]
