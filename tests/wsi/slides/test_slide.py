# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""How slides are found and read: their scale, the level that is read, and the pixels at a place."""

import math
import random
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile

from scripts.core.errors import InputError
from scripts.core.units import MicronsPerPixel
from scripts.wsi.slides.slide import (
    SLIDE_SUFFIXES,
    find_slides,
    open_slide,
    plan_tiles,
    read_mpp,
    read_origin,
    read_overview,
    read_square,
    scanned_sides,
)
from tests.wsi.slide_files import extract, tissue, write_slide


def test_what_was_never_scanned_is_white(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.tif", tissue(100, 100), mpp=0.5, downsamples=(1,))
    with open_slide(path) as slide:
        square = read_square(slide, (50, 50), 0, 100, 100)
    assert (square[60:] == 255).all()
    assert (np.ptp(square[:50, :50], axis=2) > 15).mean() > 0.9


def test_an_overview_in_blocks_has_no_seams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    y, x = np.mgrid[0:500, 0:700]
    image = np.stack([x * 255 / 700, y * 255 / 500, (x + y) * 255 / 1200], axis=2).astype(np.uint8)
    path = write_slide(tmp_path / "a.tif", image, mpp=0.5, downsamples=(1,))
    monkeypatch.setattr("scripts.wsi.slides.slide.BLOCK_PIXELS", 100)
    with open_slide(path) as slide:
        overview = read_overview(slide, 7.3)
        part = read_overview(slide, 7, (70, 140), (280, 210))
        np.testing.assert_allclose(part.astype(int), read_overview(slide, 7)[20:50, 10:50], atol=1)
    assert overview.shape == (math.ceil(500 / 7.3), math.ceil(700 / 7.3), 3)
    places = (np.indices(overview.shape[:2]) + 0.5) * 7.3
    inner = (slice(0, -1), slice(0, -1))
    np.testing.assert_allclose(overview[..., 0][inner], (places[1] * 255 / 700)[inner], atol=2)
    np.testing.assert_allclose(overview[..., 1][inner], (places[0] * 255 / 500)[inner], atol=2)


def test_slides_are_found_at_any_depth_but_not_what_is_hidden_and_a_list_is_taken_as_it_is(tmp_path: Path) -> None:
    for name in ("b.SVS", "1/c.ndpi", "1/2/a.svs", "1/._a.svs", "1/a/Dat_1.dat", "a.xml", "dicom/d.dcm"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.tif").mkdir()
    found = {"a": tmp_path / "1/2/a.svs", "b": tmp_path / "b.SVS", "c": tmp_path / "1/c.ndpi"}
    assert list(find_slides(tmp_path).items()) == list(found.items())
    named = {"b": tmp_path / "b.SVS", "d": tmp_path / "dicom/d.dcm"}
    assert list(find_slides([str(named["d"]), named["b"]]).items()) == list(named.items())
    with pytest.raises(InputError, match=r"no slide .*gone.svs; correct its path in --slides"):
        find_slides([tmp_path / "b.SVS", tmp_path / "gone.svs"])


def stated(kind: str, x: str | None, y: str | None) -> Any:
    """A slide of which only two properties are known."""
    given = {f"openslide.{kind}-{axis}": text for axis, text in (("x", x), ("y", y)) if text is not None}
    return SimpleNamespace(properties=given)


@pytest.mark.parametrize(
    ("x", "y", "mpp"),
    [
        *(("0.2527", "0.2528", 0.2527), ("0.25", None, 0.25), ("0.25", "nan", 0.25), ("352.8", "352.8", None)),
        *((never, None, None) for never in ("0", "inf", "0,25", None)),
    ],
)
def test_the_scale_is_what_the_slide_states_if_it_can_be_true(x: str | None, y: str | None, mpp: float | None) -> None:
    slide, other = stated("mpp", x, y), MicronsPerPixel(0.4)
    assert read_mpp(slide, "a.svs", other) == (other if mpp is None else mpp)
    if mpp is None:
        with pytest.raises(InputError, match=r"^a.svs states .*micrometres per pixel: say how many .*--slide_mpp$"):
            read_mpp(slide, "a.svs", None)
    with pytest.raises(InputError, match=r"^a.svs has pixels of 0.25 × 0.5 micrometres: convert it to square pixels"):
        read_mpp(stated("mpp", "0.25", "0.5"), "/somewhere/a.svs", other)


def test_the_origin_is_the_corner_of_the_bounds_and_what_was_scanned_as_large_as_stated_within_reason() -> None:
    assert read_origin(stated("bounds", "1024", "77")) == (1024, 77)
    for x, y in (("1024", None), ("?", "77"), (None, None)):
        assert read_origin(stated("bounds", x, y)) == (0, 0)
    names = ("openslide.bounds-width", "openslide.bounds-height")
    for sides, wanted in (
        (("3000", "2000"), (3000, 2000)),
        (("99999", "2000"), (8700, 2000)),
        *((sides, (8700, 6800)) for sides in ((), ("0", "-5"), ("wide", ""))),
    ):
        assert scanned_sides(dict(zip(names, sides, strict=False)), (300, 200), (9000, 7000)) == wanted


PYRAMIDS = [
    ((1, 2, 4), 1.5, 0, 1.5),
    ((1, 2, 4), 2, 1, 1),
    ((1, 4, 16), 6, 1, 1.5),
    ((1, 3, 9), 4, 1, 4 / 3),
    ((1, 5), 7.5, 1, 1.5),
    ((1,), 4, 0, 4),
]


@pytest.mark.parametrize(("downsamples", "wanted", "level", "scale"), PYRAMIDS)
def test_a_tile_of_any_pyramid_shows_its_place(
    tmp_path: Path, downsamples: tuple[int, ...], wanted: float, level: int, scale: float
) -> None:
    """Each pixel against the formula of the picture at its middle: half a pixel of shift would be seen."""

    def colour(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        waves = [np.sin(x / 14), np.sin(y / 14), np.sin((x + y) / 20)]
        return 128 + 90 * np.stack(np.broadcast_arrays(*waves), axis=-1)

    y, x = np.mgrid[0:640, 0:770]
    path = write_slide(tmp_path / "a.tif", np.rint(colour(x + 0.5, y + 0.5)).astype(np.uint8), 0.25, downsamples)
    size = 32
    middles = (np.arange(size) + 0.5) * wanted
    with open_slide(path) as slide:
        plan = plan_tiles(slide, path, size, 0, MicronsPerPixel(0.25 * wanted), MicronsPerPixel(0.25))
        assert (plan.level, plan.tile) == (level, size * wanted)
        assert plan.side == pytest.approx(size * scale, rel=0.01)
        for corner in [(0, 0), (301, 203)]:
            tile = read_square(slide, corner, plan.level, plan.side, plan.pixels)
            expected = colour(corner[0] + middles[None, :], corner[1] + middles[:, None])
            np.testing.assert_allclose(tile.astype(float), expected, atol=2 * wanted)
            shifted = colour(corner[0] + wanted / 2 + middles[None, :], corner[1] + middles[:, None])
            assert np.abs(tile - shifted).max() > 2 * wanted


# Damaged and hostile slides: each ends in features of finite values or in one clear line.

SLIDES = 36
Damage = Callable[[bytes, random.Random], bytes]


def cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def flip_bits_of_the_directories(content: bytes, rng: random.Random) -> bytes:
    """Where the sizes, places and resolutions are."""
    changed = bytearray(content)
    with tifffile.TiffFile(BytesIO(content)) as file:
        for page in file.pages:
            assert isinstance(page, tifffile.TiffPage)
            for _ in range(rng.choice([0, 1, 3])):
                changed[page.offset + rng.randrange(2 + 12 * len(page.tags) + 4)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def something_else(_: bytes, rng: random.Random) -> bytes:
    return rng.choice([b"", b"II*\0", b"MM\0*", b"II+\0" + bytes(40), b"<xml/>", rng.randbytes(5000), bytes(5000)])


DAMAGES = (cut, flip_bits_of_the_directories, something_else)


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
    assert (slide.coords < slide.slide_size).all()
    return "features"


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    path = tmp_path_factory.mktemp("intact") / "a.tif"
    pictures: list[Any] = [(tissue(400, 500), 0.25, (1, 2, 4)), (tissue(300, 700, seed=1), 0.25, (1,))]
    return [write_slide(path, *picture).read_bytes() for picture in pictures]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_ends_in_features_or_in_one_line(damage: Damage, intact: list[bytes], tmp_path: Path) -> None:
    ends = []
    for seed in range(SLIDES // len(DAMAGES)):
        rng = random.Random(f"{damage.__name__} {seed}")
        suffix = ".tif" if seed % 2 else rng.choice(sorted(SLIDE_SUFFIXES))
        path = tmp_path / f"{seed}/slides/damaged{suffix}"
        path.parent.mkdir(parents=True)
        path.write_bytes(damage(intact[seed % 2], rng))
        ends.append(extracted(tmp_path / str(seed)))
    if damage is something_else:
        assert all("is not a slide that OpenSlide reads" in end for end in ends)
    if damage is cut:
        assert any(end != "features" for end in ends)


@pytest.mark.parametrize(
    ("tag", "value", "most", "problem"),
    [
        ("ImageWidth", 2**20, 10**12, "it has 1048576 × 400 pixels, and 250 × 200 when it is made smaller"),
        ("TileWidth", 2**28, 10**12, "its tiles have 268435456 × 128 pixels"),
        ("ImageWidth", 500, 199_999, "it has 500 × 400 pixels"),
    ],
)
def test_sizes_that_cannot_be_true_are_refused(
    tag: str, value: int, most: int, problem: str, intact: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiles would end the process, for want of memory in OpenSlide; the others would be read for hours."""
    monkeypatch.setattr("scripts.wsi.slides.slide.MOST_PIXELS", most)
    path = tmp_path / "slides/damaged.tif"
    path.parent.mkdir()
    path.write_bytes(intact[0])
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages.first.tags[tag].overwrite(value)
    assert f"damaged.tif says that {problem}: it is damaged; copy it again or remove it" in extracted(tmp_path)


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (63, 64), (127, 128), (128, 128)])
def test_tiny_images_have_few_tiles_or_none(size: tuple[int, int], tmp_path: Path) -> None:
    write_slide(tmp_path / "slides/damaged.tif", tissue(*size), mpp=0.25, downsamples=(1,))
    assert extracted(tmp_path) == "features"
    within = extract(tmp_path, overhang=False, tissue_threshold=0.5, output_dir=tmp_path / "within")["damaged"]
    assert len(within.coords) == (size == (128, 128))
    (tmp_path / "features/settings.json").unlink()
    coords = extract(tmp_path)["damaged"].coords  # a tenth of a tile is 1639 pixels
    tiles = [
        [x, y]
        for y in range(0, size[0], 128)
        for x in range(0, size[1], 128)
        if min(size[0] - y, 128) * min(size[1] - x, 128) > 1639
    ]
    assert coords.tolist() == tiles
