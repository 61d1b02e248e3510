# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Feature files are checked before a run, and read whole or in blocks."""

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts.core.errors import InputError
from scripts.engine.provenance import Origin
from scripts.outputs.report import input_of
from scripts.wsi.reader import FeatureReader, checked_bags
from tests.wsi import foreign_features as foreign
from tests.wsi.foreign_arrays import write_slideflow, write_tiatoolbox_zarr
from tests.wsi.foreign_features import CELLS, DIMENSION, blocks_of, load, tissue, write_cells

EMPTY = np.zeros((0, 2), int)


def entry(folder: Path, name: str = "a", cells: np.ndarray = CELLS, **given: Any) -> dict[str, Any]:
    """Of a datalist."""
    return {"image": write_cells(folder, name, cells, **given)}


def test_a_suffix_may_be_in_capitals(tmp_path: Path) -> None:
    path = Path(write_cells(tmp_path)).rename(tmp_path / "A.H5")
    assert FeatureReader().verify_suffix([str(path)])
    assert load(image=str(path))["mask"].shape == (1, 7)


def test_large_numbers_are_finite_and_what_is_not_is_refused(tmp_path: Path) -> None:
    features = np.full((7, DIMENSION), 1e17, np.float32)
    assert (load(image=write_cells(tmp_path, features=features))["image"] == 1e17).all()
    for value, message in (
        (np.nan, r"features hold NaN or infinite values \(file .*a\.h5\)"),
        (-3e38, r"features are as large as 3e\+38 \(file .*a\.h5\), more than a network takes; extract again"),
    ):
        features[6, 0] = value
        path = write_cells(tmp_path, features=features)
        for read in (lambda path=path: load(image=path), lambda path=path: blocks_of(path, 4)):
            with pytest.raises(InputError, match=message):
                read()


def test_a_cohort_is_described_in_one_line_without_a_path(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "bad.h5").write_text("")
    bags = [
        *({**entry(tmp_path, name, tissue()), "bag_id": name, "label": 1} for name in "abc"),
        {"image": str(foreign.write_clam(tmp_path, "d", tissue() * 448, patch_size=None))},
        entry(tmp_path, "e", EMPTY),
        {"image": [str(tmp_path / "bad.h5"), str(tmp_path / "gone.h5")]},
    ]
    with caplog.at_level(logging.INFO):
        found = checked_bags(bags)
    assert [record.getMessage() for record in caplog.records if record.name == "scripts.wsi.reader"] == [
        "5 slides: 4 TRIDENT, 1 CLAM; encoder uni_v1; pitch 512 level-0 pixels (patch_size_level0 less overlap) "
        "or 448 level-0 pixels (commonest nearest distance); 1 without patches"
    ]
    known = {"encoder": "uni_v1", "patch_um": 128.0, "stamp": ""}
    counts = [len(tissue())] * 4 + [0, 0]
    assert [{**bag, "stamp": ""} for bag in found] == [
        {**bag, **known, "patches": count} for bag, count in zip(bags, counts, strict=True)
    ]


def test_before_a_training_every_slide_must_be_usable(tmp_path: Path) -> None:
    good, empty = entry(tmp_path), entry(tmp_path, "e", EMPTY)
    (tmp_path / "bad.h5").write_text("")
    bad = {"image": [good["image"], str(tmp_path / "bad.h5")]}
    assert len(checked_bags([good, {"image": [good["image"], empty["image"]]}], require_all=True)) == 2
    with pytest.raises(InputError, match=r"^\S+e.h5 holds no patches: no tissue was found$"):
        checked_bags([good, empty], require_all=True)
    with pytest.raises(InputError, match=r"bad.h5 is not an HDF5.* \(1 more cannot be used: python -m scripts doc"):
        checked_bags([bad, empty, good], require_all=True)


def test_encoder_and_length_are_those_of_the_network_unless_the_user_knows_another_name(tmp_path: Path) -> None:
    bags = [entry(tmp_path, encoder=name) for name in ("uni_v1", "UNI_v1", "gpfm")]
    with pytest.raises(InputError, match=r"features_gpfm/a.h5 are of the encoder gpfm, those in .* of uni_v1"):
        checked_bags(bags)
    network = Origin("gpfm", 0.0)
    with pytest.raises(InputError, match="of the encoder uni_v1, the network was trained on those of gpfm"):
        checked_bags(bags[:2], trained_with=network)
    assert [bag["encoder"] for bag in checked_bags(bags[:2], trained_with=Origin("UNI_V1", 0.0))] == ["uni_v1"] * 2
    known = checked_bags(bags, encoder="GPFM", trained_with=network, in_features=DIMENSION)
    assert [bag["encoder"] for bag in known] == ["GPFM"] * 3
    with pytest.raises(InputError, match=rf"has {DIMENSION} features for each patch, the network takes 1024: give"):
        checked_bags(bags[:1], in_features=1024)


def test_a_bag_whose_file_was_made_anew_is_another_one(tmp_path: Path) -> None:
    """What is kept of bags (a cache) is found by all that is known of them."""
    bags = [entry(tmp_path)]
    before = checked_bags(bags)
    assert checked_bags(bags) == before
    write_cells(tmp_path, cells=CELLS[:5])
    assert checked_bags(bags) != before


def test_a_store_and_what_stands_beside_a_file_are_stamped_too(tmp_path: Path) -> None:
    store = write_tiatoolbox_zarr(tmp_path, "s", tissue() * 224)
    slideflow = write_slideflow(tmp_path, "s", tissue() * 512)
    bags: list[dict[str, Any]] = [{"image": str(path)} for path in (store, slideflow)]
    before = [(bag, input_of(bag)) for bag in checked_bags(bags)]
    chunk = store / "features" / "c" / "0" / "0"
    os.utime(chunk, (9, 9))
    slideflow.with_name("bags_config.json").write_text("{}")
    for (bag, known), new in zip(before, checked_bags(bags), strict=True):
        assert bag["stamp"] != new["stamp"]
        assert known != input_of(new)
        assert len(new["stamp"]) <= 1000


def test_the_distance_of_patches_is_given_in_micrometres_where_it_can_be(tmp_path: Path) -> None:
    trident = entry(tmp_path)["image"]  # at 40x, so 0.25 micrometres per pixel or about that
    clam = str(foreign.write_clam(tmp_path, "d", tissue() * 448, patch_size=None))
    stamp = str(foreign.write_stamp(tmp_path / "um", "slide", tissue() * 256.0))
    for path, mpp, distance in (
        (trident, None, 128),
        (trident, 0.22, 512 * 0.22),  # the user knows better
        (clam, None, 0),
        (clam, 0.5, 224),
        (stamp, None, 256),
    ):
        (bag,) = checked_bags([{"image": path}], slide_mpp=mpp)
        assert bag["patch_um"] == pytest.approx(distance)


def test_a_training_refuses_features_that_are_the_same_for_all_patches(tmp_path: Path) -> None:
    cells = tissue()[:16]
    bags = [entry(tmp_path, "a", cells, features=np.ones((16, DIMENSION), np.float32)), entry(tmp_path, "b")]
    with pytest.raises(InputError, match=r"^the features of all patches of .*a.h5 are the same; extract them again$"):
        checked_bags(bags, require_all=True)
    assert len(checked_bags(bags)) == 2  # where slides are read, what they give is told


def test_a_few_patches_may_be_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bags = [entry(tmp_path, features=np.ones((7, DIMENSION), np.float32)), entry(tmp_path, "b")]
    assert len(checked_bags(bags, require_all=True)) == 2
    assert "small slides whose patches all have the same features: 1; doctor wsi names them" in caplog.text
