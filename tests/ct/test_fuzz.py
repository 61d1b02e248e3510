# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Damaged and hostile inputs of the reader: each ends in a scan or in one clear line, and nothing else happens."""

import io
import random
import shutil
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.uid import UID, JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless

from scripts.core.errors import InputError
from scripts.ct.reader import SeriesReader
from tests.ct.series import STUDY_UID, compress, couch, phantom, write_enhanced, write_series, zipped
from tests.ct.volumes import write_mha, write_nrrd
from tests.watched import watched

SECONDS = 60  # for one input
SLICES = 12  # so that one may be lost

HOSTILE = (
    *("../../evil", "/tmp/evil", "..\\..\\evil", "\0", " ", "x" * 70000, "Ω≈ç\n\r\x1b[31m", "nan", "1e400", "0", "-1"),
    *("nan\\nan\\nan", "1e308\\-1e308\\1e308", "0\\0\\0\\0\\0\\0", "2147483648", "2147483647", "99999999999999999999"),
)
SHORTS = [struct.pack("<H", value) for value in (0, 1, 7, 8, 12, 16, 32, 4096, 65535)]
CODECS = (JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless, RLELossless)

Change = Callable[[bytes, random.Random], bytes]


def flip_bits(content: bytes, rng: random.Random) -> bytes:
    """Mostly in the header, where they do most."""
    changed = bytearray(content)
    for _ in range(rng.choice([1, 3, 30])):
        end = len(changed) if rng.random() < 0.3 else min(len(changed), 1200)
        changed[rng.randrange(end)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def set_tag(content: bytes, rng: random.Random) -> bytes:
    """What no scanner would write, under a tag that is there."""
    tags = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True).keys()
    number, value = rng.choice(sorted(tags)), rng.choice([*SHORTS, *map(str.encode, HOSTILE)])
    tag = struct.pack("<HH", number.group, number.element)
    start = content.find(tag, 132)
    end = start + 8 + int.from_bytes(content[start + 6 : start + 8], "little")
    return content[:start] + tag + b"UN\0\0" + struct.pack("<I", len(value)) + value + content[end:]


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("intact")
    stored = phantom(SLICES, 16)
    tags: dict[str, Any] = {"StudyInstanceUID": STUDY_UID, "PixelPaddingValue": -2000}
    made = {"plain": write_series(root / "plain", stored, **tags)}
    for syntax in CODECS:
        folder = made[syntax.name] = write_series(root / UID(syntax), stored, **tags)
        for path in folder.iterdir():
            compress(path, syntax)
    for name in ("enhanced", "zip", "volumes"):
        made[name] = root / name
        made[name].mkdir()
    write_enhanced(made["enhanced"] / "all", stored, couch(SLICES), StudyInstanceUID=STUDY_UID)
    zipped(made["plain"], made["zip"] / "scan.zip")
    volume, affine = stored.transpose(2, 1, 0).astype(np.float32), np.diag([1.0, 1.0, 5.0, 1.0])
    for zips in (False, True):
        nib.save(nib.Nifti1Image(volume, affine), made["volumes"] / f"scan.nii{'.gz' * zips}")
        write_nrrd(made["volumes"] / f"{zips}.nrrd", volume, affine, "LPS", "gzip" if zips else "raw")
        write_mha(made["volumes"] / f"{zips}.mha", volume, affine, zips)
    return made


def read(path: Path) -> str:
    """ "a scan", or the one line of its refusal."""
    reader = SeriesReader()
    try:
        array, meta = reader.get_data(reader.read(path))
    except InputError as error:
        message = str(error)
        assert "\n" not in message
        assert str(path) in message
        assert ": " in message.replace(str(path), "")
        return message
    assert array.dtype == np.float32
    assert np.isfinite(array).all()
    assert array.min() >= -1024
    assert len(meta["positions_mm"]) == array.shape[2] > 0
    assert np.isfinite([*meta["positions_mm"], *meta["affine"].ravel()]).all()
    assert (np.diff(meta["positions_mm"]) > 0).all()
    assert not any("\n" in line for line in meta["warnings"] + meta["skipped"])
    return "a scan"


def listing(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


SEEDS = {"plain": 10, "enhanced": 8, "zip": 6, "volumes": 24, **{syntax.name: 2 for syntax in CODECS}}


def damaged(kind: str, seed: int, intact: Path, folder: Path) -> Path:
    """A copy of an intact input, damaged in the way of this seed."""
    rng = random.Random(f"{kind} {seed}")
    changes: list[Change] = [flip_bits, cut]
    if kind == "volumes":
        folder.mkdir(parents=True)
        shutil.copy(sorted(intact.iterdir())[seed % 6], folder)
    else:
        shutil.copytree(intact, folder)
        changes += [set_tag] * (kind != "zip") * 2
    files, change = sorted(folder.rglob("*")), rng.choice(changes)
    for path in files if rng.random() < 0.4 else [rng.choice(files)]:
        path.write_bytes(change(path.read_bytes(), rng))
    return files[0] if kind in ("zip", "volumes") else folder


@pytest.fixture
def judge(intact: dict[str, Path], tmp_path: Path, monkeypatch: Any, capfd: Any, caplog: Any) -> Callable[..., int]:
    """Reads damaged inputs of a kind, and counts those that are scans all the same."""

    def read_all(kind: str, seeds: range) -> int:
        scans = 0
        for seed in seeds:
            outside = tmp_path / f"{kind} {seed}"
            path = damaged(kind, seed, intact[kind], outside / "in" / "scan")
            (outside / "work").mkdir()
            monkeypatch.chdir(outside / "work")
            before = listing(outside)
            caplog.clear()
            with warnings.catch_warnings(), watched(outside, SECONDS) as seen:
                warnings.simplefilter("error")
                scans += read(path) == "a scan"
            assert (seed, seen) == (seed, [])
            assert (seed, *capfd.readouterr()) == (seed, "", "")
            assert (seed, caplog.messages) == (seed, [])
            assert listing(outside) == before
        assert not Path("/tmp/evil").exists()
        return scans

    return read_all


@pytest.mark.slow
@pytest.mark.parametrize("kind", SEEDS)
def test_damage_ends_in_a_scan_or_in_one_line(kind: str, judge: Callable[..., int]) -> None:
    scans = judge(kind, range(SEEDS[kind]))
    assert kind in {syntax.name for syntax in CODECS} or 0 < scans < SEEDS[kind]  # or the seeds would show little


@pytest.mark.soak
def test_three_hundred_damaged_scans_end_in_a_scan_or_in_one_line(judge: Callable[..., int], capfd: Any) -> None:
    asked = {kind: range(100, 100 + 6 * count) for kind, count in SEEDS.items()}
    found = {kind: judge(kind, seeds) for kind, seeds in asked.items()}
    total, scans = sum(map(len, asked.values())), sum(found.values())
    with capfd.disabled():
        print(f"{total} scans: {scans} read, the others in one line; no traceback, hang, program or file outside")
    assert total > 300
    assert 0 < scans < total
