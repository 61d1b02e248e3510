# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Find what would stop a run on whole slides, or spoil it, before an hour is spent."""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from scripts.core.bags import paths_of
from scripts.core.cli import PROGRESS_AFTER_S
from scripts.core.errors import InputError
from scripts.doctor.computer import WHOLE_SLIDES, examine_computer
from scripts.doctor.findings import Entries, Finding, Level, examine_leakage, examine_section, folded, sections_in
from scripts.wsi.datalist.cohort import SAME_PITCH, WsiDatalistRequest, collect_slides, kinds_that_differ, patient_in
from scripts.wsi.datalist.files import FeatureFiles, slide_name
from scripts.wsi.datalist.labels import in_order
from scripts.wsi.datalist.writing import PATIENTS, labels_in, leakage_of_slides, pitches_of_unknown_scale, splits_in
from scripts.wsi.doctor.slide import Examined, ExamOptions, examine_features, examine_slide
from scripts.wsi.features.base import ADOPT, MICROMETRES, PIXELS, FeatureHeader
from scripts.wsi.features.files import nothing_found, slide_of
from scripts.wsi.features.zarr_store import is_zarr
from scripts.wsi.slides.dicom import DICOM_SUFFIX
from scripts.wsi.slides.slide import SLIDE_SUFFIXES, find_slides, holds_slides, slide_title

Named = tuple[str, Path, dict[str, Any]]  # what a slide is called, its features, and what a datalist states of it


def examine_wsi(path: Path, datalist: Path | None, output_dir: Path, options: ExamOptions) -> Iterator[Finding]:
    """Examine the computer, then a datalist and its features, or features or slides below a folder, or one file."""
    yield from examine_computer(output_dir, WHOLE_SLIDES)
    try:
        options.require_valid()
        if not path.exists():
            yield Finding(Level.FAIL, f"{path} does not exist", "check the path")
        elif path.is_dir() and not is_zarr(path):
            yield from _examine_folder(path, datalist, options)
        elif path.suffix.lower() in (*SLIDE_SUFFIXES, DICOM_SUFFIX):
            yield examine_slide(path)
        else:
            yield examine_features(path, slide_name(slide_of(path)), options).finding
    except InputError as error:
        yield Finding(Level.FAIL, str(error))


def _examine_folder(path: Path, datalist: Path | None, options: ExamOptions) -> Iterator[Finding]:
    slides = options.slides
    files = FeatureFiles(path)
    if datalist is None and (path / "datalist.json").is_file():
        datalist = path / "datalist.json"
    if datalist is None and not files.paths:
        if slides is None and not holds_slides(path):
            raise InputError(nothing_found(path))
        yield from _examine_slides(find_slides(slides or path), slides or path, {})
        return
    if datalist is None:
        yield Finding(Level.PASS, f"{path} holds {len(files.paths)} feature file{'s' * (len(files.paths) > 1)}")
        named: list[Named] = [(name, file, {}) for name, file in zip(_slide_names(files), files.paths, strict=True)]
        examined = _examined(named, options)
        stated = {each.path: each.stated for each in examined if each.stated}
        yield from _examine_labels(path, files, stated)
    else:
        given = sections_in(datalist)
        names = class_names(given)
        sections: dict[str, Entries] = {section: [] for section in given}
        for section, own in given.items():
            missing = _missing(own, path)
            if missing:
                text = f"{section}: {len(missing)} of {len(own)} bags lack a feature file, such as {missing[0]}"
                yield Finding(Level.FAIL, text, "extract the features, or make the datalist again")
            else:
                finding, sections[section] = examine_section(datalist, section, own, path, names, "bags")
                yield finding
        yield _examine_leaks(sections, datalist)
        named = [each for bags in sections.values() for bag in bags for each in _files_of(bag, names)]
        yield from _examine_rest(named, files)
        examined = _examined(named, options)
    yield from folded((each.finding for each in examined), "slides", "patches")
    yield from _examine_cohort(examined)
    if slides is not None:
        yield from _examine_slides_of(examined, slides)


def _examined(named: Sequence[Named], options: ExamOptions) -> list[Examined]:
    shown = tqdm(named, desc="slides", unit="slide", delay=PROGRESS_AFTER_S)
    return [examine_features(file, name, options, bag) for name, file, bag in shown]


def class_names(sections: Mapping[str, Any]) -> list[str] | None:
    """Return the classes a datalist has, as load_bags takes them; None where they are 0 and 1."""
    bags = (bag for own in sections.values() if isinstance(own, list) for bag in own if isinstance(bag, dict))
    labels = {bag["label"] for bag in bags if isinstance(bag.get("label"), (int, str))}
    if labels <= {0, 1}:
        return None
    if any(isinstance(label, str) for label in labels):
        labels = {str(label) for label in labels}
    elif min(labels) < 0:
        return None
    return [str(label) for label in in_order(labels, None)]


