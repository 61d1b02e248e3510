# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Feature files are checked before a run, and read whole or in blocks."""

import logging
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from scripts.core.errors import InputError
from scripts.engine.provenance import Origin
from scripts.wsi.reader import FeatureReader, checked_bags, read_blocks
from tests.wsi.foreign_features import (
    CELLS,
    DIMENSION,
    PITCH,
    load,
    load_image,
    some_features,
    tissue,
    write_cells,
    write_clam,
    write_stamp,
    write_torchmil,
    write_trident,
    write_uni2h,
)


def test_of_a_compressed_file(tmp_path: Path) -> None:
    path = write_cells(tmp_path, cells=tissue())
    features = some_features(len(tissue()))
    with h5py.File(path, "r+") as file:
        del file["features"]
        file.create_dataset("features", data=features, chunks=(8, 2), compression="gzip")
    assert (torch.cat(list(read_blocks(path, 7)), dim=2)[0].t().numpy() == features).all()


@pytest.mark.parametrize("form", ["clam", "pt", "trident", "uni2h", "stamp", "torchmil"])
def test_of_every_form(tmp_path: Path, form: str) -> None:
    coords = tissue() * 256
    path = {
        "clam": lambda: write_clam(tmp_path, "s", coords),
        "pt": lambda: write_clam(tmp_path, "s", coords, only_pt=True),
        "trident": lambda: write_trident(tmp_path, "s", coords, overlap=128),
        "uni2h": lambda: write_uni2h(tmp_path, "s", coords),
        "stamp": lambda: write_stamp(tmp_path, "s", coords),
        "torchmil": lambda: write_torchmil(tmp_path, "s", coords, np.zeros(len(coords))),
    }[form]()
    whole = load(image=str(path))["image"]
    assert whole.shape == (DIMENSION, len(coords))
    for size in (1, 37, len(coords), 1000):
        blocks = list(read_blocks(str(path), size))  # kept: what was read earlier stays what it was
        assert max(block.shape[2] for block in blocks) == min(size, len(coords))
        assert torch.equal(torch.cat(blocks, dim=2)[0], whole)


