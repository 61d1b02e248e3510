# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Damaged and hostile slides: each ends in a feature file of finite values or in one clear line."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from scripts.core.errors import InputError
from tests.wsi.slide_files import extract, tissue, write_slide

SLIDES = 36

Damage = Callable[[bytes, random.Random], bytes]


def cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def flip_bits_of_the_directories(content: bytes, rng: random.Random) -> bytes:
    """Where the sizes, places and resolutions are."""
    changed = bytearray(content)
    for start, end in directories(content):
        for _ in range(rng.choice([0, 1, 3])):
            changed[rng.randrange(start, end)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def zero_a_stretch(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    start = rng.randrange(len(content))
    end = min(len(content), start + rng.choice([10, 1000, 100_000]))
    changed[start:end] = bytes(end - start)
    return bytes(changed)


def absurd_values(content: bytes, rng: random.Random) -> bytes:
    """A tag of the first directory gets a value that no scanner would write."""
    start, end = directories(content)[0]
    tag = struct.unpack_from("<H", content, rng.randrange((end - start - 6) // 12) * 12 + start + 2)[0]
    value = rng.choice([0, 1, 7, 255, 2**15, 2**16 - 1, 2**30, 2**31 - 1, 2**32 - 1])
    return with_tag(content, tag, value)


def with_tag(content: bytes, tag: int, value: int) -> bytes:
    changed = bytearray(content)
    start, end = directories(content)[0]
    for at in range(start + 2, end - 4, 12):
        if struct.unpack_from("<H", content, at)[0] == tag:
            struct.pack_into("<I", changed, at + 8, value)
    return bytes(changed)


def absurd_resolution(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    number = struct.pack("<II", 40_000, 1)
    while number in changed:
        at = changed.index(number)
        values = (0, 1), (1, 0), (0, 0), (2**32 - 1, 1), (1, 2**32 - 1), (500_000, 1), (600, 1), (40_000, 3)
        changed[at : at + 8] = struct.pack("<II", *rng.choice(values))
    return bytes(changed)


def something_else(_: bytes, rng: random.Random) -> bytes:
    return rng.choice([b"", b"II*\0", b"MM\0*", b"II+\0" + bytes(40), b"<xml/>", rng.randbytes(5000), bytes(5000)])


def directories(content: bytes) -> list[tuple[int, int]]:
    """Where the tags of each page begin and end."""
    found, at = [], struct.unpack_from("<I", content, 4)[0]
    while at:
        (count,) = struct.unpack_from("<H", content, at)
        found.append((at, at + 2 + count * 12 + 4))
        (at,) = struct.unpack_from("<I", content, at + 2 + count * 12)
    return found


DAMAGES: tuple[Damage, ...] = (
    *(cut, flip_bits_of_the_directories, zero_a_stretch, absurd_values, absurd_resolution, something_else),
)
SUFFIXES = (".tif", ".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".czi")


def extracted(folder: Path) -> str:
    """ "features", or the one line of the refusal."""
    try:
        (slide,) = extract(folder).values()
    except InputError as error:
        message = str(error)
        assert "\n" not in message
        assert message.startswith("1 of 1 slides failed (damaged.")
        assert str(folder) not in message
        assert sorted(path.name for path in (folder / "features").iterdir()) == ["failed.csv", "settings.json"]
        return message
    assert np.isfinite(slide.features).all()
    assert len(slide.coords) == len(slide.features)
    assert (slide.coords >= 0).all()
    assert (slide.coords + slide.tile <= np.array(slide.slide_size) + 1).all()
    return "features"


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("intact")
    pictures = [tissue(400, 500), tissue(300, 700, seed=1)]
    return [
        write_slide(folder / f"{number}.tif", picture, 0.25, downsamples).read_bytes()
        for number, (picture, downsamples) in enumerate(zip(pictures, [(1, 2, 4), (1,)], strict=True))
    ]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_ends_in_features_or_in_one_line(damage: Damage, intact: list[bytes], tmp_path: Path) -> None:
    ends = []
    for seed in range(SLIDES // len(DAMAGES)):
        rng = random.Random(f"{damage.__name__} {seed}")
        suffix = ".tif" if seed % 2 else rng.choice(SUFFIXES)
        path = tmp_path / f"{seed}/slides/damaged{suffix}"
        path.parent.mkdir(parents=True)
        path.write_bytes(damage(intact[seed % 2], rng))
        ends.append(extracted(tmp_path / str(seed)))
    if damage is something_else:
        assert all("is not a slide that OpenSlide reads" in end for end in ends)
    if damage in (cut, absurd_resolution):
        assert any(end != "features" for end in ends)


WIDTH, TILE_WIDTH = 256, 322


@pytest.mark.parametrize(
    ("tag", "value", "problem"),
    [
        (WIDTH, 2**20, "it has 1048576 × 400 pixels, and 250 × 200 when it is made smaller"),
        (TILE_WIDTH, 2**28, "its tiles have 268435456 × 128 pixels"),
    ],
)
def test_sizes_that_cannot_be_true_are_refused(
    tag: int, value: int, problem: str, intact: list[bytes], tmp_path: Path
) -> None:
    """The last would end the process, for want of memory in OpenSlide; the other would be read for hours."""
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides/damaged.tif").write_bytes(with_tag(intact[0], tag, value))
    assert f"damaged.tif says that {problem}: it is damaged; copy it again or remove it" in extracted(tmp_path)


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (63, 64), (127, 128), (128, 128)])
def test_tiny_images_have_few_tiles_or_none(size: tuple[int, int], tmp_path: Path) -> None:
    write_slide(tmp_path / "slides/damaged.tif", tissue(*size), mpp=0.25, downsamples=(1,))
    assert extracted(tmp_path) == "features"
    assert len(extract(tmp_path)["damaged"].coords) == (size == (128, 128))
