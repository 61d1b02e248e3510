# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Slides become feature files: where the tiles lie, what the encoder sees, what is skipped, and what goes wrong."""

import csv
import json
import logging
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import tifffile
import torch
from monai.bundle import ConfigParser
from torch import Tensor

from scripts.core.errors import InputError
from scripts.wsi.encode import FeatureExtractor
from scripts.wsi.features.files import read_features
from scripts.wsi.slides.tissue import ChromaMask
from tests.shared_data import ROOT, shared_data
from tests.wsi.slide_files import MeanColour, extract, glass, grid, tissue, write_slide

CONFIG = ROOT / "configs" / "wsi" / "features.json"


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


def test_a_slide_without_tissue_has_a_file_without_patches(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    noise = np.random.default_rng(0).integers(-3, 4, (512, 512, 3))
    write_slide(tmp_path / "slides/blank.tif", (glass(512, 512) + noise).astype(np.uint8), mpp=0.25)
    slide = extract(tmp_path)["blank"]
    assert slide.features.shape == (0, 9)
    assert slide.coords.shape == (0, 2)
    assert slide.thumbnail is not None
    assert "blank.tif: no tile is tissue" in caplog.text


def test_the_thumbnail_is_the_slide_made_small(tmp_path: Path) -> None:
    image = glass(1000, 3000)
    image[600:900, 2000:2600] = (205, 130, 180)
    write_slide(tmp_path / "slides/a.tif", image, mpp=0.5, downsamples=(1, 2))
    slide = extract(tmp_path)["a"]
    assert slide.thumbnail is not None
    assert slide.thumbnail_downsample is not None
    assert slide.thumbnail.shape == (256, 768, 3)
    assert slide.thumbnail_downsample == pytest.approx(3000 / 768)
    rows, columns = np.nonzero(np.ptp(slide.thumbnail, axis=2) > 15)
    found = np.array([columns.min(), columns.max() + 1, rows.min(), rows.max() + 1]) * slide.thumbnail_downsample
    np.testing.assert_allclose(found, [2000, 2600, 600, 900], atol=2 * slide.thumbnail_downsample)


def test_a_second_run_does_only_what_is_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "scripts.wsi.encode")
    write_slide(tmp_path / "slides/a.tif", tissue(256, 256), mpp=0.25)
    extract(tmp_path)
    first = tmp_path / "features/a.h5"
    before = (first.stat().st_mtime_ns, first.stat().st_ino)
    write_slide(tmp_path / "slides/b.tif", tissue(256, 256, seed=1), mpp=0.25)
    caplog.clear()
    assert set(extract(tmp_path)) == {"a", "b"}
    assert (first.stat().st_mtime_ns, first.stat().st_ino) == before
    where = tmp_path / "features"
    assert caplog.messages[-1] == f"slides: 1 done, 1 skipped (already there), 0 failed; features in {where}"


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"encoder_name": "other"}, "encoder mean colour, now other"),
    ({"tile_size": 32}, "tile_size 64, now 32"),
    ({"mpp": 1.0}, "mpp 0.5, now 1.0"),
    ({"overlap": 16}, "overlap 0, now 16"),
    ({"tissue_threshold": 0.4}, "tissue_threshold 0.5, now 0.4"),
    ({"tissue": ChromaMask(20)}, "tissue .*'least_chroma': 15}, now .*'least_chroma': 20}"),
]


