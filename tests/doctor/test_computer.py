# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""What `doctor` finds on a computer, with the metadata, the packages, the GPU and the disk put in its way."""

import json
import shutil
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import openslide
import pytest
from pydicom import uid

from scripts.ct import cli as ct_cli
from scripts.doctor import computer
from scripts.doctor.computer import HEAD_CT, WHOLE_SLIDES, Purpose, examine_computer
from scripts.wsi import cli as wsi_cli
from tests.shared_data import ROOT

PURPOSES = {"ct": HEAD_CT, "wsi": WHOLE_SLIDES}
both = pytest.mark.parametrize("kind", PURPOSES)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def lines(output_dir: Path, purpose: Purpose = HEAD_CT) -> list[str]:
    return [str(finding) for finding in examine_computer(output_dir, purpose)]


def declared(kind: str) -> dict[str, str]:
    metadata = json.loads((ROOT / "configs" / kind / "metadata.json").read_text())
    base = zip(("torch", "monai", "numpy"), ("pytorch_version", "monai_version", "numpy_version"), strict=True)
    return {**{name: metadata[key] for name, key in base}, **metadata["required_packages_version"]}


@both
@pytest.mark.parametrize("configs", ["configs", "configs/{}"], ids=["source tree", "bundle"])
def test_this_computer_passes_on_what_the_bundle_declares(
    configs: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(computer, "_CONFIGS", ROOT / configs.format(kind))
    monkeypatch.setattr(computer, "version", lambda package: f"{declared(kind)[package]}+cpu")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=52.3e9))
    python, packages, reader, cuda, room = lines(tmp_path, PURPOSES[kind])
    assert python == f"PASS  Python {sys.version.split()[0]}"
    assert sorted(packages.removeprefix("PASS  ").split(", ")) == sorted(map(" ".join, declared(kind).items()))
    if kind == "ct":
        assert reader == "PASS  decoders for JPEG, JPEG lossless, JPEG-LS, JPEG 2000, RLE"
        assert cuda == "INFO  no CUDA, the CPU is used; for training there, configs/small.json is meant"
    else:
        assert reader == f"PASS  OpenSlide {openslide.__library_version__} reads slides"
        assert cuda == "INFO  no CUDA, the CPU is used"
    assert room == f"PASS  52.3 GB are free for results in {tmp_path}"


@both
def test_in_a_bundle_of_the_other_kind_its_packages_are_not_taken_for_those_needed(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (other,) = PURPOSES.keys() - {kind}
    monkeypatch.setattr(computer, "_CONFIGS", tmp_path)
    assert "metadata.json is missing" in lines(tmp_path, PURPOSES[kind])[1]
    monkeypatch.setattr(computer, "_CONFIGS", ROOT / "configs" / other)
    _, packages, reader, *_ = lines(tmp_path, PURPOSES[kind])
    name = json.loads((ROOT / "configs" / other / "metadata.json").read_text())["name"]
    assert packages.startswith(
        f"WARN  packages for {PURPOSES[kind].modality} are not checked: this is the bundle {name}"
    )
    assert reader.startswith("PASS  ")


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


@pytest.mark.parametrize(
    ("purpose", "module", "fix"),
    [
        (HEAD_CT, "torch", "pip install torch, in the version of metadata.json"),
        (HEAD_CT, "pydicom", "pip install pydicom"),
        (WHOLE_SLIDES, "openslide", "pip install openslide-bin"),
        (WHOLE_SLIDES, "pydicom", None),
    ],
)
def test_what_is_needed_and_cannot_be_imported_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, purpose: Purpose, module: str, fix: str | None
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    found = lines(tmp_path, purpose)
    failed = [line for line in found if line.startswith("FAIL  ") and "cannot be loaded" in line]
    assert [module in line.lower() and line.endswith(f": {fix}") for line in failed] == [True] * (fix is not None)
    assert "free for results" in found[-1]


@both
def test_the_verb_says_what_is_missing_where_its_examination_cannot_be_imported(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("scripts.ct.doctor", "scripts.wsi.doctor.cohort"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit):
        {"ct": ct_cli, "wsi": wsi_cli}[kind].doctor(str(tmp_path))
    printed = capsys.readouterr().out
    assert "FAIL  data cannot be examined" in printed
    assert "torch" in printed


def test_gpus_are_named_and_an_old_python_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda number: "some card")
    monkeypatch.setattr(sys, "version_info", (3, 9, 1, "final", 0))
    assert "INFO  CUDA with 2 GPU, some card" in lines(tmp_path)
    assert lines(tmp_path)[0] == "FAIL  Python 3.9.1: use Python 3.11 or newer"


def test_missing_decoders_by_pydicom_3_and_2(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, examine_decoders = HEAD_CT.reader

    def decoder(syntax: uid.UID) -> SimpleNamespace:
        return SimpleNamespace(is_available=not syntax.name.startswith("JPEG-LS"))

    monkeypatch.setattr("pydicom.pixels.get_decoder", decoder)
    assert list(map(str, examine_decoders())) == [
        "PASS  decoders for JPEG, JPEG lossless, JPEG 2000, RLE",
        "WARN  no decoder for JPEG-LS: pip install python-gdcm if scans are stored so",
    ]
    monkeypatch.setitem(sys.modules, "pydicom.pixels", None)
    handlers = [
        SimpleNamespace(is_available=lambda: False, supports_transfer_syntax=lambda syntax: True),
        SimpleNamespace(is_available=lambda: True, supports_transfer_syntax=lambda syntax: syntax == uid.RLELossless),
    ]
    for usable, levels in ((handlers, ["PASS", *["WARN"] * 4]), (handlers[:1], ["WARN"] * 5)):
        monkeypatch.setattr("pydicom.config.pixel_data_handlers", usable)
        assert [finding.level for finding in examine_decoders()] == levels


@pytest.mark.parametrize(("free", "level"), [(5.1e9, "PASS"), (4.9e9, "WARN"), (0.05e9, "FAIL")])
def test_room_is_looked_for_where_results_will_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: float, level: str
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=free if place == tmp_path else 0))
    place, advice = tmp_path / "not" / "there", ": make room, or give another --output_dir"
    text = f"{level}  {free / 1e9:.1f} GB are free for results in {place}"
    assert lines(place)[-1] == text + advice * (level != "PASS")
    assert not any(tmp_path.iterdir())  # it only looks


def test_a_place_that_takes_no_files_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(dir: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    found = lines(tmp_path)[-1]
    assert found == f"FAIL  cannot write to {tmp_path} (Permission denied): give another --output_dir"
