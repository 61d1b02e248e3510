# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m scripts`: the commands of this project beside those of monai.bundle."""

import sys
from pathlib import Path

import fire

from scripts.core.cli import Verbs, as_fire_reads, one_line_errors, path_or_none, refuse_unknown
from scripts.ct import cli as ct
from scripts.studies import cli as studies
from scripts.wsi import cli as wsi


def convert(
    checkpoint: str,
    output: str,
    kind: str | None = None,
    force: bool = False,
    sha256: str | None = None,
    placement: str = "early",
    activation: str = "tanh",
    mode: str = "approx",
    steps: int = 10,
    alpha: float | None = None,
    heads: int = 4,
    add_input: bool = True,
) -> None:
    """Turn published weights, those of SA-DMIL or of a torchmil network, into a model.pt of these bundles.

    SA-DMIL: CHECKPOINT is an .index of TensorFlow with its .data beside it; use what is written for research only.
    torchmil: CHECKPOINT is a torch file with the state dict of SmABMIL or SmTransformerABMIL; give the arguments it
    does not hold by the flags from --placement on. The network that fits is also written beside OUTPUT as .json, to
    name behind train.json. Runs that use the model take up its network from the .origin.json beside it.

    Args:
        checkpoint: An .index, its name without .index, a folder with one .index; or a .pt, .pth, .ckpt of torch.
        output: A .pt file, or a folder that exists, for model.pt in it.
        kind: sa-dmil or torchmil; by default it is recognised from the checkpoint.
        force: Overwrite what is there.
        sha256: Of the file of the numbers, a .data or a torch file: others are refused. CHECKPOINT may then be a URL.
        placement: torchmil's sm_where, early, mid or late.
        activation: torchmil's att_act, tanh, relu or gelu.
        mode: torchmil's sm_mode, approx or exact.
        steps: torchmil's sm_steps.
        alpha: torchmil's sm_alpha, as it was given, where it was not trained.
        heads: torchmil's transf_n_heads.
        add_input: torchmil's transf_add_self (--noadd_input where it was False).
    """
    import logging

    from scripts.weights.convert import convert_checkpoint
    from scripts.weights.download import at_hand
    from scripts.weights.torchmil import TorchmilSettings

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    settings = TorchmilSettings(placement, activation, mode, steps, alpha, heads, add_input)
    with at_hand(str(checkpoint), None if sha256 is None else str(sha256)) as path:
        convert_checkpoint(path, Path(str(output)), kind, settings, force)


def deliver(folder: str) -> None:
    """Deliver to MLflow the runs that it was not told of: every .run.json below a folder, a line for each.

    Args:
        folder: Of results or of weights, at any height; the environment's MLFLOW_TRACKING_URI names another store.
    """
    from scripts.engine.delivery import deliver_folder

    deliver_folder(Path(str(folder)))


def release(
    wing: str,
    weights: str,
    metrics: str | None = None,
    output_dir: str = "dist",
    trained_on: str | None = None,
    url: str | None = None,
) -> None:
    """Build a bundle with trained weights: a folder, archives, checksums, an SBOM and a Hugging Face repository.

    What training wrote beside the weights becomes the defaults of the configs and is told by the metadata. Weights
    that do not fit are refused. The same weights and sources give the same bytes.

    Args:
        wing: ct or wsi.
        weights: model.pt of a training.
        metrics: metrics.json of an evaluation of these weights, for metadata and README.
        output_dir: An earlier release in it is replaced.
        trained_on: The data of the training in words, for metadata and README.
        url: Below which files over 25 MB will be to be had, for large_files.yml.
    """
    import logging

    from scripts.release.build import build_release

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if isinstance(trained_on, (list, tuple)):  # as words with a comma are read
        trained_on = ", ".join(map(str, trained_on))
    words = [None if given is None else str(given) for given in (trained_on, url)]
    build_release(str(wing), Path(str(weights)), path_or_none(metrics), Path(str(output_dir)), *words)


def report(folder: str, bundle_root: str | None = None, ckpt_path: str | None = None) -> None:
    """Write report.html, report.json and model_card.md from the tables in a folder of results.

    FOLDER is the output_dir of an evaluation, which writes its report by itself, of an inference or of a
    cross-validation. What is not given is taken from an earlier report in FOLDER.

    Args:
        folder: Holds summary.csv, and as far as they are there metrics.json and instances.csv.
        bundle_root: The folder of the bundle; its metadata.json names it.
        ckpt_path: The weights; their sha256 and the record of their training are shown.
    """
    import logging

    from scripts.outputs.page import write_report

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    print(write_report(Path(str(folder)), path_or_none(bundle_root), path_or_none(ckpt_path)))


VERBS: Verbs = {
    "adopt": wsi.adopt,
    "calibrate": studies.calibrate,
    "compare": studies.compare,
    "convert": convert,
    "crossval": studies.crossval,
    "datalist": {"ct": ct.datalist, "wsi": wsi.datalist},
    "deliver": deliver,
    "doctor": {"ct": ct.doctor, "wsi": wsi.doctor},
    "features": {"ct": ct.features},
    "listen": {"ct": ct.listen},
    "release": release,
    "report": report,
    "search": studies.search,
}


if __name__ == "__main__":
    one_line_errors()
    refuse_unknown(sys.argv[1:], VERBS)
    fire.Fire(VERBS, as_fire_reads(sys.argv[1:]), name="python -m scripts")
