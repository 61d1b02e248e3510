# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Slides become bags: coordinates on a lattice, labels, lesions and warnings, of one slide or of several."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from PIL import Image

from scripts.core.errors import EmptyBagError, InputError
from scripts.engine.batches import collate_bags, one_bag
from scripts.wsi.features.base import FeatureHeader
from scripts.wsi.features.files import read_header
from tests.wsi import foreign_features as foreign
from tests.wsi.foreign_arrays import write_owkin
from tests.wsi.foreign_features import (
    CELLS,
    DIMENSION,
    PITCH,
    blocks_of,
    in_blocks,
    load,
    some_features,
    tissue,
    write_cells,
)
from tests.wsi.slide_files import glass, write_slide

WITHOUT_SIZE = "lesions are counted without their size"
NO_CELLS = np.zeros((0, 2), int)


def about(bag: Mapping[Any, Any]) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(bag["about"])
    return content


def around_three(folder: Path) -> str:
    """An annotation around the first, the second and the fourth patch."""
    return foreign.square(folder, "a", 4 * PITCH - 20, 8 * PITCH - 20, 2 * PITCH + 40)


def test_plain_tensors_of_the_slide(tmp_path: Path) -> None:
    path = write_cells(tmp_path)
    bag = load(image=path, bag_id="a", label=1)
    for key, shape in {"image": (DIMENSION, 7), "coords": (2, 7), "mask": (1, 7), "label": (1,)}.items():
        assert (bag[key].shape, bag[key].dtype) == (shape, torch.float32)
        assert not isinstance(bag[key], MetaTensor)
    np.testing.assert_array_equal(bag["image"].t().numpy(), some_features(7))
    assert bag["mask"].all()
    assert (bag["label"].tolist(), bag["source"], bag["bag_id"]) == ([1.0], path, "a")
    assert not {"instance_label", "lesion"} & bag.keys()
    assert (bag["coords"].T.numpy() == CELLS - [4, 7]).all()  # x comes first
    assert bag["stored_coords"].dtype == torch.float64
    assert (bag["stored_coords"].numpy() == [[0] * 7, *(CELLS * PITCH).T]).all()
    (slide,) = about(bag)["slides"]
    assert (slide.pop("source"), FeatureHeader.from_json(slide)) == (path, read_header(path))
    assert about(bag).keys() == {"slides", "warnings"}


