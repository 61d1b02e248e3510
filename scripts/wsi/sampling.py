# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Patches of a slide drawn anew at each step of a training: slides larger than a GPU, and batches of several."""

import logging
import math
from collections.abc import Hashable, Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
import torch
from monai.transforms import Randomizable, Transform
from torch import Tensor

from scripts.core.errors import InputError

EVERY = ("all", 0)  # how a user asks for every patch
PIECES = 32  # of tissue in a draw, about

logger = logging.getLogger(__name__)


def most_patches(
    patches_per_step: int | str | None, bags: Sequence[Mapping[str, Any]], batch_size: int = 1
) -> int | None:
    """Return how many patches of a slide a step takes at most, said in the log; None where it takes every one.

    Args:
        patches_per_step: the number; "all" or 0 = every patch; None = every patch where a batch is one slide, else half
            the median of the slides, so that few of them are padded.
        bags: as checked_bags returns them.
        batch_size: slides in a batch.
    """
    if patches_per_step in EVERY and not isinstance(patches_per_step, bool):
        return None
    counts = [bag["patches"] for bag in bags]
    if patches_per_step is None:
        if batch_size == 1 or not counts:
            return None
        most, why = max(1, int(median(counts)) // 2), ": half the median of the training slides"
    elif isinstance(patches_per_step, int) and not isinstance(patches_per_step, bool) and patches_per_step > 0:
        most, why = patches_per_step, ""
    else:
        raise InputError(f"--patches_per_step is {patches_per_step!r}: give how many of a slide at most, or all")
    if all(count <= most for count in counts):
        return None
    logger.info(f"of each slide at most {most} patches per step{why}; --patches_per_step all takes every one")
    return most


class RandPatchesd(Randomizable, Transform):
    """A transform that leaves so many patches of a bag, each as likely as any other, drawn in connected pieces.

    Of a share q of all patches, drawn one by one, each would keep a share q of its neighbours: Sm would do less in
    training than in inference. So the lattice is cut into squares, the patches of one after the other are laid out in a
    circle, the squares in random order, and an arc of it is taken: but for its two ends it is of whole squares.

    Args:
        patches: how many; a bag of no more stays as it is.
    """

    def __init__(self, patches: int) -> None:
        self.patches = patches
        self.kept = np.arange(0)

    def randomize(self, data: np.ndarray) -> None:
        """Choose patches by their cells on the lattice (N, 2)."""
        side = max(1, math.isqrt(self.patches // PIECES))
        cells = data - data.min(axis=0) + self.R.randint(side, size=2)
        columns = int(cells[:, 1].max()) // side + 1
        _, square = np.unique(cells[:, 0] // side * columns + cells[:, 1] // side, return_inverse=True)
        place = self.R.permutation(int(square.max()) + 1)[square]
        circle = np.lexsort((cells[:, 1], cells[:, 0], place))
        start = self.R.randint(len(circle))
        self.kept = np.sort(np.roll(circle, -start)[: self.patches])

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        bag = dict(data)
        count = bag["mask"].shape[-1]
        if count > self.patches:
            self.randomize(np.rint(bag["coords"].numpy().T).astype(np.int64))
            kept = torch.from_numpy(self.kept)
            of_patches = (k for k, v in bag.items() if isinstance(v, Tensor) and v.ndim > 1 and v.shape[-1] == count)
            # the patches lie one behind the other in memory
            bag.update({key: bag[key].movedim(-1, 0)[kept].movedim(0, -1) for key in [*of_patches]})
        return bag
