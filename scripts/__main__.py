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

from pathlib import Path

import fire

from scripts.errors import InputError
from scripts.running import one_line_errors


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
        labels: the csv; by default stage_2_train.csv, reads.csv or labels.csv in FOLDER.
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
            None if labels is None else Path(str(labels)),
            None if output is None else Path(str(output)),
            str(subtype),
            shares,
            _whole_number(seed),
            force,
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

    findings = examine_ct(Path(str(path)), None if datalist is None else Path(str(datalist)), Path(str(output_dir)))
    if not told(findings):
        raise SystemExit(1)


def _whole_number(seed: object) -> int:
    if not isinstance(seed, int):
        raise InputError(f"--seed {seed!r} is no whole number: give one")
    return seed


VERBS = {
    "demo-data": demo_data,
    "demo": demo,
    "convert": convert,
    "datalist": {"ct": datalist_ct},
    "doctor": {"ct": doctor_ct},
}

if __name__ == "__main__":
    one_line_errors()
    fire.Fire(VERBS, name="python -m scripts")
