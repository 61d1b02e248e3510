# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Make a MONAI datalist of patch features and a csv of labels, split by patient, with a written check."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from scripts.core.bags import paths_of
from scripts.core.errors import InputError
from scripts.datalist.split import Leakage, Owners, count_sections, section_notes
from scripts.datalist.tables import column_names
from scripts.datalist.writing import CheckedDatalist, as_given, as_text, destination, require_several_patients
from scripts.wsi.datalist.cohort import (
    SAME_PITCH,
    SlideBag,
    SlideCohort,
    WsiDatalistRequest,
    as_bags,
    collect_slides,
    count_bags,
    in_sections,
)
from scripts.wsi.datalist.files import FeatureFiles
from scripts.wsi.datalist.labels import FOLD, LABEL, class_list, holds_labels, holds_splits, training_note
from scripts.wsi.features.base import PIXELS, FeatureHeader
from scripts.wsi.features.files import nothing_found

GUESS = "a guess"  # how pitch_from begins where a file does not state the pitch
PATIENTS = "bags_of_one_patient"  # in the check: a datalist names no patient


def write_wsi_datalist(request: WsiDatalistRequest) -> str:
    """Write the datalist and its check beside it; return a summary for the screen."""
    request, files = _with_sources(request)
    classes, splits = request.classes, request.splits
    output, check_file = destination(request)
    cohort = collect_slides(files, request)
    require_several_patients(cohort.slides, cohort, request.folder, "slide")
    _warn_of_pitches(cohort)
    if splits is not None:
        cohort.notes.append(f"sections are those of {splits.name}{_other_folds(splits)}")
    sections = in_sections(as_bags(cohort, request.by), request.shares, request.seed, cohort.notes)
    if classes is not None and len(classes) == 2:
        cohort.notes.append(f"{classes[0]} is 0, {classes[1]} is 1")
    elif len(cohort.classes) > 2:
        cohort.notes.append(training_note(cohort.classes))
    cohort.notes += section_notes(sections, cohort.classes, "bags")
    counts = count_sections(sections, partial(count_bags, classes=cohort.classes))
    if request.by == "slide":
        for own in counts.values():
            del own["bags"]
    text = as_text(sections)
    bags = [bag for own in sections.values() for bag in own]
    leakage = leakage_of_slides(json.loads(text), {bag.bag_id: bag.patient for bag in bags})
    headers = [slide.header for slide in cohort.slides]
    about = {
        "labels": request.labels and request.labels.name,
        "slide_table": request.slide_table and request.slide_table.name,
        "splits": splits and splits.name,
        "by": request.by,
        "classes": cohort.classes,
        **({"coarse": {str(fine): coarse for fine, coarse in cohort.coarse.items()}} if cohort.coarse else {}),
        "features": {
            "forms": dict(sorted(Counter(header.format for header in headers).items())),
            "encoder": next((header.encoder for header in headers if header.encoder), ""),
            "dimension": headers[0].dimension,
        },
        PATIENTS: _of_one_patient(bags) if cohort.patients_known else None,
    }
    checked = CheckedDatalist(text, leakage, counts, cohort, about, splits or request.labels)
    summary = checked.write(request, output, check_file)
    return f"{summary}\nwritten: {output} and {check_file.name}"


def _with_sources(request: WsiDatalistRequest) -> tuple[WsiDatalistRequest, FeatureFiles]:
    """Return a request with the labels and sections in its folder where it names none, and its features."""
    folder, column = request.folder, request.label_column
    classes = class_list(request.classes)
    files = FeatureFiles(folder, request.features)
    if not files.paths:
        raise InputError(nothing_found(folder))
    labels = labels_in(folder, column) if request.labels is None else as_given(request.labels, folder)
    slide_table = None if request.slide_table is None else as_given(request.slide_table, folder)
    splits = splits_in(folder, labels) if request.splits is None else _fold_of(request.splits)
    if labels is None and (splits is None or slide_table is not None or column != LABEL):
        other = " and no splits.csv of torchmil" if splits is None else ""
        raise InputError(f"{folder} holds no csv with the columns slide and {column}{other}: give --labels FILE")
    return replace(request, labels=labels, splits=splits, classes=classes, slide_table=slide_table), files


