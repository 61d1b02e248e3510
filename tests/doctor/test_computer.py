# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import openslide
import pydicom
import pytest

from scripts.doctor import computer
from scripts.doctor.computer import examine_computer
from scripts.doctor.findings import Finding, Level
from tests.shared_data import ROOT


class Disk(NamedTuple):
    total: int
    used: int
    free: int


def lines(where: Path) -> list[str]:
    return [str(finding) for finding in examine_computer(where)]


def test_this_computer_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Disk(0, 0, int(52.3e9)))
    monkeypatch.setattr(computer, "version", lambda package: f"{computer._pinned()[package]}+cpu")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    metadata = json.loads((ROOT / "configs" / "ct" / "metadata.json").read_text())
    python, packages, decoders, cuda, room = lines(tmp_path)
    assert python == f"PASS  Python {sys.version.split()[0]}"
    for package, key in (("torch", "pytorch_version"), ("monai", "monai_version"), ("numpy", "numpy_version")):
        assert f"{package} {metadata[key]}" in packages
    for package, version in metadata["required_packages_version"].items():
        assert f"{package} {version}" in packages
    assert packages.startswith("PASS  ")
    assert decoders == "PASS  decoders for JPEG, JPEG lossless, JPEG-LS, JPEG 2000, RLE"
    assert cuda == "INFO  no CUDA, the CPU is used; for training there, configs/small.json is meant"
    assert room == f"PASS  52.3 GB are free for results in {tmp_path}"


def test_for_slides_openslide_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = [str(finding) for finding in examine_computer(tmp_path, slides=True)]
    assert "INFO  no CUDA, the CPU is used" in found  # small.json is of head CT
    assert f"PASS  OpenSlide {openslide.__library_version__} reads slides" in found
    assert not any("decoder" in line for line in found)
    metadata = json.loads((ROOT / "configs" / "wsi" / "metadata.json").read_text())
    for package in metadata["required_packages_version"]:
        assert any(package in line for line in found[1:-3])
    monkeypatch.setitem(sys.modules, "openslide", None)
    (failed,) = (line for line in map(str, examine_computer(tmp_path, slides=True)) if line.startswith("FAIL"))
    assert failed.startswith("FAIL  OpenSlide cannot be loaded (")
    assert failed.endswith("): pip install openslide-bin")


def test_in_a_bundle_the_metadata_lies_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundled = tmp_path / "metadata.json"
    shutil.copy(ROOT / "configs" / "ct" / "metadata.json", bundled)
    here = computer._pinned()
    monkeypatch.setattr(computer, "_METADATA", (tmp_path / "none.json", bundled))
    assert computer._pinned() == here
    assert here["torch"] == json.loads(bundled.read_text())["pytorch_version"]
    monkeypatch.setattr(computer, "_METADATA", ())
    assert computer._pinned() == {}


def test_gpus_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda number: "some card")
    assert "INFO  CUDA with 2 GPU, some card" in lines(tmp_path)


def test_an_old_python_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 1, "final", 0))
    assert lines(tmp_path)[0] == "FAIL  Python 3.9.1: use Python 3.11 or newer"


def test_other_and_missing_packages_are_told() -> None:
    findings = list(computer._packages({"pydicom": "1.0", "no-such-package": "2.0", "numpy": "0.1"}))
    here = pydicom.__version__
    assert str(findings[0]) == f"WARN  pydicom is {here}, tested was 1.0: pip install pydicom==1.0 if it fails"
    assert str(findings[1]) == "FAIL  no-such-package is not installed: pip install no-such-package==2.0"
    assert [finding.level for finding in findings] == [Level.WARN, Level.FAIL, Level.WARN]


def test_missing_decoders_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(computer, "_can_decode", lambda syntax: not syntax.startswith("1.2.840.10008.1.2.4.8"))
    assert [str(finding) for finding in computer._decoders()] == [
        "PASS  decoders for JPEG, JPEG lossless, JPEG 2000, RLE",
        "WARN  no decoder for JPEG-LS: pip install python-gdcm if scans are stored so",
    ]
    monkeypatch.setattr(computer, "_can_decode", lambda syntax: False)
    assert [finding.level for finding in computer._decoders()] == [Level.WARN] * 5


def test_pydicom_2_is_asked_in_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    class Handler:
        def __init__(self, there: bool) -> None:
            self.there = there

        def is_available(self) -> bool:
            return self.there

        def supports_transfer_syntax(self, syntax: str) -> bool:
            return syntax == "1.2.840.10008.1.2.5"

    monkeypatch.setitem(sys.modules, "pydicom.pixels", None)
    for handlers, wanted in (([Handler(False), Handler(True)], True), ([Handler(False)], False)):
        monkeypatch.setattr(pydicom.config, "pixel_data_handlers", handlers)
        assert computer._can_decode("1.2.840.10008.1.2.5") == wanted
        assert not computer._can_decode("1.2.840.10008.1.2.4.90")


@pytest.mark.parametrize(
    ("free", "wanted"),
    [
        (5.1e9, "PASS  5.1 GB are free for results in {}"),
        (4.9e9, "WARN  4.9 GB are free for results in {}: make room, or give another --output_dir"),
        (0.05e9, "FAIL  0.1 GB are free for results in {}: make room, or give another --output_dir"),
    ],
)
def test_room_is_looked_for_where_results_will_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: float, wanted: str
) -> None:
    asked: list[Path] = []

    def usage(place: Path) -> Disk:
        asked.append(place)
        return Disk(0, 0, int(free))

    monkeypatch.setattr(shutil, "disk_usage", usage)
    assert lines(tmp_path / "not" / "there")[-1] == wanted.format(tmp_path / "not" / "there")
    assert asked == [tmp_path]
    assert not any(tmp_path.iterdir())  # it only looks


def test_a_place_that_takes_no_files_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> Iterator[None]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    assert list(examine_computer(tmp_path))[-1] == Finding(
        Level.FAIL, f"cannot write to {tmp_path} (Permission denied)", "give another --output_dir"
    )
