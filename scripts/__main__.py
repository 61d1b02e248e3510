# Copyright (c) 2026 the smooth MIL bundle authors
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""`python -m scripts`: what a person types that is not a command of monai.bundle."""

from __future__ import annotations

import difflib
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import fire

from scripts.errors import InputError
from scripts.running import one_line_errors

_FLAG = re.compile(r"--|-[a-zA-Z]")  # -1 is a number


def demo_data(directory: str, seed: int = 0, ct: bool = True, wsi: bool = True) -> None:
    """Make synthetic head CT series and whole slides with labels and truth, in DIRECTORY/ct and DIRECTORY/wsi.

    Args:
        directory: where the data goes; what is already there for the same seed is kept.
        seed: the same seed makes the same data.
        ct: make the head CT cohort (--noct leaves it out).
        wsi: make the slides (--nowsi leaves them out).
    """
    from scripts.demo.cohorts import write_demo_data

    write_demo_data(Path(str(directory)), _whole_number(seed), ct=ct, wsi=wsi)


def demo(directory: str = "demo", seed: int = 0) -> None:
    """Make data, train, evaluate and infer with both bundles, and write DIRECTORY/index.html.

    Args:
        directory: where everything goes; what is already there is not made again.
        seed: of the data and of the training.
    """
    from scripts.demo.pipeline import run_demo

    run_demo(str(directory), seed)


def convert(
    checkpoint: str,
    output: str,
    kind: str | None = None,
    force: bool = False,
    placement: str = "early",
    activation: str = "tanh",
    mode: str = "approx",
    steps: int = 10,
    alpha: float | None = None,
    heads: int = 4,
    add_input: bool = True,
) -> None:
    """Turn published weights, those of SA-DMIL or of a torchmil network, into a model.pt of these bundles.

    SA-DMIL: CHECKPOINT is an .index of TensorFlow with its .data beside it; use what is written with
    configs/released.json, for research only. torchmil: CHECKPOINT is a torch file with the state dict of SmABMIL or
    SmTransformerABMIL; the network that fits is written beside OUTPUT as .json, to name behind train.json or
    inference.json. What such a state dict does not say is given by the flags from --placement on.

    Args:
        checkpoint: an .index, its name without .index, a folder with one .index; or a .pt, .pth, .ckpt of torch.
        output: a .pt file, or a folder that exists, for model.pt in it.
        kind: sa-dmil or torchmil; by default it is seen from the checkpoint.
        force: overwrite what is there.
        placement: torchmil's sm_where, early, mid or late.
        activation: torchmil's att_act, tanh, relu or gelu.
        mode: torchmil's sm_mode, approx or exact.
        steps: torchmil's sm_steps.
        alpha: torchmil's sm_alpha, as it was given, where it was not trained.
        heads: torchmil's transf_n_heads.
        add_input: torchmil's transf_add_self (--noadd_input where it was False).
    """
    import logging

    from scripts.weights.convert import convert as convert_weights
    from scripts.weights.torchmil import Settings

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    settings = Settings(placement, activation, mode, steps, alpha, heads, add_input)
    convert_weights(Path(str(checkpoint)), Path(str(output)), kind, settings, force)


def datalist_ct(
    folder: str,
    labels: str | None = None,
    output: str | None = None,
    subtype: str = "any",
    shares: tuple[float, float, float] = (0.7, 0.1, 0.2),
    seed: int = 0,
    force: bool = False,
) -> None:
    """Make the datalist of a head CT cohort, split by patient, with a check of what it holds.

    FOLDER is one of three, which the csv of the labels shows:

    RSNA 2019 as downloaded, stage_2_train.csv beside the folder stage_2_train. A scan is positive where one of its
    slices is; labels of slices are kept for evaluation.

    CQ500 as downloaded, reads.csv beside the folders or zips of the cases. Two of three readers decide.

    Any folder with labels.csv, whose columns are scan, label (0 or 1) and if wanted patient and section (training,
    validation or test). A scan is a path below FOLDER: a folder or a zip with a study, a NIfTI or an NRRD file.

    Beside OUTPUT are written OUTPUT's name with _check.json, counts, what was left out and why, and patients and slices
    in more than one section (none); and .headers.jsonl, which makes a second run fast.

    Args:
        folder: the --dataset_dir of training; paths in the datalist are relative to it.
        labels: the csv, a path from here or else from FOLDER; by default stage_2_train.csv, reads.csv or labels.csv in
            FOLDER.
        output: the datalist, or a folder for it; by default FOLDER/datalist.json.
        subtype: of RSNA: any, epidural, intraparenchymal, intraventricular, subarachnoid or subdural.
        shares: of training, validation and test.
        seed: the same seed splits the same patients in the same way.
        force: overwrite a datalist that this command did not write.
    """
    from scripts.preparing.datalist import write_ct_datalist

    print(
        write_ct_datalist(
            Path(str(folder)),
            _path(labels),
            _path(output),
            str(subtype),
            shares,
            _whole_number(seed),
            force,
        )
    )


def datalist_wsi(
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

    FOLDER holds feature files of any form, named after the slides: *.h5, h5_files and pt_files of CLAM (h5 goes before
    pt), features_<encoder> of TRIDENT or torchmil, or these in folders below it. The labels are one of these:

    A csv with the columns slide (or slide_id, image) and label, and if wanted patient (or case_id), section (training,
    validation or test), coarse and annotation. CLAM's case_id,slide_id,label is one. Endings such as .svs may stay.

    STAMP's two tables, saved as csv: the clinical one as labels, with PATIENT and the column of the labels, and the
    one of slides, with PATIENT and FILENAME, as slide_table.

    torchmil's splits.csv (bag_name, split) with labels/<bag>.npy beside the features; patch_labels/<bag>.npy is kept
    for evaluation. No other csv is needed.

    Labels are numbers from 0, or the names of three or more classes, of which the first counts as the one without a
    finding: a name that says so (normal, negative), or the first of --classes. Of two names --classes says which is 0
    and which is 1. With a column coarse it is checked that each class always lies under the same coarse one.

    Sections are those of the csv, or of splits (CLAM's splits_0.csv or splits_0_bool.csv, torchmil's splits.csv), or
    are drawn by patient, classes spread alike. Without a column patient TCGA's slide names tell it, or else each slide
    is taken for a patient of its own. A patient in two sections is an error. Slides without tissue are left out.

    Beside OUTPUT is written OUTPUT's name with _check.json: counts, what was left out and why, and patients and slides
    in more than one section (none).

    Args:
        folder: the --dataset_dir of training; paths in the datalist are relative to it.
        labels: the csv, a path from here or else from FOLDER; by default the one in FOLDER that has such columns.
        output: the datalist, or a folder for it; by default FOLDER/datalist.json.
        by: slide, a bag for each slide; or patient, a bag with all slides of a patient, whose labels must agree (of the
            two classes 0 and 1 the higher counts).
        splits: a csv with the sections, or CLAM's folder of them, of which splits_0.csv is taken; by default one that
            lies in FOLDER or beside the labels.
        classes: the names, in the order of their numbers, such as "['normal','tumor']".
        annotations: a folder with <slide>.geojson, .json, .xml or a mask .tif, for evaluation.
        features: the folder below FOLDER that counts, where there are features of several encoders.
        label_column: of the csv.
        slide_table: a csv with the columns patient and slide, where that of the labels has a row for each patient.
        shares: of training, validation and test, where sections are drawn.
        seed: the same seed splits the same patients in the same way.
        force: overwrite a datalist that this command did not write.
    """
    from scripts.preparing.slide_datalist import write_wsi_datalist

    print(
        write_wsi_datalist(
            Path(str(folder)),
            _path(labels),
            _path(output),
            str(by),
            _path(splits),
            shares,
            _whole_number(seed),
            force,
            None if features is None else str(features),
            _path(annotations),
            classes,
            str(label_column),
            _path(slide_table),
        )
    )


