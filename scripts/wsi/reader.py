# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Feature files of slides become the bags that a network takes, whole or in blocks."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import ImageReader
from monai.transforms import MapTransform
from monai.transforms.croppad.batch import PadListDataCollate
from monai.utils import ensure_tuple
from torch import Tensor
from tqdm import tqdm

from scripts.core.errors import EmptyBagError, InputError
from scripts.core.files import require_finite
from scripts.core.record import Lesions
from scripts.core.units import MicronsPerPixel
from scripts.engine.provenance import Origin
from scripts.wsi.annotations.annotation import joined, read_annotation
from scripts.wsi.features.base import (
    FEATURE_SUFFIXES,
    MICROMETRES,
    FeatureFile,
    FeatureHeader,
    feature_paths,
    files_of,
    open_features,
    read_header,
)
from scripts.wsi.features.lattice import distinct, lattice_places, side_by_side
from scripts.wsi.slides.folder import SlideFolder

BLOCK_NUMBERS = 2**21  # of the features of a file, at once: 8 MiB
SLOW_SECONDS = 5  # after which a bar is shown

logger = logging.getLogger(__name__)


def find_features(directory: str | Path) -> list[dict[str, str]]:
    """The bags of a folder of feature files of any form, in order of their paths; of no slide there may be two."""
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
            places = " and ".join(str(each.relative_to(directory).parent) for each in (other, path))
            raise InputError(f"{directory} holds features of {path.stem} in {places}; give the folder of one of them")
    return [{"image": str(path), "bag_id": path.stem} for path in paths]


def described(
    bags: Sequence[Mapping[str, Any]],
    encoder: str | None = None,
    trained_with: Origin | None = None,
    in_features: int | None = None,
    slide_mpp: float | None = None,
    require_all: bool = False,
) -> list[dict[str, Any]]:
    """The bags, having said in one line what their features are, and refused what the network cannot take.

    Each gains `encoder` ("" = nobody says), `patch_um` (micrometres from patch to patch, 0 = nobody says), the same for
    all; and `stamp`, which changes with its files, so that nothing kept of others is taken for it.

    Args:
        encoder: what the user says it is, whatever the files say.
        trained_with: what is known of the features that the network was trained on.
        in_features: features of a patch that the network takes.
        slide_mpp: micrometres per level-0 pixel of slides where nothing says it.
        require_all: a slide that cannot be read, or has no patch, is told now and not where it is read.
    """
    headers: list[tuple[str, FeatureHeader]] = []
    unusable: list[str] = []
    for bag in tqdm(bags, desc="headers", unit="slide", delay=SLOW_SECONDS):
        own, failed = _headers(bag)
        headers += own
        unusable += failed or ([] if any(header.patches for _, header in own) else [_without_patches(own[0][0])])
    if require_all and unusable:
        more = f" ({len(unusable) - 1} more cannot be used: python -m scripts doctor wsi names them)"
        raise InputError(unusable[0] + more * (len(unusable) > 1))
    name = encoder or _one_encoder(headers)
    if headers:
        logger.info(_in_a_line([header for _, header in headers], name))
        _require_dimension(headers, in_features)
    patch_um = _patch_um([header for _, header in headers], slide_mpp)
    if headers and trained_with is not None:
        trained_with.compare(name, patch_um)
    return [{**bag, "encoder": name, "patch_um": patch_um, "stamp": _stamp(_paths(bag["image"]))} for bag in bags]


def _headers(bag: Mapping[str, Any]) -> tuple[list[tuple[str, FeatureHeader]], list[str]]:
    """Of its files, and why there is none of the others."""
    found, failed = [], []
    for path in _paths(bag["image"]):
        try:
            found.append((path, read_header(path)))
        except InputError as error:
            failed.append(str(error))
    return found, failed


def _without_patches(source: str) -> str:
    return f"{source} holds no patches: no tissue was found"


def _require_dimension(headers: Sequence[tuple[str, FeatureHeader]], wanted: int | None) -> None:
    for path, header in headers:
        if wanted is not None and header.patches and header.dimension != wanted:
            raise InputError(
                f"{path} has {header.dimension} features for each patch, the network takes {wanted}: "
                f"give --in_features {header.dimension}, or the features it was trained on"
            )


