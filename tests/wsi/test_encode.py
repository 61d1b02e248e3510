# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Slides become feature files: where the tiles lie, what the encoder sees, what is skipped, and what goes wrong."""

import csv
import json
import logging
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import openslide
import pytest
import tifffile
import torch
from monai.bundle import ConfigParser
from torch import Tensor

from scripts.core.errors import InputError
from scripts.core.units import MicronsPerPixel
from scripts.wsi.encode import BEFORE_0_12, FeatureExtractor
from scripts.wsi.slides.artefacts import PenInk
from scripts.wsi.slides.slide import open_slide, plan_tiles
from scripts.wsi.slides.tissue import ChromaMask
from tests.shared_data import ROOT, shared_data
from tests.watched import watched
from tests.wsi.foreign_features import write
from tests.wsi.slide_files import MeanColour, extract, glass, grid, read_features, tissue, write_slide
from tests.wsi.trade_slides import write_scn

CONFIG = ROOT / "configs" / "wsi" / "features.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With one slide, all of it tissue: 4 tiles of 64 pixels at 0.5."""
    write_slide(tmp_path / "slides/a.tif", tissue(256, 256), mpp=0.25)
    return tmp_path


@pytest.mark.parametrize(
    ("size", "mpp", "overlap", "overhang", "pitch", "columns", "rows"),
    [
        ((700, 1000), 0.25, 0, False, 128, 7, 5),  # 104 columns and 60 rows are left over
        ((700, 1000), 0.25, 0, True, 128, 8, 6),
        ((256, 512), 0.25, 32, True, 64, 7, 3),  # as many as cover it, and no more
        ((257, 524), 0.25, 32, True, 64, 8, 3),  # for 12 pixels there is one more, for 1 none
        ((450, 1000), 0.499, 0, False, 64 * 0.5 / 0.499, 15, 7),
        ((450, 1000), 0.3, 0, True, 64 * 0.5 / 0.3, 10, 5),
        ((50, 60), 0.25, 0, True, 128, 1, 1),
    ],
)
def test_the_grid_of_a_slide_does_not_drift_whatever_its_pitch(
    tmp_path: Path,
    size: tuple[int, int],
    mpp: float,
    overlap: int,
    overhang: bool,
    pitch: float,
    columns: int,
    rows: int,
) -> None:
    write_slide(tmp_path / "slides/a.tif", tissue(*size), mpp)
    slide = extract(tmp_path, overlap=overlap, overhang=overhang, tissue_threshold=0.01)["a"]
    assert [slide.tile, slide.pitch, slide.mpp] == pytest.approx([64 * 0.5 / mpp, pitch, mpp], rel=1e-4)
    assert slide.coords.tolist() == grid(columns, rows, pitch)
    assert slide.slide_size == size[::-1]
    assert slide.thumbnail is not None
    assert slide.thumbnail_downsample == max(max(size) / 768, 1)
    np.testing.assert_allclose(np.array(slide.thumbnail.shape[:2]) * slide.thumbnail_downsample, size, atol=1.5)
    assert (slide.slide_id, slide.encoder, str(slide.features.dtype)) == ("a", "mean colour", "float16")


def test_the_encoder_sees_the_pixels_at_the_coords(tmp_path: Path) -> None:
    image = tissue(400, 500)
    write_slide(tmp_path / "slides/a.tif", image, mpp=0.5, downsamples=(1,))
    slide = extract(tmp_path)["a"]
    assert len(slide.coords) == 56
    around = np.pad(image, ((0, 64), (0, 64), (0, 0)), constant_values=255)  # white outside of the slide
    for (x, y), features in zip(slide.coords, slide.features, strict=True):
        tile = around[y : y + 64, x : x + 64] / 255
        np.testing.assert_allclose(features, [*tile.mean(axis=(0, 1)), *tile[0, 0], *tile[0, -1]], atol=1e-3)


@pytest.mark.parametrize(("mpp", "level"), [(0.25, 0), (0.49, 0), (0.499, 1), (0.9, 1), (1.5, 2)])
def test_tiles_come_from_the_smallest_level_with_all_the_detail(tmp_path: Path, mpp: float, level: int) -> None:
    path = write_slide(tmp_path / "a.tif", glass(512, 512), 0.25, downsamples=(1, 2, 4))
    with open_slide(path) as slide:
        assert plan_tiles(slide, path, 32, 0, MicronsPerPixel(mpp), MicronsPerPixel(0.25)).level == level


