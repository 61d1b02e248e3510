# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Find the files of a cohort by the name of each slide: features, labels of patches, annotations."""

import re
from collections import defaultdict
from pathlib import Path

import numpy as np

from scripts.core.errors import InputError
from scripts.datalist.writing import relative_to_folder
from scripts.wsi.features.files import FEATURE_SUFFIXES, feature_paths, slide_of
from scripts.wsi.slides.slide import SLIDE_SUFFIXES

# of a slide that has several the first wins
ANNOTATION_SUFFIXES = (".geojson", ".json", ".xml", ".tif", ".tiff", ".png")
LABELS, PATCH_LABELS = "labels", "patch_labels"  # folders of torchmil

_OTHER_SLIDES = (".ome", ".dcm", ".sdpc", ".zarr", ".png", ".jpg", ".jpeg")  # that features may have been made of
_SUFFIXES = (*SLIDE_SUFFIXES, *FEATURE_SUFFIXES, *_OTHER_SLIDES)
_MASK = re.compile(r"_(evaluation_)?mask$|_tumor_annotation$")


def slide_name(text: str) -> str:
    """Return the name of a slide, of a path or a name with or without the ending of a slide or of its features."""
    name = text.replace("\\", "/").rpartition("/")[2]
    while name.lower().endswith(_SUFFIXES):
        name = name.rpartition(".")[0]
    return name


class FeatureFiles:
    """The feature files below a folder; of several encoders those in `features`, the name or path of one in it."""

    def __init__(self, folder: Path, features: str | None = None) -> None:
        self.folder = folder
        self.paths = feature_paths(folder)
        if features is not None and Path(features) != Path():
            wanted = f"/{Path(features).as_posix()}/"
            self.paths = [path for path in self.paths if wanted in f"/{path.parent.relative_to(folder).as_posix()}/"]
            if not self.paths:
                raise InputError(f"{folder} holds no feature files in {features}: give a folder below it that does")
        self._by_name: dict[str, list[Path]] = defaultdict(list)
        for path in self.paths:
            self._by_name[slide_name(slide_of(path))].append(path)

    def of(self, slide: str) -> Path | None:
        """Return the file of a slide, given by its name or by the path of its features below the folder."""
        found = self._by_name.get(slide_name(slide), [])
        found = [path for path in found if self.relative(path) == slide] or found
        if len(found) > 1:
            places = " and in ".join(sorted(self.relative(path.parent) for path in found))
            raise InputError(f"{slide_name(slide)} has features in {places}: say which with --features FOLDER")
        return found[0] if found else None

    def relative(self, path: Path) -> str:
        return relative_to_folder(path, self.folder)


def beside_features(path: Path, folder: Path, kind: str) -> Path | None:
    """Find labels of torchmil, those of a slide or of its patches, in a folder beside that of the features."""
    places = (parent / kind / f"{path.stem}.npy" for parent in path.parents if parent.is_relative_to(folder))
    return next(filter(Path.is_file, places), None)


def read_label(path: Path) -> str:
    """Return the label of a slide that torchmil keeps in a .npy."""
    try:
        values = np.unique(np.load(path, allow_pickle=False))
        if values.size == 1:
            return f"{values[0]:g}"
    except (OSError, ValueError, TypeError):
        pass
    raise InputError(f"{path} does not hold one number, the label of a slide: correct it, or give --labels FILE")


def find_annotations(folder: Path) -> dict[str, Path]:
    """Return name of the slide -> annotation; of several the format that says most."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: give the one of the annotations with --annotations FOLDER")
    found: dict[str, Path] = {}
    for suffix in ANNOTATION_SUFFIXES:
        for path in sorted(folder.iterdir(), key=lambda path: path.name):
            name, _, ending = path.name.removesuffix(".gz").rpartition(".")
            if f".{ending}".lower() == suffix:
                found.setdefault(_MASK.sub("", slide_name(name)), path)
    return found