def _patch_um(headers: Sequence[FeatureHeader], slide_mpp: float | None) -> float:
    """Micrometres from one patch to the next, in the middle slide of those that say."""
    of_user = None if slide_mpp is None else MicronsPerPixel(slide_mpp)
    filled = (replace(header, mpp=header.mpp or of_user) for header in headers if header.patches)
    known = [pitch for header in filled if (pitch := header.pitch_um) is not None]
    return median(known) if known else 0.0


def _stamp(paths: Sequence[str]) -> str:
    """Size and time of the files, and of those beside them that are read too."""
    states = (os.stat(file) for path in paths for file in files_of(path))
    return " ".join(f"{state.st_size}.{state.st_mtime_ns}" for state in states)


class FeatureReader(ImageReader):
    """For ``LoadImaged(keys="image", reader=FeatureReader(), image_only=True)``: one feature file, or those of a bag.

    The image is [N, D] float32, slide after slide, made once and filled block by block.
    """

    def verify_suffix(self, filename: Sequence[str | os.PathLike] | str | os.PathLike) -> bool:
        return all(Path(name).suffix.lower() in FEATURE_SUFFIXES for name in ensure_tuple(filename))

    def read(self, data: Sequence[str | os.PathLike] | str | os.PathLike, **kwargs: Any) -> list[str]:
        # the files are opened in get_data: LoadImage buries what is raised here under a list of readers
        return _paths(data)

    def get_data(self, img: list[str]) -> tuple[np.ndarray, dict[str, Any]]:
        with _opened_bag(img) as files:
            image = _unfilled(files)
            at = 0
            for block in _blocks(files, max(1, BLOCK_NUMBERS // max(1, image.shape[1]))):
                image[at : at + len(block)] = block
                at += len(block)
        slides = [_Slide.of_file(file) for file in files]
        return image, {"slides": [slide.as_json() for slide in slides], "coords": [slide.coords for slide in slides]}


class PatchBagd(MapTransform):
    """Slides loaded by ``FeatureReader`` become the bag that a network takes, in plain tensors and text.

    - ``image`` [D, N], ``mask`` [1, N] ones, ``label`` [1] if the item has one
    - ``coords`` [2, N]: places on the lattice of patches, whole numbers; those of several slides lie apart
    - ``instance_label`` [1, N] if the item has a list of them, or one or more .npy files, or an ``annotation``: a path,
      or for several slides a list of paths, null = nothing is annotated; with one also ``lesion`` [1, N], 0 = none
    - ``stored_coords`` [3, N] float64: number of the slide, x and y as stored
    - ``about`` JSON text: the header of each slide, the number of lesions, warnings
    - ``source``: path of the features, of several the first

    Args:
        annotation_values: what counts as annotated: values of a mask image, or class names; None = all.
        slide_mpp: micrometres per level-0 pixel of slides where nothing says it.
        slides: folder of the slides, which say of their size, scale and bounds what the features leave out.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        annotation_values: Sequence[int | str] | None = None,
        slide_mpp: float | None = None,
        slides: str | None = None,
    ) -> None:
        super().__init__(keys)
        self.annotation_values = annotation_values
        self.slide_mpp = slide_mpp
        self.slides = SlideFolder(slides)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        bag = dict(data)
        for key in self.key_iterator(bag):
            bag[key], slides = self._taken(bag[key])
            _describe(bag, [slide.completed(self.slides, self.slide_mpp) for slide in slides], self.annotation_values)
        return bag

    def _taken(self, image: Any) -> tuple[Any, list[_Slide]]:
        """What the key becomes, and the slides it is of."""
        meta = image.meta
        slides = [_Slide.of_json(said, np.asarray(xy)) for said, xy in zip(meta["slides"], meta["coords"], strict=True)]
        return image.as_tensor().t(), slides


class PatchBlocksd(PatchBagd):
    """The same bag as by ``FeatureReader`` and ``PatchBagd``, but ``image`` stays a path, for ``read_blocks``.

    The paths of several slides are the lines of one text, which a batch carries unharmed.
    """

    def _taken(self, image: Any) -> tuple[str, list[_Slide]]:
        with _opened_bag(_paths(image)) as files:
            slides = [_Slide.of_file(file) for file in files]
        return "\n".join(slide.source for slide in slides), slides


def read_blocks(path: str | Sequence[str], size: int) -> Iterator[Tensor]:
    """The patch features of one file, or of those of a bag (a list, or a text of a path per line).

    [1, D, n] each, n at most `size`.
    """
    with _opened_bag(path.split("\n") if isinstance(path, str) else _paths(path)) as files:
        for block in _blocks(files, size):
            yield torch.from_numpy(block).float().t()[None]


def collate_bags(bags: Sequence[Mapping[Hashable, Any]]) -> Any:
    """A batch; several bags are padded behind their last patch, one alone is not copied."""
    return one_bag(bags) if len(bags) == 1 else PadListDataCollate(method="end")(bags)


def one_bag(bags: Sequence[Mapping[Hashable, Any]]) -> dict[Hashable, Any]:
    """A batch of a single bag, whose features stay where they are."""
    if len(bags) != 1:
        raise InputError(f"{len(bags)} bags in a batch of bags that are read in blocks: set the batch size to 1")
    return {key: _in_a_batch(value) for key, value in bags[0].items()}


def _in_a_batch(value: Any) -> Any:
    """As PyTorch collates: of a list each member."""
    if isinstance(value, Tensor):
        return value[None]
    return [[member] for member in value] if isinstance(value, list) else [value]


@dataclass(frozen=True)
class _Slide:
    source: str
    header: FeatureHeader
    coords: np.ndarray  # (N, 2)
    warnings: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self.header), "source": self.source}

    @staticmethod
    def of_file(file: FeatureFile) -> _Slide:
        return _Slide(str(file.path), file.header, file.coords)

    @staticmethod
    def of_json(said: Mapping[str, Any], coords: np.ndarray) -> _Slide:
        fields = {name: value for name, value in said.items() if name != "source"}
        return _Slide(said["source"], FeatureHeader(**fields), coords)

    def completed(self, slides: SlideFolder, slide_mpp: float | None) -> _Slide:
        """With what its features leave out."""
        return replace(self, **slides.completed(self.header, self.coords, self.source, slide_mpp)._asdict())


def _paths(image: Any) -> list[str]:
    return [str(path) for path in ensure_tuple(image)]


@contextmanager
def _opened_bag(paths: Sequence[str]) -> Iterator[list[FeatureFile]]:
    """Files that fit together as one bag."""
    with ExitStack() as open_files:
        files = [open_files.enter_context(open_features(path)) for path in paths]
        filled = [file for file in files if file.header.patches]
        for file in filled:
            if file.header.dimension != filled[0].header.dimension:
                raise InputError(
                    f"{file.path} has {file.header.dimension} features for each patch, {filled[0].path} has "
                    f"{filled[0].header.dimension}: the slides of a bag need features of one encoder"
                )
        yield files


def _one_encoder(headers: Sequence[tuple[str, FeatureHeader]]) -> str:
    """Its name, empty where no file says one; encoders of the same dimension are not told apart by a network."""
    known = [(path, header.encoder) for path, header in headers if header.encoder]
    for path, encoder in known:
        if encoder.lower() != known[0][1].lower():
            raise InputError(
                f"the features in {path} are of the encoder {encoder}, those in {known[0][0]} of {known[0][1]}: "
                "give those of one encoder"
            )
    return known[0][1] if known else ""


def _unfilled(files: Sequence[FeatureFile]) -> np.ndarray:
    patches = sum(file.header.patches for file in files)
    dimension = max((file.header.dimension for file in files if file.header.patches), default=0)
    try:
        return np.empty((patches, dimension), dtype=np.float32)
    except (MemoryError, ValueError) as error:
        raise InputError(
            f"{files[0].path} holds {patches} x {dimension} features, more than the memory: "
            "read it in blocks (configs/streaming.json)"
        ) from error


def _blocks(files: Sequence[FeatureFile], size: int) -> Iterator[np.ndarray]:
    """The features (n, D) of all patches in their order, all finite."""
    for file in files:
        for start in range(0, file.header.patches, size):
            block = file.read(start, start + size)
            if not torch.from_numpy(block).sum(dtype=torch.float).isfinite():  # fast, and finite for whatever is
                require_finite(file.path, block)
            yield block


def _describe(bag: dict[Hashable, Any], slides: Sequence[_Slide], values: Sequence[int | str] | None) -> None:
    """All of a bag but its features."""
    source = slides[0].source
    coords = np.concatenate([slide.coords.astype(np.float64) for slide in slides])
    if len(coords) == 0:
        raise EmptyBagError(_without_patches(source))
    number = np.repeat(np.arange(len(slides)), [len(slide.coords) for slide in slides])
    places = np.concatenate([_on_lattice(slide) for slide in slides])
    if len(slides) > 1:
        places = side_by_side(places, number)
    about: dict[str, Any] = {"slides": [slide.as_json() for slide in slides]}
    warnings = [_without_patches(slide.header.slide_id) for slide in slides if len(slide.coords) == 0]
    warnings.extend(warning for slide in slides for warning in slide.warnings)
    bag["coords"] = torch.from_numpy(places.T.astype(np.float32))
    bag["mask"] = torch.ones(1, len(coords))
    bag["stored_coords"] = torch.from_numpy(np.concatenate([number[None], coords.T]))
    label = bag.get("label")
    if "label" in bag:
        bag["label"] = torch.tensor([float(bag["label"])])
    if "annotation" in bag:
        labels, lesions, doubts = _annotated(_of_each(bag["annotation"], slides), slides, values)
        warnings.extend(doubts)
        bag["instance_label"] = torch.from_numpy(labels).float()[None]
        bag["lesion"] = torch.from_numpy(lesions.of_instance.astype(np.int64))[None]
        about["lesions"] = {"count": lesions.count, "excluded": list(lesions.excluded)}
        bag["annotation"] = _collatable(bag["annotation"])
        wrong = contradiction(label, int(labels.sum()), "annotated")
        warnings += [f"{told} (annotation_values says what counts as annotated)" for told in wrong]
    elif "instance_label" in bag:
        bag["instance_label"] = _given_labels(bag["instance_label"], slides)
        warnings += contradiction(label, int(bag["instance_label"].sum()), "positive")
    about["warnings"] = list(dict.fromkeys(warnings))
    bag["about"] = json.dumps(about)
    bag["source"] = source


def contradiction(label: object, positive: int, how: str) -> list[str]:
    """What to tell where a bag's label and those of its patches cannot both be true."""
    if label not in (0, 1) or (positive > 0) == label:
        return []
    return [f"label {label}, though {positive or 'none'} of its patches {'is' if positive < 2 else 'are'} {how}"]


def _on_lattice(slide: _Slide) -> np.ndarray:
    places = lattice_places(slide.coords, slide.header.pitch)
    if len(distinct(places)) < len(places):
        _, first, times = np.unique(places, axis=0, return_index=True, return_counts=True)
        most = times.argmax()
        x, y = slide.coords[first[most]].tolist()
        raise InputError(
            f"{times[most]} patches at the same place ({x}, {y}) of {slide.source}: "
            "extract its features again, each patch once"
        )
    return places


def _of_each(given: Any, slides: Sequence[_Slide]) -> list[str | None]:
    """The annotation of each slide."""
    paths: list[str | None] = list(given) if isinstance(given, (list, tuple)) else [given]
    if given is None:
        return [None] * len(slides)
    if len(paths) != len(slides):
        raise InputError(
            f"{len(paths)} annotations for the {len(slides)} slides of the bag of {slides[0].source}: "
            "give one for each, or null"
        )
    return paths


def _collatable(annotation: Any) -> Any:
    """A batch can hold no None."""
    return [path or "" for path in annotation] if isinstance(annotation, (list, tuple)) else annotation or ""


def _annotated(
    paths: Sequence[str | None], slides: Sequence[_Slide], values: Sequence[int | str] | None
) -> tuple[np.ndarray, Lesions, list[str]]:
    """Whether each patch is annotated, the lesions, and warnings."""
    labels, lesions, warnings = [], [], []
    for path, slide in zip(paths, slides, strict=True):
        header, n = slide.header, len(slide.coords)
        if not path:
            labels.append(np.zeros(n, dtype=bool))
            lesions.append(Lesions(np.zeros(n, dtype=int), 0))
            continue
        if header.unit == MICROMETRES:
            raise InputError(
                f"{slide.source} gives micrometres and {path} pixels, which cannot be compared: "
                "give the slides with --slides or their micrometres per pixel with --slide_mpp, "
                "or leave out the annotation"
            )
        centres = slide.coords + header.tile / 2
        reach = tuple(centres.max(axis=0).tolist()) if n else None
        annotation = read_annotation(path, header.slide_size, values, header.origin, reach)
        if header.origin is None and annotation.counts_from_bounds:
            warnings.append(
                f"the GeoJSON of {header.slide_id} counts from the slide's bounds, which are not known: "
                "if they do not begin at 0, 0 give --slides"
            )
        if header.mpp is None:
            warnings.append(
                "lesions are counted without their size, as micrometres per pixel are not known: "
                "give --slide_mpp or --slides"
            )
        labels.append(annotation.tile_labels(slide.coords, header.tile))  # type: ignore[arg-type]
        lesions.append(annotation.lesions(slide.coords, header.tile, header.mpp))  # type: ignore[arg-type]
    return np.concatenate(labels), joined(lesions), warnings


def _given_labels(given: Any, slides: Sequence[_Slide]) -> Tensor:
    patches = [len(slide.coords) for slide in slides]
    source = slides[0].source
    if isinstance(given, str):
        given = [given]
    if isinstance(given, (list, tuple)) and given and isinstance(given[0], str):
        if len(given) != len(slides):
            raise InputError(f"{len(given)} files of instance labels for the {len(slides)} slides of {source}")
        each = [_labels_of_file(path, slide) for path, slide in zip(given, slides, strict=True)]
        return torch.from_numpy(np.concatenate(each))[None]
    try:
        labels = torch.as_tensor(given, dtype=torch.float32).reshape(1, -1)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"the instance labels of {source} are no numbers; give 0 or 1 for each patch") from error
    if labels.shape[1] != sum(patches):
        raise InputError(
            f"{labels.shape[1]} instance labels for the {sum(patches)} patches of {source}; give one per patch"
        )
    return labels


def _labels_of_file(path: str, slide: _Slide) -> np.ndarray:
    try:
        labels = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"no instance labels can be read from {path}; give a .npy file of one number per patch"
        ) from error
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "fiub" or labels.size != len(slide.coords):
        raise InputError(
            f"{path} should hold one number for each of the {len(slide.coords)} patches of {slide.source}; "
            "give those of this slide"
        )
    numbers: np.ndarray = labels.reshape(-1).astype(np.float32)
    return numbers


def _in_a_line(headers: Sequence[FeatureHeader], encoder: str) -> str:
    """No path: a folder may be named after a patient."""
    forms = ", ".join(f"{count} {form}" for form, count in Counter(header.form for header in headers).most_common())
    slides = "1 slide" if len(headers) == 1 else f"{len(headers)} slides"
    pitches = Counter((f"{header.pitch:.6g}", header.unit, header.pitch_from) for header in headers if header.patches)
    told = [f"{pitch} {unit} ({why})" for (pitch, unit, why), _ in pitches.most_common(2)]
    more = f" and {len(pitches) - 2} more" if len(pitches) > 2 else ""
    empty = sum(header.patches == 0 for header in headers)
    parts = [
        f"{slides}: {forms}",
        f"encoder {encoder or 'not told'}",
        f"pitch {' or '.join(told)}{more}" if told else "",
        f"{empty} without patches" if empty else "",
    ]
    return "; ".join(part for part in parts if part)
