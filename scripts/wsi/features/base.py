# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Feature files in the forms that people have, told apart by what is in them, never by their names.

- smooth-mil: this project's own, written by ``scripts.wsi.features.smooth_mil``
- TRIDENT: ``features_<encoder>/<id>.h5``, ``coords`` with attributes such as ``patch_size_level0``; or a .pt of one
  tensor, those coords in ``patches/<id>_patches.h5`` beside its folder
- CLAM: h5 without attributes, those of ``patches/<id>.h5`` beside it; or a .pt of features alone, coords beside it
- UNI2-h: h5 with a leading axis of 1
- STAMP: h5, ``feats``, and ``coords`` in micrometres; of version 1 in 224ths of a tile of 256 micrometres
- torchmil: ``features_<encoder>/<bag>``, .npy or .h5 without ``coords``, beside ``coords/<bag>`` of either kind
"""

from __future__ import annotations

import math
import os
import pickle
import re
import struct
import tokenize
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from torch import Tensor

from scripts.core.errors import InputError
from scripts.core.units import Level0Pixels, MicronsPerPixel
from scripts.wsi.features.lattice import commonest_distance, fit

OWN_FORMAT = "smooth-mil-features/1"
OWN_ATTRIBUTES = ("slide_id", "encoder", "pitch_level0", "tile_level0", "mpp", "slide_width", "slide_height")
OF_TRIDENT = ("patch_size_level0", "target_magnification", "level0_magnification")
PIXELS, MICROMETRES = "level-0 pixels", "micrometres"
NAMES_OF_MICROMETRES = ("um", "µm", "μm", "micrometre", "micrometer", MICROMETRES, "micrometers", "micron", "microns")
MOST_COMPRESSED = 1100  # deflate makes data 1032 times smaller at best: a file that claims more is damaged
MOST_PITCHES = 2**20  # from one end of a slide to the other; a float32 holds such numbers exactly
TILE_OF_A_LONE_PATCH = 256.0
MICRONS_AT_1X = 10.0  # per pixel, about: 0.25 at 40x
TILE_OF_STAMP, STEPS_OF_STAMP_1 = 256.0, 224  # micrometres, and what the coords of version 1 count to across a tile
STAMP_1 = "tiles of 256 micrometres as STAMP 1 cuts them"
HASH_OF_STAMP = re.compile(r"-[0-9a-f]{8}$")  # of the weights, which later versions leave out
FEATURE_SUFFIXES = (".h5", ".npy", ".pt")  # where a slide has two in one place, the first wins
DEEPEST = 3  # folders below the one that is given: torchmil's patches_512/features/features_UNI
OTHER_FOLDERS = frozenset({"patches", "coords", "labels", "patch_labels", "inst_labels", "masks", "models", "stitches"})
OTHER_FILES = frozenset({"scores.h5"})  # results of inference
HOLDS_ARRAYS = re.compile(r"features.*|pt_files")  # elsewhere a .pt is a network, and a .npy may be anything
HDF5, NPY, ZIP, PICKLE = b"\x89HDF\r\n\x1a\n", b"\x93NUMPY", b"PK\x03\x04", b"\x80"
UNREADABLE = (  # what h5py, numpy and torch raise for a damaged file
    OSError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    ArithmeticError,
    AttributeError,
    EOFError,
    MemoryError,
    SyntaxError,
    tokenize.TokenError,
    struct.error,
    zipfile.BadZipFile,
)

Rows = Callable[[int, int], np.ndarray]  # start, stop → (n, D)


@dataclass(frozen=True)
class FeatureHeader:
    """What a feature file says about its patches, read without the patches."""

    form: str
    patches: int
    dimension: int
    slide_id: str
    encoder: str  # "" = the file does not say
    pitch: Level0Pixels  # from one patch to the next
    pitch_from: str
    tile: Level0Pixels  # that a patch spans
    unit: str  # of pitch, tile and coords: PIXELS, or MICROMETRES where nothing tells the pixels
    mpp: MicronsPerPixel | None
    slide_size: tuple[int, int] | None  # width, height in level-0 pixels
    origin: tuple[int, int] | None = (0, 0)  # of OpenSlide's bounds, which QuPath takes for 0, 0; None = not known
    magnification: float | None = None  # of level 0, as its objective is called

    @property
    def pitch_um(self) -> float | None:
        """Micrometres from one patch to the next, where they are known, if only by the name of the objective."""
        if self.unit == MICROMETRES:
            return self.pitch
        if self.mpp is not None:
            return self.pitch * self.mpp
        return None if self.magnification is None else self.pitch * MICRONS_AT_1X / self.magnification


@dataclass(frozen=True)
class FeatureFile:
    """An open file: its features stay where they are until they are asked for."""

    path: Path
    header: FeatureHeader
    coords: np.ndarray  # (N, 2) top-left x, y in header.unit, int64 or float64
    rows: Rows

    def read(self, start: int, stop: int) -> np.ndarray:
        """(n, D) float32 or float16, as stored. What is read of a memory map is let go with the array."""
        stop = min(stop, self.header.patches)
        if start >= stop:
            return np.zeros((0, self.header.dimension), dtype=np.float32)
        with _damage_told(self.path):
            rows = self.rows(start, stop)
        kept = np.float16 if rows.dtype == np.float16 else np.float32
        with np.errstate(over="ignore"):  # it becomes infinite, and is told as such
            return rows.astype(kept, copy=False)


class _Stored(NamedTuple):
    """The arrays of a file of any form, and what it says of them."""

    form: str
    shape: tuple[int, ...]
    dtype: np.dtype
    rows: Rows
    coords: np.ndarray
    said: Mapping[str, Any]


@contextmanager
def open_features(path: str | Path) -> Iterator[FeatureFile]:
    """A feature file of any form, or one line that says why it is none."""
    path = Path(path)
    with _opened(path) as stored:
        coords = _checked_coords(path, stored)
        if stored.form == "STAMP" and not {"unit", "tile_size_um"} & stored.said.keys():
            coords, said = _without_unit(path, coords, stored.said)
            stored = stored._replace(said=said)
        yield FeatureFile(path, _header(path, stored, coords), coords, stored.rows)


def read_header(path: str | Path) -> FeatureHeader:
    """The units and the origin of the patches; the features are not read."""
    with open_features(path) as file:
        return file.header


def files_of(path: str | Path) -> list[Path]:
    """A feature file, and those there are beside it that say where its patches lie."""
    path = Path(path)
    every = [path, _h5_of_clam(path), *_files_of_patches(path), *_places_of_coords(path)]
    return [place for place in dict.fromkeys(every) if place.is_file()]


def feature_paths(folder: str | Path) -> list[Path]:
    """The feature files below a folder, wherever CLAM, TRIDENT, torchmil or the user put them, in order of their paths.

    Of CLAM the h5 file of a slide is taken before its .pt file, which has no coords. Those of several encoders are all
    there.
    """
    best: dict[tuple[Path, str], Path] = {}
    for path in sorted(_files_below(Path(folder)), key=lambda path: FEATURE_SUFFIXES.index(path.suffix.lower())):
        place = path.parent.with_name("h5_files") if path.parent.name == "pt_files" else path.parent
        best.setdefault((place, path.stem), path)
    return sorted(best.values())


def _files_below(folder: Path) -> Iterator[Path]:
    for parent, subfolders, names in os.walk(folder, followlinks=True):
        place = Path(parent)
        deep = len(place.relative_to(folder).parts) == DEEPEST
        subfolders[:] = [] if deep else [name for name in subfolders if _may_hold_features(name)]
        suffixes = FEATURE_SUFFIXES if HOLDS_ARRAYS.fullmatch(place.resolve().name) else FEATURE_SUFFIXES[:1]
        for name in sorted(names):
            if Path(name).suffix.lower() in suffixes and not name.startswith(".") and name not in OTHER_FILES:
                yield place / name


def _may_hold_features(folder: str) -> bool:
    """TRIDENT's slide_features_… are of whole slides."""
    return folder not in OTHER_FOLDERS and not folder.startswith((".", "slide_features"))


