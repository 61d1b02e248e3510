# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""From patch features and a csv of labels to a MONAI datalist of slides, split by patient, with a written check."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from scripts.core.errors import InputError
from scripts.core.files import whole_file, write_whole
from scripts.datalist.split import Datalist, Shares, as_text
from scripts.datalist.tables import SECTIONS, column_names
from scripts.datalist.writing import as_given, as_table, destination, require_shares
from scripts.wsi.datalist.cohort import (
    SAME_PITCH,
    SlideBag,
    SlideCohort,
    as_bags,
    collect,
    figures,
    in_sections,
    section_notes,
)
from scripts.wsi.datalist.files import FeatureFiles
from scripts.wsi.datalist.labels import FOLD, LABEL, class_list, holds_labels, holds_splits, read_splits, training_note
from scripts.wsi.features.base import PIXELS, FeatureHeader

BY = ("slide", "patient")
GUESS = "a guess"  # how pitch_from begins where a file tells no pitch
PATIENTS = "bags_of_one_patient"  # in the check: a datalist names no patient


def write_wsi_datalist(
    folder: Path,
    labels: Path | None = None,
    output: Path | None = None,
    by: str = "slide",
    splits: Path | None = None,
    shares: Shares = (0.7, 0.1, 0.2),
    seed: int = 0,
    force: bool = False,
    features: str | None = None,
    annotations: Path | None = None,
    classes: Any = None,
    label_column: str = LABEL,
    slide_table: Path | None = None,
) -> str:
    """Writes the datalist and its check beside it; returns what to tell of them."""
    require_shares(shares)
    if by not in BY:
        raise InputError(f"--by {by!r} is not known: give {' or '.join(BY)}")
    names = class_list(classes)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: give the one that holds the features")
    files = FeatureFiles(folder, features)
    if not files.paths:
        raise InputError(
            f"{folder} holds no feature files (.h5, or .pt and .npy in a folder of features): "
            "give the folder that does, or make them with configs/features.json"
        )
    labels = labels_in(folder, label_column) if labels is None else as_given(labels, folder)
    slide_table = None if slide_table is None else as_given(slide_table, folder)
    splits = splits_in(folder, labels) if splits is None else _fold_of(splits)
    if labels is None and (slide_table is not None or label_column != LABEL):
        raise InputError(
            f"{folder} holds no csv with the columns slide and {label_column} that --slide_table or --label_column "
            "could belong to: name the csv of the labels with --labels FILE"
        )
    if labels is None and splits is None:
        raise InputError(
            f"{folder} holds no csv with the columns slide and label, and no splits.csv of torchmil: "
            "name the csv of the labels with --labels FILE"
        )
    output, check_file = destination(folder, output, force)
    sections_given = None if splits is None else read_splits(splits)
    cohort = collect(files, labels, splits, sections_given, names, annotations, label_column, slide_table)
    _require_patients(cohort, folder)
    pitches = pitches_of_unknown_scale([slide.header for slide in cohort.slides])
    cohort.warnings.add(
        "level-0 pixels from patch to patch differ and micrometres per pixel are not known, so the features may be of "
        "two magnifications, or of slides scanned at 20x and 40x, which may rightly differ (python -m scripts doctor "
        "wsi tells with --slides or --slide_mpp)",
        [", ".join(f"{slides} of {pitch:.0f}" for pitch, slides in pitches)] if len(pitches) > 1 else [],
    )
    notes = cohort.notes
    if splits is not None:
        notes.append(f"sections are those of {splits.name}{_other_folds(splits)}")
    sections = in_sections(as_bags(cohort, by), shares, seed, notes)
    notes += [*_class_notes(cohort, names), *section_notes(sections, cohort.classes)]
    counts = figures(sections, cohort.classes)
    if by == "slide":
        for own in counts.values():
            del own["bags"]
    with whole_file(output) as beside:
        beside.write_text(as_text({section: [bag.entry() for bag in bags] for section, bags in sections.items()}))
        bags = [bag for own in sections.values() for bag in own]
        leaks = _leakage(json.loads(beside.read_text()), bags)
        if leaks.example:
            source = splits or labels
            raise InputError(
                f"{leaks.patients_in_several_sections} of {leaks.patients} patients and "
                f"{leaks.slides_in_several_sections} of {leaks.slides} slides would be in more than one section "
                f"(of {' and '.join(leaks.example)}): mend patient or section in {source}"
            )
        check: dict[str, Any] = {
            "datalist": output.name,
            "labels": None if labels is None else labels.name,
            "slide_table": None if slide_table is None else slide_table.name,
            "splits": None if splits is None else splits.name,
            "by": by,
            "classes": cohort.classes,
            **({"coarse": {str(fine): coarse for fine, coarse in cohort.coarse.items()}} if cohort.coarse else {}),
            "features": _kinds(cohort),
            "shares": dict(zip(SECTIONS, shares, strict=True)),
            "seed": seed,
            "sections": counts,
            "leakage": {
                "patients": leaks.patients,
                "patients_in_several_sections": leaks.patients_in_several_sections,
                "slides": leaks.slides,
                "slides_in_several_sections": leaks.slides_in_several_sections,
            },
            PATIENTS: _of_one_patient(bags) if cohort.patients_known else None,
            "notes": notes,
            "rejected": cohort.rejected.as_json(),
            "warnings": cohort.warnings.as_json(),
        }
        write_whole(check_file, json.dumps(check, indent=4) + "\n")
    return "\n".join(
        [
            as_table(counts),
            f"leakage: {leaks.patients_in_several_sections} of {leaks.patients} patients and "
            f"{leaks.slides_in_several_sections} of {leaks.slides} slides are in more than one section",
            *(f"note: {note}" for note in notes),
            *(f"left out: {line}" for line in cohort.rejected.as_lines()),
            *(f"warning: {line}" for line in cohort.warnings.as_lines()),
            f"written: {output} and {check_file.name}",
        ]
    )


