# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import numpy as np
import pytest

from scripts.core.errors import InputError
from scripts.wsi.datalist.files import FeatureFiles, beside_features, find_annotations, read_label, slide_name
from tests.wsi.feature_trees import clam, own, torchmil, trident, write


@pytest.mark.parametrize(
    ("text", "name"),
    [
        *((text, "s1") for text in ("s1", "s1.svs", "a/b/s1.h5", "a\\s1.TIFF", "s1.svs.h5", "s1.ome.tif", "s1.sdpc")),
        ("TCGA-05-4244-01Z-00-DX1.d4ff32cd", "TCGA-05-4244-01Z-00-DX1.d4ff32cd"),
        ("TCGA-05-4244-01Z-00-DX1.d4ff32cd.svs", "TCGA-05-4244-01Z-00-DX1.d4ff32cd"),
    ],
)
def test_a_slide_has_one_name_with_any_ending(text: str, name: str) -> None:
    assert slide_name(text) == name


def found(folder: Path, features: str | None = None) -> list[str]:
    files = FeatureFiles(folder, features)
    return sorted(files.relative(path) for path in files.paths)


def test_of_clam_the_h5_files_go_before_the_pt_files(tmp_path: Path) -> None:
    clam(tmp_path, "s1")
    clam(tmp_path, "s2")
    (tmp_path / "h5_files" / "s2.h5").unlink()
    write(tmp_path / "patches" / "s1.h5", "coords alone")
    assert found(tmp_path) == ["h5_files/s1.h5", "pt_files/s2.pt"]
    assert found(tmp_path / "h5_files") == ["s1.h5"]
    assert found(tmp_path / "pt_files") == ["s1.pt", "s2.pt"]


def test_of_trident_features_count_and_patches_do_not(tmp_path: Path) -> None:
    trident(tmp_path, "s1")
    write(tmp_path / "20x_256px_0px_overlap" / "slide_features_titan" / "s1.h5", "of the whole slide")
    assert found(tmp_path) == ["20x_256px_0px_overlap/features_uni_v1/s1.h5"]


def test_of_torchmil_features_count_and_other_arrays_do_not(tmp_path: Path) -> None:
    torchmil(tmp_path, "s1", 1, features="features/features_UNI")
    assert found(tmp_path) == ["patches_512/features/features_UNI/s1.npy"]
    assert found(tmp_path / "patches_512" / "features" / "features_UNI") == ["s1.npy"]


def test_networks_results_and_hidden_files_are_no_features(tmp_path: Path) -> None:
    own(tmp_path / "features" / "s1.h5")
    for name in (
        "models/x.h5", "model.pt", "run/best.pt", "results/s1/scores.h5", ".cache/s1.h5", "a/b/c/d/s1.h5",
        "features/._s1.h5", "features/.s2.h5",
    ):  # fmt: skip
        write(tmp_path / name, "x")
    own(tmp_path / "features" / "s3.H5")
    assert found(tmp_path) == ["features/s1.h5", "features/s3.H5"]
    assert FeatureFiles(tmp_path).of("s3.svs") == tmp_path / "features" / "s3.H5"
    assert FeatureFiles(tmp_path).of("s2") is None


def test_of_two_encoders_one_must_be_named(tmp_path: Path) -> None:
    for encoder in ("uni_v1", "conch"):
        trident(tmp_path, "s1", encoder)
    trident(tmp_path, "s2", "conch")
    files = FeatureFiles(tmp_path)
    root = "20x_256px_0px_overlap"
    assert files.of("s2") == tmp_path / root / "features_conch" / "s2.h5"
    assert files.of(f"{root}/features_uni_v1/s1.h5") == tmp_path / root / "features_uni_v1" / "s1.h5"
    with pytest.raises(InputError, match=rf"^s1 has features in {root}/features_conch and in {root}/features_uni_v1: "):
        files.of("s1.svs")
    for named in ("features_uni_v1", f"{root}/features_uni_v1"):
        assert found(tmp_path, named) == [f"{root}/features_uni_v1/s1.h5"]
    with pytest.raises(InputError, match=r"holds no feature files in features_uni: give a folder below it that does$"):
        FeatureFiles(tmp_path, "features_uni")


def test_linked_folders_are_followed(tmp_path: Path) -> None:
    own(tmp_path / "elsewhere" / "s1.h5")
    (tmp_path / "cohort").mkdir()
    (tmp_path / "cohort" / "features").symlink_to(tmp_path / "elsewhere")
    assert found(tmp_path / "cohort") == ["features/s1.h5"]


@pytest.mark.parametrize("features", ["features_UNI", "features/features_UNI"])
def test_labels_of_torchmil_lie_in_a_folder_above(tmp_path: Path, features: str) -> None:
    path = torchmil(tmp_path, "s1", 1, features=features)
    label = beside_features(path, tmp_path, "labels")
    assert label == tmp_path / "patches_512" / "labels" / "s1.npy"
    assert read_label(label) == "1"
    assert beside_features(path.with_name("s2.npy"), tmp_path, "labels") is None
    assert beside_features(path, path.parent, "labels") is None  # not above the folder


@pytest.mark.parametrize("content", [np.array([0, 1]), np.array([]), np.array(["a"])])
def test_a_label_that_is_no_number_is_refused(tmp_path: Path, content: np.ndarray) -> None:
    np.save(tmp_path / "s1.npy", content)
    with pytest.raises(InputError, match=rf"^{tmp_path}/s1.npy does not hold one number, the label of a slide: "):
        read_label(tmp_path / "s1.npy")


def test_annotations_are_found_by_the_name_of_the_slide(tmp_path: Path) -> None:
    for name in ("s1.xml", "s1.geojson", "s2.svs.geojson.gz", "tumor_001_mask.tif", "s4.png", "s3.txt", "s5.JSON"):
        write(tmp_path / name, "x")
    assert {name: path.name for name, path in find_annotations(tmp_path).items()} == {
        "s1": "s1.geojson", "s2": "s2.svs.geojson.gz", "tumor_001": "tumor_001_mask.tif", "s4": "s4.png",
        "s5": "s5.JSON",
    }  # fmt: skip
    with pytest.raises(InputError, match=r"is not a folder: give the one of the annotations with --annotations FOLDER"):
        find_annotations(tmp_path / "none")
