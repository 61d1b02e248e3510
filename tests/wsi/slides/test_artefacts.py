# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Ink and folds are found where they were drawn, and no stain is taken for them."""

from itertools import product

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, binary_erosion

from scripts.wsi.slides.artefacts import Folds, PenInk
from scripts.wsi.slides.slide import open_slide, read_overview
from scripts.wsi.slides.tissue import ChromaMask
from tests.shared_data import shared_data

# absorption of red, green and blue light, each of length 1
HAEMATOXYLIN, EOSIN, DAB = (0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78)
BLUISH = (0.76, 0.60, 0.25)  # haematoxylin as bluish as a scanner makes it
BLUE, GREEN, BLACK = (25, 60, 150), (20, 120, 60), (18, 18, 22)


def stained(*amounts: tuple[tuple[float, float, float], float]) -> np.ndarray:
    """The colour of so much of each stain on white glass, by Beer and Lambert."""
    density = sum(np.array(stain) * amount for stain, amount in amounts)
    return np.rint(255 * 10 ** -np.asarray(density, dtype=float)).astype(np.uint8)


def painted(base: np.ndarray, seed: int = 0, side: int = 60) -> np.ndarray:
    """Tissue [3, h, w] of a stained colour, no two pixels alike."""
    varied = np.random.default_rng(seed).uniform(0.9, 1.1, (1, side, side))
    return np.rint(255 * (base[:, None, None] / 255.0) ** varied).astype(np.uint8)


TISSUE = stained((HAEMATOXYLIN, 0.25), (EOSIN, 0.4))
EVERYWHERE = np.ones((1, 60, 60), bool)


def rows(first: int, last: int) -> np.ndarray:
    mask = np.zeros((60, 60), bool)
    mask[first:last, 10:50] = True
    return mask


@pytest.mark.parametrize("other", [EOSIN, DAB])
@pytest.mark.parametrize("counterstain", [HAEMATOXYLIN, BLUISH])
def test_no_amount_of_a_usual_stain_is_ink(
    counterstain: tuple[float, float, float], other: tuple[float, float, float]
) -> None:
    """Neither the blue counterstain of immunohistochemistry by itself."""
    steps = [0.0, 0.1, 0.2, 0.4, 0.8, 1.6]
    colours = [stained((counterstain, a), (other, b)) for a, b in product(steps, steps)]
    image = np.stack(colours, axis=1).reshape(3, 6, 6).repeat(5, axis=1).repeat(5, axis=2)
    image = np.minimum(image, 240)
    assert not PenInk(black=20)(image, np.ones((1, 30, 30), bool)).any()
    assert not PenInk()(image[:, :, :15], np.ones((1, 30, 15), bool)).any()  # but the darkest might be black ink


@pytest.mark.parametrize("ink", [BLUE, GREEN, BLACK])
@pytest.mark.parametrize("below", [TISSUE, np.array([241, 240, 243], np.uint8)])
def test_strokes_of_a_pen_are_found_whole_on_tissue_and_on_glass_with_their_rim(
    ink: tuple[int, int, int], below: np.ndarray
) -> None:
    image, stroke = painted(below), rows(20, 24)
    image[:, stroke] = np.array(ink, np.uint8)[:, None]
    image[:, 50, 50] = ink  # a speck
    assert (PenInk()(image, EVERYWHERE)[0] == binary_dilation(stroke, np.ones((3, 3)), 2)).all()


def test_black_that_reaches_the_edge_was_not_scanned_and_red_ink_looks_like_eosin() -> None:
    image = painted(TISSUE)
    image[:, :, :12] = 0
    image[:, rows(40, 45)] = np.array([200, 30, 40], np.uint8)[:, None]
    assert not PenInk()(image, EVERYWHERE).any()


def test_tissue_that_lies_twice_is_a_fold_and_a_thin_line_of_it_is_not() -> None:
    image, fold, line = painted(TISSUE), rows(20, 25), rows(40, 42)
    twice = np.rint(image.astype(float) ** 2 / 255).astype(np.uint8)
    image[:, fold | line] = np.minimum(twice, 250)[:, fold | line]
    found = Folds()(image, EVERYWHERE)[0]
    assert not (found & ~fold).any()
    assert (found & binary_erosion(fold)).sum() > 0.8 * binary_erosion(fold).sum()
    assert not Folds(times=3)(image, EVERYWHERE).any()
    assert not Folds(least_density=0.9)(image, EVERYWHERE).any()
    assert not Folds()(image, ~EVERYWHERE).any()


@pytest.mark.parametrize(
    ("tissue", "dense"),
    [
        (TISSUE, stained((HAEMATOXYLIN, 0.9), (EOSIN, 0.2))),  # nuclei side by side
        (stained((HAEMATOXYLIN, 0.25)), stained((HAEMATOXYLIN, 0.3), (DAB, 0.9))),  # a strongly positive focus
        (TISSUE, stained((HAEMATOXYLIN, 0.1), (EOSIN, 0.8))),  # blood, keratin
        (stained((EOSIN, 0.12), (HAEMATOXYLIN, 0.05)), stained((HAEMATOXYLIN, 0.25), (EOSIN, 0.4))),  # in pale tissue
    ],
)
def test_a_small_focus_of_dense_tissue_is_no_fold(tissue: np.ndarray, dense: np.ndarray) -> None:
    """It may be all that the label of the slide is for."""
    image = painted(tissue)
    image[:, rows(20, 25)] = painted(dense, seed=1)[:, rows(20, 25)]
    assert not Folds()(image, EVERYWHERE).any()


@pytest.mark.parametrize("downsample", [16, 32, 64])
def test_of_a_real_region_nothing_is_ink_or_fold(downsample: int) -> None:
    with open_slide(shared_data("wsi/CMU-1-Small-Region.svs")) as slide:
        image = read_overview(slide, downsample).transpose(2, 0, 1)
    tissue = np.asarray(ChromaMask()(image)) > 0
    assert tissue.mean() > 0.3
    assert not PenInk()(image, tissue).any()
    assert not Folds()(image, tissue).any()
