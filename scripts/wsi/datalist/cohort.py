# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Collect a cohort of slides: match rows of a csv to feature files, and make bags of a slide or of a patient."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from scripts.core.cli import PROGRESS_AFTER_S
from scripts.core.errors import InputError
from scripts.datalist.split import CohortRemarks, Label, Shares, split, without_numbers
from scripts.datalist.writing import DatalistRequest, relative_to_folder
from scripts.wsi.datalist.files import LABELS, PATCH_LABELS, FeatureFiles, beside_features, find_annotations, read_label
from scripts.wsi.datalist.labels import (
    LABEL,
    SlideLabel,
    as_classes,
    coarse_of,
    in_order,
    read_patient_labels,
    read_slide_labels,
    read_splits,
)
from scripts.wsi.features.base import FeatureHeader
from scripts.wsi.features.files import read_header

BY = ("slide", "patient")
SAME_PITCH = 1.05  # pitches whose ratio is below are of one magnification: scanners differ by a few percent

_PATIENT = re.compile(r"TCGA-\w\w-\w{4}(?=[-_.]|$)|patient_\d{3}(?=_node_)")  # TCGA's, and CAMELYON17's


@dataclass(frozen=True, kw_only=True)
class WsiDatalistRequest(DatalistRequest):
    """What `datalist wsi` is asked for."""

    content = "features"

    by: str = "slide"  # or "patient", what a bag is
    splits: Path | None = None  # the csv of the sections, or CLAM's folder of folds
    features: str | None = None  # the folder of features that counts, where there are several
    annotations: Path | None = None  # their folder
    classes: Any = None  # their names, in the order of their numbers
    label_column: str = LABEL
    slide_table: Path | None = None  # the slides of each patient, where the labels have a row for each patient

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.by not in BY:
            raise InputError(f"--by {self.by!r} is not known: give {' or '.join(BY)}")


@dataclass(frozen=True)
class Slide:
    """A labelled slide with features."""

    bag_id: str
    label: Label
    patient: str
    section: str
    image: str  # relative to the folder of the cohort where it lies in it, like the paths below
    header: FeatureHeader
    annotation: str | None = None
    patch_labels: str | None = None


@dataclass(frozen=True)
class SlideBag:
    """One slide, or the slides of one patient."""

    bag_id: str
    label: Label
    patient: str  # what the split goes by
    section: str
    slides: tuple[Slide, ...]
    annotated: bool = False  # its annotations show all that there is to find

    def entry(self) -> dict[str, Any]:
        """Return the bag as a datalist has it."""
        paths: dict[str, list[str | None]] = {"image": [slide.image for slide in self.slides]}
        if self.annotated:
            paths["annotation"] = [slide.annotation for slide in self.slides]
        if all(slide.patch_labels for slide in self.slides):  # one without says nothing of its patches
            paths["instance_label"] = [slide.patch_labels for slide in self.slides]
        entry = {key: own[0] if len(own) == 1 else own for key, own in paths.items()}
        return {"bag_id": self.bag_id, "label": self.label, **entry}


@dataclass
class SlideCohort(CohortRemarks):
    """The slides that were collected, with remarks on the way."""

    slides: list[Slide] = field(default_factory=list)
    classes: list[Label] = field(default_factory=list)
    coarse: dict[Label, str] = field(default_factory=dict)
    patients_known: bool = True  # of at least some slides


