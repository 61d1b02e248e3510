# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Which tiles are tissue."""

import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import ForegroundMask

from scripts.core.errors import InputError
from scripts.core.units import Level0Pixels
from scripts.wsi.slides.artefacts import Artefact
from scripts.wsi.slides.slide import TilePlan, open_slide
from scripts.wsi.slides.tissue import ChromaMask, TileFinder, mask_settings, tissue_mask
from tests.shared_data import ROOT
from tests.wsi.slide_files import GLASS, TISSUE, extract, glass, grid, tissue, write_slide


def test_a_last_tile_that_fits_to_the_pixel_is_not_lost_to_rounding(tmp_path: Path) -> None:
    side = Level0Pixels(64 * (1 + 1e-12))
    plan = TilePlan(level=0, side=64, pixels=64, tile=side, pitch=side)
    with open_slide(write_slide(tmp_path / "a.tif", tissue(128, 256), mpp=0.5, downsamples=(1,))) as slide:
        for overhang in (False, True):
            assert TileFinder(ChromaMask(), 0.5, overhang).find(slide, plan).tiles.tolist() == grid(4, 2, 64)


@pytest.mark.parametrize(("least_chroma", "pink_is_tissue"), [(15, True), (29, True), (30, False)])
def test_glass_shadow_and_black_are_not_tissue(least_chroma: int, pink_is_tissue: bool) -> None:
    colours = [GLASS, (255, 255, 255), (0, 0, 0), (120, 121, 118), TISSUE, (90, 60, 130), (235, 205, 222)]
    mask = tissue_mask(np.array([colours], np.uint8), ChromaMask(least_chroma))
    assert mask.tolist() == [[False, False, False, False, True, True, pink_is_tissue]]


def test_tiles_are_kept_where_the_tissue_is_more_than_the_threshold(tmp_path: Path) -> None:
    image, stained = glass(1024, 1280), np.zeros((1024, 1280), bool)
    stained[220:660, 300:900] = True
    stained[800:900, 64:192] = True  # 100 of 128 rows of one tile
    stained[900:1024, 1000:1100] = True
    image[stained] = tissue(1024, 1280)[stained]
    write_slide(tmp_path / "slides/a.tif", image, mpp=0.25, downsamples=(1, 2, 8))
    truth = {(x, y): stained[y : y + 128, x : x + 128].mean() for x in range(0, 1280, 128) for y in range(0, 1024, 128)}
    for threshold in (0.2, 0.5, 0.75):
        coords = extract(tmp_path, tissue_threshold=threshold, output_dir=tmp_path / f"{threshold}")["a"].coords
        kept = {tuple(corner) for corner in coords.tolist()}
        unclear = {corner for corner, fraction in truth.items() if abs(fraction - threshold) < 0.1}
        assert kept - unclear == {corner for corner, fraction in truth.items() if fraction > threshold} - unclear
        assert len(kept) > 10
        assert len(unclear) < 12


def covering(*squares: tuple[slice, slice]) -> Artefact:
    """A rule that finds what is within these squares of the overview."""

    def rule(image: np.ndarray, tissue: np.ndarray) -> np.ndarray:
        assert image.dtype == np.uint8
        assert tissue.dtype == bool
        assert image.shape[1:] == tissue.shape[1:]
        mask = np.zeros(tissue.shape, bool)
        for square in squares:
            mask[0][square] = True
        return mask

    return rule


