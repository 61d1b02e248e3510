# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""What a format of feature files is, and what all of them share: headers, checks, damage told in one line.

To read one more format, write a file like `uni2h.py` beside this one and name its class in `FORMATS` of `files.py`.
"""

from __future__ import annotations

import math
import pickle
import struct
import tokenize
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
import torch
from torch import Tensor

from scripts.core.errors import InputError
from scripts.core.units import Level0Pixels, MicronsPerPixel
from scripts.wsi.features.lattice import commonest_distance, fit

PIXELS, MICROMETRES = "level-0 pixels", "micrometres"
MOST_COMPRESSED = 1100  # deflate makes data 1032 times smaller at best: a file that claims more is damaged
MOST_PITCHES = 2**20  # from one end of a slide to the other; a float32 holds such numbers exactly
TILE_OF_A_LONE_PATCH = 256.0
MICRONS_AT_1X = 10.0  # per pixel, about: 0.25 at 40x
UNREADABLE = (  # what h5py, numpy and torch raise for a damaged file
    *(OSError, RuntimeError, ValueError, LookupError, TypeError, ArithmeticError, AttributeError, EOFError),
    *(MemoryError, SyntaxError, tokenize.TokenError, struct.error, zipfile.BadZipFile),
)

Attributes = Mapping[str, Any]
Rows = Callable[[int, int], np.ndarray]  # start, stop → (n, D)


@dataclass(frozen=True)
class FeatureHeader:
    """What a feature file says about its patches, read without the patches."""

    format: str
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

    def as_json(self) -> dict[str, Any]:
        """Return it as result.json keeps it, where the format goes by "form"."""
        return {"form": self.format, **{key: value for key, value in asdict(self).items() if key != "format"}}

    @staticmethod
    def from_json(stored: Mapping[str, Any]) -> FeatureHeader:
        """Return what `as_json` gave, which JSON may have made lists of."""
        plain: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in stored.items()}
        return FeatureHeader(**{"format": plain.pop("form"), **plain})


@dataclass(frozen=True)
class FeatureFile:
    """An open file: its features stay where they are until they are asked for."""

    path: Path
    header: FeatureHeader
    coords: np.ndarray  # (N, 2) top-left x, y in header.unit, int64 or float64
    rows: Rows

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return rows (n, D), float32 or float16 as stored. What is read of a memory map is let go with the array."""
        stop = min(stop, self.header.patches)
        if start >= stop:
            return np.zeros((0, self.header.dimension), dtype=np.float32)
        with one_line_damage(self.path):
            rows = self.rows(start, stop)
        kept = np.float16 if rows.dtype == np.float16 else np.float32
        with np.errstate(over="ignore"):  # it becomes infinite, and is refused as such
            return rows.astype(kept, copy=False)


@dataclass(frozen=True)
class Head:
    """A file that was opened and not read, by which a format recognises its own."""

    path: Path
    kind: str  # "hdf5", "npy" or "torch"
    hdf5: h5py.File | None = None
    attributes: Attributes = field(default_factory=dict)  # of the root of an HDF5 file

    @property
    def datasets(self) -> set[str]:
        """Names of the datasets and groups of an HDF5 file."""
        return set() if self.hdf5 is None else set(self.hdf5)

    def dataset(self, name: str) -> h5py.Dataset:
        """Return a dataset of numbers, whose size the file can hold."""
        return checked_dataset(self.path, self.hdf5, name)


@dataclass(frozen=True)
class Stored:
    """The features and coordinates of a file, and what its format says of them."""

    shape: tuple[int, ...]  # of the features
    dtype: np.dtype
    rows: Rows
    coords: np.ndarray
    attributes: Attributes = field(default_factory=dict)
    pitch: tuple[float, str] | None = None  # as stated, and where it stands
    tile: float | None = None  # that a patch spans
    unit: str = PIXELS
    slide_id: str = ""  # "" = that of the file's name
    encoder: str | None = None  # None = as attributes or the name of a folder say
    mpp: float | None = None
    origin: tuple[int, int] | None = None