def labels_in(folder: Path, label_column: str = LABEL) -> Path | None:
    """Return the csv of the labels, where there is one; of several labels.csv."""
    found = _csv_files(folder, partial(holds_labels, label=label_column))
    return folder / "labels.csv" if folder / "labels.csv" in found else _only_one(found, "labels")


def splits_in(folder: Path, labels: Path | None) -> Path | None:
    """Return the csv of the sections, beside the features or the labels, where there is one; of folds the first."""
    found = _csv_files(folder, holds_splits)
    if not found and labels is not None:
        found = _csv_files(labels.parent, holds_splits)
    return _only_one(_folds(found)[:1] or found, "splits")


def _only_one(found: Sequence[Path], flag: str) -> Path | None:
    if len(found) > 1:
        listed = " and ".join(path.name for path in found)
        raise InputError(f"{found[0].parent} holds {listed}: say which is meant with --{flag} FILE")
    return found[0] if found else None


def _csv_files(folder: Path, is_kind: Callable[[set[str]], bool]) -> list[Path]:
    """Return the csv files with columns of a kind; what is no csv is passed over."""
    found = []
    for path in sorted(folder.glob("*.csv")):
        with suppress(InputError):
            found += [path] * is_kind(column_names(path))
    return found


def _folds(paths: Iterable[Path]) -> list[Path]:
    """Return those that are CLAM's folds, by their number."""
    numbers = {path: int(fold[1]) for path in paths if (fold := FOLD.fullmatch(path.name))}
    return sorted(numbers, key=numbers.__getitem__)


def _fold_of(splits: Path) -> Path:
    if splits.is_file():
        return splits
    found = _csv_files(splits, holds_splits)
    if not found:
        what = "holds no splits_0.csv" if splits.is_dir() else "does not exist"
        raise InputError(f"{splits} {what}: give a csv, or a folder of CLAM's, with --splits")
    return (_folds(found) or found)[0]


def _other_folds(splits: Path) -> str:
    folds = _folds(splits.parent.glob("splits_*.csv"))
    if len(folds) < 2 or splits not in folds:
        return ""
    return f", one of {len(folds)} folds (--splits FILE takes another)"


def _warn_of_pitches(cohort: SlideCohort) -> None:
    pitches = pitches_of_unknown_scale([slide.header for slide in cohort.slides])
    if len(pitches) > 1:
        cohort.warnings.add(
            "level-0 pixels from patch to patch differ and micrometres per pixel are not known, so the magnifications "
            "may (python -m scripts doctor wsi shows which with --slides or --slide_mpp)",
            [", ".join(f"{slides} of {pitch:.0f}" for pitch, slides in pitches)],
        )


def pitches_of_unknown_scale(headers: Sequence[FeatureHeader]) -> list[tuple[float, int]]:
    """Return pitches in level-0 pixels that are not the same, each with its slides; none where all scales are known."""
    in_pixels = [header for header in headers if header.unit == PIXELS and not header.pitch_from.startswith(GUESS)]
    if all(header.pitch_um is not None for header in in_pixels):
        return []
    groups: list[list[float]] = []
    for pitch in sorted(header.pitch for header in in_pixels):
        if not groups or pitch > SAME_PITCH * groups[-1][0]:
            groups.append([])
        groups[-1].append(pitch)
    return [(median(group), len(group)) for group in groups]


def _of_one_patient(bags: Sequence[SlideBag]) -> list[list[str]]:
    """Return bags that belong together, by which the doctor sees a leak without knowing the patients."""
    groups: dict[str, list[str]] = defaultdict(list)
    for bag in bags:
        groups[bag.patient].append(bag.bag_id)
    return sorted(sorted(group) for group in groups.values() if len(group) > 1)


def leakage_of_slides(datalist: Mapping[str, Sequence[Mapping[str, Any]]], patients: Mapping[str, str]) -> Leakage:
    """Return how many patients and slides are in two sections; a bag of no known patient has one of its own."""
    of_patient: Owners = defaultdict(dict)
    of_slide: Owners = defaultdict(dict)
    for section, bags in datalist.items():
        for bag in bags:
            bag_id = bag["bag_id"]
            of_patient[patients.get(bag_id, bag_id)][section] = bag_id
            for image in paths_of(bag["image"]):
                of_slide[image][section] = bag_id
    return Leakage("slides", of_patient, of_slide)
