# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The picture of the tissue holds what was found: each tile in the colour of its reason, and the numbers."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgba
from PIL import Image

from scripts.core.units import Level0Coords, Level0Pixels
from scripts.wsi.slides.overlay import ARTEFACTS, KEPT, LITTLE, draw_tissue, tissue_figure
from scripts.wsi.slides.tissue import LITTLE_TISSUE, NO_TISSUE, TissueMap

TILE = Level0Pixels(100)


def found(reasons: list[str], tissue: bool = True) -> TissueMap:
    """Three tiles side by side of which the last overhangs, 16 pixels of 12.5 along each but for that."""
    masks = {name: np.zeros((8, 20), bool) for name in ("tissue", "pen", "fold")}
    masks["tissue"][:, :8] = tissue
    masks["pen"][:4, 8:16] = True
    grid = Level0Coords(np.array([[0, 0], [100, 0], [200, 0]]))
    overview = np.full((8, 20, 3), 240, np.uint8)
    left_out = {name: masks[name] for name in ("pen", "fold")}
    return TissueMap(overview, 12.5, masks["tissue"], left_out, grid, np.array(reasons))


def test_each_tile_is_outlined_by_its_reason_and_counted(tmp_path: Path) -> None:
    figure = tissue_figure("slide 7", found(["", "pen", LITTLE_TISSUE]), TILE)
    (axes,) = figure.axes
    squares: dict[tuple[float, ...], np.ndarray] = {}
    for collection in axes.collections:
        if isinstance(collection, PolyCollection):
            for path in collection.get_paths():
                squares[tuple(np.asarray(path.vertices).min(axis=0))] = np.asarray(collection.get_edgecolor())[0]
                assert np.ptp(np.asarray(path.vertices), axis=0).tolist() == [100, 100]
    assert len(squares) == 3
    for corner, colour in (((0, 0), KEPT), ((100, 0), ARTEFACTS[0]), ((200, 0), LITTLE)):
        np.testing.assert_allclose(squares[corner], to_rgba(colour))
    assert (axes.get_xlim(), axes.get_ylim()) == ((0, 300), (100, 0))  # with what overhangs
    tint = np.asarray(axes.images[1].get_array())
    assert (tint[..., 3] > 0).tolist() == found(["", "", ""]).left_out["pen"].tolist()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "tissue: 40.0% of the slide",
        "1 tiles are encoded",
        "pen: 20.0% of the slide,\n1 tiles left out",
        "fold: 0.0% of the slide,\n0 tiles left out",
        "1 tiles left out: little tissue",
        "0 tiles left out: no tissue",
    ]
    draw_tissue(tmp_path / "a.png", "slide 7", found(["", "pen", LITTLE_TISSUE]), TILE)
    assert Image.open(tmp_path / "a.png").format == "PNG"
    assert list(tmp_path.iterdir()) == [tmp_path / "a.png"]


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (3, 400), (400, 3)])
@pytest.mark.parametrize("stained", [False, True])
def test_a_slide_without_tissue_or_of_any_shape_is_drawn(size: tuple[int, int], stained: bool) -> None:
    mask = np.full(size, stained)
    none = Level0Coords(np.zeros((0, 2), np.int64))
    for grid, reasons in ((none, np.zeros(0, str)), (Level0Coords(np.array([[0, 0]])), np.array([NO_TISSUE]))):
        figure = tissue_figure("$x$", TissueMap(np.zeros((*size, 3), np.uint8), 8.0, mask, {}, grid, reasons), TILE)
        assert max(figure.get_size_inches()) < 14
        assert "no tissue" in figure.legends[0].get_texts()[-1].get_text()
