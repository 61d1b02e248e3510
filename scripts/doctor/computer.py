# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Whether this computer can do the work of a bundle: its packages, decoders or OpenSlide, GPU and room for results."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from scripts.doctor.findings import Finding, Level

PYTHON = (3, 11)
GB = 1e9
LITTLE_ROOM, NO_ROOM = 5 * GB, 0.1 * GB

_CONFIGS = Path(__file__).parents[2] / "configs"  # not resolved: in a bundle folder it is a link beside scripts
_VERSION_KEYS = {"monai_version": "monai", "pytorch_version": "torch", "numpy_version": "numpy"}
_SYNTAXES: dict[str, tuple[str, ...]] = {
    "JPEG": ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"),
    "JPEG lossless": ("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"),
    "JPEG-LS": ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"),
    "JPEG 2000": ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"),
    "RLE": ("1.2.840.10008.1.2.5",),
}


class Purpose(NamedTuple):
    """What a computer is examined for.

    Args:
        modality: of the bundle, as the image input in its metadata has it.
        config_folder: where the source tree keeps the bundle's metadata, below configs.
        examine_reader: yields findings on the library that reads its images.
        without_gpu: advice to add where there is no GPU.
    """

    modality: str
    config_folder: str
    examine_reader: Callable[[], Iterator[Finding]]
    without_gpu: str = ""


def examine_computer(output_dir: Path, purpose: Purpose) -> Iterator[Finding]:
    """Yield what this computer has and lacks for HEAD_CT or WHOLE_SLIDES."""
    yield from _python()
    yield from _packages(purpose)
    yield from purpose.examine_reader()
    yield from _gpu(purpose.without_gpu)
    yield from _room(output_dir)


def examine_computer_alone(output_dir: Path, purpose: Purpose, missing: ImportError) -> Iterator[Finding]:
    """Yield what examine_computer does where a missing package leaves nothing else to examine with."""
    yield from examine_computer(output_dir, purpose)
    yield Finding(Level.FAIL, f"data cannot be examined ({missing})", "install what is missing, and run it again")


def _python() -> Iterator[Finding]:
    here = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < PYTHON:
        yield Finding(Level.FAIL, f"Python {here}", f"use Python {'.'.join(map(str, PYTHON))} or newer")
    else:
        yield Finding(Level.PASS, f"Python {here}")


def _packages(purpose: Purpose) -> Iterator[Finding]:
    """Compare with the packages that the bundle's own metadata declares."""
    files = (_CONFIGS / purpose.config_folder / "metadata.json", _CONFIGS / "metadata.json")  # source tree; bundle
    path = next(filter(Path.is_file, files), None)
    if path is None:
        yield Finding(Level.WARN, f"packages are not checked: {files[1]} is missing", "unpack the bundle whole")
        return
    metadata = json.loads(path.read_text(encoding="utf-8"))
    modality = metadata["network_data_format"]["inputs"]["image"]["modality"]
    if modality == purpose.modality:
        yield from _compare(_declared(metadata))
    else:
        text = f"packages for {purpose.modality} are not checked: this is the {modality} bundle {metadata['name']!r}"
        yield Finding(Level.WARN, text, f"run it in the {purpose.modality} bundle")


def _declared(metadata: Mapping[str, Any]) -> dict[str, str]:
    return {**{name: metadata[key] for key, name in _VERSION_KEYS.items()}, **metadata["required_packages_version"]}


def _compare(declared: Mapping[str, str]) -> Iterator[Finding]:
    """Other versions than the tested ones may do, missing packages may not."""
    as_tested = []
    for package, tested in declared.items():
        command = f"pip install {package}=={tested}"
        try:
            installed = version(package).split("+")[0]  # 2.13.0+cpu is 2.13.0
        except PackageNotFoundError:
            yield Finding(Level.FAIL, f"{package} is not installed", command)
            continue
        if installed == tested:
            as_tested.append(f"{package} {installed}")
        else:
            yield Finding(Level.WARN, f"{package} is {installed}, tested was {tested}", f"{command} if it fails")
    if as_tested:
        yield Finding(Level.PASS, ", ".join(as_tested))


def _openslide() -> Iterator[Finding]:
    try:
        import openslide
    except (ImportError, OSError) as error:  # the library itself may be missing
        yield Finding(Level.FAIL, f"OpenSlide cannot be loaded ({error})", "pip install openslide-bin")
        return
    yield Finding(Level.PASS, f"OpenSlide {openslide.__library_version__} reads slides")


def _decoders() -> Iterator[Finding]:
    try:
        import pydicom  # noqa: F401
    except ImportError as error:
        yield Finding(Level.FAIL, f"pydicom cannot be loaded ({error})", "pip install pydicom python-gdcm")
        return
    decodable = [name for name, syntaxes in _SYNTAXES.items() if all(map(_can_decode, syntaxes))]
    if decodable:
        yield Finding(Level.PASS, f"decoders for {', '.join(decodable)}")
    for name in _SYNTAXES:
        if name not in decodable:
            yield Finding(Level.WARN, f"no decoder for {name}", "pip install python-gdcm if scans are stored so")


def _can_decode(syntax: str) -> bool:
    from pydicom import config, uid

    try:
        from pydicom.pixels import get_decoder
    except ImportError:  # pydicom 2
        return any(each.is_available() and each.supports_transfer_syntax(syntax) for each in config.pixel_data_handlers)
    return bool(get_decoder(uid.UID(syntax)).is_available)


def _gpu(advice: str) -> Iterator[Finding]:
    try:
        import torch
    except (ImportError, OSError) as error:  # a library of its own may be missing
        fix = "pip install torch, in the version of metadata.json"
        yield Finding(Level.FAIL, f"torch cannot be loaded ({error})", fix)
        return
    if torch.cuda.is_available():
        yield Finding(Level.INFO, f"CUDA with {torch.cuda.device_count()} GPU, {torch.cuda.get_device_name(0)}")
    else:
        yield Finding(Level.INFO, f"no CUDA, the CPU is used{advice}")


def _room(output_dir: Path) -> Iterator[Finding]:
    """Look at the disk that the results will go to, without making anything there."""
    place = next(folder for folder in (output_dir.absolute(), *output_dir.absolute().parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        yield Finding(Level.FAIL, f"cannot write to {output_dir} ({error.strerror})", "give another --output_dir")
        return
    free = shutil.disk_usage(place).free
    text = f"{free / GB:.1f} GB are free for results in {output_dir}"
    if free < LITTLE_ROOM:
        yield Finding(Level.FAIL if free < NO_ROOM else Level.WARN, text, "make room, or give another --output_dir")
    else:
        yield Finding(Level.PASS, text)


HEAD_CT = Purpose("CT", "ct", _decoders, "; for training there, configs/small.json is meant")
WHOLE_SLIDES = Purpose("WSI", "wsi", _openslide)