def doctor_ct(path: str, datalist: str | None = None, output_dir: str = ".") -> None:
    """Look for what would stop or spoil a run on head CT: PASS, INFO, WARN or FAIL, each with what to do.

    First this computer: versions, decoders of compressed DICOM, CUDA, room for results. Then the datalist: sections,
    labels, files, patients in two sections. Then each scan: the series that is read and why others are not, order,
    spacing, tilt, missing and double slices, and whether its middle slice decodes to plausible Hounsfield units.
    The exit code is 1 where something FAILs.

    Args:
        path: the folder of the scans (--dataset_dir), or one scan.
        datalist: what to examine; by default PATH/datalist.json, or without it every scan below PATH.
        output_dir: where the results would go.
    """
    from scripts.preparing.doctor import examine_ct, told

    findings = examine_ct(Path(str(path)), _path(datalist), Path(str(output_dir)))
    if not told(findings):
        raise SystemExit(1)


def doctor_wsi(
    path: str,
    datalist: str | None = None,
    output_dir: str = ".",
    slides: str | None = None,
    quick: bool = False,
    slide_mpp: float | None = None,
    annotation_values: list[int | str] | None = None,
) -> None:
    """Look for what would stop or spoil a run on whole slides: PASS, INFO, WARN or FAIL, each with what to do.

    First this computer: versions, OpenSlide, CUDA, room for results. Then the datalist: sections, classes, files that
    are missing, patients in two sections. Then each feature file: form, units, pitch and where it is known from,
    micrometres per pixel, mean number of neighbours on the lattice, NaN, patches at one place, no tissue, annotations;
    and whether all are of one encoder and magnification, and none is a copy. Without a datalist, a csv of labels is
    held against the files. Slides, where there are no features yet or --slides names them: whether OpenSlide reads
    them, size, levels and micrometres per pixel.
    The exit code is 1 where something FAILs.

    Args:
        path: the folder of the features (--dataset_dir), one feature file, a folder of slides, or one slide.
        datalist: what to examine; by default PATH/datalist.json, or without it every feature file below PATH.
        output_dir: where the results would go.
        slides: the folder of the slides that the features are of, to examine them too, and to read micrometres per
            pixel and annotations by them.
        quick: do not read the features themselves, so that NaN and copies are not found.
        slide_mpp: micrometres per pixel of the slides whose features do not say it, as in a run.
        annotation_values: which values of a mask or classes of polygons count as annotated, as in a run.
    """
    from scripts.preparing.doctor import told
    from scripts.preparing.slide_doctor import examine_wsi

    findings = examine_wsi(
        Path(str(path)), _path(datalist), Path(str(output_dir)), _path(slides), quick, slide_mpp, annotation_values
    )
    if not told(findings):
        raise SystemExit(1)