def test_what_is_wrong_survives_load_image(tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(InputError, match=r"text.h5 is not an HDF5") as caught:
        load_image()({"image": str(tmp_path / "text.h5")})
    assert "\n" not in str(caught.value)


def test_a_suffix_may_be_in_capitals(tmp_path: Path) -> None:
    path = Path(write_cells(tmp_path)).rename(tmp_path / "A.H5")
    assert FeatureReader().verify_suffix([str(path)])
    assert load(image=str(path))["mask"].shape == (1, 7)


def test_numbers_that_are_large_are_finite(tmp_path: Path) -> None:
    features = np.full((7, DIMENSION), 3e38, np.float32)
    assert (load(image=write_cells(tmp_path, features=features))["image"] == 3e38).all()


def test_numbers_that_are_not_finite_are_told(tmp_path: Path) -> None:
    features = some_features(7)
    features[6, 0] = np.nan
    path = write_cells(tmp_path, features=features)
    for read in (lambda: load(image=path), lambda: list(read_blocks(path, 4))):
        with pytest.raises(InputError, match=r"NaN or infinite values \(file .*a\.h5\)"):
            read()


class TestDescribed:
    def test_in_one_line_without_a_path(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        own: list[dict[str, Any]] = [
            {"image": write_cells(tmp_path, name, tissue()), "bag_id": name, "label": 1} for name in "abc"
        ]
        clam = {"image": str(write_clam(tmp_path, "d", tissue() * 448, patch_size=None))}
        empty = {"image": write_cells(tmp_path, "e", np.zeros((0, 2), int))}
        (tmp_path / "bad.h5").write_text("")
        bags: list[dict[str, Any]] = [
            *own,
            clam,
            empty,
            {"image": [str(tmp_path / "bad.h5"), str(tmp_path / "gone.h5")]},
        ]
        with caplog.at_level(logging.INFO):
            found = checked_bags(bags)
        (record,) = [record for record in caplog.records if record.name == "scripts.wsi.reader"]
        assert record.getMessage() == (
            "5 slides: 4 TRIDENT, 1 CLAM; encoder uni_v1; pitch 512 level-0 pixels (patch_size_level0 less overlap) "
            "or 448 level-0 pixels (commonest nearest distance); 1 without patches"
        )
        said = {"encoder": "uni_v1", "patch_um": 128.0}
        assert [{**bag, "stamp": ""} for bag in found] == [{**bag, **said, "stamp": ""} for bag in bags]

    def test_before_a_training_every_slide_must_be_usable(self, tmp_path: Path) -> None:
        good = {"image": write_cells(tmp_path, "a")}
        empty = {"image": write_cells(tmp_path, "e", np.zeros((0, 2), int))}
        (tmp_path / "bad.h5").write_text("")
        bad = {"image": [good["image"], str(tmp_path / "bad.h5")]}
        assert len(checked_bags([good, {"image": [good["image"], empty["image"]]}], require_all=True)) == 2
        with pytest.raises(InputError, match=r"^\S+e.h5 holds no patches: no tissue was found$"):
            checked_bags([good, empty], require_all=True)
        with pytest.raises(InputError, match=r"bad.h5 is not an HDF5.* \(1 more cannot be used: python -m scripts doc"):
            checked_bags([bad, empty, good], require_all=True)

    def test_two_encoders_are_refused_unless_the_user_knows_better(self, tmp_path: Path) -> None:
        bags = [{"image": write_cells(tmp_path, "a", encoder=name)} for name in ("uni_v1", "UNI_v1", "gpfm")]
        with pytest.raises(InputError, match=r"features_gpfm/a.h5 are of the encoder gpfm, those in .* of uni_v1"):
            checked_bags(bags)
        assert [bag["encoder"] for bag in checked_bags(bags[:2])] == ["uni_v1", "uni_v1"]
        assert [bag["encoder"] for bag in checked_bags(bags, encoder="gpfm")] == ["gpfm"] * 3

    def test_another_encoder_than_the_network_knows_is_refused(self, tmp_path: Path) -> None:
        bags = [{"image": write_cells(tmp_path)}]
        told = "the features are of the encoder uni_v1, the network was trained on those of gpfm"
        with pytest.raises(InputError, match=told):
            checked_bags(bags, trained_with=Origin("gpfm", 0.0))
        assert checked_bags(bags, trained_with=Origin("UNI_V1", 0.0))[0]["encoder"] == "uni_v1"
        assert checked_bags(bags, encoder="GPFM", trained_with=Origin("gpfm", 0.0))[0]["encoder"] == "GPFM"

    def test_an_encoder_that_nobody_names_is_doubted(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        unknown = [{"image": str(write_uni2h(tmp_path, "u", CELLS * PITCH))}]
        named = {"bags": [{"image": write_cells(tmp_path)}], "trained_with": Origin("uni_v1", 0.0)}
        for given, told in (
            ({"bags": unknown, "trained_with": Origin("gpfm", 0.0)}, True),
            ({"bags": unknown}, False),
            ({"bags": unknown, "encoder": "gpfm", "trained_with": Origin("gpfm", 0.0)}, False),
            (named, False),
        ):
            caplog.clear()
            checked_bags(**given)
            warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
            assert warnings == [
                "the features do not state their encoder, the network was trained on those of gpfm; "
                "state theirs with --encoder_name"
            ] * told  # fmt: skip


def test_features_of_another_length_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    bags = [{"bag_id": "a", "image": write_cells(tmp_path)}]
    assert len(checked_bags(bags, in_features=DIMENSION)) == 1
    with pytest.raises(
        InputError, match=rf"has {DIMENSION} features for each patch, the network takes 1024: give --in_"
    ):
        checked_bags(bags, in_features=1024)


def test_a_bag_whose_file_was_made_anew_is_another_one(tmp_path: Path) -> None:
    """What is kept of bags (a cache) is found by all that is said of them."""
    bags = [{"bag_id": "a", "image": write_cells(tmp_path)}]
    before = checked_bags(bags)
    assert checked_bags(bags) == before
    write_cells(tmp_path, cells=CELLS[:5])
    assert checked_bags(bags) != before


def test_the_distance_of_patches_is_told_in_micrometres_where_it_can_be(tmp_path: Path) -> None:
    trident = {"image": write_cells(tmp_path)}  # at 40x, so 0.25 micrometres per pixel or about that
    assert checked_bags([trident])[0]["patch_um"] == 128
    assert checked_bags([trident], slide_mpp=0.22)[0]["patch_um"] == pytest.approx(512 * 0.22)  # the user knows better
    clam = {"image": str(write_clam(tmp_path, "d", tissue() * 448, patch_size=None))}
    assert checked_bags([clam])[0]["patch_um"] == 0
    assert checked_bags([clam], slide_mpp=0.5)[0]["patch_um"] == pytest.approx(224)
    stamp = write_stamp(tmp_path / "um", "slide", tissue() * 256.0)
    assert checked_bags([{"image": str(stamp)}])[0]["patch_um"] == pytest.approx(256)
