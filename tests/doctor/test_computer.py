# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""What `doctor` finds on a computer, with the metadata, the packages, the GPU and the disk put in its way."""

import json
import re
import shutil
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openslide
import pytest
from pydicom import uid

from scripts.ct import cli as ct_cli
from scripts.doctor import computer
from scripts.doctor.computer import HEAD_CT, WHOLE_SLIDES, examine_computer
from scripts.wsi import cli as wsi_cli
from tests.shared_data import ROOT

PURPOSES = {"ct": HEAD_CT, "wsi": WHOLE_SLIDES}
both = pytest.mark.parametrize("kind", PURPOSES)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def lines(output_dir: Path, kind: str = "ct") -> list[str]:
    return [str(finding) for finding in examine_computer(output_dir, PURPOSES[kind])]


def declared(kind: str) -> dict[str, str]:
    metadata = json.loads((ROOT / "configs" / kind / "metadata.json").read_text())
    base = zip(("torch", "monai", "numpy"), ("pytorch_version", "monai_version", "numpy_version"), strict=True)
    return {**{name: metadata[key] for name, key in base}, **metadata["required_packages_version"]}


@both
def test_this_computer_passes(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(computer, "version", lambda package: f"{declared(kind)[package]}+cpu")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=52.3e9))
    decoders = "PASS  decoders for JPEG, JPEG lossless, JPEG-LS, JPEG 2000, RLE"
    advice = "; for training there, configs/small.json is meant" if kind == "ct" else ""
    for folder in ("configs", f"configs/{kind}"):  # of the sources, of a bundle
        monkeypatch.setattr(computer, "_CONFIGS", ROOT / folder)
        python, packages, *rest = lines(tmp_path, kind)
        assert python == f"PASS  Python {sys.version.split()[0]}"
        assert sorted(packages.removeprefix("PASS  ").split(", ")) == sorted(map(" ".join, declared(kind).items()))
        assert rest == [
            decoders if kind == "ct" else f"PASS  OpenSlide {openslide.__library_version__} reads slides",
            f"INFO  no CUDA, the CPU is used{advice}",
            f"PASS  52.3 GB are free for results in {tmp_path}",
        ]


@both
def test_a_bundle_of_the_other_kind_is_no_check(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (other,) = PURPOSES.keys() - {kind}
    monkeypatch.setattr(computer, "_CONFIGS", tmp_path)
    assert "metadata.json is missing" in lines(tmp_path, kind)[1]
    monkeypatch.setattr(computer, "_CONFIGS", ROOT / "configs" / other)
    warning = f"WARN  packages for {kind.upper()} are not checked: this is the bundle .*{other.upper()} smooth MIL: "
    assert re.match(warning, lines(tmp_path, kind)[1])


def test_other_and_missing_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def installed(package: str) -> str:
        if package == "nibabel":
            raise PackageNotFoundError
        return "0.1" if package == "pydicom" else declared("ct")[package]

    monkeypatch.setattr(computer, "version", installed)
    found, tested = lines(tmp_path), declared("ct")
    command = f"pip install pydicom=={tested['pydicom']}"
    assert f"WARN  pydicom is 0.1, tested was {tested['pydicom']}: {command} if it fails" in found
    assert f"FAIL  nibabel is not installed: pip install nibabel=={tested['nibabel']}" in found


@both
def test_what_cannot_be_imported_is_a_line(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("torch", "pydicom", "openslide"):
        monkeypatch.setitem(sys.modules, module, None)
    found = lines(tmp_path, kind)
    reader = {"ct": "pip install pydicom", "wsi": "pip install openslide-bin"}[kind]
    fixes = [line.rpartition(": ")[2] for line in found if line.startswith("FAIL") and "cannot be loaded" in line]
    assert fixes == [reader, "pip install torch, in the version of metadata.json"]
    assert "free for results" in found[-1]


@pytest.mark.parametrize(("cli", "module"), [(ct_cli, "scripts.ct.doctor"), (wsi_cli, "scripts.wsi.doctor.cohort")])
def test_the_verb_reports_where_its_examination_cannot_be_imported(
    cli: Any, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit):
        cli.doctor(str(tmp_path))
    assert "FAIL  data cannot be examined" in capsys.readouterr().out


def test_gpus_are_named_and_an_old_python_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("is_available", True), ("device_count", 2), ("get_device_name", "some card")):
        monkeypatch.setattr(f"torch.cuda.{name}", lambda *_, value=value: value)
    monkeypatch.setattr(sys, "version_info", (3, 9, 1, "final", 0))
    found = lines(tmp_path)
    assert "INFO  CUDA with 2 GPU, some card" in found
    assert found[0] == "FAIL  Python 3.9.1: use Python 3.11 or newer"


def test_missing_decoders_by_pydicom_3_and_2(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, examine_decoders = HEAD_CT.reader
    monkeypatch.setattr(
        "pydicom.pixels.get_decoder", lambda syntax: SimpleNamespace(is_available="LS" not in syntax.name)
    )
    assert list(map(str, examine_decoders())) == [
        "PASS  decoders for JPEG, JPEG lossless, JPEG 2000, RLE",
        "WARN  no decoder for JPEG-LS: pip install python-gdcm if scans are stored so",
    ]
    monkeypatch.setitem(sys.modules, "pydicom.pixels", None)
    for available, levels in ((True, ["PASS", *["WARN"] * 4]), (False, ["WARN"] * 5)):
        handler = SimpleNamespace(
            is_available=lambda there=available: there, supports_transfer_syntax=uid.RLELossless.__eq__
        )
        monkeypatch.setattr("pydicom.config.pixel_data_handlers", [handler])
        assert [finding.level for finding in examine_decoders()] == levels


def test_room_is_looked_for_where_results_will_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, advice = tmp_path / "not" / "there", ": make room, or give another --output_dir"
    for gigabytes, level, fix in ((5.1, "PASS", ""), (4.9, "WARN", advice), (0.0, "FAIL", advice)):
        free = {tmp_path: SimpleNamespace(free=gigabytes * 1e9)}
        monkeypatch.setattr(shutil, "disk_usage", free.__getitem__)
        assert lines(place)[-1] == f"{level}  {gigabytes} GB are free for results in {place}{fix}"
    assert not any(tmp_path.iterdir())  # it only looks

    def refuse(dir: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    assert lines(place)[-1] == f"FAIL  cannot write to {place} (Permission denied): give another --output_dir"