@contextmanager
def _opened(path: Path) -> Iterator[_Stored]:
    if path.is_dir():
        raise InputError(f"{path} is a folder; give one of the feature files in it")
    if not path.is_file():
        raise InputError(f"no feature file {path}; correct the path or extract the features first")
    with _damage_told(path), path.open("rb") as raw:
        start = raw.read(8)
    if start.startswith(NPY):
        yield _numpy(path)
    elif start.startswith((ZIP, PICKLE)):
        yield _torch(path)
    elif start == HDF5 or _is_hdf5(path):
        with _hdf5(path) as file:
            yield _of_hdf5(path, file)
    else:
        raise InputError(
            f"{path} is not an HDF5, npy or pt file, or is damaged; extract its features again, or give a feature file"
        )


def _is_hdf5(path: Path) -> bool:
    """HDF5 may begin behind a block of the user's."""
    with _damage_told(path):
        return bool(h5py.is_hdf5(path))


@contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    """Only around what h5py, numpy or torch read: a fault of our own is none of the file."""
    try:
        yield
    except InputError:
        raise
    except PermissionError as error:
        raise InputError(f"{path} may not be read; ask for the right to") from error
    except UNREADABLE as error:
        raise InputError(f"{path} is damaged or cut short; copy it again or extract its features again") from error