def collect_slides(
    files: FeatureFiles, wanted: WsiDatalistRequest, headers: Mapping[Path, FeatureHeader] | None = None
) -> SlideCohort:
    """Collect a slide for each row of the labels that has features; without labels, for each one of the splits.

    Sections of the splits go before those in the csv of labels; `headers` are of files that were read already.
    """
    cohort, labels, headers = SlideCohort(), wanted.labels, headers or {}
    reject = cohort.rejected.add
    sections = None if wanted.splits is None else read_splits(wanted.splits)
    rows, without_slide = _label_rows(files, wanted, sections)
    source = labels or wanted.splits or files.folder
    named = as_classes(rows, wanted.classes, source)
    cohort.coarse = coarse_of(rows, named, source)
    cohort.classes = in_order(named.values(), wanted.classes)
    drawn = {} if wanted.annotations is None else find_annotations(wanted.annotations)
    patients = _patients_of(rows, cohort)
    known = set()
    for row in tqdm(rows, desc="headers", unit="slide", delay=PROGRESS_AFTER_S):
        path = files.of(row.slide)
        known.add(path)
        section = row.section if sections is None else sections.get(row.name, "")
        if path is None:
            reject("row without a feature file", [row.name])
        elif row.line not in named:
            reject("row without a label", [row.name])
        elif sections is not None and not section:
            reject("slide in no section of the splits", [row.name])
        elif (header := headers.get(path) or _read_header(path, row.name, cohort)) is None:
            continue
        elif header.patches == 0:
            reject("slide without tissue", [row.name])
        else:
            image, annotation = files.relative(path), _annotation_of(row, drawn, files.folder, cohort)
            patch_labels = beside_features(path, files.folder, PATCH_LABELS)
            beside = None if patch_labels is None else files.relative(patch_labels)
            slide = Slide(row.name, named[row.line], patients[row.name], section, image, header, annotation, beside)
            cohort.slides.append(slide)
    reject("patient without a slide", without_slide)
    reject("feature file without a row", (files.relative(path) for path in files.paths if path not in known))
    if sections is not None and labels is not None:
        reject("slide of the splits without a row", sections.keys() - {row.name for row in rows})
    used = {slide.bag_id for slide in cohort.slides}
    reject("annotation without a slide", (path.name for name, path in drawn.items() if name not in used))
    _require_one_kind(cohort)
    return cohort


def _label_rows(
    files: FeatureFiles, wanted: WsiDatalistRequest, sections: Mapping[str, str] | None
) -> tuple[list[SlideLabel], list[str]]:
    """Return a row for each slide, and the patients of the labels without a slide."""
    if wanted.labels is None:
        return _torchmil_rows(files, sections or {}), []
    if wanted.slide_table is None:
        return read_slide_labels(wanted.labels, wanted.label_column), []
    return read_patient_labels(wanted.labels, wanted.slide_table, wanted.label_column)


def _torchmil_rows(files: FeatureFiles, sections: Mapping[str, str]) -> list[SlideLabel]:
    rows = []
    for line, name in enumerate(sections, 2):
        path = files.of(name)
        label = None if path is None else beside_features(path, files.folder, LABELS)
        if path is not None and label is None:
            raise InputError(f"{name} has no label as {LABELS}/{path.stem}.npy: give a csv with --labels FILE")
        rows.append(SlideLabel(line, name, "" if label is None else read_label(label)))
    if rows and not any(row.label for row in rows):
        text = f"no slide of the splits, such as {rows[0].slide}, has features in {files.folder}"
        raise InputError(f"{text}: give the folder that does, or a csv with --labels FILE")
    return rows


def _read_header(path: Path, name: str, cohort: SlideCohort) -> FeatureHeader | None:
    try:
        return read_header(path)
    except InputError as error:
        reason = without_numbers(str(error).replace(str(path), "it").replace(path.name, "it"))
        cohort.rejected.add(f"feature file that cannot be read ({reason})", [name])
        return None


def _annotation_of(row: SlideLabel, drawn: Mapping[str, Path], folder: Path, cohort: SlideCohort) -> str | None:
    if row.annotation:
        if (folder / row.annotation).is_file():
            return row.annotation
        cohort.warnings.add("annotation that is not there", [row.annotation])
    return relative_to_folder(drawn[row.name], folder) if row.name in drawn else None


def patient_in(name: str) -> str | None:
    """Return the patient that a name of TCGA or CAMELYON17 states, or None."""
    match = _PATIENT.match(name)
    return None if match is None else match[0]


def _patients_of(rows: Sequence[SlideLabel], cohort: SlideCohort) -> dict[str, str]:
    """Return name of the slide -> patient."""
    known = {row.name: row.patient or patient_in(row.name) for row in rows}
    from_names = [known[row.name] for row in rows if known[row.name] and not row.patient]
    unknown = [name for name, patient in known.items() if patient is None]
    cohort.patients_known = len(unknown) < len(known)
    if from_names:
        cohort.notes.append(f"patients are read from the names of {len(from_names)} slides, such as {from_names[0]}")
    cohort.warnings.add("patient not known, so the slide is taken for a patient of its own", unknown)
    return {name: patient or name for name, patient in known.items()}