class Format(Protocol):
    """One kind of feature files."""

    name: str

    def reads(self, head: Head) -> bool:
        """Return whether a file is of this format, as far as none of the formats before it in the list reads it."""

    def read(self, head: Head) -> Stored:
        """Return what the file holds; the features themselves are read when they are asked for."""


def feature_file(format: Format, head: Head) -> FeatureFile:
    """Return a file of a format, checked: coordinates are numbers, one for each patch, on a slide that can exist."""
    stored = format.read(head)
    coords = _checked_coords(head.path, stored)
    pitch, pitch_from = _pitch(coords, stored.pitch)
    if len(coords) and np.ptp(coords.astype(float), axis=0).max() > MOST_PITCHES * pitch:
        raise InputError(
            f"coords lie over {MOST_PITCHES} pitches of {pitch:g} apart (file {head.path}); extract them again"
        )
    attributes = stored.attributes
    header = FeatureHeader(
        format=format.name,
        patches=len(coords),
        dimension=stored.shape[-1] if len(stored.shape) > 1 else 0,
        slide_id=stored.slide_id or head.path.stem,
        encoder=_encoder(head.path, attributes) if stored.encoder is None else stored.encoder,
        pitch=Level0Pixels(pitch),
        pitch_from=pitch_from,
        tile=Level0Pixels(stored.tile or pitch),
        unit=stored.unit,
        mpp=None if stored.mpp is None else MicronsPerPixel(stored.mpp),
        slide_size=_size(attributes, "slide") or _size(attributes, "level0"),
        origin=stored.origin,
        magnification=positive(attributes, "level0_magnification"),
    )
    return FeatureFile(head.path, header, coords, stored.rows)


# --- arrays as h5py, numpy and torch keep them


@contextmanager
def one_line_damage(path: Path) -> Iterator[None]:
    """Turn what h5py, numpy or torch raise into one line; only around their calls, as a fault of ours is none of it."""
    try:
        yield
    except InputError:
        raise
    except PermissionError as error:
        raise InputError(f"{path} may not be read; ask for the right to") from error
    except UNREADABLE as error:
        raise InputError(f"{path} is damaged or cut short; copy it again or extract its features again") from error