@contextmanager
def _hdf5(path: Path) -> Iterator[h5py.File]:
    with _damage_told(path):
        file = h5py.File(path, "r")
    try:
        yield file
    finally:
        with _damage_told(path):
            file.close()


def _of_hdf5(path: Path, file: h5py.File) -> _Stored:
    with _damage_told(path):
        said = _attributes(file)
        its_own = said.get("format")
        if its_own is not None and its_own != OWN_FORMAT:
            raise InputError(
                f"{path} is not of the form {OWN_FORMAT} (its root attribute `format` is {str(its_own)[:40]!r}); "
                "extract its features again"
            )
        _refuse_without_patches(path, file, said)
        name = "feats" if "feats" in file and "features" not in file else "features"
        features = _dataset(path, file, name)
        shape, leading = features.shape, features.ndim == 3
        if leading and shape[0] == 1:
            shape = shape[1:]
        features_alone = name == "features" and "coords" not in file and not its_own
        if features_alone:
            places, said_of_coords = _coords_of_bag(path), {}
        else:
            coords = _dataset(path, file, "coords")
            places, said_of_coords = coords[()], _attributes(coords)
        if places.ndim == 3 and len(places) == 1:
            places = places[0]
        rows = _rows_of_hdf5(path, features, leading)
        dtype = features.dtype
        if its_own:
            form = "smooth-mil"
            missing = [attribute for attribute in OWN_ATTRIBUTES if attribute not in file.attrs]
            if missing:
                raise InputError(f"{path} lacks the root attribute `{missing[0]}`; extract its features again")
        elif name == "feats":
            form = "STAMP"
        elif features_alone:
            form = "torchmil"
        elif said_of_coords.keys() & OF_TRIDENT:
            form = "TRIDENT"
        else:
            form = "UNI2-h" if leading else "CLAM"
        said = {**_attributes(features), **said, **said_of_coords}
    if form in ("CLAM", "UNI2-h") and "patch_size" not in said:
        said = {**said, **_said_of_patches(path)}
    return _Stored(form, shape, dtype, rows, places, said)


def _refuse_without_patches(path: Path, file: h5py.File, said: Mapping[str, Any]) -> None:
    whole = said.get("feat_type")
    if whole in ("slide", "patient"):  # as STAMP says
        raise InputError(f"{path} holds the features of a whole {whole}, not of its patches; give those of the tiles")
    if "coord_x" in file and "coords" not in file:
        raise InputError(
            f"{path} is of a multiplex image, by STAMP: coord_x and coord_y are pixels of a level that is not known; "
            "give a file with `coords`"
        )


def _dataset(path: Path, file: h5py.File, name: str) -> h5py.Dataset:
    if name not in file or not isinstance(file[name], h5py.Dataset):
        raise InputError(f"{path} holds no dataset `{name}`; extract its features again")
    dataset = file[name]
    if dataset.shape is None or dataset.dtype.kind not in "fiub":
        what = "empty" if dataset.shape is None else dataset.dtype
        raise InputError(f"{name} of {path} are {what}, not numbers; extract its features again")
    claimed = math.prod(dataset.shape) * dataset.dtype.itemsize
    _refuse_claim(path, dataset.shape, claimed, min(dataset.id.get_storage_size(), path.stat().st_size))
    return dataset


def _refuse_claim(path: Path, shape: Sequence[int], claimed: int, stored: int) -> None:
    if claimed > MOST_COMPRESSED * stored:
        raise InputError(f"{path} claims {tuple(shape)} numbers and holds {stored} bytes; extract its features again")


def _rows_of_hdf5(path: Path, features: h5py.Dataset, leading: bool) -> Rows:
    offset = features.id.get_offset()
    if offset is None or features.file.userblock_size > 0:  # in chunks: HDF5 must put the rows together
        return lambda start, stop: features[0, start:stop] if leading else features[start:stop]
    return _mapped(path, features.dtype, offset, features.shape[-1] if features.ndim > 1 else 0)


