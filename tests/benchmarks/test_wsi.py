# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest

from benchmarks.wsi import MPP, TILE, WORKERS, Extraction, extraction_profile, inference_profile
from scripts.outputs.scores import read_scores
from tests.wsi.slide_files import read_features

pytestmark = pytest.mark.slow  # each runs a bundle


def test_the_share_is_that_of_the_figures_and_the_bare_parts_read_and_encode_the_same_tiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = extraction_profile(str(tmp_path), slides=2, tiles=18, calls=1, untimed=0)
    tiles, bare = measured["tiles"], measured["bare"]
    assert set(bare) == {"reading", "encoder"}
    assert measured["tiles per second"] == pytest.approx(tiles / measured["whole"]["all"])
    assert measured["bound"] == pytest.approx(tiles / sum(bare.values()))
    assert measured["share of the bound"] == pytest.approx(measured["tiles per second"] / measured["bound"])
    with_resnet = Extraction(str(tmp_path), 2, 18, ["encoder_monai.json"]).extractor
    assert with_resnet.encoder_name.startswith("resnet18")
    extraction = Extraction(str(tmp_path), 2, 18, [])
    extractor = extraction.extractor
    assert (extractor.num_workers, extractor.tile_size, extractor.mpp) == (WORKERS, TILE, MPP) == (2, 256, 0.5)
    assert extractor.encoder_name == "seeded_tile_cnn_0"
    for path in sorted((tmp_path / "slides").iterdir()):  # read as they are stored
        with openslide.OpenSlide(path) as slide:
            assert slide.dimensions == (3 * TILE, 3 * TILE)
            assert float(slide.properties[openslide.PROPERTY_NAME_MPP_X]) == MPP

    read: list[tuple[int, int]] = []
    seen: list[int] = []
    read_region = openslide.OpenSlide.read_region

    def counted(slide: openslide.OpenSlide, place: tuple[int, int], *rest: Any) -> Any:
        read.append(place)
        return read_region(slide, place, *rest)

    monkeypatch.setattr(openslide.OpenSlide, "read_region", counted)
    extractor.encoder.get_submodule("encoder").register_forward_hook(lambda _, images, __: seen.append(len(images[0])))
    extraction.bare()
    coords = [read_features(file).coords for file in sorted((tmp_path / "features").glob("*.h5"))]
    assert len(coords) == 2
    assert read == [tuple(place) for place in np.concatenate(coords).tolist()]
    assert sum(seen) == tiles == len(read) > 9


def test_inference_is_timed_from_the_feature_file_to_all_results(tmp_path: Path) -> None:
    measured = inference_profile(str(tmp_path), patches=400, columns=16, calls=1, untimed=0)
    parts = measured["part of it"]
    assert {"finding the slide", "LoadImaged", "PatchBagd", "network", "SaveScoresd", "DrawSlided"} < set(parts)
    assert measured["whole"]["all"] == pytest.approx(sum(parts.values()))
    written = {path.name for path in (tmp_path / "results" / "slide").iterdir()}
    assert written == {"result.json", "scores.h5", "map.png", "tiles.geojson.gz"}
    scores = read_scores(tmp_path / "results" / "slide" / "scores.h5")
    assert len(scores.coords) == measured["patches"] == 400
    assert scores.flagged.any()
