# Copyright (c) 2026 the smooth MIL bundle authors
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Slides become feature files: where the tiles lie, which are kept, what the encoder sees, and what goes wrong."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import tifffile
import torch
from PIL import Image
from torch import Tensor

from scripts.data.features import PatchFeatures, read_features
from scripts.data.slides import (
    FeatureExtractor,
    TilePlan,
    best_level,
    find_slides,
    open_slide,
    read_overview,
    read_square,
    tissue_mask,
    tissue_tiles,
)
from scripts.errors import InputError
from scripts.units import Level0Pixels
from tests.shared_data import shared_data

GLASS, TISSUE = (241, 240, 243), (205, 130, 180)


class MeanColour(torch.nn.Module):
    """Says what it saw: the mean colour of each tile and the colours of its upper corners, left and right."""

    def forward(self, tiles: Tensor) -> Tensor:
        return torch.cat([tiles.mean(dim=(2, 3)), tiles[:, :, 0, 0], tiles[:, :, 0, -1]], dim=1)


class GivesUp(torch.nn.Module):
    """Fails at the second batch of tiles; the first call is the extractor's own trial."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, tiles: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > 2:
            raise RuntimeError("out of memory")
        return tiles.mean(dim=(2, 3))


def glass(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), GLASS, np.uint8)


def tissue(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Stained everywhere, no two places alike."""
    noise = np.random.default_rng(seed).integers(-25, 26, (height, width, 1))
    ramp = np.linspace(-20, 20, width)[None, :, None] + np.linspace(-20, 20, height)[:, None, None]
    return np.clip(np.array(TISSUE) + noise + ramp, 0, 255).astype(np.uint8)