def _mapped(path: Path, dtype: np.dtype, offset: int, dimension: int) -> Rows:
    """Each block is a map of its own: its memory is given back with it, and what is kept stays what it was."""

    def rows(start: int, stop: int) -> np.ndarray:
        begin = offset + start * dimension * dtype.itemsize
        return np.asarray(np.memmap(path, dtype, mode="c", offset=begin, shape=(stop - start, dimension)))

    return rows


def _numpy(path: Path) -> _Stored:
    """As torchmil keeps them, an array per file."""
    features = _array(path)
    coords = _coords_of_bag(path)
    if features.ndim == 2 and features.flags.c_contiguous and features.size:
        rows = _mapped(path, features.dtype, features.offset, features.shape[1])
    else:
        rows = lambda start, stop: np.array(features[start:stop])  # noqa: E731
    return _Stored("torchmil", features.shape, features.dtype, rows, coords, {})


def _places_of_coords(path: Path) -> list[Path]:
    """Beside features/features_<encoder>, or a folder less deep."""
    names = dict.fromkeys([path.name, f"{path.stem}.h5", f"{path.stem}.npy"])
    return [above / "coords" / name for above in list(path.parents)[1:3] for name in names]


def _coords_of_bag(path: Path) -> np.ndarray:
    places = _places_of_coords(path)
    beside = next((place for place in places if place.is_file()), None)
    if beside is None:
        raise InputError(
            f"{path} holds no `coords`, and there is no {' or '.join(map(str, places))}; "
            "put the coords of its patches there"
        )
    if beside.suffix.lower() == ".npy":
        return np.array(_array(beside))
    with _hdf5(beside) as file, _damage_told(beside):
        coords: np.ndarray = _dataset(beside, file, next(iter(file)) if len(file) == 1 else "coords")[()]
        return coords


def _array(path: Path) -> np.memmap:
    with _damage_told(path):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.memmap):
            raise InputError(f"{path} is not one array; save it with numpy.save")
        return array


def _torch(path: Path) -> _Stored:
    """As CLAM keeps them a second time: the features alone, in the order of the h5 file."""
    features = _tensor(path)
    shape = tuple(features.shape)
    coords, said = _coords_beside(path, shape)
    form = "TRIDENT" if said.keys() & OF_TRIDENT else "CLAM"
    with path.open("rb") as raw:
        is_mapped = raw.read(len(ZIP)) == ZIP
    if is_mapped:  # mapped anew for each block, so that its memory is given back
        return _Stored(form, shape, _dtype(features), lambda a, b: _numbers(_tensor(path)[a:b]), coords, said)
    return _Stored(form, shape, _dtype(features), lambda a, b: _numbers(features[a:b]), coords, said)


def _tensor(path: Path) -> Tensor:
    with _damage_told(path):
        with path.open("rb") as raw:
            is_mapped = raw.read(len(ZIP)) == ZIP
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_mapped)
        except pickle.UnpicklingError as error:  # of arrays of numpy too, as TRIDENT's are
            raise InputError(f"{path} holds something else than one tensor, or is damaged; give the h5 file") from error
        if not isinstance(content, Tensor) or content.layout != torch.strided or content.is_quantized:
            what = "tensor of another kind" if isinstance(content, Tensor) else type(content).__name__
            raise InputError(f"{path} holds a {what}, not one tensor of features as CLAM's do; give the h5 file")
        _refuse_claim(path, content.shape, content.numel() * content.element_size(), path.stat().st_size)
        return content.detach()


def _dtype(features: Tensor) -> np.dtype:
    return np.dtype(np.float32) if features.dtype == torch.bfloat16 else _numbers(features[:0]).dtype


def _numbers(features: Tensor) -> np.ndarray:
    numbers: np.ndarray = (features.float() if features.dtype == torch.bfloat16 else features).numpy()
    return numbers


def _coords_beside(path: Path, shape: tuple[int, ...]) -> tuple[np.ndarray, Mapping[str, Any]]:
    beside = [_h5_of_clam(path), *_files_of_patches(path)]
    found = [place for place in beside if place.is_file()]
    if not found:
        looked_for = ", ".join(map(str, beside))
        raise InputError(
            f"{path} holds features alone, and there is none of {looked_for}; put one there, or give the h5"
        )
    for place in found:
        with _hdf5(place) as file, _damage_told(place):
            coords = _dataset(place, file, "coords")
            said = {**_said_of_patches(path), **_attributes(coords)}
            if shape[:1] == coords.shape[:1]:
                return coords[()], said
            patches = coords.shape[0] if coords.ndim else 0
    raise InputError(
        f"{path} holds features {shape} and {found[-1]} the coords of {patches} patches; "
        "extract them again: they are not of one run"
    )