def labels_in(folder: Path, label_column: str = LABEL) -> Path | None:
    """The csv of the labels, where there is one; of several labels.csv."""
    found = _tables(folder, partial(holds_labels, label=label_column))
    if len(found) > 1 and folder / "labels.csv" in found:
        return folder / "labels.csv"
    if len(found) > 1:
        listed = " and ".join(path.name for path in found)
        raise InputError(f"{folder} holds {listed}: name the csv of the labels with --labels FILE")
    return found[0] if found else None


def splits_in(folder: Path, labels: Path | None) -> Path | None:
    """The csv of the sections, beside the features or the labels, where there is one; of CLAM's folds the first."""
    found = _tables(folder, holds_splits)
    if not found and labels is not None:
        found = _tables(labels.parent, holds_splits)
    folds = [path for path in found if FOLD.fullmatch(path.name)]
    found = folds[:1] or found
    if len(found) > 1:
        listed = " and ".join(path.name for path in found)
        raise InputError(f"{found[0].parent} holds {listed}: name the csv of the sections with --splits FILE")
    return found[0] if found else None


def _tables(folder: Path, kind: Any) -> list[Path]:
    return [path for path in sorted(folder.glob("*.csv"), key=_by_number) if _is(path, kind)]


def _is(path: Path, kind: Any) -> bool:
    try:
        return bool(kind(column_names(path)))
    except InputError:
        return False


def _by_number(path: Path) -> tuple[int, str]:
    fold = FOLD.fullmatch(path.name)
    return (int(fold[1]) if fold else 0, path.name)


def _fold_of(splits: Path) -> Path:
    if not splits.is_dir():
        if not splits.is_file():
            raise InputError(f"{splits} does not exist: give a csv, or a folder of CLAM's, with --splits")
        return splits
    found = _tables(splits, holds_splits)
    folds = [path for path in found if FOLD.fullmatch(path.name)] or found
    if not folds:
        raise InputError(f"{splits} holds no splits_0.csv: give a csv, or a folder of CLAM's, with --splits")
    return folds[0]


