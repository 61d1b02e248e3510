# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""What a format of feature files is, and what all of them share: headers, checks, damage reported in one line.

To read one more format, write a file like `uni2h.py` beside this one and name its class in `FORMATS` of `files.py`.
"""

import math
import pickle
import struct
import tokenize
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import h5py
import numpy as np
import torch
from torch import Tensor

from scripts.core.errors import InputError
from scripts.core.units import Level0Pixels, MicronsPerPixel
from scripts.wsi.features.lattice import commonest_distance, fit

PIXELS, MICROMETRES = "level-0 pixels", "micrometres"
ZIP = b"PK\x03\x04"  # what a zipped file begins with
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
    """What a feature file states about its patches, read without the patches."""

    format: str
    patches: int
    dimension: int
    slide_id: str
    encoder: str  # "" = not stated
    pitch: Level0Pixels  # from one patch to the next
    pitch_from: str
    tile: Level0Pixels  # that a patch spans
    unit: str  # of pitch, tile and coords: PIXELS, or MICROMETRES where the pixels are not known
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
        plain = asdict(self)
        return {"form": plain.pop("format"), **plain}

    @staticmethod
    def from_json(stored: Mapping[str, Any]) -> "FeatureHeader":
        """Return what `as_json` gave, which JSON may have made lists of."""
        plain: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in stored.items()}
        return FeatureHeader(format=plain.pop("form"), **plain)


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
        with np.errstate(over="ignore"):  # it becomes infinite, and is refused as such
            return rows.astype(np.float16 if rows.dtype == np.float16 else np.float32, copy=False)


@dataclass(frozen=True)
class Head:
    """A file that was opened and not read, by which a format recognises its own."""

    path: Path
    kind: str  # "hdf5", "npy" or "torch"
    hdf5: Mapping[str, h5py.HLObject] = field(default_factory=dict)
    attributes: Attributes = field(default_factory=dict)  # of the root of an HDF5 file

    def dataset(self, name: str) -> h5py.Dataset:
        """Return a dataset of numbers, whose size the file can hold."""
        dataset = self.hdf5.get(name)
        if not isinstance(dataset, h5py.Dataset):
            raise InputError(f"{self.path} holds no dataset `{name}`; extract its features again")
        if dataset.shape is None or dataset.dtype.kind not in "fiub":
            what = "empty" if dataset.shape is None else dataset.dtype
            raise InputError(f"{name} of {self.path} are {what}, not numbers; extract its features again")
        _refuse_claim(self.path, dataset.shape, dataset.dtype.itemsize, dataset.id.get_storage_size())
        return dataset


class StoredFeatures(NamedTuple):
    """The features of a file, not read yet."""

    shape: tuple[int, ...]
    dtype: np.dtype
    rows: Rows


@dataclass(frozen=True)
class Stored:
    """The features and coordinates of a file, and what its format states about them."""

    features: StoredFeatures
    coords: np.ndarray
    attributes: Attributes = field(default_factory=dict)
    pitch: tuple[float, str] | None = None  # as stated, and where
    tile: float | None = None  # that a patch spans
    unit: str = PIXELS
    slide_id: str = ""  # "" = the file's name
    encoder: str | None = None  # None = by an attribute or the name of a folder
    mpp: float | None = None
    origin: tuple[int, int] | None = None


class Format(Protocol):
    """One kind of feature files."""

    name: str

    def reads(self, head: Head) -> bool:
        """Return whether a file is of this format, as far as none of the formats before it in the list reads it."""

    def read(self, head: Head) -> Stored:
        """Return what the file holds; its features are read when they are asked for."""


def feature_file(format: Format, head: Head) -> FeatureFile:
    """Return a file of a format, checked: coordinates are numbers, one for each patch, on a slide that can exist."""
    path = head.path
    with one_line_damage(path):
        stored = format.read(head)
    shape, attributes = stored.features.shape, stored.attributes
    coords = _checked_coords(path, stored)
    pitch, pitch_from = _pitch(coords, stored.pitch)
    if len(coords) and np.ptp(coords.astype(float), axis=0).max() > MOST_PITCHES * pitch:
        raise InputError(f"coords lie over {MOST_PITCHES} pitches of {pitch:g} apart (file {path}); extract them again")
    header = FeatureHeader(
        format=format.name,
        patches=len(coords),
        dimension=shape[-1] if len(shape) > 1 else 0,
        slide_id=stored.slide_id or path.stem,
        encoder=_encoder(path, attributes) if stored.encoder is None else stored.encoder,
        pitch=Level0Pixels(pitch),
        pitch_from=pitch_from,
        tile=Level0Pixels(stored.tile or pitch),
        unit=stored.unit,
        mpp=None if stored.mpp is None else MicronsPerPixel(stored.mpp),
        slide_size=_size(attributes, "slide") or _size(attributes, "level0"),
        origin=stored.origin,
        magnification=positive(attributes, "level0_magnification"),
    )
    return FeatureFile(path, header, coords, stored.features.rows)


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
def opened_hdf5(path: Path) -> Iterator[Head]:
    """Open an HDF5 file; damage that shows when it is opened or closed is reported in one line."""
    with one_line_damage(path):
        file = h5py.File(path, "r")
    try:
        with one_line_damage(path):
            head = Head(path, "hdf5", file, attributes_of(file))
        yield head
    finally:
        with one_line_damage(path):
            file.close()


def _refuse_claim(path: Path, shape: Sequence[int], itemsize: int, stored: int) -> None:
    stored = min(stored, path.stat().st_size)
    if math.prod(shape) * itemsize > MOST_COMPRESSED * stored:
        raise InputError(f"{path} claims {tuple(shape)} numbers and holds {stored} bytes; extract its features again")


def attributes_of(owner: h5py.HLObject) -> dict[str, Any]:
    """Return the attributes that state something: TRIDENT writes None as the string 'None'."""
    known = {}
    for name, value in owner.attrs.items():
        plain = value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
        if isinstance(plain, str):
            plain = plain.encode(errors="replace")
        if isinstance(plain, bytes):
            plain = " ".join(plain.decode(errors="replace").split())  # it will stand in a line of text
        if plain not in (None, "None", ""):
            known[name] = plain
    return known


def hdf5_features(path: Path, dataset: h5py.Dataset) -> StoredFeatures:
    """Return the features of a dataset (N, D) or (1, N, D)."""
    leading, offset = dataset.ndim == 3, dataset.id.get_offset()
    shape = dataset.shape[1:] if leading and len(dataset) == 1 else dataset.shape
    if offset is not None and dataset.file.userblock_size == 0:  # not in chunks, which HDF5 must put together
        rows = mapped_rows(path, dataset.dtype, offset, shape[-1] if len(shape) > 1 else 0)
        return StoredFeatures(shape, dataset.dtype, rows)
    return StoredFeatures(
        shape, dataset.dtype, lambda start, stop: dataset[0, start:stop] if leading else dataset[start:stop]
    )


def mapped_rows(path: Path, dtype: np.dtype, offset: int, dimension: int) -> Rows:
    """Return how rows are read of an array in one piece: each block is a map of its own, whose memory goes with it."""

    def rows(start: int, stop: int) -> np.ndarray:
        begin = offset + start * dimension * dtype.itemsize
        return np.asarray(np.memmap(path, dtype, mode="c", offset=begin, shape=(stop - start, dimension)))

    return rows


def torch_features(path: Path) -> StoredFeatures:
    """Return the features of a torch file of one tensor, mapped into memory where the file allows it."""
    with one_line_damage(path), path.open("rb") as raw:
        is_mapped = raw.read(len(ZIP)) == ZIP
    whole: Tensor | None = _tensor(path, is_mapped)
    assert whole is not None
    shape, whole = tuple(whole.shape), None if is_mapped else whole

    def rows(start: int, stop: int) -> np.ndarray:
        part = (_tensor(path, True) if whole is None else whole)[start:stop]  # a map of its own goes with the block
        found: np.ndarray = (part.float() if part.dtype == torch.bfloat16 else part).numpy()
        return found

    return StoredFeatures(shape, rows(0, 0).dtype, rows)


def _tensor(path: Path, is_mapped: bool) -> Tensor:
    with one_line_damage(path):
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_mapped)
        except pickle.UnpicklingError as error:  # of arrays of numpy too, as TRIDENT's are
            raise InputError(f"{path} holds something else than one tensor, or is damaged; give the h5 file") from error
        if not isinstance(content, Tensor) or content.layout != torch.strided or content.is_quantized:
            what = "tensor of another kind" if isinstance(content, Tensor) else type(content).__name__
            raise InputError(f"{path} holds a {what}, not one tensor of features as CLAM's do; give the h5 file")
        _refuse_claim(path, content.shape, content.element_size(), path.stat().st_size)
        return content.detach()


def number(attributes: Attributes, name: str) -> float | None:
    """Return one finite number; CLAM gives a pair for x and y, which are the same but for rounding."""
    value = attributes.get(name)
    try:
        found = float(value[0] if isinstance(value, list) else value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, IndexError):
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
    """Return what an attribute states, or a folder called features_<encoder> as TRIDENT's and torchmil's are."""
    if isinstance(stated := attributes.get("encoder"), str):
        return stated
    folders = [above.name for above in path.absolute().parents[:2]]
    return next((name.removeprefix("features_") for name in folders if name.startswith("features_")), "")


def _checked_coords(path: Path, stored: Stored) -> np.ndarray:
    shape, dtype, _ = stored.features
    coords = stored.coords[0] if stored.coords.ndim == 3 and len(stored.coords) == 1 else stored.coords
    advice = f"(file {path}); extract the features again"
    if math.prod(shape) == 0 and coords.size == 0:  # a slide without tissue, in whatever shape
        return np.zeros((0, 2), dtype=np.int64)
    if len(shape) != 2 or shape[1] == 0 or coords.shape != (shape[0], 2):
        raise InputError(f"features {shape} and coords {coords.shape} should be (N, D) and (N, 2) {advice}")
    if dtype.kind != "f" or dtype.itemsize > 8 or coords.dtype.kind not in "fiu":
        raise InputError(f"features {dtype} and coords {coords.dtype} should be floats and numbers {advice}")
    if not (np.abs(coords.astype(np.float64)) < 2**53).all():
        raise InputError(f"coords hold NaN, infinite or impossible values {advice}")
    return coords.astype(np.float64 if coords.dtype.kind == "f" else np.int64)


def _pitch(coords: np.ndarray, stated: tuple[float, str] | None) -> tuple[float, str]:
    """Return what the file states, unless the patches clearly lie otherwise."""
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
