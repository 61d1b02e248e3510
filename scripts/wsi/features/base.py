# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""What a format of feature files is, and what all of them share: headers and checks.

To read one more format, write a file like `torchmil.py` beside this one and name its class in `FORMATS` of `files.py`.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np

from scripts.core.errors import InputError
from scripts.core.files import require_finite
from scripts.core.hdf5 import refuse_links
from scripts.core.units import Level0Pixels, MicronsPerPixel
from scripts.wsi.features.arrays import Arrays, Rows, StoredArray, hdf5_array, one_line_damage
from scripts.wsi.features.lattice import commonest_distance, fit
from scripts.wsi.features.zarr_store import zarr_array, zarr_names

PIXELS, MICROMETRES = "level-0 pixels", "micrometres"
ADOPT = "say what one of them is: python -m scripts adopt FOLDER --coords_unit MICROMETRES"  # where it is neither
LARGEST_FEATURE = 1e18  # of a feature; its square is still a float32
MOST_PITCHES = 2**20  # from one end of a slide to the other; a float32 holds such numbers exactly
TILE_OF_A_LONE_PATCH = 256.0
ENOUGH_TO_TELL = 16  # patches; a handful may well be alike, or have few neighbours
MICRONS_AT_1X = 10.0  # per pixel, about: 0.25 at 40x
Attributes = Mapping[str, Any]


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
    unit: str  # of pitch, tile and coords: PIXELS; MICROMETRES where the pixels are not known; or of unknown size
    mpp: MicronsPerPixel | None
    slide_size: tuple[int, int] | None  # width, height in level-0 pixels
    origin: tuple[int, int] | None = (0, 0)  # of OpenSlide's bounds, which QuPath takes for 0, 0; None = not known
    magnification: float | None = None  # of level 0, as its objective is called

    @property
    def pitch_um(self) -> float | None:
        """Micrometres from one patch to the next, where they are known, if only by the name of the objective."""
        if self.unit == MICROMETRES:
            return self.pitch
        if self.unit != PIXELS:
            return None
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
class SlidePatches:
    """One slide of a bag: where its patches lie, and what is known of it."""

    source: str  # path of its features
    header: FeatureHeader
    coords: np.ndarray  # (N, 2) top-left x, y in header.unit
    warnings: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {**self.header.as_json(), "source": self.source}

    @staticmethod
    def of_json(stored: Mapping[str, Any], coords: np.ndarray) -> "SlidePatches":
        fields = {name: value for name, value in stored.items() if name != "source"}
        return SlidePatches(stored["source"], FeatureHeader.from_json(fields), coords)


