# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Find feature files, and open one of any format."""

import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import h5py

from scripts.core.errors import InputError
from scripts.wsi.features.arrays import ZIP, npz_arrays, one_line_damage, safetensors_arrays, torch_arrays
from scripts.wsi.features.atlaspatch import AtlasPatch
from scripts.wsi.features.base import FeatureFile, FeatureHeader, Format, Head, Keys, feature_file, opened_hdf5
from scripts.wsi.features.clam import Clam, Trident, Uni2h, files_of_patches, h5_beside
from scripts.wsi.features.named import FEATURES, NamedArrays
from scripts.wsi.features.owkin import Owkin, folder_of_slide
from scripts.wsi.features.slideflow import CONFIG, Slideflow, index_beside
from scripts.wsi.features.smooth_mil import OWN_FORMAT, SmoothMil
from scripts.wsi.features.spatialdata import SpatialData, tables_of
from scripts.wsi.features.stamp import Stamp
from scripts.wsi.features.tiatoolbox import CANVAS, LIST, TiaToolbox, listed_slide, positions_beside
from scripts.wsi.features.torchmil import Torchmil, files_of_coords
from scripts.wsi.features.zarr_store import is_zarr, zarr_arrays, zarr_attributes, zarr_names

FORMATS: Sequence[Format] = (  # the first that reads it
    *(SmoothMil(), Stamp(), AtlasPatch(), TiaToolbox(), Owkin(), Torchmil(), Trident(), Uni2h(), Slideflow()),
    *(SpatialData(), NamedArrays(), Clam()),
)
KIND_OF_FILE = {b"\x89HDF\r\n\x1a\n": "hdf5", b"\x93NUMPY": "npy", ZIP: "torch", b"\x80": "torch"}  # by how files begin

# where a slide has two in one place, the first wins
FEATURE_SUFFIXES = (".h5", ".hdf5", ".zarr", ".npz", ".safetensors", ".npy", ".pt")
HDF5_SUFFIXES = (".h5", ".hdf5")
DEEPEST = 3  # folders below the one that is given: torchmil's patches_512/features/features_UNI
OTHER_FOLDERS = frozenset({"patches", "coords", "labels", "patch_labels", "inst_labels", "masks", "models", "stitches"})
OTHER_FILES = frozenset({"scores.h5"})  # results of inference
HOLDS_ARRAYS = re.compile(r"features.*|pt_files")  # elsewhere a .pt is a network, and a .npy may be anything
PATCHES = "patches"  # where AtlasPatch puts features, and others what they cut


@contextmanager
def open_features(path: str | Path, keys: Keys | None = None) -> Iterator[FeatureFile]:
    """Open a feature file of any format, or raise one line that says why it is none; the user may say what it is."""
    path, keys = Path(path), keys or Keys()
    with _opened_head(path) as head:
        with one_line_damage(path):
            format = _format(head, keys)
        yield feature_file(format, head, keys, slide_of(path))


def _format(head: Head, keys: Keys) -> Format:
    if keys.features is None and keys.coords is None:
        return next(each for each in FORMATS if each.reads(head))
    if head.kind == "zarr" and keys.features in tables_of(head.path):
        return SpatialData(keys.features)
    return NamedArrays(keys)


def read_header(path: str | Path) -> FeatureHeader:
    """Return the units and the origin of the patches; the features are not read."""
    with open_features(path) as file:
        return file.header


def read_own_header(path: str | Path) -> FeatureHeader:
    """Return the header of a file of this project's own format, or raise one line that says why it is none."""
    header = read_header(path)
    if header.format != SmoothMil.name:
        raise InputError(f"{path} is of {header.format}, not of the format {OWN_FORMAT}; extract its features again")
    return header


def _opened_head(path: Path) -> AbstractContextManager[Head]:
    """Open a file by what it begins with, never by its name."""
    if path.is_dir() and is_zarr(path):
        with one_line_damage(path):
            return nullcontext(Head(path, "zarr", attributes=zarr_attributes(path), arrays=zarr_arrays(path)))
    if path.is_dir():
        raise InputError(f"{path} is a folder; give one of the feature files in it")
    if not path.is_file():
        raise InputError(f"no feature file {path}; correct the path or extract the features first")
    with one_line_damage(path):
        kind = _kind(path)
        if kind == "hdf5":
            return opened_hdf5(path)
        if kind == "torch":
            arrays, attributes = torch_arrays(path)
        elif kind == "safetensors":
            arrays, attributes = safetensors_arrays(path)
        else:
            arrays, attributes = npz_arrays(path) if kind == "npz" else {}, {}
    if not kind:
        kinds = "an HDF5, npy, npz, pt or safetensors file"
        raise InputError(f"{path} is not {kinds}, or is damaged; give a feature file, or extract again")
    return nullcontext(Head(path, kind, arrays=arrays, attributes=attributes))


def _kind(path: Path) -> str:
    with path.open("rb") as raw:
        begin = raw.read(9)
    kind = next((kind for start, kind in KIND_OF_FILE.items() if begin.startswith(start)), "")
    if not kind and h5py.is_hdf5(path):  # which may begin behind a block of the user's
        return "hdf5"
    if not kind and begin[8:] == b"{" and int.from_bytes(begin[:8], "little") < path.stat().st_size:
        return "safetensors"
    if begin.startswith(ZIP) and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            return "npz" if any(name.endswith(".npy") for name in file.namelist()) else kind
    return kind


def slide_of(path: Path) -> str:
    """Return the name of the slide that a feature file is of, by where it lies."""
    return folder_of_slide(path) or listed_slide(path) or _stem(path)