def _h5_of_clam(path: Path) -> Path:
    return path.parent.parent / "h5_files" / f"{path.stem}.h5"


def _files_of_patches(path: Path) -> list[Path]:
    """Where CLAM and TRIDENT say how the patches of a feature file were cut."""
    names = (f"{path.stem}.h5", f"{path.stem}_patches.h5")
    return [above / "patches" / name for above in list(path.parents)[1:3] for name in names]


def _said_of_patches(path: Path) -> dict[str, Any]:
    for place in _files_of_patches(path):
        if place.is_file():
            with _hdf5(place) as file, _damage_told(place):
                if "imgs" in file:
                    return _said_of_images(path, place, file["imgs"])
                return _attributes(_dataset(place, file, "coords"))
    return {}


def _said_of_images(path: Path, place: Path, images: h5py.Dataset) -> dict[str, Any]:
    """CLAM once stored the patches themselves, and divided the coords by all that they were made smaller by."""
    said = _attributes(images)
    if _above_0(said, "patch_level") or said.get("level_dim") != said.get("downsampled_level_dim"):
        raise InputError(
            f"the coords of {path} are not at level 0, as {place} is of CLAM's older way; "
            "cut the patches anew with create_patches_fp.py"
        )
    return said


def _attributes(owner: h5py.HLObject) -> dict[str, Any]:
    """What is known of them: TRIDENT writes None as the string 'None'."""
    said = {}
    for name, value in owner.attrs.items():
        plain = value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
        if isinstance(plain, (bytes, str)):
            text = plain.decode(errors="replace") if isinstance(plain, bytes) else plain
            plain = " ".join(text.encode(errors="replace").decode().split())  # it will stand in a line of text
        if plain not in (None, "None", ""):
            said[name] = plain
    return said


def _checked_coords(path: Path, stored: _Stored) -> np.ndarray:
    shape, coords = stored.shape, stored.coords
    advice = f"(file {path}); extract the features again"
    if math.prod(shape) == 0 and coords.size == 0:  # a slide without tissue, in whatever shape
        return np.zeros((0, 2), dtype=np.int64)
    if len(shape) != 2 or shape[1] == 0 or coords.shape != (shape[0], 2):
        raise InputError(f"features {shape} and coords {coords.shape} should be (N, D) and (N, 2) {advice}")
    if stored.dtype.kind != "f" or stored.dtype.itemsize > 8 or coords.dtype.kind not in "fiu":
        raise InputError(f"features {stored.dtype} and coords {coords.dtype} should be floats and numbers {advice}")
    if stored.form == "smooth-mil" and coords.dtype.kind == "f":
        raise InputError(f"coords {coords.dtype} should be integers {advice}")
    if not (np.abs(coords.astype(np.float64)) < 2**53).all():
        raise InputError(f"coords hold NaN, infinite or impossible values {advice}")
    return coords.astype(np.float64 if coords.dtype.kind == "f" else np.int64)


def _without_unit(path: Path, coords: np.ndarray, said: Mapping[str, Any]) -> tuple[np.ndarray, Mapping[str, Any]]:
    """In micrometres, as far as the stride tells the version of STAMP."""
    stride = _above_0(said, "tile_size") or commonest_distance(coords)
    if stride is None or round(stride) == TILE_OF_STAMP:
        return coords, said
    if round(stride) != STEPS_OF_STAMP_1:
        raise InputError(
            f"{path} names no unit and its tiles are {stride:g} apart, not {STEPS_OF_STAMP_1} or {TILE_OF_STAMP:g} as "
            "of STAMP 1 or 2; give it the root attributes unit and tile_size_um, or extract its features again"
        )
    return coords * (TILE_OF_STAMP / STEPS_OF_STAMP_1), {**said, STAMP_1: TILE_OF_STAMP}