def _missing(given: Any, folder: Path) -> list[str]:
    """Return the paths of features that do not exist."""
    bags = [bag for bag in given if isinstance(bag, dict)] if isinstance(given, list) else []
    images = [bag.get("image") for bag in bags]
    paths = [path for image in images for path in (image if isinstance(image, list) else [image])]
    return [path for path in paths if isinstance(path, str) and not (folder / path).exists()]


def _examine_leaks(sections: Mapping[str, Sequence[Mapping[str, Any]]], datalist: Path) -> Finding:
    """Patients are known by the check that was written beside the datalist, or by names that state them."""
    check_file = datalist.with_name(f"{datalist.stem}_check.json")
    names = [bag["bag_id"] for bags in sections.values() for bag in bags]
    patients = {name: patient for name in names if (patient := patient_in(name)) is not None}
    with suppress(OSError, ValueError, LookupError, TypeError):  # there is none, or it knows of no patient
        groups = json.loads(check_file.read_text())[PATIENTS]
        together = {name: f"{group[0]} and others" for group in groups for name in group}
        patients = {name: name for name in names} | patients | together
    leakage = leakage_of_slides(sections, patients)
    if patients or leakage.example:
        return examine_leakage(leakage, "wsi")
    text = f"none of {leakage.total_images} slides is in two sections, but their patients are not known"
    return Finding(Level.WARN, text, "make sure that nobody is in two, or give the csv a column patient")


def _files_of(bag: Mapping[str, Any], names: Sequence[str] | None) -> Iterator[Named]:
    images = paths_of(bag["image"])
    for number, image in enumerate(images):
        about = {key: _of_slide(bag, key, number, len(images)) for key in ("annotation", "instance_label")}
        if names is None and len(images) == 1:
            about["label"] = bag.get("label")
        yield slide_name(image) if len(images) > 1 else bag["bag_id"], Path(image), about


def _of_slide(bag: Mapping[str, Any], key: str, number: int, slides: int) -> Any:
    """Return what a bag states of one of its slides; of a single one instance_label may be a list of numbers."""
    given = bag.get(key)
    if given is None or (slides == 1 and (key == "instance_label" or not isinstance(given, list))):
        return given
    if not isinstance(given, list) or len(given) != slides:
        raise InputError(f'{bag["bag_id"]} has {slides} slides: give "{key}" as a list with a path or null for each')
    return given[number]


def _slide_names(files: FeatureFiles) -> list[str]:
    """Return the name of each file's slide; where two have one name, with their folders."""
    named = [slide_name(slide_of(path)) for path in files.paths]
    counts = Counter(named)
    relative = [files.relative(path.with_name(name)) for name, path in zip(named, files.paths, strict=True)]
    return [name if counts[name] == 1 else place for name, place in zip(named, relative, strict=True)]


def _examine_labels(path: Path, files: FeatureFiles, stated: Mapping[Path, FeatureHeader]) -> Iterator[Finding]:
    """Examine a csv of labels that no datalist was made of yet, of files that state this."""
    try:
        labels = labels_in(path)
        splits = splits_in(path, labels)
        if labels is None and splits is None:
            yield Finding(Level.INFO, "no datalist and no csv of labels, so there is nothing to train on yet")
            return
        cohort = collect_slides(files, WsiDatalistRequest(folder=path, labels=labels, splits=splits), stated)
    except InputError as error:
        yield Finding(Level.WARN, str(error))
        return
    yield from (Finding(Level.WARN, line, "correct it, or it is rejected") for line in cohort.rejected.as_lines())
    yield from (Finding(Level.WARN, line) for line in cohort.warnings.as_lines())
    yield Finding(Level.INFO, f"{len(cohort.slides)} slides have a label", f"python -m scripts datalist wsi {path}")


def _examine_rest(named: Sequence[Named], files: FeatureFiles) -> Iterator[Finding]:
    """Examine feature files without a label, in the folders that the datalist uses."""
    used = {os.path.abspath(path) for _, path, _ in named}
    folders = {os.path.dirname(path) for path in used}
    paths = {os.path.abspath(path): path for path in files.paths}
    rest = [path for place, path in paths.items() if place not in used and os.path.dirname(place) in folders]
    if rest:
        text = f"feature files in no section: {len(rest)}, such as {files.relative(rest[0])}"
        yield Finding(Level.INFO, text, "slides without tissue are rejected; label the others, if they are meant")


