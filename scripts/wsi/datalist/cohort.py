# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""A cohort of slides: rows of a csv meet feature files, and become bags of a slide or of a patient."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from scripts.core.errors import InputError
from scripts.datalist.split import Label, Remarks, Shares, split
from scripts.datalist.tables import SECTIONS
from scripts.wsi.datalist.files import (
    LABELS,
    PATCH_LABELS,
    FeatureFiles,
    beside_features,
    find_annotations,
    read_label,
    relative,
)
from scripts.wsi.datalist.labels import (
    LABEL,
    SlideLabel,
    as_classes,
    coarse_of,
    in_order,
    read_patient_labels,
    read_slide_labels,
)
from scripts.wsi.features.base import FeatureHeader, read_header

SLOW_SECONDS = 5  # after them a progress bar is shown
SAME_PITCH = 1.05  # pitches whose ratio is below are of one magnification: scanners differ by a few percent

_PATIENT = re.compile(r"TCGA-\w\w-\w{4}(?=[-_.]|$)|patient_\d{3}(?=_node_)")  # TCGA's, and CAMELYON17's
_NUMBERS = re.compile(r"\d+(\.\d+)?")


@dataclass(frozen=True)
class Slide:
    """A labelled slide with features."""

    name: str
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

    @property
    def patches(self) -> int:
        return sum(slide.header.patches for slide in self.slides)

    def entry(self) -> dict[str, Any]:
        """In a datalist."""
        entry: dict[str, Any] = {
            "bag_id": self.bag_id,
            "label": self.label,
            "image": _one_or_all([slide.image for slide in self.slides]),
        }
        patch_labels = [slide.patch_labels for slide in self.slides]
        if self.annotated:
            entry["annotation"] = _one_or_all([slide.annotation for slide in self.slides])
        if all(patch_labels):  # one without says nothing of its patches
            entry["instance_label"] = _one_or_all(patch_labels)
        return entry


def _one_or_all(values: Sequence[Any]) -> Any:
    return values[0] if len(values) == 1 else list(values)


@dataclass
class SlideCohort:
    """What was found, and what was thought of it on the way."""

    slides: list[Slide] = field(default_factory=list)
    classes: list[Label] = field(default_factory=list)
    coarse: dict[Label, str] = field(default_factory=dict)
    patients_known: bool = True  # of at least some slides
    notes: list[str] = field(default_factory=list)
    rejected: Remarks = field(default_factory=Remarks)
    warnings: Remarks = field(default_factory=Remarks)


def collect(
    files: FeatureFiles,
    labels: Path | None,
    splits: Path | None,
    sections: Mapping[str, str] | None,
    classes: Sequence[str] | None,
    annotations: Path | None = None,
    label_column: str = LABEL,
    slide_table: Path | None = None,
) -> SlideCohort:
    """A slide for each row of the labels that has features; without a csv of labels, for each one of torchmil's splits.

    Args:
        files: the feature files.
        labels: the csv of labels; None takes torchmil's folder of labels.
        splits: the csv that the sections are from.
        sections: name of a slide -> its section, which goes before what the csv of labels says.
        classes: as the user listed them.
        annotations: their folder.
        label_column: of the csv of labels.
        slide_table: the csv of the slides of each patient, where that of the labels has a row for each patient.
    """
    cohort = SlideCohort()
    without_slide: list[str] = []
    if labels is not None and slide_table is not None:
        (rows, without_slide), source = read_patient_labels(labels, slide_table, label_column), labels
    elif labels is not None:
        rows, source = read_slide_labels(labels, label_column), labels
    else:
        rows, source = _torchmil_rows(files, sections or {}), splits or files.folder
    named = as_classes(rows, classes, source)
    cohort.coarse = coarse_of(rows, named, source)
    cohort.classes = in_order(named.values(), classes)
    reject = cohort.rejected.add
    drawn = {} if annotations is None else find_annotations(annotations)
    patients = _patients(rows, cohort)
    known = set()
    for row in tqdm(rows, desc="headers", unit="slide", delay=SLOW_SECONDS):
        path = files.of(row.slide)
        if path is None:
            reject("row without a feature file", [row.name])
            continue
        known.add(path)
        section = row.section if sections is None else sections.get(row.name, "")
        if row.line not in named:
            reject("row without a label", [row.name])
        elif sections is not None and not section:
            reject("slide in no section of the splits", [row.name])
        else:
            header = _header(path, row.name, cohort)
            if header is not None:
                cohort.slides.append(
                    Slide(
                        name=row.name,
                        label=named[row.line],
                        patient=patients[row.name],
                        section=section,
                        image=files.relative(path),
                        header=header,
                        annotation=_annotation(row, drawn, files.folder, cohort),
                        patch_labels=_patch_labels(path, files.folder),
                    )
                )
    reject("patient without a slide", without_slide)
    reject("feature file without a row", (files.relative(path) for path in files.paths if path not in known))
    if sections is not None and labels is not None:
        reject("slide of the splits without a row", sections.keys() - {row.name for row in rows})
    if annotations is not None:
        of = {slide.name for slide in cohort.slides}
        reject("annotation without a slide", (path.name for name, path in drawn.items() if name not in of))
    _require_one_kind(cohort)
    return cohort


