# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""A mask image says the same as the polygons it was made from, in whichever form, and is read in parts."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from scripts.core.errors import InputError
from scripts.core.units import Level0Coords, Level0Pixels
from scripts.wsi.annotations import masks
from scripts.wsi.annotations.annotation import Annotation, read_annotation
from scripts.wsi.annotations.polygons import Painted, Polygons

Write = Callable[[Path, np.ndarray], object]
TILE = Level0Pixels(64.0)
SIZE = (900, 700)  # width, height
PLACES = np.stack(np.meshgrid(np.arange(14), np.arange(10)), axis=-1).reshape(-1, 2)
COORDS = Level0Coords(PLACES * int(TILE))
STAR = np.array([(100, 80), (420, 300), (800, 60), (560, 420), (700, 690), (400, 500), (40, 640), (260, 330)], float)
POLYGON = Annotation(Polygons([Painted(STAR, True)]))


def rasterised(downsample: float = 1.0) -> np.ndarray:
    """(h, w) uint8, 1 in the polygon."""
    width, height = (round(side / downsample) for side in SIZE)
    return Polygons([Painted(STAR, True)]).covered(np.zeros(2), downsample, height, width).astype(np.uint8)


def in_red(pixels: np.ndarray) -> np.ndarray:
    return np.stack([pixels, np.zeros_like(pixels), np.zeros_like(pixels)], axis=2)


def tiff(kind: Callable[[np.ndarray], Any] = np.uint8, **written: Any) -> Write:
    return lambda path, pixels: tifffile.imwrite(path, kind(pixels), **written)


def by_pil(form: str, kind: Callable[[np.ndarray], Any] = np.asarray, **written: Any) -> Write:
    return lambda path, pixels: Image.fromarray(kind(pixels)).save(path, form, **written)


def in_a_pyramid(path: Path, pixels: np.ndarray) -> None:
    with tifffile.TiffWriter(path) as file:
        for step in (1, 2, 4, 8):
            level = pixels[step // 2 :: step, step // 2 :: step]
            file.write(level, tile=(128, 128), metadata=None, subfiletype=int(step > 1))


def as_png_with_a_palette(path: Path, pixels: np.ndarray) -> None:
    image = Image.fromarray(pixels).convert("P")
    image.putpalette([255, 255, 255, 0, 0, 0])  # what is 0 is white
    image.save(path, "PNG")


IN_TILES: dict[str, Any] = {"tile": (128, 128), "compression": "zlib"}
FORMATS: dict[str, Write] = {
    "tiles": tiff(**IN_TILES),
    "a pyramid": in_a_pyramid,
    "one piece": tiff(),
    "LZW": by_pil("TIFF", compression="tiff_lzw"),
    # as CAMELYON16's and PANDA's
    "LZW in tiles": by_pil("TIFF", compression="tiff_lzw", tiffinfo={322: 128, 323: 128}),
    "compressed strips": tiff(rowsperstrip=37, compression="zlib"),
    "sixteen bits": tiff(np.uint16, tile=(64, 128), compression="zlib"),
    "big endian": tiff(np.uint16, rowsperstrip=50, byteorder=">", bigtiff=True),
    "one bit": by_pil("TIFF", lambda pixels: pixels > 0, compression="group4"),
    "colours": tiff(in_red, photometric="rgb", **IN_TILES),
    "planes": tiff(lambda p: np.moveaxis(in_red(p), 2, 0), tile=(128, 128), photometric="rgb", planarconfig="separate"),
    "PNG": by_pil("PNG"),
    "opaque PNG": by_pil("PNG", lambda pixels: np.dstack([in_red(pixels), np.full_like(pixels, 255)])),
    "PNG with a palette": as_png_with_a_palette,
}
write_in_tiles, write_whole = FORMATS["tiles"], FORMATS["one piece"]


@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS)
def test_a_mask_of_any_form_labels_the_tiles_that_the_polygon_does(tmp_path: Path, write: Write) -> None:
    write(tmp_path / "mask", rasterised())
    mask, expected = read_annotation(tmp_path / "mask", SIZE), POLYGON.tile_labels(COORDS, TILE)
    assert 20 < expected.sum() < 80
    assert mask.tile_labels(COORDS, TILE).tolist() == expected.tolist()