def _examine_cohort(examined: Sequence[Examined]) -> Iterator[Finding]:
    """Examine what must be the same in all files."""
    filled = [(each.finding.name, each.header) for each in examined if each.header and each.header.patches > 0]
    if not filled:
        return
    degrees = [each.degree for each in examined if each.degree > 0] or [0.0]
    ends = " to ".join(dict.fromkeys(f"{degree:.1f}" for degree in (min(degrees), max(degrees))))
    forms = [f"{count} {form}" for form, count in sorted(Counter(header.format for _, header in filled).items())]
    units = sorted({header.unit for _, header in filled})
    origins = sorted({header.pitch_from.partition(",")[0] for _, header in filled})
    text = f"{_listed(forms)}, in {_listed(units)}, pitch from {_listed(origins)}, {ends} of 8 neighbours"
    yield Finding(Level.INFO, text)
    for unit in (unit for unit in units if unit not in (PIXELS, MICROMETRES)):
        text = f"where patches lie on their slides is not known, as their coords are {unit}: nothing can be drawn there"
        yield Finding(Level.WARN, text, ADOPT)
    yield from _examine_encoders(filled)
    yield from _magnification([header for _, header in filled])
    of_content: dict[str, list[str]] = defaultdict(list)
    for each in examined:
        of_content[each.content].append(each.finding.name)
    copies = [names for content, names in of_content.items() if content and len(names) > 1]
    if copies:
        text = f"{sum(map(len, copies))} slides have the features of another one, such as {' and '.join(copies[0][:2])}"
        yield Finding(Level.WARN, text, "keep one of each, or extract the features again")


def _examine_encoders(headers: Sequence[tuple[str, FeatureHeader]]) -> Iterator[Finding]:
    fix = "extract the features of all slides by one encoder, or name its folder"
    differ = [Finding(Level.FAIL, text, fix) for text in kinds_that_differ(headers)]
    unnamed = sum(not header.encoder for _, header in headers)
    if differ:
        yield from differ
    elif unnamed:
        text = f"{unnamed} of {len(headers)} files do not say which encoder made them"
        yield Finding(Level.INFO, text, "make sure that it was one and the same")
    else:
        yield Finding(Level.PASS, f"all features are of the encoder {headers[0][1].encoder}")


def _magnification(headers: Sequence[FeatureHeader]) -> Iterator[Finding]:
    pitches = [pitch for header in headers if (pitch := header.pitch_um) is not None]
    of_pixels = pitches_of_unknown_scale(headers)
    unknown = len(headers) - len(pitches)
    if len(of_pixels) > 1:
        listed = _listed([f"{pitch:.0f} ({slides} slide{'s' * (slides > 1)})" for pitch, slides in of_pixels])
        scale = f"micrometres per pixel not known of {unknown} of {len(headers)} slides"
        fix = "give --slides or --slide_mpp; of slides scanned at 20x and 40x they may rightly differ"
        yield Finding(Level.WARN, f"{listed} level-0 pixels from patch to patch, {scale}", fix)
    elif not pitches:
        yield Finding(Level.INFO, "micrometres per pixel are known of no slide", "make sure of one magnification")
    if not pitches:
        return
    known = f", known of {len(pitches)} of {len(headers)} slides" if unknown else ""
    if max(pitches) > SAME_PITCH * min(pitches):
        text = f"{min(pitches):.4g} to {max(pitches):.4g} micrometres from patch to patch{known}"
        yield Finding(Level.WARN, text, "a network is trained at one magnification: extract all features at one")
    else:
        yield Finding(Level.PASS, f"{sum(pitches) / len(pitches):.4g} micrometres from patch to patch{known}")


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _examine_slides_of(examined: Sequence[Examined], folder: Path) -> Iterator[Finding]:
    """Examine the slides that features are of; a slide is found as a run finds it, by id or else by name."""
    paths = find_slides(folder)
    names = {slide_name(name) for name in paths}
    headers = {
        each.header.slide_id if each.header.slide_id in names else slide_name(slide_of(each.path)): each.header
        for each in examined
        if each.header
    }
    if headers and names.isdisjoint(headers):
        first = slide_title(next(iter(paths.values())))
        text = f"none of {len(paths)} slides in {folder}, such as {first}, is named like a feature file"
        yield Finding(Level.WARN, f"{text}, such as {min(headers)}", "give the folder of their slides with --slides")
        return
    yield from _examine_slides(paths, folder, headers)


def _examine_slides(paths: Mapping[str, Path], folder: Path, headers: Mapping[str, FeatureHeader]) -> Iterator[Finding]:
    """Examine slides themselves; the headers are those of their features, where there are some."""
    named = [(slide_name(name), path) for name, path in paths.items()]
    shown = tqdm(named, "slides", unit="slide", delay=PROGRESS_AFTER_S)
    yield from folded((examine_slide(path, headers.get(name), name) for name, path in shown), "slides", "megapixels")
    todo = [slide_title(path) for name, path in named if name not in headers]
    if todo:
        command = f"python -m monai.bundle run --config_file configs/features.json --slides {folder}"
        text = f"{len(todo)} of {len(paths)} slides have no features yet, such as {todo[0]}"
        yield Finding(Level.INFO, text, f"{command} --output_dir FEATURES")
    without = headers.keys() - dict(named)
    if without:
        text = f"{len(without)} of {len(headers)} feature files have no slide in {folder}, such as {min(without)}"
        yield Finding(Level.INFO, text)
