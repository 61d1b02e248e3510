# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The command line of whole slides: `python -m scripts datalist wsi`, `doctor wsi`."""

from pathlib import Path

from scripts.core.cli import path_or_none


def datalist(
    folder: str,
    labels: str | None = None,
    output: str | None = None,
    by: str = "slide",
    splits: str | None = None,
    classes: list[str] | None = None,
    annotations: str | None = None,
    features: str | None = None,
    label_column: str = "label",
    slide_table: str | None = None,
    shares: tuple[float, float, float] = (0.7, 0.1, 0.2),
    seed: int = 0,
    force: bool = False,
) -> None:
    """Make the datalist of a cohort of slides from their patch features, split by patient, with a check of it.

    FOLDER holds feature files of any format, named after the slides, also in folders below it. Labels are a csv with
    slide (or slide_id, image) and label, and if wanted patient (or case_id), section, coarse and annotation, as CLAM's;
    STAMP's clinical table with its slide table; or torchmil's folder of labels with its splits.csv. Labels are numbers
    from 0, or names of three or more classes; of two names --classes says which is 0. See docs/how_to/slides.md.

    Sections are those of the csv or of splits, or are drawn by patient, classes spread alike. Without a column patient
    names of TCGA state it, or each slide is taken for a patient of its own. A patient in two sections is an error.
    Beside OUTPUT is written OUTPUT's name with _check.json: counts, what was rejected and why, leakage (none).

    Args:
        folder: the --dataset_dir of training; paths in the datalist are relative to it.
        labels: the csv, a path from here or else from FOLDER; by default the one in FOLDER that has such columns.
        output: the datalist, or a folder for it; by default FOLDER/datalist.json.
        by: slide, a bag for each slide; or patient, whose labels must agree (of 0 and 1 the higher counts).
        splits: a csv of sections, or CLAM's folder of them; by default one in FOLDER or beside the labels.
        classes: the names, in the order of their numbers, such as "['normal','tumor']".
        annotations: a folder with <slide>.geojson, .json, .xml or a mask .tif, for evaluation.
        features: the folder below FOLDER that counts, where there are features of several encoders (TRIDENT).
        label_column: of the csv.
        slide_table: a csv with patient and slide, where that of the labels has a row for each patient (STAMP).
        shares: of training, validation and test, where sections are drawn.
        seed: the same seed splits the same patients in the same way.
        force: overwrite a datalist that this command did not write.
    """
    from scripts.wsi.datalist.cohort import WsiDatalistRequest
    from scripts.wsi.datalist.writing import write_wsi_datalist

    request = WsiDatalistRequest(
        folder=Path(str(folder)),
        labels=path_or_none(labels),
        output=path_or_none(output),
        by=str(by),
        splits=path_or_none(splits),
        classes=classes,
        annotations=path_or_none(annotations),
        features=None if features is None else str(features),
        label_column=str(label_column),
        slide_table=path_or_none(slide_table),
        shares=shares,
        seed=seed,
        force=force,
    )
    print(write_wsi_datalist(request))


def adopt(
    folder: str,
    output_dir: str | None = None,
    features_key: str | None = None,
    coords_key: str | None = None,
    coords_unit: str | float | None = None,
    pitch: float | None = None,
    encoder_name: str | None = None,
    slides: str | None = None,
    slide_mpp: float | None = None,
) -> None:
    """Write patch features of any form once in this project's own: an h5 for each slide, with all that is known of it.

    FOLDER holds files of any program, or arrays of your own: npz, safetensors, a dict of tensors in a .pt, h5, zarr,
    npy with coords/ beside. What a file does not say is said by the flags; the files themselves stay as they are.

    Args:
        folder: of the files, also in folders below it; each is called after its slide.
        output_dir: of the files that are written; by default FOLDER with _adopted behind its name.
        features_key: name of the array of features in each file, such as features/uni_v1, or of a table of SpatialData.
        coords_key: name of the array of the upper left corners of the patches.
        coords_unit: level0, micrometres, or the micrometres that one of them is (of pixels at 0.5: 0.5).
        pitch: from one patch to the next, in level-0 pixels, or micrometres where coords_unit is.
        encoder_name: whatever the files state.
        slides: the folder of the slides, which state size, scale and bounds.
        slide_mpp: micrometres per level-0 pixel of slides where nothing states it.
    """
    from scripts.wsi.adopt import adopt_features
    from scripts.wsi.features.base import Keys

    source = Path(str(folder))
    output = path_or_none(output_dir) or source.absolute().with_name(f"{source.absolute().name}_adopted")
    features, coords, encoder, of_slides = (
        None if word is None else str(word) for word in (features_key, coords_key, encoder_name, slides)
    )
    keys = Keys(features, coords, coords_unit, pitch)
    adopt_features(source, output, keys, encoder, of_slides, slide_mpp)


def doctor(
    path: str,
    datalist: str | None = None,
    output_dir: str = ".",
    slides: str | None = None,
    quick: bool = False,
    slide_mpp: float | None = None,
    annotation_values: list[int | str] | None = None,
) -> None:
    """Find what would stop or spoil a run on whole slides: PASS, INFO, WARN or FAIL, each with what to do.

    First this computer: versions, OpenSlide, CUDA, room for results. Then the datalist: sections, classes, missing
    files, patients in two sections. Then each feature file: format, units, pitch and where it is known from, neighbours
    on the lattice, NaN, patches at one place, annotations; and whether all are of one encoder and magnification, and
    none is a copy. Without a datalist a csv of labels is compared with the files. Then slides: whether OpenSlide reads
    them, size, levels and micrometres per pixel. The exit code is 1 where something FAILs.

    Args:
        path: the folder of the features (--dataset_dir), one feature file, a folder of slides, or one slide.
        datalist: what to examine; by default PATH/datalist.json, or without it every feature file below PATH.
        output_dir: where the results would go.
        slides: the folder of the slides that the features are of, examined too; their scale is read from them.
        quick: do not read the features themselves, so that NaN and copies are not found.
        slide_mpp: micrometres per pixel of the slides whose features do not say it, as in a run.
        annotation_values: which values of a mask or classes of polygons count as annotated, as in a run.
    """
    from scripts.doctor.computer import WHOLE_SLIDES, examine_computer
    from scripts.doctor.findings import print_findings

    try:
        from scripts.wsi.doctor.cohort import examine_wsi
        from scripts.wsi.doctor.slide import ExamOptions

        options = ExamOptions(path_or_none(slides), quick, slide_mpp, annotation_values)
        findings = examine_wsi(Path(str(path)), path_or_none(datalist), Path(str(output_dir)), options)
    except ImportError as missing:
        findings = examine_computer(Path(str(output_dir)), WHOLE_SLIDES, missing)
    if not print_findings(findings):
        raise SystemExit(1)