def _other_folds(splits: Path) -> str:
    folds = [path for path in splits.parent.glob("splits_*.csv") if FOLD.fullmatch(path.name)]
    if len(folds) < 2 or splits not in folds:
        return ""
    return f", one of {len(folds)} folds (--splits FILE takes another)"


def _require_patients(cohort: SlideCohort, folder: Path) -> None:
    """Enough of them for a split."""
    if not cohort.slides:
        raise InputError(f"{folder} holds no slide that can be used: {'; '.join(cohort.rejected.as_lines())}")
    to_be_split = len(cohort.slides) > 1 and not any(slide.section for slide in cohort.slides)
    if to_be_split and len({slide.patient for slide in cohort.slides}) == 1:
        raise InputError(
            f"the {len(cohort.slides)} slides in {folder} are of one patient, so that they cannot be split: "
            "give more patients, or a column section"
        )


def pitches_of_unknown_scale(headers: Sequence[FeatureHeader]) -> list[tuple[float, int]]:
    """Pitches in level-0 pixels that are not the same, each with its slides; none where micrometres are all known."""
    in_pixels = [header for header in headers if header.unit == PIXELS and not header.pitch_from.startswith(GUESS)]
    if all(header.pitch_um is not None for header in in_pixels):
        return []
    groups: list[list[float]] = []
    for pitch in sorted(header.pitch for header in in_pixels):
        if groups and pitch <= SAME_PITCH * groups[-1][0]:
            groups[-1].append(pitch)
        else:
            groups.append([pitch])
    return [(median(group), len(group)) for group in groups]


def _class_notes(cohort: SlideCohort, names: Sequence[str] | None) -> list[str]:
    if names is not None and len(names) == 2:
        return [f"{names[0]} is 0, {names[1]} is 1"]
    if len(cohort.classes) > 2:
        return [training_note(cohort.classes)]
    return []


def _kinds(cohort: SlideCohort) -> dict[str, Any]:
    """What the features are."""
    headers = [slide.header for slide in cohort.slides]
    return {
        "forms": dict(sorted(Counter(header.form for header in headers).items())),
        "encoder": next((header.encoder for header in headers if header.encoder), ""),
        "dimension": headers[0].dimension,
    }


def _of_one_patient(bags: Sequence[SlideBag]) -> list[list[str]]:
    """Bags that belong together, by which the doctor sees a leak without knowing the patients."""
    groups: dict[str, list[str]] = defaultdict(list)
    for bag in bags:
        groups[bag.patient].append(bag.bag_id)
    return sorted(sorted(group) for group in groups.values() if len(group) > 1)


class Leakage(NamedTuple):
    patients: int
    patients_in_several_sections: int
    slides: int
    slides_in_several_sections: int
    example: list[str]  # bags that share a patient or a slide


def _leakage(datalist: Datalist, bags: Sequence[SlideBag]) -> Leakage:
    """Of a datalist as it was read from its file."""
    return leakage(datalist, {bag.bag_id: bag.patient for bag in bags})


def leakage(datalist: Mapping[str, Sequence[Mapping[str, Any]]], patients: Mapping[str, str]) -> Leakage:
    """How many patients and slides are in more than one section.

    Args:
        datalist: section -> bags.
        patients: bag_id -> patient; a bag that is not among them is of a patient of its own.
    """
    of_patient: dict[str, dict[str, str]] = defaultdict(dict)  # section -> bag_id
    of_slide: dict[str, dict[str, str]] = defaultdict(dict)
    for section, bags in datalist.items():
        for bag in bags:
            bag_id = bag["bag_id"]
            of_patient[patients.get(bag_id, bag_id)][section] = bag_id
            for image in [bag["image"]] if isinstance(bag["image"], str) else bag["image"]:
                of_slide[image][section] = bag_id
    leaks = [[list(found.values()) for found in of.values() if len(found) > 1] for of in (of_patient, of_slide)]
    return Leakage(
        len(of_patient),
        len(leaks[0]),
        len(of_slide),
        len(leaks[1]),
        next(iter(leaks[0] + leaks[1]), []),
    )