def _torchmil_rows(files: FeatureFiles, sections: Mapping[str, str]) -> list[SlideLabel]:
    rows = []
    for line, name in enumerate(sections, 2):
        path = files.of(name)
        label = None if path is None else beside_features(path, files.folder, LABELS)
        if path is not None and label is None:
            raise InputError(
                f"{name} has no label, neither in a csv nor as {LABELS}/{path.stem}.npy: give a csv with --labels FILE"
            )
        rows.append(SlideLabel(line, name, "" if label is None else read_label(label)))
    if rows and not any(row.label for row in rows):
        raise InputError(
            f"none of the {len(rows)} slides of the splits, such as {rows[0].slide}, has features in {files.folder}: "
            "give the folder that does, or a csv of labels with --labels FILE"
        )
    return rows


def _header(path: Path, name: str, cohort: SlideCohort) -> FeatureHeader | None:
    try:
        header = read_header(path)
    except InputError as error:
        reason = _NUMBERS.sub("N", str(error).replace(str(path), "it").replace(path.name, "it"))
        cohort.rejected.add(f"feature file that cannot be read ({reason})", [name])
        return None
    if header.patches == 0:
        cohort.rejected.add("slide without tissue", [name])
        return None
    return header


def _annotation(row: SlideLabel, drawn: Mapping[str, Path], folder: Path, cohort: SlideCohort) -> str | None:
    if row.annotation:
        if (folder / row.annotation).is_file():
            return row.annotation
        cohort.warnings.add("annotation that is not there", [row.annotation])
    return relative(drawn[row.name], folder) if row.name in drawn else None


def _patch_labels(path: Path, folder: Path) -> str | None:
    found = beside_features(path, folder, PATCH_LABELS)
    return None if found is None else relative(found, folder)


def patient_in(name: str) -> str | None:
    """Who a slide is of, where its name is known to tell."""
    match = _PATIENT.match(name)
    return None if match is None else match[0]


def _patients(rows: Iterable[SlideLabel], cohort: SlideCohort) -> dict[str, str]:
    """By the name of the slide."""
    patients = {}
    told, unknown = [], []
    for row in rows:
        patient = row.patient or patient_in(row.name)
        if patient is None:
            unknown.append(row.name)
        elif not row.patient:
            told.append(row.name)
        patients[row.name] = patient or row.name
    cohort.patients_known = len(unknown) < len(patients)
    if told:
        cohort.notes.append(f"patients are read from the names of {len(told)} slides, such as {patients[told[0]]}")
    cohort.warnings.add("patient not known, so the slide is taken for a patient of its own", unknown)
    return patients


def _require_one_kind(cohort: SlideCohort) -> None:
    """Features of two encoders are not comparable, whatever their length."""
    for text in kinds_that_differ([(slide.name, slide.header) for slide in cohort.slides]):
        raise InputError(f"{text}: say which folder to take with --features FOLDER")
    pitches = {slide.name: pitch for slide in cohort.slides if (pitch := slide.header.pitch_um) is not None}
    if pitches and max(pitches.values()) > SAME_PITCH * min(pitches.values()):
        groups = Counter(f"{pitch:.0f}" for pitch in pitches.values())
        listed = ", ".join(
            f"{count} of {pitch}" for pitch, count in sorted(groups.items(), key=lambda one: float(one[0]))
        )
        cohort.warnings.add(
            "micrometres from patch to patch differ, a network is trained at one magnification",
            [listed],
        )