def _path(given: object) -> Path | None:
    return None if given is None else Path(str(given))


def _whole_number(seed: object) -> int:
    if not isinstance(seed, int):
        raise InputError(f"--seed {seed!r} is no whole number: give one")
    return seed


Verb = Callable[..., None]
VERBS: Mapping[str, Verb | Mapping[str, Verb]] = {
    "demo-data": demo_data,
    "demo": demo,
    "convert": convert,
    "datalist": {"ct": datalist_ct, "wsi": datalist_wsi},
    "doctor": {"ct": doctor_ct, "wsi": doctor_wsi},
}


def refuse_unknown(typed: Sequence[str]) -> None:
    """What a verb does not take is told before it runs: Fire would tell it afterwards."""
    verb: Any = VERBS
    place = 0
    while isinstance(verb, Mapping) and place < len(typed) and typed[place] in verb:
        verb = verb[typed[place]]
        place += 1
    arguments = typed[place : typed.index("--") if "--" in typed else None]
    if isinstance(verb, Mapping) or {"-h", "--help"} & set(arguments):
        return  # Fire says which verbs there are, or what they take
    name = " ".join(typed[:place])
    takes = list(inspect.signature(verb).parameters)
    bare = 0
    value = False  # the last flag may be followed by its value
    for argument in arguments:
        if not _FLAG.match(argument):
            bare += not value
            value = False
            continue
        flag, equals, _ = argument.lstrip("-").replace("-", "_").partition("=")
        value = not equals
        if flag not in takes and flag.removeprefix("no") not in takes and sum(one[0] == flag for one in takes) != 1:
            alike = difflib.get_close_matches(flag, takes, 1)
            raise InputError(
                f"{name} has no {argument.partition('=')[0]}{f', perhaps --{alike[0]}' if alike else ''}: "
                f"python -m scripts {name} --help lists what it takes"
            )
    if bare > len(takes):
        raise InputError(f"{name} does not take so many words: python -m scripts {name} --help lists what it takes")


if __name__ == "__main__":
    one_line_errors()
    refuse_unknown(sys.argv[1:])
    fire.Fire(VERBS, name="python -m scripts")