@pytest.mark.parametrize(("change", "told"), CHANGES)
def test_features_of_other_settings_are_not_mixed_in(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    write_slide(tmp_path / "slides/a.tif", tissue(256, 256), mpp=0.25)
    extract(tmp_path)
    with pytest.raises(
        InputError, match=rf"settings.json was made with another encoder .*\({told}\); choose another output_dir"
    ):
        extract(tmp_path, **change)
    (tmp_path / "features/a.h5").unlink()
    extract(tmp_path, **change)  # nothing is there that it could be mixed with


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"encoder_name": "other"}, "encoder mean colour, now other"),
        ({"tile_size": 32}, "micrometres of a tile 32.0, now 16.0"),
        ({"mpp": 1.0}, "micrometres of a tile 32.0, now 64.0"),
        ({"overlap": 16}, "pitch in tiles 1.0, now 0.75"),
    ],
)
def test_a_file_from_elsewhere_is_looked_at_too(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    write_slide(tmp_path / "slides/a.tif", tissue(256, 256), mpp=0.25)
    extract(tmp_path)
    (tmp_path / "features/settings.json").unlink()
    extract(tmp_path)  # the same is no change
    (tmp_path / "features/settings.json").unlink()
    with pytest.raises(InputError, match=rf"a.h5 was made with another encoder .*\({told}\); choose another"):
        extract(tmp_path, **change)


def test_an_encoder_that_fails_midway_leaves_nothing(tmp_path: Path) -> None:
    write_slide(tmp_path / "slides/a.tif", tissue(700, 1000), mpp=0.25)
    encoder = GivesUp()
    with pytest.raises(RuntimeError, match="out of memory"):
        extract(tmp_path, encoder)
    assert encoder.calls == 3
    assert names(tmp_path / "features") == ["settings.json"]


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
    with pytest.raises(InputError, match=r"a.tif states .*micrometres per pixel: say how many it has with --slide_mpp"):
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
    assert names(tmp_path / "features") == ["a.h5", "failed.csv", "settings.json"]


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
    assert names(tmp_path / "features") == ["failed.csv", "settings.json"]


def test_a_tile_is_not_enlarged(tmp_path: Path) -> None:
    write_slide(tmp_path / "slides/a.tif", tissue(256, 256), mpp=0.5)
    with pytest.raises(InputError, match=r"a.tif has 0.5 micrometres per pixel, coarser than mpp 0.25"):
        extract(tmp_path, mpp=0.25)


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


class Small(torch.nn.Module):
    """Each tile as a picture of 8 × 8 pixels."""

    def forward(self, tiles: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(tiles, 8).flatten(1)


def small(tile: np.ndarray) -> np.ndarray:
    """The same, of (side, side, 3) in 0..1."""
    rows = np.stack([part.mean(axis=0) for part in np.array_split(tile, 8, axis=0)])
    return np.stack([part.mean(axis=1) for part in np.array_split(rows, 8, axis=1)], axis=1).transpose(2, 0, 1)


@pytest.mark.parametrize(("mpp", "pitch"), [(0.5, 256 * 0.5 / 0.499), (1.0, 256 * 1.0 / 0.499)])
def test_a_real_slide_reads_back(tmp_path: Path, mpp: float, pitch: float) -> None:
    path = shared_data("wsi/CMU-1-Small-Region.svs")
    slide = extract(tmp_path, Small(), slides=[path], mpp=mpp, tile_size=256)["CMU-1-Small-Region"]
    assert slide.pitch == slide.tile == pytest.approx(pitch)
    assert slide.mpp == 0.499
    assert slide.slide_size == (2220, 2967)
    assert slide.origin == (0, 0)
    assert np.abs(slide.coords / pitch - np.rint(slide.coords / pitch)).max() < 0.5 / pitch + 1e-9
    possible = int(2220 / pitch) * int(2967 / pitch)
    assert 0.2 * possible < len(slide.coords) < 0.6 * possible  # by eye, about a third of the region is tissue
    side = round(pitch) if mpp == 1.0 else 256
    with openslide.OpenSlide(path) as whole:
        for (x, y), features in zip(slide.coords.tolist(), slide.features, strict=True):
            tile = np.asarray(whole.read_region((x, y), 0, (side, side)).convert("RGB")) / 255
            np.testing.assert_allclose(features.reshape(3, 8, 8), small(tile), atol=2e-3 if mpp == 0.5 else 1e-2)
            assert (np.ptp(tile, axis=2) > 15 / 255).mean() > 0.35
            shifted = np.asarray(whole.read_region((x + 8, y), 0, (side, side)).convert("RGB")) / 255
            assert np.abs(features.reshape(3, 8, 8) - small(shifted)).max() > 1.2e-2  # another place is seen to be one


# --- what cannot be read


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_cannot_be_read_is_told_at_the_end_and_the_rest_is_there(tmp_path: Path) -> None:
    write_slide(tmp_path / "slides/a.tif", tissue(256, 256), mpp=None)
    write_slide(tmp_path / "slides/b.tif", tissue(256, 256), mpp=0.25)
    (tmp_path / "slides/c.svs").write_text("hello")
    write_slide(tmp_path / "slides/d.tif", tissue(256, 256), mpp=0.25)
    with pytest.raises(InputError, match="slides failed") as caught:
        extract(tmp_path)
    why = "a.tif states no micrometres per pixel: say how many it has with --slide_mpp"
    assert str(caught.value) == (
        f"2 of 4 slides failed (a.tif, c.svs): {why}; correct and run again, what is done is skipped "
        "(all reasons: failed.csv)"
    )
    table = list(csv.reader((tmp_path / "features/failed.csv").read_text().splitlines()))
    assert table[:2] == [["slide", "error"], ["a.tif", why]]
    assert len(table) == 3
    assert table[2][1].startswith("c.svs is not a slide that OpenSlide reads")
    assert str(tmp_path) not in str(table)
    (tmp_path / "slides/c.svs").unlink()
    assert set(extract(tmp_path, slide_mpp=0.25)) == {"a", "b", "d"}
    assert names(tmp_path / "features") == ["a.h5", "b.h5", "d.h5", "settings.json"]


def test_another_slide_mpp_is_no_correction(tmp_path: Path) -> None:
    write_slide(tmp_path / "slides/a.tif", tissue(256, 256), mpp=0.25)
    write_slide(tmp_path / "slides/b.tif", tissue(256, 256), mpp=None)
    extract(tmp_path, slide_mpp=0.25)
    extract(tmp_path, slide_mpp=0.25)
    with pytest.raises(InputError, match=r"b.h5 was made with .*\(slide_mpp 0.25, now 0.5\)"):
        extract(tmp_path, slide_mpp=0.5)


class NoFeatures(torch.nn.Module):
    def forward(self, tiles: Tensor) -> list[Tensor]:
        return [tiles]


class Wants224(torch.nn.Module):
    def forward(self, tiles: Tensor) -> Tensor:
        assert tiles.shape[-1] == 224, "Input height (64) does not match model (224)."
        return tiles.mean(dim=(2, 3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder_name": None}, r"the encoder does not say its name: .*\(--encoder_name NAME\)"),
        ({"encoder": NoFeatures()}, r"the encoder gave a list; it must give one tensor \[B, D\]"),
        ({"encoder": Wants224()}, r"takes no tiles of 64 × 64 pixels \(Input height .*; give another"),
        ({"batch_size": 0}, "must be 1 or more"),
        ({"tissue_threshold": 50}, "tissue_threshold is 50; it is a fraction of a tile, from 0 to 1"),
        ({"mpp": 0}, "mpp is 0 and slide_mpp None; give micrometres per pixel"),
        ({"slide_mpp": float("nan")}, "slide_mpp nan; give micrometres per pixel"),
    ],
)
def test_settings_that_make_no_sense_are_told_before_any_slide(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides/a.svs").write_text("never opened")
    with pytest.raises(InputError, match=message):
        extract(tmp_path, **settings)


def test_maps_of_one_pixel_are_features(tmp_path: Path) -> None:
    class Maps(MeanColour):
        def forward(self, tiles: Tensor) -> Tensor:
            return super().forward(tiles)[..., None, None]

    write_slide(tmp_path / "slides/a.tif", tissue(256, 256), mpp=0.25)
    flat = extract(tmp_path, output_dir=tmp_path / "flat")["a"].features
    np.testing.assert_array_equal(extract(tmp_path, Maps())["a"].features, flat)


def test_mixed_precision_is_for_a_gpu(tmp_path: Path) -> None:
    write_slide(tmp_path / "slides/a.tif", tissue(256, 256), mpp=0.25)
    encoder = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 64), torch.nn.Flatten())
    plain, mixed = (extract(tmp_path, encoder, amp=amp, output_dir=tmp_path / f"{amp}") for amp in (False, True))
    np.testing.assert_array_equal(mixed["a"].features, plain["a"].features)


# --- the config


def configured(tmp_path: Path, *overrides: str, **changes: Any) -> FeatureExtractor:
    config = ConfigParser()
    config.read_config([CONFIG, *(CONFIG.with_name(f"{name}.json") for name in overrides)])
    config.update({"dataset_dir": str(tmp_path), "device": "cpu", "tile_size": 64, **changes})
    extractor: FeatureExtractor = config.get_parsed_content("extractor")
    return extractor


def test_every_setting_of_the_config_reaches_the_extractor(tmp_path: Path) -> None:
    changes = {"mpp": 0.7, "overlap": 3, "slide_mpp": 0.3, "tissue_threshold": 0.2, "batch_size": 9, "num_workers": 3}
    extractor = configured(tmp_path, **changes, **{"tissue#least_chroma": 21, "encoder#seed": 4})
    assert {name: getattr(extractor, name) for name in changes} == changes
    assert extractor.tile_size == 64
    assert extractor.encoder_name == "seeded_tile_cnn_4"
    assert vars(extractor.tissue)["least_chroma"] == 21


def test_foreground_mask_takes_the_place_of_ours(tmp_path: Path) -> None:
    """Black is tissue to it, and grey glass is none to either."""
    image = glass(128, 384)
    image[:, 128:256] = tissue(128, 128)
    image[:, 256:] = 0
    write_slide(tmp_path / "slides/a.tif", image, mpp=0.25, downsamples=(1,))
    foreground = {"_target_": "ForegroundMask", "threshold": 200}
    for folder, changes, columns in [("ours", {}, [128]), ("monai", {"tissue": foreground}, [128, 256])]:
        configured(tmp_path, output_dir=str(tmp_path / folder), **changes).run()
        assert read_features(tmp_path / folder / "a.h5").coords[:, 0].tolist() == columns
    kept = json.loads((tmp_path / "monai/settings.json").read_text())
    assert kept["tissue"] == {"name": "ForegroundMask", "thresholds": dict.fromkeys("RGB", 200.0), "invert": False}


def test_what_needs_scikit_image_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise ImportError("skimage")

    monkeypatch.setattr("monai.transforms.intensity.array.skimage", type("Absent", (), {"__getattr__": missing})())
    write_slide(tmp_path / "slides/a.tif", tissue(128, 128), mpp=0.25, downsamples=(1,))
    hsv = {"_target_": "ForegroundMask", "threshold": None, "hsv_threshold": {"S": 0.1}}
    with pytest.raises(InputError, match="ForegroundMask as given needs scikit-image: pip install it"):
        configured(tmp_path, tissue=hsv).run()


def test_an_encoder_of_monai_with_local_weights(tmp_path: Path) -> None:
    write_slide(tmp_path / "slides/a.tif", tissue(128, 256), mpp=0.5, downsamples=(1,))
    trial = configured(tmp_path, "encoder_monai", output_dir=str(tmp_path / "random"))
    assert trial.encoder_name == "resnet18 (random, seed 0)"
    weights = trial.encoder.get_submodule("encoder.backbone").state_dict()
    torch.save({"state_dict": {**weights, "fc.weight": torch.zeros(5, 512)}}, tmp_path / "weights.pt")
    given = configured(tmp_path, "encoder_monai", encoder_weights=str(tmp_path / "weights.pt"))
    assert given.encoder_name.startswith("resnet18 (sha256 ")
    for extractor in (trial, given):
        extractor.run()
    features = read_features(tmp_path / "features/a.h5").features
    assert features.shape == (8, 512)
    np.testing.assert_array_equal(features, read_features(tmp_path / "random/a.h5").features)


def test_an_encoder_of_torchscript(tmp_path: Path) -> None:
    write_slide(tmp_path / "slides/a.tif", tissue(128, 256), mpp=0.5, downsamples=(1,))
    torch.jit.script(MeanColour()).save(tmp_path / "encoder.pt")
    plain = {"encoder#mean": [0, 0, 0], "encoder#std": [1, 1, 1]}
    configured(tmp_path, "encoder_torchscript", encoder_weights=str(tmp_path / "encoder.pt"), **plain).run()
    slide = read_features(tmp_path / "features/a.h5")
    assert slide.encoder.startswith("torchscript (sha256 ")
    np.testing.assert_array_equal(
        slide.features, extract(tmp_path, output_dir=tmp_path / "direct")["a"].features.astype(np.float16)
    )


# --- ended at any moment


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_to_the_same_files(tmp_path: Path) -> None:
    """Forked, so that there is time for many moments; the real command is killed in tests/bundle."""
    for slide in range(3):
        write_slide(tmp_path / f"slides/{slide}.tif", tissue(640, 640, seed=slide), mpp=0.25)
    extract(tmp_path, output_dir=tmp_path / "undisturbed")
    assert extract_in_a_fork(tmp_path, tmp_path / "whole") == 0
    calls = int((tmp_path / "calls").read_text())
    rng = random.Random(0)
    for moment in [rng.randrange(1, calls // 2) for _ in range(8)]:
        assert extract_in_a_fork(tmp_path, tmp_path / "killed", moment) == -signal.SIGKILL
        finished = (tmp_path / "killed").glob("*.h5")
        assert all((tmp_path / "undisturbed" / path.name).read_bytes() == path.read_bytes() for path in finished)
        if len(list((tmp_path / "killed").glob("*.h5"))) == 2:
            break
    assert list((tmp_path / "killed").glob("*.h5"))  # some were killed behind a finished slide
    assert extract_in_a_fork(tmp_path, tmp_path / "killed") == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "undisturbed")


def extract_in_a_fork(tmp_path: Path, output: Path, moment: int | None = None) -> int:
    """The exit status of an extraction, or less the signal that it was killed with at so many calls of functions."""
    child = os.fork()
    if child == 0:
        calls = 0

        def count(*_: object) -> None:
            nonlocal calls
            calls += 1
            if calls == moment:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.setprofile(count)
            extract(tmp_path, output_dir=output)
        finally:
            sys.setprofile(None)
            (tmp_path / "calls").write_text(str(calls))
            os._exit(0 if len(list(output.glob("*.h5"))) == 3 else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