def write_slide(path: Path, image: np.ndarray, mpp: float | None, downsamples: tuple[int, ...] = (1, 4)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind: dict[str, Any] = {"photometric": "rgb", "compression": "deflate", "tile": (128, 128)}
    if mpp is not None:
        kind |= {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    height, width, _ = image.shape
    with tifffile.TiffWriter(path) as writer:
        for downsample in downsamples:
            level = np.asarray(Image.fromarray(image).reduce(downsample)) if downsample > 1 else image
            writer.write(level[: height // downsample, : width // downsample], subfiletype=int(downsample > 1), **kind)
    return path


def extract(tmp_path: Path, encoder: torch.nn.Module | None = None, **settings: Any) -> dict[str, PatchFeatures]:
    encoder = MeanColour() if encoder is None else encoder
    wanted: dict[str, Any] = {"slides": tmp_path / "slides", "output_dir": tmp_path / "features"}
    wanted |= {"encoder": encoder, "encoder_name": "mean colour", "tile_size": 64, "batch_size": 5, "num_workers": 2}
    wanted |= settings
    FeatureExtractor(**wanted).run()
    return {path.stem: read_features(path) for path in sorted(Path(wanted["output_dir"]).glob("*.h5"))}


def grid(columns: int, rows: int, pitch: float) -> list[list[int]]:
    return [[round(column * pitch), round(row * pitch)] for row in range(rows) for column in range(columns)]


def test_the_grid_and_the_pitch_of_a_slide_at_twice_the_resolution(tmp_path: Path) -> None:
    write_slide(tmp_path / "slides/a.tif", tissue(700, 1000), mpp=0.25)
    slide = extract(tmp_path)["a"]
    np.testing.assert_allclose([slide.tile, slide.pitch], [128, 128])
    assert slide.coords.tolist() == grid(7, 5, 128)  # 104 columns and 60 rows are left over
    assert slide.mpp == pytest.approx(0.25)
    assert slide.slide_size == (1000, 700)
    assert (slide.slide_id, slide.encoder) == ("a", "mean colour")
    assert slide.features.dtype == np.float16


@pytest.mark.parametrize(("mpp", "pitch"), [(0.499, 64 * 0.5 / 0.499), (0.3, 64 * 0.5 / 0.3), (0.1, 320.0)])
def test_a_pitch_that_is_no_whole_number_does_not_drift(tmp_path: Path, mpp: float, pitch: float) -> None:
    write_slide(tmp_path / "slides/a.tif", tissue(450, 1000), mpp=mpp)
    slide = extract(tmp_path)["a"]
    assert slide.pitch == pytest.approx(pitch, rel=1e-4)
    assert slide.coords.tolist() == grid(int(1000 / pitch), int(450 / pitch), pitch)


def test_a_last_tile_that_fits_to_the_pixel_is_not_lost_to_rounding(tmp_path: Path) -> None:
    side = Level0Pixels(64 * (1 + 1e-12))
    plan = TilePlan(level=0, side=64, pixels=64, tile=side, pitch=side)
    with open_slide(write_slide(tmp_path / "a.tif", tissue(128, 256), mpp=0.5, downsamples=(1,))) as slide:
        assert tissue_tiles(slide, plan, threshold=0.5).tolist() == grid(4, 2, 64)


def test_overlapping_tiles_have_a_smaller_pitch(tmp_path: Path) -> None:
    write_slide(tmp_path / "slides/a.tif", tissue(256, 512), mpp=0.25)
    slide = extract(tmp_path, overlap=32)["a"]
    np.testing.assert_allclose([slide.tile, slide.pitch], [128, 64])
    assert slide.coords.tolist() == grid(7, 3, 64)


def test_the_encoder_sees_the_pixels_at_the_coords(tmp_path: Path) -> None:
    image = tissue(400, 500)
    write_slide(tmp_path / "slides/a.tif", image, mpp=0.5, downsamples=(1,))
    slide = extract(tmp_path)["a"]
    assert len(slide.coords) == 42
    for (x, y), features in zip(slide.coords, slide.features, strict=True):
        tile = image[y : y + 64, x : x + 64] / 255
        np.testing.assert_allclose(features[:3], tile.mean(axis=(0, 1)), atol=1e-3)
        np.testing.assert_allclose(features[3:6], tile[0, 0], atol=1e-3)
        np.testing.assert_allclose(features[6:], tile[0, -1], atol=1e-3)


def test_resized_tiles_show_the_same_place(tmp_path: Path) -> None:
    image = tissue(600, 900)
    write_slide(tmp_path / "slides/a.tif", image, mpp=0.3, downsamples=(1,))
    slide = extract(tmp_path)["a"]
    for (x, y), features in zip(slide.coords, slide.features, strict=True):
        np.testing.assert_allclose(features[:3], image[y : y + 107, x : x + 107].mean(axis=(0, 1)) / 255, atol=3e-3)


def marked_levels(path: Path, mpp: float) -> Path:
    """A pyramid 1, 2, 4 whose levels differ in colour, so that the features tell which one was read."""
    kind: dict[str, Any] = {"photometric": "rgb", "compression": "deflate", "tile": (128, 128)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path) as writer:
        for level, (downsample, colour) in enumerate([(1, (250, 0, 0)), (2, (0, 250, 0)), (4, (0, 0, 250))]):
            image = np.full((512 // downsample, 512 // downsample, 3), colour, np.uint8)
            writer.write(
                image,
                subfiletype=int(level > 0),
                resolution=(1e4 / mpp, 1e4 / mpp),
                resolutionunit="CENTIMETER",
                **kind,
            )
    return path


@pytest.mark.parametrize(("mpp", "level"), [(0.25, 0), (0.3, 0), (0.49, 0), (0.5, 1), (0.499, 1), (0.9, 1), (1.5, 2)])
def test_tiles_come_from_the_smallest_level_with_all_the_detail(tmp_path: Path, mpp: float, level: int) -> None:
    marked_levels(tmp_path / "slides/a.tif", mpp=0.25)
    features = extract(tmp_path, mpp=mpp, tile_size=32)["a"].features[:, :3].astype(float)
    assert (features.argmax(axis=1) == level).all()
    assert np.allclose(features.max(axis=1), 250 / 255, atol=1e-3)


@pytest.mark.parametrize(
    ("downsamples", "wanted", "level"),
    [([1, 4, 16], 1, 0), ([1, 4, 16], 3.9, 0), ([1, 4.0003, 16.01], 4, 1), ([1, 4, 16], 40, 2), ([1, 4], 0.95, 0)],
)
def test_best_level(downsamples: list[float], wanted: float, level: int) -> None:
    assert best_level(downsamples, wanted) == level


def test_tiles_are_kept_where_the_tissue_is(tmp_path: Path) -> None:
    image = glass(1024, 1280)
    stained = np.zeros((1024, 1280), bool)
    stained[220:660, 300:900] = True
    stained[800:900, 64:192] = True  # 100 of 128 rows of one tile
    stained[900:1024, 1000:1100] = True
    image[stained] = tissue(1024, 1280)[stained]
    write_slide(tmp_path / "slides/a.tif", image, mpp=0.25, downsamples=(1, 2, 8))
    kept = {tuple(corner) for corner in extract(tmp_path)["a"].coords.tolist()}
    truth = {(x, y): stained[y : y + 128, x : x + 128].mean() for x in range(0, 1280, 128) for y in range(0, 1024, 128)}
    unclear = {corner for corner, fraction in truth.items() if abs(fraction - 0.5) < 0.1}
    assert kept - unclear == {corner for corner, fraction in truth.items() if fraction > 0.5} - unclear
    assert len(kept) > 15
    assert len(unclear) < 6


def test_the_threshold_is_the_least_fraction_of_tissue(tmp_path: Path) -> None:
    image = glass(128, 512)
    for tile, fraction in enumerate([0.25, 0.5, 0.75, 1.0]):
        image[: int(128 * fraction), tile * 128 : (tile + 1) * 128] = TISSUE
    write_slide(tmp_path / "slides/a.tif", image, mpp=0.25, downsamples=(1,))
    for threshold, kept in [(0.2, 4), (0.45, 3), (0.7, 2), (0.95, 1)]:
        coords = extract(tmp_path, tissue_threshold=threshold, output_dir=tmp_path / f"{threshold}")["a"].coords
        assert coords[:, 0].tolist() == [0, 128, 256, 384][4 - kept :]


def test_glass_shadow_and_black_are_not_tissue() -> None:
    colours = [GLASS, (255, 255, 255), (0, 0, 0), (120, 121, 118), TISSUE, (90, 60, 130), (235, 205, 222)]
    mask = tissue_mask(np.array([colours], np.uint8))
    assert mask.tolist() == [[False, False, False, False, True, True, True]]


def test_what_was_never_scanned_is_white(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.tif", tissue(100, 100), mpp=0.5, downsamples=(1,))
    with open_slide(path) as slide:
        square = read_square(slide, (50, 50), 0, 100, 100)
    assert (square[60:] == 255).all()
    assert tissue_mask(square)[:50, :50].mean() > 0.9


def test_a_slide_without_tissue_has_a_file_without_patches(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    noise = np.random.default_rng(0).integers(-3, 4, (512, 512, 3))
    write_slide(tmp_path / "slides/blank.tif", (glass(512, 512) + noise).astype(np.uint8), mpp=0.25)
    slide = extract(tmp_path)["blank"]
    assert slide.features.shape == (0, 9)
    assert slide.coords.shape == (0, 2)
    assert slide.thumbnail is not None
    assert "blank.tif: no tile is tissue" in caplog.text


def test_a_slide_smaller_than_a_tile_has_no_patches(tmp_path: Path) -> None:
    write_slide(tmp_path / "slides/a.tif", tissue(127, 300), mpp=0.25, downsamples=(1,))
    assert len(extract(tmp_path)["a"].coords) == 0


def test_the_thumbnail_is_the_slide_made_small(tmp_path: Path) -> None:
    image = glass(1000, 3000)
    image[600:900, 2000:2600] = TISSUE
    write_slide(tmp_path / "slides/a.tif", image, mpp=0.5, downsamples=(1, 2))
    slide = extract(tmp_path)["a"]
    assert slide.thumbnail is not None
    assert slide.thumbnail_downsample is not None
    assert slide.thumbnail.shape == (256, 768, 3)
    assert slide.thumbnail_downsample == pytest.approx(3000 / 768)
    rows, columns = np.nonzero(tissue_mask(slide.thumbnail))
    found = np.array([columns.min(), columns.max() + 1, rows.min(), rows.max() + 1]) * slide.thumbnail_downsample
    np.testing.assert_allclose(found, [2000, 2600, 600, 900], atol=2 * slide.thumbnail_downsample)


def test_an_overview_in_blocks_has_no_seams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    y, x = np.mgrid[0:500, 0:700]
    image = np.stack([x * 255 / 700, y * 255 / 500, (x + y) * 255 / 1200], axis=2).astype(np.uint8)
    path = write_slide(tmp_path / "a.tif", image, mpp=0.5, downsamples=(1,))
    monkeypatch.setattr("scripts.data.slides.BLOCK_PIXELS", 100)
    with open_slide(path) as slide:
        overview = read_overview(slide, 7.3)
    assert overview.shape == (math.ceil(500 / 7.3), math.ceil(700 / 7.3), 3)
    places = (np.indices(overview.shape[:2]) + 0.5) * 7.3
    inner = (slice(0, -1), slice(0, -1))
    np.testing.assert_allclose(overview[..., 0][inner], (places[1] * 255 / 700)[inner], atol=2)
    np.testing.assert_allclose(overview[..., 1][inner], (places[0] * 255 / 500)[inner], atol=2)


def test_a_second_run_does_only_what_is_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "scripts.data.slides")
    write_slide(tmp_path / "slides/a.tif", tissue(256, 256), mpp=0.25)
    extract(tmp_path)
    first = tmp_path / "features/a.h5"
    before = (first.stat().st_mtime_ns, first.stat().st_ino)
    write_slide(tmp_path / "slides/b.tif", tissue(256, 256, seed=1), mpp=0.25)
    caplog.clear()
    assert set(extract(tmp_path)) == {"a", "b"}
    assert (first.stat().st_mtime_ns, first.stat().st_ino) == before
    assert caplog.messages[-1] == "1 slides done, 1 skipped (their feature files exist)"


@pytest.mark.parametrize("change", [{"encoder_name": "other"}, {"tile_size": 32}, {"mpp": 1.0}, {"overlap": 16}])
def test_features_of_other_settings_are_not_mixed_in(tmp_path: Path, change: dict[str, Any]) -> None:
    write_slide(tmp_path / "slides/a.tif", tissue(256, 256), mpp=0.25)
    extract(tmp_path)
    with pytest.raises(InputError, match=r"a.h5 was made with another encoder, .* choose another output_dir"):
        extract(tmp_path, **change)


def test_an_encoder_that_fails_midway_leaves_nothing(tmp_path: Path) -> None:
    write_slide(tmp_path / "slides/a.tif", tissue(700, 1000), mpp=0.25)
    encoder = GivesUp()
    with pytest.raises(RuntimeError, match="out of memory"):
        extract(tmp_path, encoder)
    assert encoder.calls == 3
    assert list((tmp_path / "features").iterdir()) == []


def test_a_network_in_training_mode_is_evaluated_without_gradient(tmp_path: Path) -> None:
    seen = []

    class Watching(MeanColour):
        def forward(self, tiles: Tensor) -> Tensor:
            seen.append((self.training, torch.is_grad_enabled(), tiles.dtype, tuple(tiles.shape[1:])))
            return super().forward(tiles)

    write_slide(tmp_path / "slides/a.tif", tissue(256, 256), mpp=0.25)
    extract(tmp_path, Watching().train())
    assert set(seen) == {(False, False, torch.float32, (3, 64, 64))}


@pytest.mark.parametrize("mpp", [None, 352.8])
def test_a_slide_that_does_not_know_its_scale(tmp_path: Path, mpp: float | None) -> None:
    write_slide(tmp_path / "slides/a.tif", tissue(256, 256), mpp=mpp)
    with pytest.raises(InputError, match=r"a.tif states .*micrometres per pixel; pass `slide_mpp`"):
        extract(tmp_path)
    assert extract(tmp_path, slide_mpp=0.25)["a"].pitch == pytest.approx(128)


def test_slide_mpp_does_not_overrule_the_slide(tmp_path: Path) -> None:
    write_slide(tmp_path / "slides/a.tif", tissue(256, 256), mpp=0.25)
    assert extract(tmp_path, slide_mpp=0.5)["a"].mpp == pytest.approx(0.25)


def test_a_text_file_is_no_slide(tmp_path: Path) -> None:
    write_slide(tmp_path / "slides/a.tif", tissue(256, 256), mpp=0.25)
    (tmp_path / "slides/b.svs").write_text("hello")
    with pytest.raises(
        InputError, match=r"b.svs is not a slide that OpenSlide reads .*; remove or convert it"
    ) as caught:
        extract(tmp_path)
    assert "\n" not in str(caught.value)
    assert [path.name for path in (tmp_path / "features").iterdir()] == ["a.h5"]


def test_a_damaged_slide_is_named(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "slides/a.tif", tissue(1024, 1024), mpp=0.25, downsamples=(1,))
    with tifffile.TiffFile(path) as tiff:
        offset, size = tiff.pages[0].dataoffsets[20], tiff.pages[0].databytecounts[20]
    content = bytearray(path.read_bytes())
    content[offset : offset + size] = b"\xff" * size
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a.tif is damaged .*or remove it") as caught:
        extract(tmp_path)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "features").iterdir()) == []


def test_a_tile_is_not_enlarged(tmp_path: Path) -> None:
    write_slide(tmp_path / "slides/a.tif", tissue(256, 256), mpp=0.5)
    with pytest.raises(InputError, match=r"a.tif has 0.5 micrometres per pixel, coarser than mpp 0.25"):
        extract(tmp_path, mpp=0.25)


def test_slides_are_found_in_order_whatever_the_case_of_their_suffix(tmp_path: Path) -> None:
    for name in ("c.tiff", "a.SVS", "b.ndpi", "notes.txt", "a.xml"):
        (tmp_path / name).touch()
    assert [path.name for path in find_slides(tmp_path)] == ["a.SVS", "b.ndpi", "c.tiff"]


@pytest.mark.parametrize(
    ("names", "folder", "message"),
    [
        ([], "gone", "no directory of slides .*gone; put them there, or give theirs with --slides"),
        (
            ["notes.txt"],
            "slides",
            r"no slide in .*slides \(.*\.svs .*\); put slides there, or give their folder with --slides",
        ),
        (["a.svs", "a.tif"], "slides", r"a.svs and .*a.tif would both be written as a.h5; rename one of them"),
    ],
)
def test_what_is_wrong_with_the_directory_is_said_first(
    tmp_path: Path, names: list[str], folder: str, message: str
) -> None:
    (tmp_path / "slides").mkdir()
    for name in names:
        (tmp_path / "slides" / name).touch()
    with pytest.raises(InputError, match=message):
        extract(tmp_path, slides=tmp_path / folder)
    assert not (tmp_path / "features").exists()


@pytest.mark.parametrize("below", [".", "deeper"])
def test_an_output_that_cannot_be_written_is_said_first(tmp_path: Path, below: str) -> None:
    write_slide(tmp_path / "slides/a.tif", tissue(256, 256), mpp=0.25)
    (tmp_path / "taken").write_text("a file")
    encoder = GivesUp()
    with pytest.raises(InputError, match=r"cannot write to .*taken.*: give another folder"):
        extract(tmp_path, encoder, output_dir=tmp_path / "taken" / below)
    assert encoder.calls == 0


class Flat(torch.nn.Module):
    def forward(self, tiles: Tensor) -> Tensor:
        return tiles


class Huge(torch.nn.Module):
    def forward(self, tiles: Tensor) -> Tensor:
        return tiles.mean(dim=(2, 3)) + 1e6


@pytest.mark.parametrize(
    ("encoder", "message"), [(Flat(), r"gave \(1, 3, 64, 64\) for 1 images; it must give"), (Huge(), "beyond float16")]
)
def test_an_encoder_of_another_kind_is_refused_before_any_slide(
    tmp_path: Path, encoder: torch.nn.Module, message: str
) -> None:
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides/a.svs").write_text("never opened")
    with pytest.raises(InputError, match=message):
        extract(tmp_path, encoder)


def test_an_overlap_of_a_whole_tile_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"overlap is 64; choose it from 0 to below the tile_size of 64"):
        extract(tmp_path, overlap=64)


@pytest.mark.parametrize(("mpp", "pitch"), [(0.5, 256 * 0.5 / 0.499), (1.0, 256 * 1.0 / 0.499)])
def test_a_real_slide_reads_back(tmp_path: Path, mpp: float, pitch: float) -> None:
    path = shared_data("wsi/CMU-1-Small-Region.svs")
    slide = extract(tmp_path, slides=path.parent, mpp=mpp, tile_size=256)["CMU-1-Small-Region"]
    assert slide.pitch == pytest.approx(pitch)
    assert slide.mpp == 0.499
    assert slide.slide_size == (2220, 2967)
    possible = int(2220 / pitch) * int(2967 / pitch)
    assert 0.2 * possible < len(slide.coords) < 0.6 * possible  # by eye, about a third of the region is tissue
    side = round(pitch) if mpp == 1.0 else 256
    with openslide.OpenSlide(path) as whole:
        for (x, y), features in zip(slide.coords.tolist(), slide.features, strict=True):
            tile = np.asarray(whole.read_region((x, y), 0, (side, side)).convert("RGB")) / 255
            np.testing.assert_allclose(features[:3], tile.mean(axis=(0, 1)), atol=2e-3)
            stained = (np.ptp(tile, axis=2) > 15 / 255).mean()
            assert stained > 0.35