@contextmanager
def opened_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file; damage that shows when it is opened or closed is one line."""
    with one_line_damage(path):
        file = h5py.File(path, "r")
    try:
        yield file
    finally:
        with one_line_damage(path):
            file.close()


def checked_dataset(path: Path, file: h5py.File | None, name: str) -> h5py.Dataset:
    """Return a dataset of numbers, whose size the file can hold."""
    if file is None or name not in file or not isinstance(file[name], h5py.Dataset):
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


def attributes_of(owner: h5py.HLObject) -> dict[str, Any]:
    """Return what is known of them: TRIDENT writes None as the string 'None'."""
    known = {}
    for name, value in owner.attrs.items():
        plain = value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
        if isinstance(plain, (bytes, str)):
            text = plain.decode(errors="replace") if isinstance(plain, bytes) else plain
            plain = " ".join(text.encode(errors="replace").decode().split())  # it will stand in a line of text
        if plain not in (None, "None", ""):
            known[name] = plain
    return known


def hdf5_rows(path: Path, features: h5py.Dataset) -> Rows:
    """Return how rows are read of a dataset (N, D) or (1, N, D)."""
    offset = features.id.get_offset()
    if offset is None or features.file.userblock_size > 0:  # in chunks: HDF5 must put the rows together
        leading = features.ndim == 3
        return lambda start, stop: features[0, start:stop] if leading else features[start:stop]
    return mapped_rows(path, features.dtype, offset, features.shape[-1] if features.ndim > 1 else 0)


def mapped_rows(path: Path, dtype: np.dtype, offset: int, dimension: int) -> Rows:
    """Return how rows are read of an array in one piece: each block is a map of its own, whose memory goes with it."""

    def rows(start: int, stop: int) -> np.ndarray:
        begin = offset + start * dimension * dtype.itemsize
        return np.asarray(np.memmap(path, dtype, mode="c", offset=begin, shape=(stop - start, dimension)))

    return rows


def tensor(path: Path) -> Tensor:
    """Return the one tensor of a torch file, mapped into memory where the file allows it."""
    with one_line_damage(path):
        with path.open("rb") as raw:
            is_mapped = raw.read(4) == b"PK\x03\x04"
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_mapped)
        except pickle.UnpicklingError as error:  # of arrays of numpy too, as TRIDENT's are
            raise InputError(f"{path} holds something else than one tensor, or is damaged; give the h5 file") from error
        if not isinstance(content, Tensor) or content.layout != torch.strided or content.is_quantized:
            what = "tensor of another kind" if isinstance(content, Tensor) else type(content).__name__
            raise InputError(f"{path} holds a {what}, not one tensor of features as CLAM's do; give the h5 file")
        _refuse_claim(path, content.shape, content.numel() * content.element_size(), path.stat().st_size)
        return content.detach()


def tensor_rows(path: Path, features: Tensor) -> tuple[np.dtype, Rows]:
    """Return the type of the numbers of a tensor, and how its rows are read."""

    def numbers(part: Tensor) -> np.ndarray:
        found: np.ndarray = (part.float() if part.dtype == torch.bfloat16 else part).numpy()
        return found

    with path.open("rb") as raw:
        is_mapped = raw.read(4) == b"PK\x03\x04"
    if is_mapped:  # mapped anew for each block, so that its memory is given back
        return numbers(features[:0]).dtype, lambda start, stop: numbers(tensor(path)[start:stop])
    return numbers(features[:0]).dtype, lambda start, stop: numbers(features[start:stop])


# --- what attributes say


def number(attributes: Attributes, name: str) -> float | None:
    """Return one finite number; CLAM gives a pair for x and y, which are the same but for rounding."""
    value = attributes.get(name)
    if isinstance(value, list) and value:
        value = value[0]
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def positive(attributes: Attributes, name: str) -> float | None:
    """Return a number above 0, or None where there is none."""
    found = number(attributes, name)
    return found if found is not None and found > 0 else None


def _size(attributes: Attributes, of: str) -> tuple[int, int] | None:
    width, height = positive(attributes, f"{of}_width"), positive(attributes, f"{of}_height")
    return (int(width), int(height)) if width and height else None


def _encoder(path: Path, attributes: Attributes) -> str:
    """By an attribute, else by a folder called features_<encoder> as TRIDENT's and torchmil's are."""
    if isinstance(attributes.get("encoder"), str):
        return str(attributes["encoder"])
    folders = [above.name for above in list(path.absolute().parents)[:2]]
    return next((name.removeprefix("features_") for name in folders if name.startswith("features_")), "")


def _checked_coords(path: Path, stored: Stored) -> np.ndarray:
    shape, coords = stored.shape, stored.coords
    advice = f"(file {path}); extract the features again"
    if math.prod(shape) == 0 and coords.size == 0:  # a slide without tissue, in whatever shape
        return np.zeros((0, 2), dtype=np.int64)
    if len(shape) != 2 or shape[1] == 0 or coords.shape != (shape[0], 2):
        raise InputError(f"features {shape} and coords {coords.shape} should be (N, D) and (N, 2) {advice}")
    if stored.dtype.kind != "f" or stored.dtype.itemsize > 8 or coords.dtype.kind not in "fiu":
        raise InputError(f"features {stored.dtype} and coords {coords.dtype} should be floats and numbers {advice}")
    if not (np.abs(coords.astype(np.float64)) < 2**53).all():
        raise InputError(f"coords hold NaN, infinite or impossible values {advice}")
    return coords.astype(np.float64 if coords.dtype.kind == "f" else np.int64)


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