class TestTruth:
    def test_an_annotation_labels_the_tiles_it_covers_and_counts_lesions(self, tmp_path: Path) -> None:
        for drawn, inside in ((around_three(tmp_path), [[1, 1, 0, 1, 0, 0, 0]]), (None, [[0] * 7])):
            bag = load(image=write_cells(tmp_path), annotation=drawn)
            assert bag["instance_label"].tolist() == bag["lesion"].tolist() == inside
            assert bag["lesion"].dtype == torch.int64
            assert about(bag)["lesions"] == {"count": int(drawn is not None), "excluded": []}

    def test_micrometres_are_compared_with_pixels_where_the_user_gives_their_size(self, tmp_path: Path) -> None:
        path = str(foreign.write_stamp(tmp_path, "s", CELLS * 128.0, 128.0))
        item = {"image": path, "annotation": around_three(tmp_path)}
        with pytest.raises(InputError, match=r"s.h5 gives micrometres and .*a.geojson pixels.*--slides or .*--slide_"):
            load(**item)
        bag = load({"slide_mpp": 0.25}, **item)
        assert bag["instance_label"].tolist() == [[1, 1, 0, 1, 0, 0, 0]]
        np.testing.assert_array_equal(bag["stored_coords"][1:].T.numpy(), CELLS * PITCH)
        (slide,) = about(bag)["slides"]
        assert [slide[key] for key in ("unit", "mpp", "pitch", "tile")] == ["level-0 pixels", 0.25, PITCH, PITCH]

    def test_qupath_counts_from_the_bounds_of_the_slide(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The bounds begin at 2048, 4096, where the first patch of the row below them lies."""
        write_slide(tmp_path / "slides" / "a.tiff", glass(5200, 6000), 0.5)
        monkeypatch.setattr("scripts.wsi.slides.slide.read_origin", lambda slide: (4 * PITCH, 8 * PITCH))
        path = str(foreign.write_clam(tmp_path, "a", CELLS * PITCH, patch_size=PITCH))
        drawn = foreign.square(tmp_path, "a", -20, -20, 2 * PITCH + 40)  # around columns 4, 5 and rows 8, 9
        wanted = ((CELLS >= (4, 8)) & (CELLS < (6, 10))).all(axis=1)
        for read in (load, in_blocks):
            bag = read({"slides": str(tmp_path / "slides")}, image=path, annotation=drawn)
            assert (bag["instance_label"][0].numpy() == wanted).all()
            (slide,) = about(bag)["slides"]
            assert (slide["origin"], slide["slide_size"], slide["mpp"]) == ([2048, 4096], [6000, 5200], 0.5)
            assert about(bag)["warnings"] == []
        blind = load(image=path, annotation=drawn)
        assert not blind["instance_label"].any()
        first, second = about(blind)["warnings"]
        assert first.startswith("the GeoJSON of a counts from the slide's bounds, which are not known")
        assert second.startswith(WITHOUT_SIZE)

    def test_a_small_mask_of_a_slide_of_unknown_size_is_refused(self, tmp_path: Path) -> None:
        path = str(foreign.write_uni2h(tmp_path, "a", CELLS * PITCH))
        small, whole = str(tmp_path / "small.png"), str(tmp_path / "whole.png")
        for scale, mask in ((16, small), (1, whole)):
            Image.new("L", (11 * PITCH // scale, 10 * PITCH // scale), 255).save(mask)
        with pytest.raises(InputError, match=r"small.png is a mask of 352 × 320 pixels, and patches lie .*--slides$"):
            load(image=path, annotation=small)
        assert load(image=path, annotation=whole)["instance_label"].all()
        write_slide(tmp_path / "slides" / "a.tiff", glass(10 * PITCH, 11 * PITCH), 0.5)
        known = load({"slides": str(tmp_path / "slides")}, image=path, annotation=small)
        assert known["instance_label"].all()
        assert about(known)["warnings"] == []

    def test_an_annotation_that_contradicts_the_label_is_warned_of(self, tmp_path: Path) -> None:
        image, drawn = write_cells(tmp_path, "a"), around_three(tmp_path)
        nowhere = foreign.square(tmp_path, "far", 10**6, 10**6, 3 * PITCH)
        hint = " (annotation_values says what counts as annotated)"
        cases: list[tuple[dict[str, Any], list[str]]] = [
            ({"annotation": drawn, "label": 1}, []),
            ({"annotation": drawn}, []),
            ({"annotation": nowhere, "label": 1}, [f"label 1, though none of its patches is annotated{hint}"]),
            ({"annotation": drawn, "label": 0}, [f"label 0, though 3 of its patches are annotated{hint}"]),
            ({"instance_label": [1] + [0] * 6, "label": 0}, ["label 0, though 1 of its patches is positive"]),
        ]
        for item, warnings in cases:
            assert [line for line in about(load(image=image, **item))["warnings"] if "though" in line] == warnings

    def test_instance_labels_as_a_list_or_as_torchmil_keeps_them(self, tmp_path: Path) -> None:
        labels = np.array([0, 1, 1, 0, 0, 0, 1])
        path = str(foreign.write_torchmil(tmp_path, "a", CELLS * PITCH, labels))
        file = str(tmp_path / "patch_labels" / "a.npy")
        for image, given in (
            (path, labels.tolist()), (path, file), ([path] * 2, [file] * 2), ([path] * 2, labels.tolist() * 2)
        ):  # fmt: skip
            found = load(image=image, instance_label=given)["instance_label"]
            assert found.dtype == torch.float32
            assert found.tolist() == [labels.tolist() * (found.shape[1] // 7)]

    def test_labels_of_other_patches_are_refused(self, tmp_path: Path) -> None:
        path = write_cells(tmp_path)
        np.save(tmp_path / "short.npy", np.zeros(5))
        np.save(tmp_path / "words.npy", np.array(["a"] * 7))
        (tmp_path / "text.npy").write_text("0 1")
        for given, message in (
            ([0, 1], r"2 instance labels for the 7 patches of .*a.h5; give one per patch"),
            ([0, {}], "the instance labels of .*a.h5 are no numbers; give 0 or 1 for each patch"),
            ("short.npy", r"short.npy should hold one number for each of the 7 patches of .*a.h5"),
            ("words.npy", r"words.npy should hold one number for each"),
            ("text.npy", r"no instance labels can be read from .*text.npy"),
            (["short.npy"] * 2, "2 files of instance labels for the 1 slide"),
        ):
            labels = str(tmp_path / given) if isinstance(given, str) else given
            with pytest.raises(InputError, match=message):
                load(image=path, instance_label=labels)


class TestSeveralSlides:
    """A bag of the slides of one patient."""

    def test_their_graphs_do_not_touch_and_each_patch_knows_its_slide(self, tmp_path: Path) -> None:
        first, second = tissue(seed=1), tissue(seed=2)
        paths = [write_cells(tmp_path, "first", first), write_cells(tmp_path, "nothing", NO_CELLS)]
        paths += [str(foreign.write_clam(tmp_path / "clam", "second", second * 224, patch_size=None))]
        bag = load(image=paths, bag_id="p")
        n, m = len(first), len(second)
        np.testing.assert_array_equal(bag["image"].t().numpy(), np.concatenate([some_features(n), some_features(m)]))
        beside = {(i + n, j + n) for i, j in foreign.edges_of(second)}
        assert foreign.graph_edges(bag) == foreign.edges_of(first) | beside
        assert bag["coords"][0, n:].min() - bag["coords"][0, :n].max() == 5
        stored = np.column_stack([np.repeat([0, 2], [n, m]), np.concatenate([first * PITCH, second * 224])])
        np.testing.assert_array_equal(bag["stored_coords"].T.numpy(), stored)
        pitches = {slide["source"]: slide["pitch"] for slide in about(bag)["slides"]}
        assert list(pitches.items()) == list(zip(paths, (512, 512, 224), strict=True))
        assert about(bag)["warnings"] == ["nothing holds no patches: no tissue was found"]
        assert bag["source"] == paths[0]

    def test_lesions_are_numbered_on_and_warned_of_once_where_their_size_is_unknown(self, tmp_path: Path) -> None:
        drawn = [foreign.square(tmp_path, name, 0, 0, 3 * PITCH) for name in "ac"]
        paths = [write_cells(tmp_path, name, CELLS - [4, 7]) for name in "abc"]
        annotation = [drawn[0], None, drawn[1]]
        bag = load(image=paths, annotation=annotation)
        inside = (CELLS - [4, 7] < 3).all(axis=1)
        assert (bag["instance_label"][0].numpy() == np.concatenate([inside, 0 * inside, inside])).all()
        assert (bag["lesion"][0].numpy() == np.concatenate([inside, 0 * inside, 2 * inside])).all()
        for given, mpp, count in ((annotation, None, 1), (annotation, 0.25, 0), ([None] * 3, None, 0)):
            warnings = about(load({"slide_mpp": mpp}, image=paths, annotation=given))["warnings"]
            assert sum(warning.startswith(WITHOUT_SIZE) for warning in warnings) == count
        assert about(bag)["lesions"]["count"] == 2

    def test_what_does_not_fit_together_is_refused(self, tmp_path: Path) -> None:
        one = write_cells(tmp_path, "a")
        twice = write_cells(tmp_path, "t", cells=np.concatenate([CELLS, CELLS[2:3]]))
        wide = write_cells(tmp_path, "c", features=some_features(7, 9))
        empty = [write_cells(tmp_path, f"e{i}", NO_CELLS) for i in range(2)]
        for read in (load, in_blocks):
            with pytest.raises(InputError, match=r"2 patches at the same place \(4608, 3584\) of .*t.h5: extract its"):
                read(image=twice)
            with pytest.raises(InputError, match=r"c.h5 has 9 features for each patch, .*a.h5 has 8"):
                read(image=[one, wide])
            for nothing in (empty, empty[0]):
                with pytest.raises(EmptyBagError, match=r"e0.h5 holds no patches: no tissue was found$"):
                    read(image=nothing)
            with pytest.raises(InputError, match=r"1 annotations for the 2 slides of the bag of .*a.h5"):
                read(image=[one, one], annotation=["x.geojson"])


class TestBatches:
    def test_in_blocks_it_is_the_same_bag_of_one_slide_or_of_several(self, tmp_path: Path) -> None:
        paths = [write_cells(tmp_path, name) for name in "ab"]
        drawn = foreign.square(tmp_path, "a", 0, 0, 900)
        items: list[dict[str, Any]] = [
            {"image": paths[0], "label": 1, "bag_id": "a", "instance_label": [0, 1] * 3 + [0]},
            {"image": paths, "bag_id": "p", "annotation": [drawn, None]},
        ]
        for item in items:
            whole, bag = load(**item), in_blocks(**item)
            assert bag.keys() == whole.keys()
            for key in whole.keys() - {"image"}:
                assert np.array_equal(whole[key], bag[key]), key
            for collate, dataset in ((collate_bags, [whole]), (one_bag, [bag])):
                batch = next(iter(DataLoader(Dataset(dataset), batch_size=1, collate_fn=collate)))
                (back,) = decollate_batch(batch)
                assert torch.equal(back["stored_coords"], whole["stored_coords"])
                assert list(back.get("annotation", [drawn, ""])) == [drawn, ""]
            assert torch.equal(torch.cat(blocks_of(batch["image"][0], 5), dim=2)[0], whole["image"])

    def test_unequal_bags_are_padded_at_their_end_and_come_apart_again(self, tmp_path: Path) -> None:
        bags = [
            load(image=write_cells(tmp_path, str(n), CELLS[:n]), bag_id=str(n), label=n % 2, instance_label=[1] * n)
            for n in (5, 7)
        ]
        batch = collate_bags(bags)
        assert batch["image"].shape == (2, DIMENSION, 7)
        assert batch["mask"].sum(dim=(1, 2)).tolist() == [5, 7]
        for bag, back in zip(bags, decollate_batch(batch), strict=True):
            real = torch.arange(7) < bag["mask"].sum()
            for key in ("image", "coords", "mask", "instance_label", "stored_coords"):
                torch.testing.assert_close(back[key][:, real], bag[key])
                assert (back[key][:, ~real] == 0).all()
            for key in ("about", "bag_id", "source"):
                assert back[key] == bag[key]


def test_an_annotation_and_coords_that_are_no_pixels_say_what_to_give(tmp_path: Path) -> None:
    drawn = foreign.square(tmp_path, "s", 0, 0, 9)
    for path, way in (
        (foreign.write_stamp(tmp_path, "s", foreign.grid(12, 256.0)), "with --slides or their micrometres per pixel"),
        (write_owkin(tmp_path, "s", foreign.grid(12, 1)), "adopt FOLDER --coords_unit MICROMETRES, or leave out the"),
    ):
        with pytest.raises(InputError, match=rf"pixels, which cannot be compared: .*{way}"):
            foreign.load(image=str(path), annotation=drawn)
