# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Spoilt feature files of every format: a bag that can be used, or one line that says what is wrong."""

import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from scripts.core.errors import InputError
from scripts.wsi.features.files import read_header
from tests.watched import watched
from tests.wsi.features.test_base import CASES
from tests.wsi.foreign_features import blocks_of, in_blocks, load, tissue

FILES = 74
SECONDS = 1800  # for six hundred
CELLS = tissue(9, 7)


def spoil(path: Path, rng: np.random.Generator) -> None:
    known = {".h5": _rewrite, ".npy": _other_array, ".pt": _other_content}
    if path.is_dir():  # a store, of which one of its files is spoilt
        path = rng.choice(sorted(each for each in path.rglob("*") if each.is_file()))
    content = path.read_bytes()
    way = rng.integers(8 if path.suffix in known else 4)
    if way == 0:  # cut short
        path.write_bytes(content[: rng.integers(len(content))])
    elif way == 1:  # noise
        path.write_bytes(content[: rng.integers(12)] + rng.bytes(int(rng.integers(1, 3000))))
    elif way < 4:  # other bytes at the start, where a file states what it holds, and anywhere
        flipped = bytearray(content)
        for _ in range(rng.integers(1, 30)):
            flipped[rng.integers(min(len(content), int(rng.choice([200, 2000, len(content)]))))] = rng.integers(256)
        path.write_bytes(flipped)
    else:
        known[path.suffix](path, rng)


def _strange(n: int, rng: np.random.Generator) -> Any:
    """What might stand where features or coords should."""
    return [
        np.zeros((0, 8), np.float32),
        np.zeros((2, n, 8), np.float32),
        np.float32(3),
        np.full((n, 2), 2**62),
        np.zeros((n, 2), complex),
        np.arange(2 * n).reshape(n, 2),
        rng.normal(size=(n, 2)) * 1e300,
        rng.integers(-(2**40), 2**40, (n, 2)),
        np.arange(n * 8, dtype=np.float64).reshape(n, 8),
    ][rng.integers(9)]


def _rewrite(path: Path, rng: np.random.Generator) -> None:
    attributes = [b"\xff", "None", np.nan, -1.0, 0, [], [1e308, 2], "x", 1e-300]
    with h5py.File(path, "r+") as file:
        name = str(rng.choice(list(file)))
        owner = file[name] if len(file[name].attrs) else file
        way = rng.integers(7)
        if way == 0:
            for attribute in list(owner.attrs):
                owner.attrs[attribute] = attributes[rng.integers(9)]
            return
        file.move(name, f"{name}s")
        if way == 1:
            file.create_group(name)
        elif way == 2:  # sizes that nothing stands behind
            shape = (10 ** int(rng.integers(6, 14)), int(rng.integers(1, 5000)))
            file.create_dataset(name, shape, np.float32, chunks=(1, 1))
        elif way > 3:
            file[name] = h5py.Empty("f4") if way == 4 else _strange(len(CELLS), rng)


def _other_array(path: Path, rng: np.random.Generator) -> None:
    array = _strange(len(CELLS), rng) if rng.random() < 0.7 else np.array([{"a": 1}, None], dtype=object)
    beside = path.parent.parent / "coords" / path.name
    np.save(path if rng.random() < 0.5 or not beside.is_file() else beside, array, allow_pickle=True)


def _other_content(path: Path, rng: np.random.Generator) -> None:
    contents: list[Any] = [
        torch.zeros(1).expand(10**9, 1000),
        torch.zeros(len(CELLS), 8).to_sparse(),
        torch.full((len(CELLS), 8), float("nan")),
        torch.zeros(len(CELLS), 8, dtype=torch.complex64),
    ]
    torch.save(contents[rng.integers(len(contents))], path)


def use(path: Path, whole: bool) -> str:
    """Why it cannot be used, empty if it can; any other error than of input is a fault."""
    try:
        bag = (load if whole else in_blocks)(image=str(path))
        features = bag["image"] if whole else torch.cat(blocks_of(bag["image"], 16), dim=2)[0]
    except InputError as error:
        return str(error)
    n = bag["mask"].shape[1]
    assert features.shape[1] == bag["coords"].shape[1] == bag["stored_coords"].shape[1] == n > 0
    assert features.isfinite().all()
    assert bag["coords"].isfinite().all()
    assert len(bag["coords"].unique(dim=1).T) == n
    assert read_header(path).pitch > 0
    return ""


def judged(folder: Path, files: int, seed: int) -> list[str]:
    """Why each of so many spoilt files cannot be used, empty if it can."""
    rng = np.random.default_rng(seed)
    lines = []
    for number in range(files):
        own = folder / str(number)
        own.mkdir()
        path = CASES[number % len(CASES)].write(own, CELLS)
        assert use(path, whole=bool(number % 2)) == ""  # before it is spoilt
        spoil(path, rng)
        line = use(path, whole=bool(rng.integers(2)))
        assert "\n" not in line
        assert path.name in line or not line
        lines.append(line)
        shutil.rmtree(own)
    return lines


def test_a_bag_or_one_line(tmp_path: Path) -> None:
    lines = judged(tmp_path, FILES, 5)
    assert 0.4 * FILES < sum(map(bool, lines)) < FILES  # else they are spoilt too little, or too much
    assert len({line.split(str(tmp_path))[-1].partition(" ")[2] for line in lines}) > 8  # ways to be wrong


@pytest.mark.soak
def test_six_hundred_files_run_no_code_and_write_nothing_outside(tmp_path: Path, capfd: Any) -> None:
    with watched(tmp_path, SECONDS) as seen:
        lines = judged(tmp_path, 600, 6)
    refused = sum(map(bool, lines))
    assert seen == []
    with capfd.disabled():
        print(
            f"600 feature files: {600 - refused} usable, {refused} in one line, 0 tracebacks, hangs, outside, programs"
        )
    assert 0.4 < refused / 600 < 1
