# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Slides open like real ones, and tumour is what the annotation says and nothing else."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
from PIL import Image, ImageDraw

from demo.slides import SlidePlan, annotation, paint_slide, plan_slide, stamp, write_slide

NUCLEAR_RED = 135  # nuclei absorb red, eosin does not


@cache
def painted(case: int, positive: bool) -> np.ndarray:
    return paint_slide(plan_slide(0, case, positive), 0)


def filled(size: tuple[int, int], rings: list[Any]) -> np.ndarray:
    image = Image.new("1", size)
    for ring in rings:
        ImageDraw.Draw(image).polygon([tuple(point) for point in ring], fill=1)
    return np.asarray(image)


def tumour_mask(plan: SlidePlan) -> np.ndarray:
    """From the GeoJSON, as any reader of it would: closed rings in level-0 pixels."""
    features: Any = annotation(plan)["features"]
    assert len(features) == len(plan.tumours())
    assert {(each["geometry"]["type"], each["properties"]["classification"]["name"]) for each in features} == {
        ("Polygon", "tumour")
    }
    rings = [feature["geometry"]["coordinates"][0] for feature in features]
    assert all(ring[0] == ring[-1] and np.min(ring) > 0 and (np.array(ring) < plan.size).all() for ring in rings)
    return filled(plan.size, rings)


def tissue_mask(plan: SlidePlan) -> np.ndarray:
    return filled(plan.size, [piece.outline.points() for piece in plan.pieces])


@pytest.mark.parametrize(("case", "step"), [(0, 4), (1, 2)])
def test_openslide_reads_pyramid_scale_and_pixels(case: int, step: int, tmp_path: Path) -> None:
    plan = plan_slide(0, case, True)
    write_slide(plan, 0, tmp_path / "slide.tif")
    with openslide.OpenSlide(tmp_path / "slide.tif") as slide:
        assert slide.properties["openslide.vendor"] == "generic-tiff"
        assert [float(slide.properties[f"openslide.mpp-{axis}"]) for axis in "xy"] == pytest.approx([0.5, 0.5])
        assert "SYNTHETIC" in slide.properties["tiff.ImageDescription"]
        assert slide.properties["openslide.level[0].tile-width"] == "256"
        assert slide.dimensions == plan.size
        assert slide.level_count >= 3
        assert slide.level_downsamples == pytest.approx([step**level for level in range(slide.level_count)])
        full = painted(case, True)[1024:1536, 512:1024]
        assert (np.asarray(slide.read_region((512, 1024), 0, (512, 512)))[..., :3] == full).all()
        averaged = full.reshape(512 // step, step, 512 // step, step, 3).mean((1, 3))
        coarse = np.asarray(slide.read_region((512, 1024), 1, (512 // step,) * 2))[..., :3]
        assert np.abs(coarse - averaged).max() <= 1


@pytest.mark.parametrize("case", range(3))
def test_tumour_is_where_a_slide_differs_from_itself_without_it_and_has_more_nuclei_and_a_bluer_stain(
    case: int,
) -> None:
    plan, pixels, without = plan_slide(0, case, True), painted(case, True), painted(case, False)
    tumour, tissue = tumour_mask(plan), tissue_mask(plan)
    differs, normal = (pixels != without).any(2), tissue & ~tumour
    assert differs[tumour].mean() > 0.9
    assert differs[~tumour].mean() < 1e-3  # the outline itself
    nuclear = pixels[..., 0] < NUCLEAR_RED
    assert nuclear[tumour].mean() > 2.5 * nuclear[normal].mean()
    bluer = pixels[..., 2].astype(int) - pixels[..., 0]
    assert bluer[tumour].mean() > bluer[normal].mean() + 10
    assert without[~tissue].min() > 220
    assert without[~tissue].mean() == pytest.approx(240, abs=2)
    assert without[~tissue].std() > 0
    assert without[tissue].mean() < 215
    assert 0.15 < tissue.mean() < 0.75
    plan = plan_slide(0, case, False)
    assert annotation(plan) == {"type": "FeatureCollection", "features": []}
    clusters = [outline for piece in plan.pieces for kind, outline in piece.patches if kind == "inflamed"]
    inflamed = filled(plan.size, [outline.points() for outline in clusters])
    nuclear = without[..., 0] < NUCLEAR_RED  # negatives have dark clusters too
    assert nuclear[inflamed].mean() > 3 * nuclear[tissue & ~inflamed].mean()


def test_tumours_lie_in_tissue_apart_from_each_other_and_cover_what_was_asked() -> None:
    plans = [plan_slide(0, case, True) for case in range(24)]
    shares = []
    for plan in plans:
        tumour, tissue = tumour_mask(plan), tissue_mask(plan)
        assert (tumour & ~tissue).sum() == 0
        assert tumour.sum() == pytest.approx(sum(outline.area() for outline in plan.tumours()), rel=0.02)
        shares.append(tumour.sum() / tissue.sum())
    assert 0.02 < min(shares) < max(shares) / 2 < 0.16
    assert {len(plan.tumours()) for plan in plans} == {1, 2}
    assert {len(plan.pieces) for plan in plans} == {1, 2, 3}
    assert any(plan.size[0] != plan.size[1] for plan in plans)


def test_colour_of_a_whole_slide_is_not_its_label() -> None:
    negative, positive = (
        [painted(case, label)[tissue_mask(plan_slide(0, case, label))].mean() for case in range(4)]
        for label in (False, True)
    )
    assert min(negative) < max(positive)
    assert max(negative) - min(negative) > 4  # stains vary from slide to slide


def test_files_do_not_depend_on_the_process(tmp_path: Path) -> None:
    for name in "ab":
        write_slide(plan_slide(0, 2, True), 0, tmp_path / name)
        stamp.cache_clear()  # as in another process
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert not np.array_equal(plan_slide(0, 2, True).stains, plan_slide(1, 2, True).stains)