@pytest.mark.parametrize("form", ["tiles", "a pyramid", "LZW in tiles", "PNG", "colours"])
def test_the_values_that_count_can_be_chosen(tmp_path: Path, form: str) -> None:
    grades = np.zeros((640, 896), np.uint8)
    grades[:128, :192], grades[256:320], grades[320:384] = 3, 5, 1
    FORMATS[form](tmp_path / "mask", grades)
    for values, expected in (
        ([3, 4, 5], (PLACES[:, 1] == 4) | ((PLACES[:, 1] < 2) & (PLACES[:, 0] < 3))),
        ([5], PLACES[:, 1] == 4),
        ([2], PLACES[:, 1] > 99),
        (None, (PLACES[:, 1] == 4) | (PLACES[:, 1] == 5) | ((PLACES[:, 1] < 2) & (PLACES[:, 0] < 3))),
    ):
        labels = read_annotation(tmp_path / "mask", values=values).tile_labels(COORDS, TILE)
        assert labels.tolist() == expected.tolist(), values
    with pytest.raises(InputError, match=r"mask is a mask, and the values \['Tumor'\] are not all numbers"):
        read_annotation(tmp_path / "mask", values=["Tumor"])


@pytest.mark.parametrize("downsample", [3.7, 8])
def test_a_smaller_mask_covers_the_whole_slide(tmp_path: Path, downsample: float) -> None:
    write_in_tiles(tmp_path / "mask.tif", rasterised(downsample))
    labels = read_annotation(tmp_path / "mask.tif", SIZE).tile_labels(COORDS, TILE)
    share = np.array([rasterised()[y : y + 64, x : x + 64].mean() for x, y in COORDS])
    clear = np.abs(share - 0.5) > 0.1
    assert clear.mean() > 0.8
    assert (labels == (share > 0.5))[clear].all()


def test_any_channel_counts_a_chosen_value_in_the_first_and_nothing_beyond_the_slide(tmp_path: Path) -> None:
    green = np.zeros((128, 128, 3), np.uint8)
    green[:, :, 1] = 255
    Image.fromarray(green).save(tmp_path / "mask.png")
    coords = Level0Coords(np.array([(0, 0), (-64, 0), (96, 0), (90, 0), (500, 500)]))
    for values, expected in ((None, [True, False, False, True, False]), ([255], [False] * 5)):
        assert read_annotation(tmp_path / "mask.png", values=values).tile_labels(coords, TILE).tolist() == expected


