# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import numpy as np
import pytest

from scripts.core.errors import InputError
from scripts.wsi.datalist.files import FeatureFiles, beside_features, find_annotations, read_label, slide_name
from tests.wsi.foreign_features import own, torchmil, trident, write

ROOT = "20x_256px_0px_overlap"


@pytest.mark.parametrize("name", ["s1", "TCGA-05-4244-01Z-00-DX1.d4ff32cd"])
@pytest.mark.parametrize("text", ["{}", "{}.svs", "a/b/{}.h5", "a\\{}.TIFF", "{}.svs.h5", "{}.ome.tif", "{}.sdpc"])
def test_a_slide_has_one_name_with_any_ending(text: str, name: str) -> None:
    assert slide_name(text.format(name)) == name


def test_features_are_found_by_the_name_of_the_slide_also_in_a_linked_folder(tmp_path: Path) -> None:
    own(tmp_path / "elsewhere" / "s3.H5")
    (tmp_path / "cohort").mkdir()
    (tmp_path / "cohort" / "linked").symlink_to(tmp_path / "elsewhere")
    assert FeatureFiles(tmp_path / "cohort").of("s3.svs") == tmp_path / "cohort" / "linked" / "s3.H5"
    assert FeatureFiles(tmp_path / "cohort").of("s2") is None


def test_of_two_encoders_one_must_be_named(tmp_path: Path) -> None:
    for encoder in ("uni_v1", "conch"):
        trident(tmp_path, "s1", encoder)
    files = FeatureFiles(tmp_path)
    assert files.of(f"{ROOT}/features_uni_v1/s1.h5") == tmp_path / ROOT / "features_uni_v1" / "s1.h5"
    with pytest.raises(InputError, match=rf"^s1 has features in {ROOT}/features_conch and in {ROOT}/features_uni_v1: "):
        files.of("s1.svs")
    for named in ("features_uni_v1", f"{ROOT}/features_uni_v1"):
        assert FeatureFiles(tmp_path, named).paths == [tmp_path / ROOT / "features_uni_v1" / "s1.h5"]
    with pytest.raises(InputError, match=r"holds no feature files in features_uni: give a folder below it that does$"):
        FeatureFiles(tmp_path, "features_uni")


@pytest.mark.parametrize("features", ["features_UNI", "features/features_UNI"])
def test_labels_of_torchmil_lie_in_a_folder_above(tmp_path: Path, features: str) -> None:
    path = torchmil(tmp_path, "s1", 1, features)
    label = tmp_path / "patches_512" / "labels" / "s1.npy"
    assert beside_features(path, tmp_path, "labels") == label
    assert read_label(label) == "1"
    assert beside_features(path.with_name("s2.npy"), tmp_path, "labels") is None
    assert beside_features(path, path.parent, "labels") is None  # not above the folder
    for content in ([0, 1], [], ["a"]):
        np.save(label, np.array(content))
        with pytest.raises(InputError, match=rf"^{label} does not hold one number, the label of a slide: "):
            read_label(label)


def test_annotations_are_found_by_the_name_of_the_slide(tmp_path: Path) -> None:
    names = {"s1": "s1.geojson", "s2": "s2.svs.geojson.gz", "tumor_001": "tumor_001_mask.tif", "s5": "s5.JSON"}
    for name in ("s1.xml", "s3.txt", *names.values()):
        write(tmp_path / name, "x")
    assert {name: path.name for name, path in find_annotations(tmp_path).items()} == names
    with pytest.raises(InputError, match=r"is not a folder: give the one of the annotations with --annotations FOLDER"):
        find_annotations(tmp_path / "none")