def _stem(path: Path) -> str:
    """Return a name without its suffix, which a folder that is a store need not have."""
    return path.name if path.is_dir() and path.suffix.lower() not in FEATURE_SUFFIXES else path.stem


def files_of(path: str | Path) -> list[Path]:
    """Return a feature file, or those that a store is made of, and those beside it that state more of its patches."""
    path = Path(path)
    if is_zarr(path):
        return sorted(file for file in path.rglob("*") if file.is_file())
    every = [path, h5_beside(path), *files_of_patches(path), *files_of_coords(path)]
    if index_beside(path).is_file():
        every += [index_beside(path), path.with_name(CONFIG)]
    if positions := positions_beside(path):
        every += [positions, path.with_name(LIST)]
    return [file for file in dict.fromkeys(every) if file.is_file()]


def feature_paths(folder: str | Path, any_place: bool = False) -> list[Path]:
    """Return the feature files below a folder, wherever CLAM, TRIDENT, torchmil or the user put them, in order.

    Of CLAM the h5 file of a slide is taken before its .pt file, which has no coords. Those of several encoders are all
    there. In any place also files that there usually are something else, as a .pt is a network. A Zarr store, which is
    a folder of whatever name, is one.
    """
    if is_zarr(Path(folder)):
        return [Path(folder)]
    best: dict[tuple[Path, str], Path] = {}
    for path in sorted(_files_below(Path(folder), any_place), key=_place_of_suffix):
        where = path.parent.with_name("h5_files") if path.parent.name == "pt_files" else path.parent
        best.setdefault((where, _stem(path)), path)
    return sorted(best.values())


def _place_of_suffix(path: Path) -> int:
    suffix = path.suffix.lower()
    return FEATURE_SUFFIXES.index(suffix) if suffix in FEATURE_SUFFIXES else len(FEATURE_SUFFIXES)


def nothing_found(folder: str | Path) -> str:
    """Return what to say of a folder without a feature file: what lies there instead, and the way in for it."""
    if not Path(folder).exists():
        return f"{folder} does not exist: correct the path"
    others = Counter(path.suffix.lower() or "folder of Zarr" for path in feature_paths(folder, any_place=True))
    if others:
        held = " and ".join(f"{count} {suffix}" for suffix, count in others.most_common())
        way = "put those of features in a folder called features_ENCODER"
        return f"no feature file in {folder}, but {held}; {way}, or run python -m scripts adopt {folder}"
    known = ".h5, .zarr, or .npy, .npz, .pt and .safetensors in a folder features… or pt_files"
    every = (path for path in Path(folder).rglob("*") if path.is_file() and not path.name.startswith("."))
    below = Counter(path.suffix.lower() or path.name for path in every)
    held = f", but {' and '.join(f'{n} {suffix}' for suffix, n in below.most_common(3))}" if below else ""
    return f"no feature file ({known}) in {folder}{held}; correct the folder, or make them with configs/features.json"


def _files_below(folder: Path, any_place: bool) -> Iterator[Path]:
    for parent, subfolders, names in os.walk(folder, followlinks=True):
        below = Path(parent)
        deep = len(below.relative_to(folder).parts) == DEEPEST
        stores = [name for name in subfolders if is_zarr(below / name)]
        yield from (below / name for name in stores if any_place or _holds_features(below / name))
        # TRIDENT's slide_features_… are of whole slides
        others = OTHER_FOLDERS | {name for name in subfolders if name.startswith((".", "slide_features"))} | {*stores}
        only_cut = below != folder and below.name == PATCHES
        subfolders[:] = [] if deep or only_cut else [name for name in subfolders if name not in others - {PATCHES}]
        of_arrays = any_place or HOLDS_ARRAYS.fullmatch(below.resolve().name) is not None
        for name in sorted(names):
            path = below / name
            if name.startswith(".") or name in OTHER_FILES or name.endswith((".index.npz", ".position.npy")):
                continue
            if path.suffix.lower() in HDF5_SUFFIXES:
                found = not only_cut or _is_of_atlaspatch(path)
            else:
                found = path.suffix.lower() in FEATURE_SUFFIXES and (of_arrays or _is_marked(path))
            if found:
                yield path


def _is_marked(path: Path) -> bool:
    """Return whether a file is of features wherever it lies, by its name or what lies beside."""
    of_owkin, of_slideflow = folder_of_slide(path), path.suffix.lower() == ".pt" and index_beside(path).is_file()
    return bool(of_owkin or of_slideflow or positions_beside(path))


def _holds_features(store: Path) -> bool:
    try:
        return bool(tables_of(store) or zarr_arrays(store) or {*FEATURES, CANVAS} & {*zarr_names(store)})
    except (InputError, OSError, ValueError, LookupError, TypeError):
        return True  # it will be told what is wrong with it


def _is_of_atlaspatch(path: Path) -> bool:
    try:
        with opened_hdf5(path) as head:
            return AtlasPatch().reads(head)
    except InputError:
        return False


def find_features(directory: str | Path) -> list[dict[str, str]]:
    """Return the bags of a folder of feature files of any format, in order; of no slide there may be two."""
    paths = feature_paths(directory)
    if not paths:
        raise InputError(nothing_found(directory))
    by_name: dict[str, Path] = {}
    for path in paths:
        other = by_name.setdefault(slide_of(path), path)
        if other != path:
            places, way = (other, path), "keep one of them"
            if other.parent != path.parent:
                places, way = (other.parent, path.parent), "give the folder of one of them"
            both = " and ".join(str(each.relative_to(directory)) for each in places)
            raise InputError(f"{directory} holds features of {slide_of(path)} in {both}; {way}")
    return [{"image": str(path), "bag_id": slide_of(path)} for path in paths]