def test_no_finer_level_is_read_than_needed(tmp_path: Path) -> None:
    """Levels that disagree, as no real mask's do, tell which was read."""
    with tifffile.TiffWriter(tmp_path / "mask.tif") as file:
        for step, value in ((1, 0), (2, 0), (4, 1), (8, 0)):
            pixels = np.full((1024 // step, 1024 // step), value, np.uint8)
            file.write(pixels, tile=(128, 128), metadata=None, subfiletype=int(step > 1))
    assert read_annotation(tmp_path / "mask.tif").tile_labels(COORDS, TILE).all()  # 64 / 16 samples


@pytest.mark.parametrize("values", [np.uint8, np.uint16])
def test_a_large_mask_is_read_in_parts(tmp_path: Path, values: type[np.generic]) -> None:
    # of a billion pixels; a piece that is left out is 0
    given = {0: np.zeros((512, 512), values), 64: np.ones((512, 512), values)}
    pieces = (given.get(piece) for piece in range(64 * 64))
    with tifffile.TiffWriter(tmp_path / "mask.tif") as file:
        file.write(
            pieces, shape=(32768, 32768), dtype=values, tile=(512, 512), compression="zlib", photometric="minisblack"
        )
    corners = np.arange(0, 32768, 256)
    coords = Level0Coords(np.stack(np.meshgrid(corners, corners), axis=-1).reshape(-1, 2))
    tracemalloc.start()
    positive = coords[read_annotation(tmp_path / "mask.tif").tile_labels(coords, Level0Pixels(256.0))]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert positive.tolist() == [[0, 512], [256, 512], [0, 768], [256, 768]]
    assert peak < 200e6


@pytest.mark.parametrize("seed", range(4))
def test_outlines_are_drawn_around_the_cells(seed: int, tmp_path: Path) -> None:
    cells = np.random.default_rng(seed).random((12, 17)) < 0.5
    write_whole(tmp_path / "mask.tif", cells)
    rings = read_annotation(tmp_path / "mask.tif", (17, 12)).outlines()
    refilled = np.zeros_like(cells)
    for ring in rings:
        refilled ^= Polygons([Painted(ring, True)]).covered(np.zeros(2), 1.0, 12, 17)
        assert (np.diff(ring, axis=0, append=ring[:1]) != 0).sum() == len(ring)  # along the sides of cells
    assert (refilled == cells).all()
    box = np.zeros((700, 900), np.uint8)
    box[100:300, 200:600] = 1
    write_whole(tmp_path / "mask.tif", box)
    (ring,) = read_annotation(tmp_path / "mask.tif", (9000, 7000)).outlines()
    corners = [[2000, 1000], [2000, 3000], [6000, 1000], [6000, 3000]]  # no point along a side
    np.testing.assert_allclose(sorted(ring.tolist()), corners, atol=10)


@pytest.mark.parametrize("size", [(900, 700), (1799, 1400), (3601, 2799), (90000, 70000), (90, 70)])
def test_a_mask_must_have_the_shape_of_the_slide(tmp_path: Path, size: tuple[int, int]) -> None:
    write_whole(tmp_path / "mask.tif", rasterised())
    assert read_annotation(tmp_path / "mask.tif", size).area.bounds() == (0, 0, *size)
    with pytest.raises(InputError, match=r"mask.tif is a mask of 900 × 700 pixels, which is not the shape of the sl"):
        read_annotation(tmp_path / "mask.tif", (size[1], size[0] + 2))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (tiff(rowsperstrip=700, compression="zlib"), "mask is one large piece .*; save the mask in tiles"),
        (FORMATS["PNG"], "mask is too large to be read whole; save it as a TIFF in tiles"),
        (FORMATS["LZW"], "mask is too large to be read whole; save it as a TIFF in tiles"),
    ],
)
def test_a_mask_too_large_to_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Write, message: str
) -> None:
    write(tmp_path / "mask", rasterised())
    monkeypatch.setattr(masks, "MOST_PIXELS_OF_A_SEGMENT", 1000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(InputError, match=message):
        read_annotation(tmp_path / "mask").tile_labels(COORDS, TILE)


@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS)
def test_a_damaged_mask_is_refused_in_one_line(tmp_path: Path, write: Write) -> None:
    """Cut short, or with other bytes: a wrong answer cannot always be seen, but nothing else may be raised."""
    path, rng = tmp_path / "mask", np.random.default_rng(0)
    write(path, rasterised())
    whole = path.read_bytes()
    refused = []
    for attempt in range(24):
        content = bytearray(whole)
        if attempt < 8:
            content = content[: len(whole) * attempt // 8]
        else:
            for place in rng.integers(4, len(content) if attempt % 2 else 400, 5):
                content[place] = rng.integers(256)
        path.write_bytes(content)
        try:
            read_annotation(path, SIZE).tile_labels(COORDS, TILE)
        except InputError as error:
            refused.append(str(error))
    assert len(refused) >= 2
    assert all(str(path) in message and "\n" not in message for message in refused)