def kinds_that_differ(headers: Sequence[tuple[str, FeatureHeader]]) -> Iterator[str]:
    """What features of one cohort must have in common and have not; of each kind the first slide is named."""
    dimensions: dict[int, str] = {}
    encoders: dict[str, str] = {}
    for name, header in sorted(headers, key=lambda one: one[0]):
        dimensions.setdefault(header.dimension, f"{header.dimension} ({name})")
        if header.encoder:
            encoders.setdefault(header.encoder.lower(), f"{header.encoder} ({name})")
    for what, found in (("numbers per patch", dimensions), ("encoders", encoders)):
        if len(found) > 1:
            shown = [text for _, text in sorted(found.items())]
            yield f"the features are not of one kind, their {what} are {' and '.join(shown)}"


def as_bags(cohort: SlideCohort, by: str) -> list[SlideBag]:
    if by == "slide":
        return [
            SlideBag(slide.name, slide.label, slide.patient, slide.section, (slide,), slide.annotation is not None)
            for slide in cohort.slides
        ]
    binary = cohort.classes == [0, 1]
    by_patient: dict[str, list[Slide]] = defaultdict(list)
    for slide in cohort.slides:
        by_patient[slide.patient].append(slide)
    bags = []
    mixed = 0
    for patient, slides in by_patient.items():
        slides.sort(key=lambda slide: slide.name)
        labels = {slide.label for slide in slides}
        if len(labels) > 1 and not binary:
            one, other = _that_disagree(slides)
            raise InputError(
                f"{one.name} has the label {one.label}, {other.name} of the same patient {other.label}: "
                "with --by patient their labels must agree, mend them, or give --by slide"
            )
        mixed += len(labels) > 1
        label = max(labels, key=lambda label: label == 1)
        bag_id = re.sub(r"[\\/]", "_", patient)
        for section in dict.fromkeys(slide.section for slide in slides):  # one, or a leak that will be told
            own = tuple(slide for slide in slides if slide.section == section)
            bags.append(SlideBag(bag_id, label, patient, section, own, _annotated(own, cohort)))
    if mixed:
        cohort.notes.append(f"patients with slides of both classes, who count as positive: {mixed}")
    cohort.notes.append("bags are named after patients, so results will be too")
    return bags


def _annotated(slides: Sequence[Slide], cohort: SlideCohort) -> bool:
    """A slide without an annotation must be one without a finding: of another one nobody knows where it is."""
    if not any(slide.annotation for slide in slides):
        return False
    unknown = [slide.name for slide in slides if not slide.annotation and slide.label != cohort.classes[0]]
    cohort.warnings.add("slide with a finding and no annotation, so its patient's bag has none", unknown)
    return not unknown


def _that_disagree(slides: Sequence[Slide]) -> tuple[Slide, Slide]:
    return next((slides[0], other) for other in slides if other.label != slides[0].label)


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


def figures(sections: Mapping[str, Sequence[SlideBag]], classes: Sequence[Label]) -> dict[str, dict[str, float]]:
    """Counts of each section and of all."""
    total = [bag for bags in sections.values() for bag in bags]
    return {name: _figures(bags, classes) for name, bags in {**sections, "total": total}.items()}


def _figures(bags: Sequence[SlideBag], classes: Sequence[Label]) -> dict[str, float]:
    counts = Counter(bag.label for bag in bags)
    found: dict[str, float] = {
        "bags": len(bags),
        "slides": sum(len(bag.slides) for bag in bags),
        "patients": len({bag.patient for bag in bags}),
        "patches": sum(bag.patches for bag in bags),
    }
    if classes == [0, 1]:
        return {**found, "positive": counts[1], "prevalence": round(counts[1] / len(bags), 4) if bags else 0.0}
    return {**found, **{str(label): counts[label] for label in classes}}


def section_notes(sections: Mapping[str, Sequence[SlideBag]], classes: Sequence[Label]) -> list[str]:
    """What a person should know before training."""
    found = []
    for section in SECTIONS:
        labels = {bag.label for bag in sections[section]}
        absent = [str(label) for label in classes if label not in labels]
        if not labels:
            found.append(f"{section} is empty")
        elif classes == [0, 1] and absent:
            found.append(f"{section} has {'negative' if absent == ['1'] else 'positive'} bags alone")
        elif absent:
            found.append(f"{section} has no bag of {', '.join(absent)}")
    return found
