# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""What lies on a slide and is not to be encoded, told by its colour: ink of pens, folds of the tissue."""

from collections.abc import Callable

import numpy as np
from scipy.ndimage import binary_dilation, binary_opening, binary_propagation

# RGB image [3, h, w] uint8, tissue [1, h, w] bool → mask [1, h, w], not 0 is left out
Artefact = Callable[[np.ndarray, np.ndarray], np.ndarray]

LEAST_INK = 0.15  # of the density of red above that of green: on pale pixels a ratio of the two is noise
GREY = 25  # the largest difference of red, green and blue in black ink
SAME_COLOUR = 0.97  # cosine of densities: below it what is dark has another stain, as DAB, or pigment
DENSE = 90  # percentile of the tissue's own density: folds are rarely more than a tenth of it
_SPECK, _SQUARE = np.ones((2, 2), bool), np.ones((3, 3), bool)  # in pixels of the overview


def optical_density(image: np.ndarray) -> np.ndarray:
    """Return how much of red, green and blue light (0 to 255) was absorbed, in powers of ten."""
    density: np.ndarray = -np.log10((image.astype(np.float32) + 1) / 256)
    return density


class PenInk:
    """Find blue, green and black ink: RGB image [3, h, w], tissue [1, h, w] → mask [1, h, w].

    Such inks absorb red far more than green. Haematoxylin, also as the blue counterstain of immunohistochemistry,
    absorbs both about alike, eosin and DAB green more. Special stains with a blue or green dye (Masson's trichrome,
    Alcian blue, Luxol fast blue, Giemsa) look like ink: leave this rule out for them. Red, brown and yellow ink look
    like eosin and DAB and are not found. Black that reaches the edge of the slide is taken for what was not scanned.

    Args:
        least_ratio: the density of red over that of green, above which it is ink.
        black: the brightest of red, green and blue (0 to 255) below which a grey pixel is ink.
    """

    def __init__(self, least_ratio: float = 1.4, black: int = 70) -> None:
        self.least_ratio = least_ratio
        self.black = black

    def __call__(self, image: np.ndarray, tissue: np.ndarray) -> np.ndarray:
        red, green, _ = optical_density(image)
        coloured = (red > self.least_ratio * green) & (red - green > LEAST_INK)
        black = (image.max(axis=0) < self.black) & (np.ptp(image, axis=0) < GREY)
        inner = np.zeros_like(black)
        inner[1:-1, 1:-1] = True
        black &= ~binary_propagation(black & ~inner, mask=black)
        ink = coloured | black
        strokes = binary_propagation(binary_opening(ink, _SPECK), mask=ink)  # to their tips, without specks
        found: np.ndarray = binary_dilation(strokes, _SQUARE, 2)  # with their blurred rim
        return found[None]


class Folds:
    """Find folds, where tissue lies twice: RGB image [3, h, w], tissue [1, h, w] → mask [1, h, w].

    A fold has the colour of the slide's own tissue and is much denser than even its densely stained part, in red, in
    green and in blue: nuclei side by side absorb more red and hardly more blue. It is for sure rather than for all:
    a fold of pale tissue, one less than three pixels of the overview wide, or folds in more than a tenth of the tissue
    are not found.

    Args:
        times: of the 90th percentile of the tissue's own density, in each colour, from which on it is a fold.
        least_density: the mean of the three, below which nothing is one: a few dense cells in pale tissue are none.
    """

    def __init__(self, times: float = 1.5, least_density: float = 0.5) -> None:
        self.times = times
        self.least_density = least_density

    def __call__(self, image: np.ndarray, tissue: np.ndarray) -> np.ndarray:
        density = optical_density(image)
        own = density[:, tissue[0]]
        if own.shape[1] == 0:
            return np.zeros_like(tissue)
        usual = own.mean(axis=1)
        alike = np.tensordot(usual, density, 1) >= SAME_COLOUR * np.linalg.norm(usual) * np.linalg.norm(density, axis=0)
        dark = (density >= self.times * np.percentile(own, DENSE, axis=1)[:, None, None]).all(axis=0)
        dark &= density.mean(axis=0) >= self.least_density
        found: np.ndarray = binary_opening(tissue[0] & alike & dark, _SQUARE)
        return found[None]
