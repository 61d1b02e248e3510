# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Whether this computer can do the work: versions, decoders, GPU and room for results."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pydicom
import torch
from pydicom import uid

from scripts.doctor.findings import Finding, Level

PYTHON = (3, 11)
GB = 1e9
LITTLE_ROOM, NO_ROOM = 5 * GB, 0.1 * GB

_ROOT = Path(__file__).parents[2]
_METADATA = (_ROOT / "configs" / "ct" / "metadata.json", _ROOT / "configs" / "metadata.json")  # here; in a bundle
_METADATA_OF_SLIDES = (_ROOT / "configs" / "wsi" / "metadata.json", _ROOT / "configs" / "metadata.json")
_PINNED_BY_NAME = {"monai_version": "monai", "pytorch_version": "torch", "numpy_version": "numpy"}
_SYNTAXES: dict[str, tuple[str, ...]] = {
    "JPEG": (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit),
    "JPEG lossless": ("1.2.840.10008.1.2.4.57", uid.JPEGLosslessSV1),  # pydicom 2 gives the first another name
    "JPEG-LS": (uid.JPEGLSLossless, uid.JPEGLSNearLossless),
    "JPEG 2000": (uid.JPEG2000Lossless, uid.JPEG2000),
    "RLE": (uid.RLELossless,),
}


def examine_computer(output_dir: Path, slides: bool = False) -> Iterator[Finding]:
    """For head CT, or for whole slides."""
    yield from _python()
    yield from _packages(_pinned(_METADATA_OF_SLIDES if slides else _METADATA))
    yield from _openslide() if slides else _decoders()
    if torch.cuda.is_available():
        yield Finding(Level.INFO, f"CUDA with {torch.cuda.device_count()} GPU, {torch.cuda.get_device_name(0)}")
    else:
        small = "" if slides else "; for training there, configs/small.json is meant"
        yield Finding(Level.INFO, f"no CUDA, the CPU is used{small}")
    yield from _room(output_dir)


def _python() -> Iterator[Finding]:
    here = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < PYTHON:
        yield Finding(Level.FAIL, f"Python {here}", f"use Python {'.'.join(map(str, PYTHON))} or newer")
    else:
        yield Finding(Level.PASS, f"Python {here}")


def _pinned(metadata_files: Sequence[Path] | None = None) -> dict[str, str]:
    for path in _METADATA if metadata_files is None else metadata_files:
        if path.is_file():
            metadata = json.loads(path.read_text())
            named = {package: metadata[key] for key, package in _PINNED_BY_NAME.items()}
            return {**named, **metadata["required_packages_version"]}
    return {}


def _packages(pinned: Mapping[str, str]) -> Iterator[Finding]:
    """Other versions than the tested ones may do, missing packages may not."""
    as_pinned = []
    for package, wanted in pinned.items():
        try:
            here = version(package).split("+")[0]  # 2.13.0+cpu is 2.13.0
        except PackageNotFoundError:
            yield Finding(Level.FAIL, f"{package} is not installed", f"pip install {package}=={wanted}")
            continue
        if here == wanted:
            as_pinned.append(f"{package} {here}")
        else:
            yield Finding(
                Level.WARN, f"{package} is {here}, tested was {wanted}", f"pip install {package}=={wanted} if it fails"
            )
    if as_pinned:
        yield Finding(Level.PASS, ", ".join(as_pinned))


def _openslide() -> Iterator[Finding]:
    try:
        import openslide
    except (ImportError, OSError) as error:  # the library itself may be missing
        yield Finding(Level.FAIL, f"OpenSlide cannot be loaded ({error})", "pip install openslide-bin")
        return
    yield Finding(Level.PASS, f"OpenSlide {openslide.__library_version__} reads slides")


def _decoders() -> Iterator[Finding]:
    there = [name for name, syntaxes in _SYNTAXES.items() if all(map(_can_decode, syntaxes))]
    if there:
        yield Finding(Level.PASS, f"decoders for {', '.join(there)}")
    for name in _SYNTAXES.keys() - there:
        yield Finding(Level.WARN, f"no decoder for {name}", "pip install python-gdcm if scans are stored so")


def _can_decode(syntax: str) -> bool:
    try:
        from pydicom.pixels import get_decoder
    except ImportError:  # pydicom 2
        handlers = pydicom.config.pixel_data_handlers
        return any(each.is_available() and each.supports_transfer_syntax(syntax) for each in handlers)
    return bool(get_decoder(uid.UID(syntax)).is_available)


def _room(output_dir: Path) -> Iterator[Finding]:
    """Where the results will go; nothing is made there yet."""
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
