# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Whether this computer can do the work of a bundle: its packages, decoders or OpenSlide, GPU and room for results."""

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from scripts.doctor.findings import Finding, Level

LITTLE_ROOM_GB, NO_ROOM_GB = 5, 0.1

_CONFIGS = Path(__file__).parents[2] / "configs"  # not resolved: in a bundle folder it is a link beside scripts
_SYNTAXES: dict[str, tuple[str, ...]] = {
    "JPEG": ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"),
    "JPEG lossless": ("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"),
    "JPEG-LS": ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"),
    "JPEG 2000": ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"),
    "RLE": ("1.2.840.10008.1.2.5",),
}


class Purpose(NamedTuple):
    """What a computer is examined for."""

    modality: str  # in the bundle's metadata; in lower case also the folder of its configs in the sources
    reader: tuple[str, str, Callable[[], Iterator[Finding]]]  # of its images: library, package, examination
    without_gpu: str = ""  # advice to add where there is no GPU


def examine_computer(output_dir: Path, purpose: Purpose, missing: ImportError | None = None) -> Iterator[Finding]:
    """Yield what this computer has and lacks for HEAD_CT or WHOLE_SLIDES, where `missing` is why nothing else can."""
    here = f"Python {'.'.join(map(str, sys.version_info[:3]))}"
    old = sys.version_info < (3, 11)
    yield Finding(Level.FAIL, here, "use Python 3.11 or newer") if old else Finding(Level.PASS, here)
    yield from _packages(purpose)
    gpu = ("torch", "torch, in the version of metadata.json", lambda: _gpu(purpose.without_gpu))
    for library, packages, examine in (purpose.reader, gpu):
        try:
            yield from examine()
        except (ImportError, OSError) as error:  # where it is installed, the system may lack a library
            yield Finding(Level.FAIL, f"{library} cannot be loaded ({error})", f"pip install {packages}")
    yield from _room(output_dir)
    if missing:
        yield Finding(Level.FAIL, f"data cannot be examined ({missing})", "install what is missing, and run it again")


def _packages(purpose: Purpose) -> Iterator[Finding]:
    """Compare with what the bundle's own metadata declares: other versions may do, missing packages may not."""
    files = (_CONFIGS / purpose.modality.lower() / "metadata.json", _CONFIGS / "metadata.json")  # sources; bundle
    bundle = next((json.loads(path.read_text(encoding="utf-8")) for path in files if path.is_file()), None)
    if bundle is None:
        yield Finding(Level.WARN, f"packages are not checked: {files[1]} is missing", "unpack the bundle whole")
        return
    modality = bundle["network_data_format"]["inputs"]["image"]["modality"]
    if modality != purpose.modality:
        text = f"packages for {purpose.modality} are not checked: this is the bundle {bundle['name']}"
        yield Finding(Level.WARN, text, f"run it in the {purpose.modality} bundle")
        return
    base = {"monai": bundle["monai_version"], "torch": bundle["pytorch_version"], "numpy": bundle["numpy_version"]}
    as_tested = []
    for package, tested in {**base, **bundle["required_packages_version"]}.items():
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
    import openslide

    yield Finding(Level.PASS, f"OpenSlide {openslide.__library_version__} reads slides")


def _decoders() -> Iterator[Finding]:
    decodable = [name for name, syntaxes in _SYNTAXES.items() if all(map(_can_decode, syntaxes))]
    if decodable:
        yield Finding(Level.PASS, f"decoders for {', '.join(decodable)}")
    for name in [name for name in _SYNTAXES if name not in decodable]:
        yield Finding(Level.WARN, f"no decoder for {name}", "pip install python-gdcm if scans are stored so")


def _can_decode(syntax: str) -> bool:
    from pydicom import config, uid

    try:
        from pydicom.pixels import get_decoder
    except ImportError:  # pydicom 2
        return any(each.is_available() and each.supports_transfer_syntax(syntax) for each in config.pixel_data_handlers)
    return bool(get_decoder(uid.UID(syntax)).is_available)


def _gpu(without: str) -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        yield Finding(Level.INFO, f"CUDA with {torch.cuda.device_count()} GPU, {torch.cuda.get_device_name(0)}")
    else:
        yield Finding(Level.INFO, f"no CUDA, the CPU is used{without}")


def _room(output_dir: Path) -> Iterator[Finding]:
    """Look at the disk that the results will go to, without making anything there."""
    place = next(folder for folder in (output_dir.absolute(), *output_dir.absolute().parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        yield Finding(Level.FAIL, f"cannot write to {output_dir} ({error.strerror})", "give another --output_dir")
        return
    free = shutil.disk_usage(place).free / 1e9
    level = Level.FAIL if free < NO_ROOM_GB else Level.WARN if free < LITTLE_ROOM_GB else Level.PASS
    fix = "" if level is Level.PASS else "make room, or give another --output_dir"
    yield Finding(level, f"{free:.1f} GB are free for results in {output_dir}", fix)


HEAD_CT = Purpose("CT", ("pydicom", "pydicom", _decoders), "; for training there, configs/small.json is meant")
WHOLE_SLIDES = Purpose("WSI", ("OpenSlide", "openslide-bin", _openslide))
