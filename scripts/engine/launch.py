# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""What stands before a run that a person starts: checks of what it was given."""

import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from monai.bundle.scripts import run

from scripts.core.cli import one_line_errors
from scripts.core.errors import InputError
from scripts.core.files import writable_folder
from scripts.engine.provenance import code_in, running_config, take_up_training

# module of today, what of 0.4.0 is in it now (old=new where it got another name); all below `scripts.`
_TABLE = """
core.bags             data.bags.bags_to_read data.bags.balanced_weights data.bags.load_bags data.bags.number_of_classes
core.record           data.results.BagResultd data.results.ModelCard data.results.SignResultd
ct.encode             data.slice_features.SliceEncoder data.slice_features.SliceFeatureExtractor
ct.features           data.slice_features.SliceFeaturesd data.slice_features.find_slice_features
ct.outputs.label_map  outputs.label_map.SaveLabelMapd
ct.outputs.picture    outputs.pictures.DrawScand
ct.outputs.report     outputs.dicom_sr.SaveReportd
ct.reader             data.dicom.SeriesReader
ct.scans              data.scans.find_scans
ct.transforms         data.augment.RandSliceAffined data.augment.RandSliceDropd data.ct.ScanBagd data.ct.SliceWindowsd
engine.batches        data.patches.collate_bags data.patches.one_bag
engine.evaluator      cohorts.BagEvaluator cohorts.ReadableBags
engine.evaluator      inferers.BagInferer inferers.PrepareBagInBlocks inferers.StreamingInferer
engine.launch         origins.require_network=prepare_run running.prepare_run
engine.onnx           exporting.export_onnx
engine.provenance     origins.RememberTraining origins.origin_of_bags origins.trained_with
engine.training       curriculum.Curriculum resuming.ResumeTraining
outputs.report        outputs.cohort.CohortReport outputs.cohort.ResultsFolder outputs.cohort.recipe=Recipe
outputs.result_json   outputs.files.SaveResultd
wsi.encode            data.extraction.FeatureExtractor
wsi.encoders          data.backbones.timm_model networks.SeededTileCNN
wsi.encoders          networks.encoders.SeededTileCNN networks.encoders.TileEncoder
wsi.features.files    data.patches.find_features
wsi.outputs.geojson   outputs.geojson.SaveGeoJSONd
wsi.outputs.map       outputs.slide_pictures.DrawSlided
wsi.reader            data.patches.FeatureReader data.patches.described=checked_bags data.patches.read_blocks
wsi.slides.tissue     data.tissue.ChromaMask
wsi.transforms        data.patches.PatchBagd data.patches.PatchBlocksd
"""

MOVED = {  # what a config of 0.4.0 names as a `_target_` → where it is now
    f"scripts.{old}": f"scripts.{module}.{new or old.rpartition('.')[2]}"
    for module, *names in map(str.split, _TABLE.strip().splitlines())
    for old, _, new in (name.partition("=") for name in names)
}


def typed_keys(arguments: Sequence[str]) -> dict[str, str]:
    """Return what a command line that runs a bundle gives by name, key → value; of any other nothing."""
    given = [word.split("=", 1) for word in arguments if re.match(r"--[A-Za-z_]", word)]
    following = dict(zip(arguments, [*arguments[1:], ""], strict=False))
    values = {name: rest[0] if rest else following[name] for name, *rest in given}
    keys = {name.removeprefix("--").replace("-", "_"): value for name, value in values.items()}
    return keys if {"config_file", "args_file"} & keys.keys() else {}


def refuse_unknown_keys(typed: Mapping[str, str]) -> None:
    """Refuse a mistyped `--max_epoch 2`: it would be a key of its own that nothing reads, and 50 epochs would run.

    Keys of the configs beside those that are run pass: the same may be given to training and inference.
    """
    files = re.findall(r"[^'\",\[\]\s]+\.(?:json|ya?ml)", typed.get("config_file", ""))
    if not files:
        return  # an args_file names them
    try:
        beside = {str(path) for file in files for path in Path(file).parent.glob("*.json")}
        keys = {_top(key) for file in {*files, *beside} for key in ConfigParser.load_config_file(file)}
    except (OSError, ValueError):
        return  # which MONAI tells
    for name in typed:
        if keys and _top(name) not in keys | set(signature(run).parameters):
            near = get_close_matches(_top(name), sorted(keys), 1)
            perhaps = f", perhaps {near[0]}" if near else ""
            configs = ", ".join(Path(file).name for file in files)
            raise InputError(f"--{name} is no key of {configs}{perhaps}: nothing would read it")


def _top(key: str) -> str:
    return re.split("#|::", key.lstrip("+"))[0]


def refuse_moved(config: Any) -> None:
    """Refuse a config, or a part of one, that names a path of 0.4.0."""
    for name in code_in(config):
        if name in MOVED:
            raise InputError(f"{name} of 0.4.0 is {MOVED[name]} now: write that into the config that names it")


def prepare_run(
    writes_to: str | Sequence[str], ckpt_path: str | None = None, bundle_root: str = ".", unfinished: str | None = None
) -> None:
    """Check what a run was given, before hours are spent; the first step of every `run`.

    Bad input ends in one line. A run that uses weights takes up the network and the preprocessing that they were
    trained with.

    Args:
        writes_to: folders of the results, made if they are missing.
        ckpt_path: weights that the run uses.
        bundle_root: folder of the bundle.
        unfinished: as of one_line_errors.
    """
    one_line_errors(unfinished)
    typed = typed_keys(sys.argv[1:])
    refuse_unknown_keys(typed)
    refuse_moved(running_config().config)
    warnings.filterwarnings("ignore", message=".*nvImageCodec")  # a decoder of MONAI's that nobody here asked for
    if ckpt_path is not None:
        if not Path(ckpt_path).is_file():
            raise InputError(f"{ckpt_path} is missing: train first, or give its place (--ckpt_path FILE)")
        take_up_training(ckpt_path, bundle_root, {_top(key) for key in typed})
    for folder in [writes_to] if isinstance(writes_to, str) else writes_to:
        writable_folder(folder)
