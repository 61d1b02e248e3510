# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
import json
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from monai.transforms import Compose, LoadImaged

from scripts.doctor.findings import Finding, Level
from scripts.wsi.doctor.slide import ExamOptions, examine_features, examine_slide
from scripts.wsi.reader import FeatureReader
from scripts.wsi.transforms import PatchBagd
from tests.wsi.feature_trees import clam, grid, own, random_features, trident, write
from tests.wsi.slide_files import tissue, write_slide

USUAL = ExamOptions()
PLAIN = (
    "12 patches of 4 numbers (smooth-mil), 512 level-0 pixels apart (pitch_level0), 0.25 micrometres per pixel, "
    "4.8 of 8 neighbours"
)


def found(path: Path, options: ExamOptions = USUAL, **bag: Any) -> tuple[Level, str]:
    finding = examine_features(path, path.stem, options, bag).finding
    assert finding.fix or finding.level == Level.PASS or re.search("[:;] ", finding.text)  # always what to do
    return finding.level, finding.text


def test_a_file_that_can_be_used(tmp_path: Path) -> None:
    examined = examine_features(own(tmp_path / "s1.h5"), "slide 1", ExamOptions())
    assert examined.finding == Finding(Level.PASS, PLAIN, name="slide 1", size=12)
    assert examined.header is not None
    assert (examined.header.patches, examined.header.encoder) == (12, "tiny")


def test_other_formats_state_their_pitch_otherwise(tmp_path: Path) -> None:
    for path, text in (
        (trident(tmp_path, "t", overlap=128), "(TRIDENT), 256 level-0 pixels apart (patch_size_level0 less overlap)"),
        (clam(tmp_path, "c"), "(CLAM), 512 level-0 pixels apart (commonest nearest distance)"),
    ):
        scale = "micrometres per pixel not known, 4.8 of 8 neighbours"
        assert found(path) == (Level.PASS, f"12 patches of 4 numbers {text}, {scale}")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_fail_unless_nobody_looks(tmp_path: Path, value: float) -> None:
    path = own(tmp_path / "s1.h5", patches=5000)
    with h5py.File(path, "r+") as file:
        file["features"][17, 2] = value
        file["features"][4999, :] = value
    level, text = found(path)
    assert (level, text.partition(":")[0]) == (Level.FAIL, "2 of 5000 patches hold NaN or infinite values")
    assert found(path, ExamOptions(quick=True))[0] == Level.PASS


def test_copies_are_known_by_their_features(tmp_path: Path) -> None:
    features = random_features("x", 5000)
    first = examine_features(own(tmp_path / "a.h5", 5000, features=features), "a", ExamOptions())
    moved = grid(5000) + 1000
    same = examine_features(own(tmp_path / "b.h5", 5000, features=features, coords=moved), "b", ExamOptions())
    features[4999, 3] += 1
    other = examine_features(own(tmp_path / "c.h5", 5000, features=features), "c", ExamOptions())
    assert first.content == same.content != other.content
    assert examine_features(tmp_path / "a.h5", "a", ExamOptions(quick=True)).content == ""


def test_a_slide_without_tissue_is_warned_of_and_one_patch_needs_no_neighbour(tmp_path: Path) -> None:
    assert found(own(tmp_path / "s1.h5", 0)) == (Level.WARN, "no patches, a slide without tissue")
    assert found(own(tmp_path / "s1.h5", 1))[0] == Level.PASS


def test_patches_that_are_all_alone_fail(tmp_path: Path) -> None:
    far = np.array([[0, 0], [5000, 9000], [20000, 1000], [31000, 30000]])
    level, text = found(own(tmp_path / "s1.h5", 4, coords=far, slide_size=(40000, 40000)))
    assert level == Level.FAIL
    assert text.startswith("no patch has a neighbour: the pitch is wrong (4 patches of 4 numbers")


def test_scattered_patches_are_warned_of(tmp_path: Path) -> None:
    """Pairs of neighbours far from each other: a mean degree of 1."""
    pairs = np.array([[n * 4096 + side * 512, 0] for n in range(10) for side in (0, 1)])
    level, text = found(own(tmp_path / "s1.h5", 20, coords=pairs, slide_size=(50000, 5000)))
    assert level == Level.WARN
    assert text.startswith("few patches have neighbours, so the tissue is scattered or the pitch is wrong (20 patches")
    assert text.endswith("1.0 of 8 neighbours)")


@pytest.mark.parametrize("aside", [0, 40])  # pixels of 512: a lattice has one place for both
def test_patches_at_one_place_fail_as_the_run_does(tmp_path: Path, aside: int) -> None:
    twice = grid(24)
    twice[[3, 9]] = twice[2] + aside, twice[2] - aside
    path = own(tmp_path / "s1.h5", 24, coords=twice)
    level, text = found(path, ExamOptions(quick=True))
    assert (level, text.partition(":")[0]) == (Level.FAIL, "2 of 24 patches lie where another lies")
    reader: Any = FeatureReader()  # MONAI's annotation forgets that it takes an instance
    loader = Compose([LoadImaged("image", reader=reader, image_only=True), PatchBagd()])
    with pytest.raises(RuntimeError) as run:
        loader({"image": str(path), "bag_id": "s1"})
    assert "3 patches at the same place" in str(run.value.__cause__)


def test_a_file_that_is_none_fails_in_its_readers_words(tmp_path: Path) -> None:
    path = write(tmp_path / "s1.h5", "nothing")
    level, text = found(path)
    assert level == Level.FAIL
    assert text.startswith(f"{path} is not an HDF5")
    assert examine_features(path, "s1", ExamOptions()).header is None


