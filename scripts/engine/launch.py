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

from monai.bundle import ConfigParser
from monai.bundle.scripts import run

from scripts.core.cli import one_line_errors
from scripts.core.errors import InputError
from scripts.core.files import writable_folder
from scripts.engine.provenance import take_up_training


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
    warnings.filterwarnings("ignore", message=".*nvImageCodec")  # a decoder of MONAI's that nobody here asked for
    if ckpt_path is not None:
        if not Path(ckpt_path).is_file():
            raise InputError(f"{ckpt_path} is missing: train first, or give its place (--ckpt_path FILE)")
        take_up_training(ckpt_path, bundle_root, {_top(key) for key in typed})
    for folder in [writes_to] if isinstance(writes_to, str) else writes_to:
        writable_folder(folder)