def test_a_slide_without_tissue_has_a_file_without_patches(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    noise = np.random.default_rng(0).integers(-3, 4, (512, 512, 3))
    write_slide(tmp_path / "slides/blank.tif", (glass(512, 512) + noise).astype(np.uint8), mpp=0.25)
    slide = extract(tmp_path)["blank"]
    assert (slide.features.shape, slide.coords.shape) == ((0, 9), (0, 2))
    assert slide.thumbnail is not None
    assert "blank.tif: no tile is tissue" in caplog.text


def test_a_second_run_does_only_what_is_left(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "scripts.wsi.encode")
    extract(folder)
    first = folder / "features/a.h5"
    before = (first.stat().st_mtime_ns, first.stat().st_ino)
    write_slide(folder / "slides/b.tif", tissue(256, 256, seed=1), mpp=0.25)
    assert set(extract(folder)) == {"a", "b"}
    assert (first.stat().st_mtime_ns, first.stat().st_ino) == before
    where = folder / "features"
    assert caplog.messages[-1] == f"slides: 1 done, 1 skipped (already there), 0 failed; features in {where}"


@pytest.mark.parametrize(
    ("change", "of_settings", "of_file"),
    [
        ({"encoder_name": "other"}, "encoder mean colour, now other", "encoder mean colour, now other"),
        ({"tile_size": 32}, "tile_size 64, now 32", "micrometres of a tile 32.0, now 16.0"),
        ({"mpp": 1.0}, "mpp 0.5, now 1.0", "micrometres of a tile 32.0, now 64.0"),
        ({"overlap": 16}, "overlap 0, now 16", "pitch in tiles 1.0, now 0.75"),
        ({"tissue_threshold": 0.4}, "tissue_threshold 0.1, now 0.4", None),
        ({"overhang": False}, "overhang True, now False", None),
        ({"leave_out": {"pen": PenInk()}}, "leave_out {}, now {'pen': {'name': 'PenInk', .*}}", None),
        ({"tissue": ChromaMask(20)}, "tissue .*'least_chroma': 15}, now .*'least_chroma': 20}", None),
    ],
)
def test_features_of_other_settings_are_not_mixed_in(
    folder: Path, change: dict[str, Any], of_settings: str, of_file: str | None
) -> None:
    """By the settings of the folder; or by a file from elsewhere, which does not state how its tissue was found."""
    features = folder / "features"
    extract(folder)
    with pytest.raises(InputError, match=rf"settings.json was made with .*\({of_settings}\); choose another"):
        extract(folder, **change)
    (features / "settings.json").unlink()
    extract(folder)  # the same is no change
    if of_file is not None:
        (features / "settings.json").unlink()
        with pytest.raises(InputError, match=rf"a.h5 was made with .*\({of_file}\); choose another output_dir"):
            extract(folder, **change)
    (features / "a.h5").unlink()
    extract(folder, **change)  # nothing is there that it could be mixed with


class _OfWeights(MeanColour):
    def __init__(self, weights: str) -> None:
        super().__init__()
        self.weights = weights


def test_features_of_other_weights_are_not_mixed_in_whatever_the_encoder_is_called(folder: Path) -> None:
    settings = folder / "features/settings.json"
    for _ in range(2):
        extract(folder, _OfWeights("1234"))
    with pytest.raises(InputError, match=r"encoder_weights 1234, now 5678\); choose another output_dir$"):
        extract(folder, _OfWeights("5678"))
    stated = json.loads(settings.read_text())
    del stated["encoder_weights"]  # as of an older version
    settings.write_text(json.dumps(stated))
    extract(folder, _OfWeights("1234"))


def test_a_slide_of_which_more_is_left_out_than_is_tissue_is_warned_of(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    extract(folder, leave_out={"all": lambda image, tissue: tissue})
    assert any("more is left out as all than is tissue; look at it with" in message for message in caplog.messages)


def test_a_folder_of_an_older_version_says_how_to_go_on_as_before(folder: Path) -> None:
    """Tiles did not overhang, nothing was left out, and half of a tile had to be tissue."""
    before: dict[str, Any] = {"tissue_threshold": 0.5, "overhang": False}
    extract(folder, **before)
    settings = folder / "features/settings.json"
    stated = json.loads(settings.read_text())
    settings.write_text(json.dumps({name: value for name, value in stated.items() if name not in BEFORE_0_12}))
    write_slide(folder / "slides/b.tif", tissue(256, 256), mpp=0.25)
    with pytest.raises(InputError, match=r"; choose another output_dir, or go on as before with ") as told:
        extract(folder, leave_out={"pen": PenInk()})
    assert "tissue_threshold 0.5, now 0.1; overhang False, now True; leave_out {}, now {'pen': " in str(told.value)
    assert str(told.value).endswith(" with --tissue_threshold 0.5 --overhang False --leave_out null")
    with pytest.raises(InputError, match=r"encoder mean colour, now other; .*\); choose another output_dir$"):
        extract(folder, encoder_name="other")  # which no key makes as it was
    assert set(extract(folder, tissue_threshold=0.5, overhang="False", leave_out="null")) == {"a", "b"}


def test_slide_mpp_is_for_slides_that_state_none_and_another_is_no_correction(folder: Path) -> None:
    write_slide(folder / "slides/b.tif", tissue(256, 256), mpp=None)
    for _ in range(2):
        assert [slide.mpp for slide in extract(folder, slide_mpp=0.2).values()] == pytest.approx([0.25, 0.2])
    with pytest.raises(InputError, match=r"b.h5 was made with .*\(slide_mpp 0.2, now 0.5\)"):
        extract(folder, slide_mpp=0.5)


class Killed(MeanColour):
    """Kills its process at one of its calls, of which the first is the extractor's own trial."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self.calls, self.last = 0, last

    def forward(self, tiles: Tensor) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.calls += 1
        if self.calls == self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(tiles)


def test_killed_at_any_moment_it_goes_on_to_the_same_files(folder: Path) -> None:
    """A slide takes two batches here. Forked, so that there is time for many moments."""
    write_slide(folder / "slides/b.tif", tissue(256, 256, seed=1), mpp=0.25)
    undisturbed, killed = folder / "undisturbed", folder / "killed"
    extract(folder, output_dir=undisturbed, batch_size=2)
    for last, done in ((2, []), (3, []), (5, ["a.h5"]), (3, ["a.h5"]), (9, ["a.h5", "b.h5"])):
        child = os.fork()
        if child == 0:
            extract(folder, Killed(last).train(), output_dir=killed, batch_size=2)
            os._exit(0)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert ended == (-signal.SIGKILL if len(done) < 2 else 0)
        finished = [path.name for path in sorted(killed.glob("*.h5"))]
        assert finished == done
        assert all((killed / name).read_bytes() == (undisturbed / name).read_bytes() for name in done)


def test_maps_of_one_pixel_are_features_and_mixed_precision_is_for_a_gpu(folder: Path) -> None:
    maps = torch.nn.Conv2d(3, 4, 64)
    flat = extract(folder, torch.nn.Sequential(maps, torch.nn.Flatten()), output_dir=folder / "flat")
    np.testing.assert_array_equal(extract(folder, maps, amp=True)["a"].features, flat["a"].features)


def test_of_a_slide_with_bounds_features_count_from_the_canvas_and_state_where_the_bounds_begin(tmp_path: Path) -> None:
    """Leica's; around what was scanned there is nothing, which is white."""
    image, (left, top) = tissue(300, 400), (200, 150)
    write_scn(tmp_path / "slides/a.scn", image, mpp=0.5, canvas=(900, 700), corner=(left, top))
    slide = extract(tmp_path)["a"]
    assert (slide.slide_size, slide.origin, slide.mpp) == ((900, 700), (left, top), 0.5)
    canvas = np.full((700 + 64, 900 + 64, 3), 255, np.uint8)
    canvas[top : top + 300, left : left + 400] = image
    stained = (np.ptp(canvas.astype(int), axis=2) > 15).astype(float)
    share = {(x, y): stained[y : y + 64, x : x + 64].mean() for x in range(0, 900, 64) for y in range(0, 700, 64)}
    kept = {(x, y) for x, y in slide.coords.tolist()}
    unclear = {corner for corner, part in share.items() if abs(part - 0.1) < 0.05}
    assert kept - unclear == {corner for corner, part in share.items() if part > 0.1} - unclear
    for (x, y), features in zip(slide.coords, slide.features, strict=True):
        tile = canvas[y : y + 64, x : x + 64] / 255
        np.testing.assert_allclose(features, [*tile.mean(axis=(0, 1)), *tile[0, 0], *tile[0, -1]], atol=1e-3)


@pytest.mark.parametrize("mpp", [0.5, 1.0])
def test_a_real_slide_reads_back(tmp_path: Path, mpp: float) -> None:
    path = shared_data("wsi/CMU-1-Small-Region.svs")
    slide = extract(tmp_path, slides=[path], mpp=mpp, tile_size=256)["CMU-1-Small-Region"]
    pitch = 256 * mpp / 0.499
    assert slide.pitch == slide.tile == pytest.approx(pitch)
    assert (slide.mpp, slide.slide_size, slide.origin) == (0.499, (2220, 2967), (0, 0))
    assert np.abs(slide.coords / pitch - np.rint(slide.coords / pitch)).max() < 0.5 / pitch + 1e-9
    assert len(slide.coords) == {0.5: 56, 1.0: 18}[mpp]
    assert (slide.coords[:, 1] + pitch > 2967).sum() == {0.5: 5, 1.0: 3}[mpp]  # the last row overhangs
    side = round(pitch) if mpp == 1.0 else 256
    with openslide.OpenSlide(path) as whole:
        for (x, y), features in zip(slide.coords.tolist(), slide.features, strict=True):
            region = whole.read_region((x, y), 0, (side, side))
            tile = np.asarray(region.convert("RGB")) / 255
            tile[max(2967 - y, 0) :] = 1  # where the slide ends, white follows
            tile[:, max(2220 - x, 0) :] = 1
            np.testing.assert_allclose(features[:3], tile.mean(axis=(0, 1)), atol=1e-3)
            if mpp == 0.5:  # not made smaller: each pixel is that of the slide
                np.testing.assert_allclose(features[3:], [*tile[0, 0], *tile[0, -1]], atol=1e-3)
            assert (np.ptp(tile, axis=2) > 15 / 255).mean() > 0.08


def test_what_cannot_be_read_is_reported_at_the_end_and_the_rest_is_there(folder: Path) -> None:
    write_slide(folder / "slides/b.tif", tissue(256, 256), mpp=None)
    (folder / "slides/c.svs").write_text("hello")
    damaged = write_slide(folder / "slides/d.tif", tissue(1024, 1024), mpp=0.25, downsamples=(1,))
    with tifffile.TiffFile(damaged) as tiff:
        offset, size = tiff.pages[0].dataoffsets[20], tiff.pages[0].databytecounts[20]
    content = damaged.read_bytes()
    damaged.write_bytes(content[:offset] + b"\xff" * size + content[offset + size :])
    write_slide(folder / "slides/e.tif", tissue(256, 256), mpp=1.0)
    write_slide(folder / "slides/f.tif", tissue(256, 256), mpp=0.25)
    with pytest.raises(InputError, match="slides failed") as caught:
        extract(folder)
    why = "b.tif states no micrometres per pixel: say how many it has with --slide_mpp"
    assert str(caught.value) == (
        f"4 of 6 slides failed (b.tif, c.svs, d.tif, e.tif): {why}; correct and run again, what is done is skipped "
        "(all reasons: failed.csv)"
    )
    header, first, *others = csv.reader((folder / "features/failed.csv").read_text().splitlines())
    assert (header, first) == (["slide", "error"], ["b.tif", why])
    facts = ("is not a slide that OpenSlide reads", "is damaged", "has 1 micrometres per pixel, coarser")
    for (name, reason), fact in zip(others, facts, strict=True):
        assert reason.startswith(f"{name} {fact}")
        assert str(folder) not in reason
        (folder / "slides" / name).unlink()
    assert set(extract(folder, slide_mpp=0.25)) == {"a", "b", "f"}
    assert sorted(path.name for path in (folder / "features").iterdir()) == ["a.h5", "b.h5", "f.h5", "settings.json"]


@pytest.mark.soak
def test_a_hundred_spoilt_slides_are_read_or_told_in_one_line(tmp_path: Path, capfd: Any) -> None:
    rng = np.random.default_rng(3)
    whole = write_slide(tmp_path / "whole.tif", tissue(256, 256), 0.5).read_bytes()
    (tmp_path / "slides").mkdir()
    for number in range(100):
        content = bytearray(whole[: rng.integers(len(whole))] if number % 4 == 0 else whole)
        ends = [min(len(content), end) for end in (200, 4000, len(content))]
        for place in [rng.integers(max(1, ends[number % 3])) for _ in range(rng.integers(1, 4))]:
            content[place : place + 1] = rng.bytes(1)
        (tmp_path / "slides" / f"{number}.tif").write_bytes(content)
    with watched(tmp_path, 1200) as seen, suppress(InputError):  # which names those that cannot be read
        extract(tmp_path, num_workers=1)
    made = len(list((tmp_path / "features").glob("*.h5")))
    with (tmp_path / "features" / "failed.csv").open() as file:
        reasons = [row["error"] for row in csv.DictReader(file)]
    with capfd.disabled():
        print(f"100 slides: {made} read, {len(reasons)} in one line, no traceback, hang, program or file outside")
    assert seen == []
    assert made + len(reasons) == 100
    assert not [reason for reason in reasons if "\n" in reason or "Traceback" in reason]
    assert 0 < made < 100


def test_tissue_can_be_looked_at_before_anything_is_encoded(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Again and again with other settings, in a folder that already holds features too."""
    caplog.set_level(logging.INFO, "scripts.wsi.encode")
    extract(folder, output_dir=folder / "features")
    (folder / "slides/c.svs").write_text("hello")
    image = glass(512, 640)
    image[:256, :256] = tissue(256, 256)
    image[256:320, 64:576] = (25, 60, 150)  # ink
    write_slide(folder / "slides/b.tif", image, mpp=0.25)
    there = {path.name: path.read_bytes() for path in (folder / "features").iterdir()}

    class Unused(MeanColour):
        def forward(self, tiles: Tensor) -> Tensor:
            raise AssertionError(tiles.shape)

    given: dict[str, Any] = {"tissue_only": "true", "leave_out": {"pen": PenInk()}}
    for threshold in (0.9, 0.1):
        with pytest.raises(
            InputError, match=r"1 of 3 slides failed \(c.svs\): .*, the others are drawn \(all reasons: "
        ):
            extract(folder, Unused(), tissue_threshold=threshold, **given)
    seen = folder / "features/tissue"
    assert {path.name: path.read_bytes() for path in seen.parent.iterdir() if path.is_file()} == there
    assert {path.name for path in seen.iterdir()} == {"a.png", "b.png", "failed.csv", "tissue.csv"}
    first, second = csv.DictReader((seen / "tissue.csv").read_text().splitlines())
    shares = {"slide": "a", "tiles": "4", "tissue": "1.0000", "pen": "0.0000"}
    assert first == shares | dict.fromkeys(("left_out_no_tissue", "left_out_little_tissue", "left_out_pen"), "0")
    assert 0.17 < float(second["tissue"]) <= 0.2  # but what is below the rim of the ink
    assert 0.1 <= float(second["pen"]) < 0.23
    assert (second["tiles"], int(second["left_out_pen"]) > 0) == ("4", True)
    assert sum(int(count) for name, count in second.items() if name.startswith("left_out")) == 16
    assert "b.tif: 4 of 20 tiles; of the slide 1" in caplog.text
    (folder / "slides/c.svs").unlink()
    extract(folder, **given)
    assert not (seen / "failed.csv").exists()


def test_a_feature_file_tells_the_shares_of_its_slide(folder: Path) -> None:
    extract(folder, leave_out={"ink": lambda image, tissue: tissue & (np.arange(tissue.shape[2]) < 8)})
    with h5py.File(folder / "features/a.h5") as file:
        assert {name: file.attrs[name] for name in file.attrs if name.startswith("share")} == {
            "share_tissue": 0.5,
            "share_ink": 0.5,
        }
        assert file["coords"][:].tolist() == [[128, 0], [128, 128]]


def test_what_is_wrong_with_the_directory_is_reported_first(tmp_path: Path) -> None:
    slides = tmp_path / "slides"
    for added, message in (
        ([], "no directory of slides .*slides; put them there, or give theirs with --slides"),
        (["notes.txt"], r"no slide in .*slides \(.*\.svs .*\); put slides there, or give their folder with --slides"),
        (["a.svs", "a.tif"], r"a.svs and .*a.tif would both be written as a.h5; rename one of them"),
    ):
        for name in added:
            write(slides / name, "")
        with pytest.raises(InputError, match=message):
            extract(tmp_path)
        assert not (tmp_path / "features").exists()


class Wants224(torch.nn.Module):
    def forward(self, tiles: Tensor) -> Tensor:
        assert tiles.shape[-1] == 224, "Input height (64) does not match model (224)."
        return tiles.mean(dim=(2, 3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder_name": None}, r"the encoder does not say its name: .*\(--encoder_name NAME\)"),
        ({"encoder": torch.nn.Identity()}, r"gave \(1, 3, 64, 64\) for 1 images; it must give"),
        ({"encoder": torch.nn.MaxPool2d(64, return_indices=True)}, "gave a tuple; it must give one tensor"),
        ({"encoder": Wants224()}, r"takes no tiles of 64 × 64 pixels \(Input height .*; give another"),
        ({"output_dir": "/dev/null/features"}, "cannot write to /dev/null/features .*: give another folder"),
        ({"batch_size": 0}, "must be 1 or more"),
        ({"overlap": 64}, "overlap is 64; choose it from 0 to below the tile_size of 64"),
        ({"tissue_threshold": 50}, "tissue_threshold is 50; it is a fraction of a tile, from 0 to 1"),
        ({"overhang": "maybe"}, "overhang is 'maybe': give true or false"),
        ({"leave_out": "ink"}, "leave_out is 'ink'; give rules by their names, or null for it or for one of them"),
        ({"leave_out": {"pen": "no"}}, "leave_out is {'pen': 'no'}; give rules by their names"),
        ({"leave_out": {"tissue": PenInk()}}, "a rule called 'tissue', which has a meaning already: rename it"),
        ({"mpp": 0}, "mpp is 0 and slide_mpp None; give micrometres per pixel"),
        ({"slide_mpp": float("nan")}, "slide_mpp nan; give micrometres per pixel"),
    ],
)
def test_what_makes_no_sense_is_refused_first(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    write(tmp_path / "slides/a.svs", "never opened")
    with pytest.raises(InputError, match=message):
        extract(tmp_path, **settings)


def configured(tmp_path: Path, *overrides: str, **changes: Any) -> FeatureExtractor:
    config = ConfigParser()
    config.read_config([CONFIG, *(CONFIG.with_name(f"{name}.json") for name in overrides)])
    config.update({"dataset_dir": str(tmp_path), "device": "cpu", "tile_size": 64, **changes})
    extractor: FeatureExtractor = config.get_parsed_content("extractor")
    return extractor


def test_every_setting_of_the_config_reaches_the_extractor(tmp_path: Path) -> None:
    changes = {"mpp": 0.7, "overlap": 3, "slide_mpp": 0.3, "batch_size": 9, "num_workers": 3}
    of_finder = {"tissue_threshold": 0.2, "overhang": "false", "tissue_only": "true", "leave_out#pen": "null"}
    extractor = configured(tmp_path, **changes, **of_finder, **{"tissue#least_chroma": 21, "encoder#seed": 4})
    assert {name: getattr(extractor, name) for name in changes} == changes
    assert extractor.tile_size == 64
    assert extractor.encoder_name == "seeded_tile_cnn_4"
    finder = extractor.finder
    assert vars(finder.tissue)["least_chroma"] == 21
    assert (finder.threshold, finder.overhang, extractor.tissue_only) == (0.2, False, True)
    assert extractor.settings["leave_out"] == {"fold": {"name": "Folds", "times": 1.5, "least_density": 0.5}}


def test_a_mask_that_needs_scikit_image_names_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise ImportError("skimage")

    monkeypatch.setattr("monai.transforms.intensity.array.skimage", type("Absent", (), {"__getattr__": missing})())
    hsv = {"_target_": "ForegroundMask", "threshold": None, "hsv_threshold": {"S": 0.1}}
    with pytest.raises(InputError, match="ForegroundMask as given needs scikit-image: pip install it"):
        configured(folder, tissue=hsv).run()


def test_an_encoder_of_monai_with_local_weights(folder: Path) -> None:
    trial = configured(folder, "encoder_monai", output_dir=str(folder / "random"))
    weights = trial.encoder.get_submodule("encoder.backbone").state_dict()
    torch.save({"state_dict": {**weights, "fc.weight": torch.zeros(5, 512)}}, folder / "weights.pt")
    given = configured(folder, "encoder_monai", encoder_weights=str(folder / "weights.pt"))
    for extractor in (trial, given):
        extractor.run()
    random, loaded = (read_features(folder / name / "a.h5") for name in ("random", "features"))
    assert random.encoder == "resnet18 (random, seed 0)"
    assert loaded.encoder.startswith("resnet18 (sha256 ")
    assert loaded.features.shape == (4, 512)
    np.testing.assert_array_equal(loaded.features, random.features)


def test_an_encoder_of_torchscript(folder: Path) -> None:
    torch.jit.script(MeanColour()).save(folder / "encoder.pt")
    plain = {"encoder#mean": [0, 0, 0], "encoder#std": [1, 1, 1]}
    configured(folder, "encoder_torchscript", encoder_weights=str(folder / "encoder.pt"), **plain).run()
    slide = read_features(folder / "features/a.h5")
    assert slide.encoder.startswith("torchscript (sha256 ")
    np.testing.assert_array_equal(slide.features, extract(folder, output_dir=folder / "direct")["a"].features)