def square(folder: Path, left: int, top: int, side: int) -> Path:
    ring = [[left, top], [left + side, top], [left + side, top + side], [left, top + side], [left, top]]
    feature = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    return write(folder / "s1.geojson", json.dumps({"type": "FeatureCollection", "features": [feature]}))


def test_annotations_are_held_against_the_label(tmp_path: Path) -> None:
    path = own(tmp_path / "s1.h5")
    drawn = str(square(tmp_path, 0, 0, 1024))  # four patches
    assert found(path, annotation=drawn, label=1) == (Level.PASS, PLAIN)
    assert found(path, annotation=drawn) == (Level.PASS, PLAIN)  # nobody said what the slide is
    contradiction = f"label 0, though 4 of its patches are annotated ({PLAIN})"
    assert found(path, annotation=drawn, label=0) == (Level.WARN, contradiction)
    nowhere = str(square(tmp_path, 3000, 3000, 1000))
    contradiction = f"label 1, though none of its patches is annotated ({PLAIN})"
    assert found(path, annotation=nowhere, label=1) == (Level.WARN, contradiction)


def test_a_geojson_may_count_from_bounds_that_nobody_knows(tmp_path: Path) -> None:
    drawn = str(square(tmp_path, 0, 0, 1024))
    level, text = found(trident(tmp_path, "s1"), annotation=drawn, label=1)
    assert level == Level.WARN
    assert text.startswith("its GeoJSON counts from the bounds of the slide, which are not known without --slides (12 ")
    write_slide(tmp_path / "slides" / "s1.tif", tissue(1536, 2048), 0.25)
    options = ExamOptions(slides=tmp_path / "slides")
    assert found(trident(tmp_path, "s1"), options, annotation=drawn, label=1)[0] == Level.PASS


def test_a_pitch_that_is_stated_wrongly_is_found(tmp_path: Path) -> None:
    level, text = found(own(tmp_path / "s1.h5", 64, coords=grid(64, 1024, 8), slide_size=(9000, 9000)))
    assert level == Level.WARN
    assert text.startswith("the pitch that the file states is not that of its patches (64 patches of 4 numbers ")
    assert ", 1024 level-0 pixels apart (commonest nearest distance, as the patches do not lie 512 apart" in text


def test_labels_of_patches_are_held_against_the_slide(tmp_path: Path) -> None:
    path = own(tmp_path / "s1.h5")
    file = tmp_path / "s1.npy"
    for positive, label in ((3, 1), (0, 0)):
        np.save(file, np.arange(12) < positive)
        assert found(path, instance_label=str(file), label=label) == (Level.PASS, PLAIN)
    for positive, label, shown in ((1, 0, "1 of its patches is"), (0, 1, "none of its patches is")):
        np.save(file, np.arange(12) < positive)
        remark = f"label {label}, though {shown} positive ({PLAIN})"
        assert found(path, instance_label=str(file), label=label) == (Level.WARN, remark)
    assert found(path, instance_label=[0] * 12, label=0) == (Level.PASS, PLAIN)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([0] * 11, "instance_label has 11 numbers, 11 of them 0 or 1, for 12 patches"),
        ([0] * 11 + [2], "instance_label has 12 numbers, 11 of them 0 or 1, for 12 patches"),
        ("none.npy", "instance_label none.npy cannot be read: give a .npy with a number per patch"),
    ],
)
def test_labels_of_patches_that_do_not_fit_fail(tmp_path: Path, given: Any, message: str) -> None:
    level, text = found(own(tmp_path / "s1.h5"), instance_label=given, label=0)
    assert (level, text.startswith(message)) == (Level.FAIL, True)


def test_a_slide_that_openslide_reads(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "s1.tif", tissue(1024, 2048), 0.5)
    text = "2048 x 1024 pixels, levels at 1, 4, generic-tiff, 0.5 micrometres per pixel"
    assert examine_slide(path) == Finding(Level.PASS, text, name="s1", size=2)


def test_a_slide_without_its_scale_is_warned_of(tmp_path: Path) -> None:
    finding = examine_slide(write_slide(tmp_path / "s1.tif", tissue(512, 512), None))
    assert finding.level == Level.WARN
    assert finding.text.startswith("no plausible micrometres per pixel (512 x 512 pixels, levels at 1, 4, ")
    assert "--slide_mpp" in finding.fix


def test_a_slide_that_is_none_or_cut_short_fails(tmp_path: Path) -> None:
    finding = examine_slide(write(tmp_path / "s1.svs", "no slide"))
    assert finding.level == Level.FAIL
    assert finding.text.startswith("s1.svs is not a slide that OpenSlide reads")
    cut = write_slide(tmp_path / "s2.tif", tissue(512, 512), 0.5, downsamples=[1])
    content = bytearray(cut.read_bytes())
    content[len(content) // 4 : len(content) // 4 * 3] = bytes(len(content) // 4 * 3 - len(content) // 4)
    cut.write_bytes(content)
    finding = examine_slide(cut)
    assert finding.level == Level.FAIL
    assert finding.text.startswith("s2.tif is damaged (")


def test_features_of_another_slide_fail(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "s1.tif", tissue(512, 512), 0.5)
    header = examine_features(own(tmp_path / "s1.h5", slide_size=(512, 512)), "s1", ExamOptions(quick=True)).header
    assert examine_slide(path, header).level == Level.PASS
    header = examine_features(own(tmp_path / "s1.h5"), "s1", ExamOptions(quick=True)).header
    finding = examine_slide(path, header)
    assert finding.level == Level.FAIL
    assert finding.text.startswith("its features are of a slide of 4096 x 4096 pixels (512 x 512 pixels, ")
    header = examine_features(clam(tmp_path, "s1"), "s1", ExamOptions(quick=True)).header  # of no known size
    assert examine_slide(path, header).level == Level.PASS