def test_tiles_are_left_out_for_a_reason_and_shares_are_of_the_slide(tmp_path: Path) -> None:
    """Three rows of four tiles of 64 pixels, the last row half outside; the overview has 8 pixels along each."""
    image = glass(160, 256)
    image[:, :128] = tissue(160, 128)  # the two tiles at the left of each row
    image[:8, 128:136] = tissue(8, 8)  # a 64th of the tile beside them
    rules = {
        "pen": covering((slice(0, 8), slice(0, 5)), (slice(8, 16), slice(0, 3))),  # 5 and 3 of 8 columns of a tile
        "fold": covering((slice(8, 16), slice(2, 8)), (slice(0, 8), slice(24, 32))),  # 5 of 8 beside pen
        "none": None,
    }
    side = Level0Pixels(64)
    plan = TilePlan(level=0, side=64, pixels=64, tile=side, pitch=side)
    path = write_slide(tmp_path / "a.tif", image, mpp=0.5, downsamples=(1,))
    with open_slide(path) as slide:
        found = TileFinder(ChromaMask(), 0.1, True, rules).find(slide, plan)
        assert found.reasons.reshape(3, 4).tolist() == [
            ["pen", "", "little tissue", "fold"],
            ["fold", "", "no tissue", "no tissue"],
            ["", "", "no tissue", "no tissue"],
        ]
        assert found.grid.tolist() == grid(4, 3, 64)
        assert found.tiles.tolist() == [[64, 0], [64, 64], [0, 128], [64, 128]]
        pixels = 32 * 20  # of the overview
        shares = {"tissue": (16 * 20 + 1 - 64 - 40) / pixels, "pen": 64 / pixels, "fold": (40 + 64) / pixels}
        assert found.shares == pytest.approx(shares, abs=2 / pixels)  # the smallest piece is blurred
        assert found.counts == {"no tissue": 4, "little tissue": 1, "pen": 1, "fold": 2}
        all_of_it = TileFinder(ChromaMask(), 0.0, True).find(slide, plan)
        assert (all_of_it.reasons == "").all()
        last = TileFinder(ChromaMask(), 0.51, True).find(slide, plan)  # half of the last row is outside
        assert last.tiles.tolist() == [[0, 0], [64, 0], [0, 64], [64, 64]]
        wrong = TileFinder(ChromaMask(), 0.1, True, {"pen": lambda image, tissue: tissue[0]})
        with pytest.raises(InputError, match=r"is \(20, 32\): `leave_out#pen` must give \[1, h, w\]"):
            wrong.find(slide, plan)


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_it_takes_and_gives_what_masks_of_monai_do_and_another_shape_is_refused(kind: type) -> None:
    image = np.zeros((3, 4, 5), np.uint8)
    image[0, 1, 2] = 200
    ours, theirs = ChromaMask()(kind(image)), ForegroundMask(threshold=100)(kind(image))
    assert ours.shape == theirs.shape == (1, 4, 5)
    assert isinstance(ours, torch.Tensor) == (kind is not np.asarray)
    assert np.argwhere(np.asarray(ours)).tolist() == [[0, 1, 2]]
    with pytest.raises(InputError, match=r"the tissue mask of an image of 4 × 5 pixels is \(3, 4, 5\): `tissue` must"):
        tissue_mask(glass(4, 5), lambda image: image)


def test_masks_are_told_apart_by_name_and_settings() -> None:
    def by_half(image: np.ndarray) -> float:
        return float(image.max()) / 2

    assert mask_settings(ChromaMask(20)) == {"name": "ChromaMask", "least_chroma": 20}
    thresholds = {"R": 200.0, "G": "by_half"}
    wanted = {"name": "ForegroundMask", "thresholds": thresholds, "invert": False}
    assert mask_settings(ForegroundMask({"R": 200, "G": by_half})) == wanted


class _Levels:
    def __init__(self, levels: object) -> None:
        self.levels = levels

    def __call__(self, image: np.ndarray, tissue: np.ndarray) -> np.ndarray:
        return tissue


def test_rules_that_differ_in_any_way_are_told_apart() -> None:
    def rule(image: np.ndarray, tissue: np.ndarray, levels: object = None) -> np.ndarray:
        return tissue

    def other(image: np.ndarray, tissue: np.ndarray) -> np.ndarray:
        return tissue

    partials = [partial(rule, levels=each) for each in (3, 9, [1, 2], np.array([1, 3]))]
    masks: list[Artefact] = [rule, other, *partials, _Levels([1, 2]), _Levels([3, 4]), _Levels((5,))]
    told = [json.dumps(mask_settings(mask)) for mask in masks]
    assert len(set(told)) == len(told)


def test_the_mask_of_the_how_to_is_one() -> None:
    text = (ROOT / "docs" / "how_to" / "extract_features.md").read_text(encoding="utf-8")
    (block,) = (found for found in re.findall(r"```json\n(.*?)```", text, re.DOTALL) if '"tissue"' in found)
    mask = ConfigParser(json.loads(block)).get_parsed_content("tissue")
    image = np.full((2, 3, 3), 240, np.uint8)  # glass
    image[0, 1] = (200, 120, 170)  # stained
    assert tissue_mask(image, mask).tolist() == [[False, True, False], [False] * 3]