@dataclass(frozen=True)
class FeatureFile:
    """An open file: its features stay where they are until they are asked for."""

    path: Path
    header: FeatureHeader
    coords: np.ndarray  # (N, 2) top-left x, y in header.unit, int64 or float64
    rows: Rows

    @property
    def slide(self) -> SlidePatches:
        """All but the features."""
        return SlidePatches(str(self.path), self.header, self.coords)

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
    kind: str  # "hdf5", "npy", "npz", "torch", "safetensors" or "zarr"
    hdf5: Mapping[str, h5py.HLObject] = field(default_factory=dict)
    attributes: Attributes = field(default_factory=dict)  # of the root of a file that has some
    arrays: Arrays = field(default_factory=dict)  # by name, of npz, torch ("" = of a tensor alone), safetensors, zarr

    def array(self, name: str) -> StoredArray:
        """Return an array of numbers, of a file of any kind that has names."""
        if self.kind == "hdf5":
            dataset = self.hdf5.get(name)
            if not isinstance(dataset, h5py.Dataset):
                raise self.lacks(f"no dataset `{name}`")
            if not dataset.shape or dataset.dtype.kind not in "fiub":
                what = "empty" if dataset.shape is None else dataset.dtype if dataset.shape else "a single one"
                raise InputError(f"{name} of {self.path} are {what}, not numbers; extract its features again")
            return hdf5_array(self.path, dataset)
        found = self.arrays.get(name)
        if found is None and self.kind == "zarr":
            found = zarr_array(self.path, name)  # says what is wrong with one that was passed over
        if found is None:
            raise self.lacks(f"no `{name}`")
        return found

    def stated(self, *names: str) -> Attributes:
        """Return the attributes of arrays of an HDF5 file, "/" for its root; what a later one states counts."""
        found: dict[str, Any] = {}
        for name in names:
            found |= self.attributes if name == "/" else attributes_of(self.hdf5[name])
        return found

    def names(self) -> set[str]:
        """Return the name of every array, of a Zarr store also of those that cannot be read."""
        return {*self.shapes(), *(zarr_names(self.path) if self.kind == "zarr" else ())}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every array, by its name."""
        found = {name: array.shape for name, array in self.arrays.items()}
        if isinstance(self.hdf5, h5py.Group):

            def note(name: str, each: h5py.Dataset | h5py.Group) -> None:
                if getattr(each, "shape", None):
                    found[name] = each.shape

            self.hdf5.visititems(note)
        return found

    def lacks(self, what: str) -> InputError:
        """Return the error that names what the file holds instead."""
        held = ", ".join(f"{name or 'a tensor'} {shape}" for name, shape in list(self.shapes().items())[:8])
        way = "say which are which: python -m scripts adopt FOLDER --features_key NAME --coords_key NAME"
        return InputError(f"{self.path} holds {what}, but {held or 'nothing'}; extract its features again, or {way}")


@dataclass(frozen=True)
class Stored:
    """The features and coordinates of a file, and what its format states about them."""

    features: StoredArray
    coords: np.ndarray  # (N, 2)
    attributes: Attributes = field(default_factory=dict)
    pitch: tuple[float, str] | None = None  # as stated, and where
    tile: float | None = None  # that a patch spans
    unit: str = PIXELS  # of coords, pitch and tile
    slide_id: str = ""  # "" = by the name of the file
    encoder: str | None = None  # None = by an attribute or the name of a folder
    mpp: float | None = None
    origin: tuple[int, int] | None = None
    size: tuple[int, int] | None = None  # of the slide, where no attribute states it
    of_centres: bool = False  # the coords are not those of corners


@dataclass(frozen=True)
class Keys:
    """What a user says of files that do not say it themselves; None = what the files state."""

    features: str | None = None  # name of the array in the file
    coords: str | None = None
    unit: str | float | None = None  # of the coords: "level0", "micrometres", or micrometres that one of them is
    pitch: float | None = None  # in level-0 pixels, or micrometres where the unit is

    def applied(self, stored: Stored) -> Stored:
        """Return what a file holds, its coords as the unit of the user has them, at the pitch that he gave.

        A pitch and tile that the file states in pixels or micrometres are left out where the user's unit is another
        one: they say nothing about such coords. Those that are counted as the coords are become micrometres with them.
        """
        scale = float(self.unit) if isinstance(self.unit, (int, float)) else 1.0
        if self.unit is not None:
            unit = PIXELS if self.unit == "level0" else MICROMETRES
            if stored.unit in (PIXELS, MICROMETRES) and (stored.unit != unit or scale != 1):
                stored = replace(stored, pitch=None, tile=None)
            pitch = None if stored.pitch is None else (stored.pitch[0] * scale, stored.pitch[1])
            coords = stored.coords if scale == 1 else stored.coords * scale
            stored = replace(stored, coords=coords, pitch=pitch, tile=stored.tile and stored.tile * scale, unit=unit)
        return stored if self.pitch is None else replace(stored, pitch=(self.pitch, "--pitch"))


class Format(Protocol):
    """One kind of feature files."""

    name: str

    def reads(self, head: Head) -> bool:
        """Return whether a file is of this format, as far as none of the formats before it in the list reads it."""

    def read(self, head: Head) -> Stored:
        """Return what the file holds; its features are read when they are asked for."""


def feature_file(format: Format, head: Head, keys: Keys, slide: str) -> FeatureFile:
    """Return a file of a format, checked: coordinates are numbers, one for each patch, on a slide that can exist."""
    path = head.path
    with one_line_damage(path):
        stored = keys.applied(format.read(head))
    shape, attributes = stored.features.shape, stored.attributes
    coords = _checked_coords(path, stored)
    pitch, pitch_from = _pitch(coords, stored.pitch)
    if stored.of_centres:
        coords = coords - (stored.tile or pitch) / 2
    if len(coords) and np.ptp(coords.astype(float), axis=0).max() > MOST_PITCHES * pitch:
        raise InputError(f"coords lie over {MOST_PITCHES} pitches of {pitch:g} apart (file {path}); extract them again")
    header = FeatureHeader(
        format=format.name,
        patches=len(coords),
        dimension=shape[-1] if len(shape) > 1 else 0,
        slide_id=stored.slide_id or slide,
        encoder=_encoder(path, attributes) if stored.encoder is None else stored.encoder,
        pitch=Level0Pixels(pitch),
        pitch_from=pitch_from,
        tile=Level0Pixels(stored.tile or pitch),
        unit=stored.unit,
        mpp=None if stored.mpp is None else MicronsPerPixel(stored.mpp),
        slide_size=stored.size or _size(attributes, "slide") or _size(attributes, "level0"),
        origin=stored.origin,
        magnification=positive(attributes, "level0_magnification"),
    )
    return FeatureFile(path, header, coords, stored.features.rows)


@contextmanager
def opened_hdf5(path: Path) -> Iterator[Head]:
    """Open an HDF5 file; damage that shows when it is opened or closed is reported in one line."""
    with one_line_damage(path):
        file = h5py.File(path, "r")
    try:
        with one_line_damage(path):
            refuse_links(path, file)
            head = Head(path, "hdf5", file, attributes_of(file))
        yield head
    finally:
        with one_line_damage(path):
            file.close()


def impossible(block: np.ndarray) -> np.ndarray:
    """Return which numbers no network can take: not finite, or so large that their squares are not."""
    if block.dtype == np.float16:  # which holds none as large
        return ~np.isfinite(block)
    return ~(np.abs(block) < LARGEST_FEATURE)  # NaN is not below either


def require_possible(path: Path, features: np.ndarray) -> None:
    require_finite(path, features)
    if impossible(features).any():
        most = float(np.abs(features).max())
        raise InputError(f"features are as large as {most:.2g} (file {path}), more than a network takes; extract again")


def identical(file: FeatureFile) -> bool:
    """Return whether all of several patches have the same features; read no further than to two that differ."""
    first, start = file.read(0, 1), 1
    while start < file.header.patches:
        block = file.read(start, start + start)  # two patches of most files, and each time as many as so far
        if (block != first).any():
            return False
        start += len(block)
    return file.header.patches > 1


def attributes_of(owner: h5py.HLObject) -> dict[str, Any]:
    """Return the attributes that state something: TRIDENT writes None as the string 'None'."""
    known = {}
    attributes = owner.attrs
    for name in attributes:
        value = attributes[name]
        plain = value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
        if isinstance(plain, str):
            plain = plain.encode(errors="replace")
        if isinstance(plain, bytes):
            plain = " ".join(plain.decode(errors="replace").split())  # it will stand in a line of text
        if plain not in (None, "None", ""):
            known[name] = plain
    return known


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
    for name in ("encoder", "encoder_name", "model_name"):
        if isinstance(stated := attributes.get(name), str):
            return stated
    folders = [above.name for above in path.absolute().parents[:2]]
    return next((name.removeprefix("features_") for name in folders if name.startswith("features_")), "")


def _checked_coords(path: Path, stored: Stored) -> np.ndarray:
    (shape, dtype, _), coords = stored.features, stored.coords
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
    if len(coords) < 3 or (as_stated := fit(coords, pitch)).good:
        return stated
    nearest = commonest_distance(coords)
    if nearest is not None and fit(coords, nearest).is_better_than(as_stated):
        return nearest, f"commonest nearest distance, as the patches do not lie {pitch:g} apart ({name})"
    return stated