def _require_one_kind(cohort: SlideCohort) -> None:
    """Refuse features of two encoders, which are not comparable, and warn of two magnifications."""
    for text in kinds_that_differ([(slide.bag_id, slide.header) for slide in cohort.slides]):
        raise InputError(f"{text}: say which folder to take with --features FOLDER")
    pitches = [pitch for slide in cohort.slides if (pitch := slide.header.pitch_um) is not None]
    if pitches and max(pitches) > SAME_PITCH * min(pitches):
        counts = sorted(Counter(map(round, pitches)).items())
        listed = ", ".join(f"{count} of {pitch}" for pitch, count in counts)
        cohort.warnings.add("micrometres from patch to patch differ, but a network needs one magnification", [listed])


def kinds_that_differ(headers: Sequence[tuple[str, FeatureHeader]]) -> Iterator[str]:
    """Yield what features of one cohort must have in common and have not; of each kind the first slide is named."""
    found: dict[str, dict[Any, str]] = {"numbers per patch": {}, "encoders": {}}
    for name, header in sorted(headers, key=lambda one: one[0]):
        found["numbers per patch"].setdefault(header.dimension, f"{header.dimension} ({name})")
        if header.encoder:
            found["encoders"].setdefault(header.encoder.lower(), f"{header.encoder} ({name})")
    for what, kinds in found.items():
        if len(kinds) > 1:
            shown = " and ".join(kinds[key] for key in sorted(kinds))
            yield f"the features are not of one kind, their {what} are {shown}"


def as_bags(cohort: SlideCohort, by: str) -> list[SlideBag]:
    """Make a bag of each slide, or of the slides of each patient."""
    groups: dict[str, list[Slide]] = defaultdict(list)
    for slide in sorted(cohort.slides, key=lambda slide: slide.bag_id):
        groups[slide.bag_id if by == "slide" else slide.patient].append(slide)
    bags = []
    mixed = 0
    for name, slides in groups.items():
        one, label = slides[0], max((slide.label for slide in slides), key=lambda label: label == 1)
        other = next((slide for slide in slides if slide.label != one.label), None)
        if other is not None and cohort.classes != [0, 1]:
            text = f"{one.bag_id} has the label {one.label}, {other.bag_id} of the same patient {other.label}"
            raise InputError(f"{text}: correct them, or give --by slide")
        mixed += other is not None
        for section in dict.fromkeys(slide.section for slide in slides):  # one, or a leak that is refused later
            own = tuple(slide for slide in slides if slide.section == section)
            bag_id, annotated = re.sub(r"[\\/]", "_", name), _is_annotated(own, cohort)
            bags.append(SlideBag(bag_id, label, one.patient, section, own, annotated))
    if mixed:
        cohort.notes.append(f"patients with slides of both classes, who count as positive: {mixed}")
    if by == "patient":
        cohort.notes.append("bags are named after patients, so results will be too")
    return bags


def _is_annotated(slides: Sequence[Slide], cohort: SlideCohort) -> bool:
    """Return whether annotations show all: a slide with a finding and without one shows nobody where it is."""
    if not any(slide.annotation for slide in slides):
        return False
    unknown = [slide.bag_id for slide in slides if not slide.annotation and slide.label != cohort.classes[0]]
    cohort.warnings.add("slide with a finding and no annotation, so its patient's bag has none", unknown)
    return not unknown


def in_sections(bags: Sequence[SlideBag], shares: Shares, seed: int, notes: list[str]) -> dict[str, list[SlideBag]]:
    """Split by patient; where the user's sections lack validation (torchmil's do), it is drawn from training."""
    sections = split(bags, shares, seed)
    training, validation, _ = shares
    if any(bag.section for bag in bags) and sections["training"] and not sections["validation"] and validation > 0:
        total = training + validation
        undecided = [replace(bag, section="") for bag in sections["training"]]
        sections |= split(undecided, (training / total, validation / total, 0), seed) | {"test": sections["test"]}
        notes.append(f"the sections given have no validation, so {validation / total:.3g} of training was drawn for it")
    return sections


def count_bags(bags: Sequence[SlideBag], classes: Sequence[Label]) -> dict[str, float]:
    """Return how many bags, slides, patients, patches and bags of each class there are."""
    counts = Counter(bag.label for bag in bags)
    slides = [slide for bag in bags for slide in bag.slides]
    found: dict[str, float] = {
        "bags": len(bags),
        "slides": len(slides),
        "patients": len({bag.patient for bag in bags}),
        "patches": sum(slide.header.patches for slide in slides),
    }
    if classes == [0, 1]:
        return {**found, "positive": counts[1], "prevalence": round(counts[1] / len(bags), 4) if bags else 0.0}
    return {**found, **{str(label): counts[label] for label in classes}}
