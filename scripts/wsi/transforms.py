# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Transforms that make bags of slides: lattice coordinates, labels of patches, lesions, metadata."""

import json
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import ensure_tuple
from torch import Tensor

from scripts.core.bags import paths_of
from scripts.core.errors import EmptyBagError, InputError
from scripts.core.lesions import Lesions, contradiction
from scripts.core.units import Level0Coords
from scripts.wsi.annotations.annotation import Annotation, joined, read_annotation
from scripts.wsi.annotations.polygons import Polygons
from scripts.wsi.features.base import ADOPT, MICROMETRES, PIXELS, SlidePatches
from scripts.wsi.features.lattice import distinct, on_lattice, side_by_side
from scripts.wsi.reader import no_patches, opened_bag
from scripts.wsi.slides.slide import SlideFolder

NOT_ANNOTATED = Annotation(Polygons([]))


class PatchBagd(MapTransform):
    """Make the bag that a network takes of slides loaded by ``FeatureReader``, in plain tensors and text.

    - ``image`` [D, N], ``mask`` [1, N] ones, ``label`` [1] if the item has one
    - ``coords`` [2, N]: coordinates on the lattice of patches, whole numbers; those of several slides lie apart
    - ``instance_label`` [1, N] if the item has a list of them, or one or more .npy files, or an ``annotation``: a path,
      or for several slides a list of paths, null = nothing is annotated; with one also ``lesion`` [1, N], 0 = none
    - ``stored_coords`` [3, N] float64: number of the slide, x and y as stored
    - ``about`` JSON text: the header of each slide, the number of lesions, warnings
    - ``source``: path of the features, of several the first

    Args:
        annotation_values: what counts as annotated: values of a mask image, or class names; None = all.
        slide_mpp: micrometres per level-0 pixel of slides where nothing states it.
        slides: folder of the slides, which state the size, scale and bounds that the features leave out.
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
            bag[key], slides = self._split(bag[key])
            known = [self.slides.completed(slide, self.slide_mpp) for slide in slides]
            _complete(bag, known, self.annotation_values)
        return bag

    def _split(self, image: Any) -> tuple[Any, list[SlidePatches]]:
        """Return what the key becomes, and the slides it is of."""
        pairs = zip(image.meta["slides"], image.meta["coords"], strict=True)
        return image.as_tensor().t(), [SlidePatches.of_json(stored, np.asarray(xy)) for stored, xy in pairs]


class PatchBlocksd(PatchBagd):
    """Make the same bag as ``FeatureReader`` and ``PatchBagd``, but leave ``image`` a path, for ``opened_blocks``.

    The paths of several slides are the lines of one text, which a batch carries unharmed.
    """

    def _split(self, image: Any) -> tuple[str, list[SlidePatches]]:
        with opened_bag(paths_of(image)) as files:
            slides = [file.slide for file in files]
        return "\n".join(slide.source for slide in slides), slides


def _complete(bag: dict[Hashable, Any], slides: Sequence[SlidePatches], values: Sequence[int | str] | None) -> None:
    """Add all of a bag but its features."""
    source = slides[0].source
    coords = np.concatenate([slide.coords.astype(np.float64) for slide in slides])
    if len(coords) == 0:
        raise EmptyBagError(no_patches(source))
    number = np.repeat(np.arange(len(slides)), [len(slide.coords) for slide in slides])
    lattice = side_by_side(np.concatenate([_distinct_on_lattice(slide) for slide in slides]), number)
    about: dict[str, Any] = {"slides": [slide.as_json() for slide in slides]}
    warnings = [no_patches(slide.header.slide_id) for slide in slides if len(slide.coords) == 0]
    warnings.extend(warning for slide in slides for warning in slide.warnings)
    bag["coords"] = torch.from_numpy(lattice.T.astype(np.float32))
    bag["mask"] = torch.ones(1, len(coords))
    bag["stored_coords"] = torch.from_numpy(np.concatenate([number[None], coords.T]))
    label = bag.get("label")
    if "label" in bag:
        bag["label"] = torch.tensor([float(bag["label"])])
    if "annotation" in bag:
        given = bag["annotation"]
        paths = _annotation_per_slide(given, slides)
        labels, lesions, doubts = _annotated(paths, slides, values)
        warnings.extend(doubts)
        bag["instance_label"] = torch.from_numpy(labels).float()[None]
        bag["lesion"] = torch.from_numpy(lesions.of_instance.astype(np.int64))[None]
        about["lesions"] = {"count": lesions.count, "excluded": list(lesions.excluded)}
        bag["annotation"] = paths if isinstance(given, (list, tuple)) else given or ""
        wrong = contradiction(label, int(labels.sum()), "annotated")
        warnings += [f"{line} (annotation_values says what counts as annotated)" for line in wrong]
    elif "instance_label" in bag:
        bag["instance_label"] = _given_labels(bag["instance_label"], slides)
        warnings += contradiction(label, int(bag["instance_label"].sum()), "positive")
    about["warnings"] = list(dict.fromkeys(warnings))
    bag["about"] = json.dumps(about)
    bag["source"] = source


def _distinct_on_lattice(slide: SlidePatches) -> np.ndarray:
    lattice = on_lattice(slide.coords, slide.header.pitch)
    if len(distinct(lattice)) < len(lattice):
        _, first, times = np.unique(lattice, axis=0, return_index=True, return_counts=True)
        x, y = slide.coords[first[times.argmax()]].tolist()
        raise InputError(
            f"{times.max()} patches at the same place ({x}, {y}) of {slide.source}: "
            "extract its features again, each patch once"
        )
    return lattice


def _annotation_per_slide(given: Any, slides: Sequence[SlidePatches]) -> list[str]:
    """Return the path of each, empty where nothing is annotated: a batch can hold no None."""
    if given is None:
        return [""] * len(slides)
    paths = [path or "" for path in ensure_tuple(given)]
    if len(paths) != len(slides):
        what = f"{len(paths)} annotations for the {len(slides)} slides of the bag of {slides[0].source}"
        raise InputError(f"{what}: give one for each, or null")
    return paths


def _annotated(
    paths: Sequence[str], slides: Sequence[SlidePatches], values: Sequence[int | str] | None
) -> tuple[np.ndarray, Lesions, list[str]]:
    """Return whether each patch is annotated, the lesions, and warnings."""
    labels, lesions, warnings = [], [], []
    for path, slide in zip(paths, slides, strict=True):
        header, coords = slide.header, Level0Coords(slide.coords)
        annotation = _compared_annotation(path, slide, values) if path else NOT_ANNOTATED
        if path and header.origin is None and annotation.counts_from_bounds:
            warnings.append(
                f"the GeoJSON of {header.slide_id} counts from the slide's bounds, which are not known: "
                "if they do not begin at 0, 0 give --slides"
            )
        if path and header.mpp is None:
            warnings.append(
                "lesions are counted without their size, as micrometres per pixel are not known: "
                "give --slide_mpp or --slides"
            )
        labels.append(annotation.tile_labels(coords, header.tile))
        lesions.append(annotation.lesions(coords, header.tile, header.mpp))
    return np.concatenate(labels), joined(lesions), warnings


def _compared_annotation(path: str, slide: SlidePatches, values: Sequence[int | str] | None) -> Annotation:
    header = slide.header
    if header.unit != PIXELS:
        way = ADOPT
        if header.unit == MICROMETRES:
            way = "give the slides with --slides or their micrometres per pixel with --slide_mpp"
        raise InputError(
            f"{slide.source} gives {header.unit} and {path} pixels, which cannot be compared: "
            f"{way}, or leave out the annotation"
        )
    return read_annotation(path, header.slide_size, values, header.origin, slide.coords)


def _given_labels(given: Any, slides: Sequence[SlidePatches]) -> Tensor:
    patches, source = sum(len(slide.coords) for slide in slides), slides[0].source
    if isinstance(given, str):
        given = [given]
    if isinstance(given, (list, tuple)) and given and isinstance(given[0], str):
        if len(given) != len(slides):
            raise InputError(f"{len(given)} files of instance labels for the {len(slides)} slides of {source}")
        return torch.from_numpy(np.concatenate(list(map(_labels_of_file, given, slides))))[None]
    try:
        labels = torch.as_tensor(given, dtype=torch.float32).reshape(1, -1)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"the instance labels of {source} are no numbers; give 0 or 1 for each patch") from error
    if labels.shape[1] != patches:
        raise InputError(f"{labels.shape[1]} instance labels for the {patches} patches of {source}; give one per patch")
    return labels


def _labels_of_file(path: str, slide: SlidePatches) -> np.ndarray:
    try:
        labels = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"no instance labels can be read from {path}; give a .npy of a number per patch") from error
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "fiub" or labels.size != len(slide.coords):
        what = f"one number for each of the {len(slide.coords)} patches of {slide.source}"
        raise InputError(f"{path} should hold {what}; give those of this slide")
    return labels.reshape(-1).astype(np.float32)