def _header(path: Path, stored: _Stored, coords: np.ndarray) -> FeatureHeader:
    said, form = stored.said, stored.form
    is_own = form == "smooth-mil"
    stated, tile = _stated(path, form, said)
    pitch, pitch_from = _pitch(coords, stated)
    if len(coords) and np.ptp(coords.astype(float), axis=0).max() > MOST_PITCHES * pitch:
        raise InputError(f"coords lie over {MOST_PITCHES} pitches of {pitch:g} apart (file {path}); extract them again")
    return FeatureHeader(
        form=form,
        patches=len(coords),
        dimension=stored.shape[-1] if len(stored.shape) > 1 else 0,
        slide_id=str(said["slide_id"]) if is_own and "slide_id" in said else path.stem,
        encoder=_encoder(path, form, said),
        pitch=Level0Pixels(pitch),
        pitch_from=pitch_from,
        tile=Level0Pixels(tile or pitch),
        unit=_unit(path, form, said),
        mpp=_mpp(said) if is_own else None,
        slide_size=_size(said, "slide") or _size(said, "level0"),
        origin=(int(_number(said, "bounds_x") or 0), int(_number(said, "bounds_y") or 0)) if is_own else None,
        magnification=_above_0(said, "level0_magnification"),
    )


def _stated(path: Path, form: str, said: Mapping[str, Any]) -> tuple[tuple[float, str] | None, float | None]:
    """The pitch and where it stands, and what a patch spans, as far as a file says."""
    if form == "smooth-mil":
        pitch, tile = _above_0(said, "pitch_level0"), _above_0(said, "tile_level0")
        if pitch is None or tile is None:
            raise InputError(f"{path} says that pitch_level0 or tile_level0 is not above 0; extract its features again")
        return (pitch, "pitch_level0"), tile
    if form == "STAMP":
        name = next((name for name in (STAMP_1, "tile_size_um") if name in said), "tile_size")
        tile = _above_0(said, name)
        return (None if tile is None else (tile, name)), tile
    size, at_level0 = _above_0(said, "patch_size"), _above_0(said, "patch_size_level0")
    downsample = _above_0(said, "downsample")
    if at_level0 is not None:
        scale = at_level0 / size if size else 1.0
        pitch = at_level0 - scale * (_above_0(said, "overlap") or 0.0)
        return ((pitch, "patch_size_level0 less overlap") if pitch > 0 else None), at_level0
    if size is not None and downsample is not None:
        pitch = downsample * (size - (_above_0(said, "overlap") or 0.0))
        return ((pitch, "patch_size x downsample") if pitch > 0 else None), size * downsample
    return None, None


def _pitch(coords: np.ndarray, stated: tuple[float, str] | None) -> tuple[float, str]:
    """What the file states, unless the patches clearly lie otherwise."""
    if stated is None:
        nearest = commonest_distance(coords)
        if nearest is None:
            return TILE_OF_A_LONE_PATCH, "a guess: no two patches and nothing stated"
        return nearest, "commonest nearest distance"
    pitch, name = stated
    as_stated = fit(coords, pitch)
    if len(coords) < 3 or as_stated.good:
        return stated
    nearest = commonest_distance(coords)
    if nearest is not None and fit(coords, nearest).is_better_than(as_stated):
        return nearest, f"commonest nearest distance, as the patches do not lie {pitch:g} apart ({name})"
    return stated


def _number(said: Mapping[str, Any], name: str) -> float | None:
    """One finite number; CLAM gives a pair for x and y, which are the same but for rounding."""
    value = said.get(name)
    if isinstance(value, list) and value:
        value = value[0]
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _above_0(said: Mapping[str, Any], name: str) -> float | None:
    number = _number(said, name)
    return number if number is not None and number > 0 else None


def _mpp(said: Mapping[str, Any]) -> MicronsPerPixel | None:
    mpp = _above_0(said, "mpp")
    return None if mpp is None else MicronsPerPixel(mpp)


def _size(said: Mapping[str, Any], of: str) -> tuple[int, int] | None:
    width, height = _above_0(said, f"{of}_width"), _above_0(said, f"{of}_height")
    return (int(width), int(height)) if width and height else None


def _unit(path: Path, form: str, said: Mapping[str, Any]) -> str:
    if form != "STAMP":
        return PIXELS
    if str(said.get("unit", "um")).lower() not in NAMES_OF_MICROMETRES:
        raise InputError(f"the unit of {path} is {said['unit']!r}, micrometres are wanted; extract its features again")
    return MICROMETRES


def _encoder(path: Path, form: str, said: Mapping[str, Any]) -> str:
    for name in ("encoder", "extractor"):
        if isinstance(said.get(name), str):
            return HASH_OF_STAMP.sub("", said[name]) if name == "extractor" else str(said[name])
    if form == "smooth-mil":
        return ""
    folders = [above.name for above in list(path.absolute().parents)[:2]]
    return next((name.removeprefix("features_") for name in folders if name.startswith("features_")), "")
