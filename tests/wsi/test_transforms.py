# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Slides become bags: coordinates on a lattice, labels, lesions and warnings, of one slide or of several."""

import json
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.data.utils import pad_list_data_collate
from monai.transforms import Compose, LoadImaged
from PIL import Image

from scripts.core.errors import EmptyBagError, InputError
from scripts.core.units import Level0Coords, Level0Pixels, MicronsPerPixel
from scripts.networks.graph import build_graph
from scripts.wsi.features.base import FeatureHeader
from scripts.wsi.features.files import read_header
from scripts.wsi.features.smooth_mil import PatchFeatures, write_features
from scripts.wsi.reader import FeatureReader, checked_bags, read_blocks
from scripts.wsi.transforms import PatchBagd, PatchBlocksd, collate_bags, one_bag
from tests.wsi.foreign_features import (
    CELLS,
    DIMENSION,
    PITCH,
    edges_of,
    in_blocks,
    load,
    load_image,
    some_features,
    square,
    tissue,
    write_cells,
    write_clam,
    write_stamp,
    write_torchmil,
    write_uni2h,
)
from tests.wsi.slide_files import glass, write_slide

WITHOUT_SIZE = (
    "lesions are counted without their size, as micrometres per pixel are not known: give --slide_mpp or --slides"
)


class TestOneSlide:
    def test_plain_tensors_of_the_slide(self, tmp_path: Path) -> None:
        path = write_cells(tmp_path)
        bag = load(image=path, bag_id="a", label=1)
        for key, shape in {"image": (DIMENSION, 7), "coords": (2, 7), "mask": (1, 7), "label": (1,)}.items():
            assert bag[key].shape == shape
            assert bag[key].dtype == torch.float32
            assert not isinstance(bag[key], MetaTensor)
        np.testing.assert_array_equal(bag["image"].t().numpy(), some_features(7))
        assert bag["mask"].all()
        assert bag["label"].tolist() == [1.0]
        assert (bag["source"], bag["bag_id"]) == (path, "a")
        assert not {"instance_label", "lesion"} & bag.keys()

    def test_x_comes_first(self, tmp_path: Path) -> None:
        bag = load(image=write_cells(tmp_path))
        assert (bag["coords"].T.numpy() == CELLS - [4, 7]).all()
        assert bag["stored_coords"].dtype == torch.float64
        assert (bag["stored_coords"].numpy() == [[0] * 7, *(CELLS * PITCH).T]).all()

    def test_about_is_the_header(self, tmp_path: Path) -> None:
        path = write_cells(tmp_path)
        about = json.loads(load(image=path)["about"])
        header = read_header(path)
        (slide,) = about["slides"]
        assert slide["source"] == path
        assert slide["slide_size"] == list(header.slide_size or ())
        assert FeatureHeader.from_json({key: slide[key] for key in slide.keys() - {"source"}}) == header
        assert slide["form"] == header.format  # the key that result.json has had from the beginning
        assert about["warnings"] == []
        assert "lesions" not in about

    def test_two_patches_at_one_place_are_told(self, tmp_path: Path) -> None:
        path = write_cells(tmp_path, cells=np.concatenate([CELLS, CELLS[2:3]]))
        told = rf"2 patches at the same place \({9 * PITCH}, {7 * PITCH}\) of .*a.h5: extract its features again"
        for read in (load, in_blocks):
            with pytest.raises(InputError, match=told):
                read(image=path)

    def test_no_tissue_is_no_fault_but_no_bag(self, tmp_path: Path) -> None:
        path = write_cells(tmp_path, cells=np.zeros((0, 2), int))
        for read in (load, in_blocks):
            with pytest.raises(EmptyBagError, match=r"a.h5 holds no patches: no tissue was found$"):
                read(image=path)


class TestTruth:
    def test_an_annotation_labels_the_tiles_it_covers_and_counts_lesions(self, tmp_path: Path) -> None:
        drawn = square(
            tmp_path, "a", 4 * PITCH - 20, 8 * PITCH - 20, 2 * PITCH + 40
        )  # around the first, second, fourth
        bag = load(image=write_cells(tmp_path), annotation=drawn)
        assert bag["instance_label"].tolist() == [[1, 1, 0, 1, 0, 0, 0]]
        assert bag["lesion"].tolist() == [[1, 1, 0, 1, 0, 0, 0]]
        assert bag["lesion"].dtype == torch.int64
        assert json.loads(bag["about"])["lesions"] == {"count": 1, "excluded": []}

    def test_nothing_is_annotated_where_it_is_null(self, tmp_path: Path) -> None:
        bag = load(image=write_cells(tmp_path), annotation=None)
        assert bag["instance_label"].tolist() == bag["lesion"].tolist() == [[0] * 7]
        assert json.loads(bag["about"])["lesions"] == {"count": 0, "excluded": []}

    def test_pixels_are_not_compared_with_micrometres(self, tmp_path: Path) -> None:
        path = str(write_stamp(tmp_path, "s", CELLS * 256.0))
        with pytest.raises(
            InputError, match=r"s.h5 gives micrometres and .*a.geojson pixels, which cannot be compared"
        ):
            load(image=path, annotation=square(tmp_path, "a", 0, 0, 1000))

    def test_qupath_counts_from_the_bounds_that_the_slide_tells(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The bounds begin at 2048, 4096, where the first patch of the row below them lies."""
        (tmp_path / "slides").mkdir()
        write_slide(tmp_path / "slides" / "a.tiff", glass(5200, 6000), 0.5)
        monkeypatch.setattr("scripts.wsi.slides.slide.read_origin", lambda slide: (4 * PITCH, 8 * PITCH))
        path = str(write_clam(tmp_path, "a", CELLS * PITCH, patch_size=PITCH))
        drawn = square(tmp_path, "a", -20, -20, 2 * PITCH + 40)  # around the patches in columns 4, 5 and rows 8, 9
        wanted = ((CELLS >= (4, 8)) & (CELLS < (6, 10))).all(axis=1)
        slides = str(tmp_path / "slides")
        for read in (Compose([load_image(), PatchBagd(slides=slides)]), PatchBlocksd(slides=slides)):
            bag: Any = read({"image": path, "annotation": drawn})
            assert (bag["instance_label"][0].numpy() == wanted).all()
            about = json.loads(bag["about"])
            (said,) = about["slides"]
            assert (said["origin"], said["slide_size"], said["mpp"]) == ([2048, 4096], [6000, 5200], 0.5)
            assert about["warnings"] == []
        blind = load(image=path, annotation=drawn)
        assert not blind["instance_label"].any()
        assert json.loads(blind["about"])["warnings"] == [
            "the GeoJSON of a counts from the slide's bounds, which are not known: "
            "if they do not begin at 0, 0 give --slides",
            WITHOUT_SIZE,
        ]

    def test_a_slide_that_cannot_be_asked_is_told_among_the_warnings(self, tmp_path: Path) -> None:
        bag = PatchBagd(slides=str(tmp_path))(load_image()({"image": write_cells(tmp_path)}))
        assert json.loads(bag["about"])["warnings"] == [
            "no slide a in the folder of slides: of it only what its features say is known"
        ]

    def test_a_small_mask_of_a_slide_of_unknown_size_is_refused(self, tmp_path: Path) -> None:
        path = str(write_uni2h(tmp_path, "a", CELLS * PITCH))
        for scale, name in ((16, "small"), (1, "whole")):
            Image.new("L", (11 * PITCH // scale, 10 * PITCH // scale), 255).save(tmp_path / f"{name}.png")
        with pytest.raises(
            InputError,
            match=r"small.png is a mask of 352 × 320 pixels, and patches lie beyond it: to know how much smaller than "
            r"the slide it is, give the folder of the slides with --slides$",
        ):
            load(image=path, annotation=str(tmp_path / "small.png"))
        whole = load(image=path, annotation=str(tmp_path / "whole.png"))
        assert whole["instance_label"].all()
        assert json.loads(whole["about"])["warnings"] == [WITHOUT_SIZE]  # a mask is of the whole slide
        (tmp_path / "slides").mkdir()
        write_slide(tmp_path / "slides" / "a.tiff", glass(10 * PITCH, 11 * PITCH), 0.5)
        told = PatchBagd(slides=str(tmp_path / "slides"))(
            load_image()({"image": path, "annotation": str(tmp_path / "small.png")})
        )
        assert told["instance_label"].all()
        assert json.loads(told["about"])["warnings"] == []

    def test_lesions_of_unknown_size_are_told_once(self, tmp_path: Path) -> None:
        drawn = square(tmp_path, "a", 0, 0, 3 * PITCH)
        paths = [write_cells(tmp_path, name) for name in "ab"]
        assert json.loads(load(image=paths, annotation=[drawn, drawn])["about"])["warnings"].count(WITHOUT_SIZE) == 1
        known = PatchBagd(slide_mpp=0.25)(load_image()({"image": paths, "annotation": [drawn, drawn]}))
        assert WITHOUT_SIZE not in json.loads(known["about"])["warnings"]
        assert WITHOUT_SIZE not in json.loads(load(image=paths, annotation=[None, None])["about"])["warnings"]

    def test_an_annotation_that_contradicts_the_label_is_told(self, tmp_path: Path) -> None:
        image, drawn = write_cells(tmp_path, "a"), square(tmp_path, "a", 4 * PITCH - 20, 8 * PITCH - 20, 2 * PITCH + 40)
        nowhere = square(tmp_path, "far", 10**6, 10**6, 3 * PITCH)

        def told(**bag: Any) -> list[str]:
            return [line for line in json.loads(load(image=image, **bag)["about"])["warnings"] if "though" in line]

        hint = " (annotation_values says what counts as annotated)"
        assert told(annotation=drawn, label=1) == told(annotation=nowhere, label=0) == told(annotation=drawn) == []
        assert told(annotation=nowhere, label=1) == [f"label 1, though none of its patches is annotated{hint}"]
        assert told(annotation=drawn, label=0) == [f"label 0, though 3 of its patches are annotated{hint}"]
        positive = [1.0] + [0.0] * (len(CELLS) - 1)
        assert told(instance_label=positive, label=0) == ["label 0, though 1 of its patches is positive"]

    def test_instance_labels_as_a_list_or_as_torchmil_keeps_them(self, tmp_path: Path) -> None:
        labels = np.array([0, 1, 1, 0, 0, 0, 1])
        path = str(write_torchmil(tmp_path, "a", CELLS * PITCH, labels))
        for given in (
            labels.tolist(),
            str(tmp_path / "patch_labels" / "a.npy"),
            [str(tmp_path / "patch_labels/a.npy")],
        ):
            found = load(image=path, instance_label=given)["instance_label"]
            assert found.tolist() == [labels.tolist()]
            assert found.dtype == torch.float32

    def test_labels_of_other_patches_are_refused(self, tmp_path: Path) -> None:
        path = write_cells(tmp_path)
        np.save(tmp_path / "short.npy", np.zeros(5))
        np.save(tmp_path / "words.npy", np.array(["a"] * 7))
        (tmp_path / "text.npy").write_text("0 1")
        for given, told in (
            ([0, 1], r"2 instance labels for the 7 patches of .*a.h5; give one per patch"),
            ([0, {}], "the instance labels of .*a.h5 are no numbers; give 0 or 1 for each patch"),
            (str(tmp_path / "short.npy"), r"short.npy should hold one number for each of the 7 patches of .*a.h5"),
            (str(tmp_path / "words.npy"), r"words.npy should hold one number for each of the 7 patches of .*a.h5"),
            (str(tmp_path / "text.npy"), r"no instance labels can be read from .*text.npy"),
            (str(tmp_path / "gone.npy"), r"no instance labels can be read from .*gone.npy"),
            ([str(tmp_path / "short.npy")] * 2, "2 files of instance labels for the 1 slide"),
        ):
            with pytest.raises(InputError, match=told):
                load(image=path, instance_label=given)


class TestSeveralSlides:
    """A bag of the slides of one patient."""

    def write(self, folder: Path) -> list[str]:
        first = write_cells(folder, "first", tissue(seed=1), encoder="uni_v1")
        nothing = write_cells(folder, "nothing", np.zeros((0, 2), int), encoder="uni_v1")
        second = write_clam(folder / "clam", "second", tissue(seed=2) * 224, patch_size=None)
        return [first, nothing, str(second)]

    def test_their_graphs_do_not_touch(self, tmp_path: Path) -> None:
        paths = self.write(tmp_path)
        bag = load(image=paths, bag_id="p")
        n, m = len(tissue(seed=1)), len(tissue(seed=2))
        assert bag["image"].shape == (DIMENSION, n + m)
        np.testing.assert_array_equal(bag["image"].t().numpy(), np.concatenate([some_features(n), some_features(m)]))
        graph = build_graph(bag["coords"][None], bag["mask"][None])
        step, here = torch.nonzero(graph.weights[0] > 0, as_tuple=True)
        pairs = {(int(i), int(j)) for i, j in zip(here, graph.neighbours[0][step, here], strict=True) if i < j}
        assert pairs == edges_of(tissue(seed=1)) | {(i + n, j + n) for i, j in edges_of(tissue(seed=2))}
        columns = bag["coords"][0]
        assert columns[n:].min() - columns[:n].max() == 5

    def test_each_patch_knows_its_slide(self, tmp_path: Path) -> None:
        paths = self.write(tmp_path)
        bag = load(image=paths)
        n = len(tissue(seed=1))
        number, x, y = bag["stored_coords"].numpy()
        assert (number[:n] == 0).all()
        assert (number[n:] == 2).all()
        assert (np.stack([x[n:], y[n:]], axis=1) == tissue(seed=2) * 224).all()
        about = json.loads(bag["about"])
        assert [slide["source"] for slide in about["slides"]] == paths
        assert [slide["pitch"] for slide in about["slides"]] == [512, 512, 224]
        assert about["warnings"] == ["nothing holds no patches: no tissue was found"]
        assert bag["source"] == paths[0]

    def test_lesions_are_numbered_on(self, tmp_path: Path) -> None:
        drawn = [square(tmp_path, name, 0, 0, 3 * PITCH) for name in "ac"]
        paths = [write_cells(tmp_path, name, CELLS - [4, 7]) for name in "abc"]
        bag = load(image=paths, annotation=[drawn[0], None, drawn[1]])
        inside = (CELLS - [4, 7] < 3).all(axis=1)
        assert (bag["instance_label"][0].numpy() == np.concatenate([inside, 0 * inside, inside])).all()
        assert (bag["lesion"][0].numpy() == np.concatenate([inside, 0 * inside, 2 * inside])).all()
        assert json.loads(bag["about"])["lesions"]["count"] == 2

    def test_where_the_user_names_the_encoder_what_the_files_say_of_it_does_not_count(self, tmp_path: Path) -> None:
        bag = {"image": [write_cells(tmp_path, "a", encoder="uni"), write_cells(tmp_path, "b", encoder="uni_v1")]}
        with pytest.raises(InputError, match=r"b.h5 are of the encoder uni_v1, those in .*a.h5 of uni: "):
            checked_bags([bag])
        (said,) = checked_bags([bag], encoder="uni")
        for read in (load, in_blocks):
            assert read(**said)["mask"].shape == (1, 14)
        assert sum(block.shape[2] for block in read_blocks(bag["image"], 5)) == 14

    def test_labels_of_each(self, tmp_path: Path) -> None:
        paths = [write_cells(tmp_path, name) for name in "ab"]
        for name, value in (("a", 1), ("b", 0)):
            np.save(tmp_path / f"{name}.npy", np.full(7, value))
        files = [str(tmp_path / f"{name}.npy") for name in "ab"]
        for given in (files, [1] * 7 + [0] * 7):
            assert load(image=paths, instance_label=given)["instance_label"].tolist() == [[1] * 7 + [0] * 7]

    def test_what_does_not_fit_together_is_refused(self, tmp_path: Path) -> None:
        one = write_cells(tmp_path, "a")
        wide = write_cells(tmp_path, "c", features=some_features(7, 9))
        empty = [write_cells(tmp_path, f"e{i}", np.zeros((0, 2), int)) for i in range(2)]
        for read in (load, in_blocks):
            with pytest.raises(InputError, match=r"c.h5 has 9 features for each patch, .*a.h5 has 8"):
                read(image=[one, wide])
            with pytest.raises(EmptyBagError, match=r"e0.h5 holds no patches"):
                read(image=empty)
            with pytest.raises(InputError, match=r"1 annotations for the 2 slides of the bag of .*a.h5"):
                read(image=[one, one], annotation=["x.geojson"])

    def test_they_pass_through_a_batch(self, tmp_path: Path) -> None:
        paths = [write_cells(tmp_path, name) for name in "ab"]
        drawn = square(tmp_path, "a", 0, 0, 900)
        item = {"image": paths, "bag_id": "p", "annotation": [drawn, None]}
        whole = next(iter(DataLoader(Dataset([load(**item)]), batch_size=1, collate_fn=pad_list_data_collate)))
        blocks = next(iter(DataLoader(Dataset([in_blocks(**item)]), batch_size=1, collate_fn=one_bag)))
        for batch in (whole, blocks):
            (back,) = decollate_batch(batch)
            assert list(back["annotation"]) == [drawn, ""]
            assert back["stored_coords"].shape == (3, 14)
        (given,) = blocks["image"]
        assert torch.equal(torch.cat(list(read_blocks(given, 5)), dim=2), whole["image"])


class TestInBlocks:
    def test_the_same_bag(self, tmp_path: Path) -> None:
        item: dict[Hashable, Any] = {
            "image": write_cells(tmp_path),
            "label": 1,
            "bag_id": "a",
            "instance_label": [0, 1] * 3 + [0],
        }
        whole = Compose([LoadImaged("image", reader=FeatureReader), PatchBagd("image")])(dict(item))
        bag = in_blocks(**{str(key): value for key, value in item.items()})
        assert bag.keys() == whole.keys()
        for key in whole.keys() - {"image"}:
            if isinstance(whole[key], torch.Tensor):
                assert torch.equal(whole[key], bag[key])
            else:
                assert whole[key] == bag[key]
        batch = one_bag([bag])
        assert batch["image"] == [item["image"]]
        assert decollate_batch(batch)[0]["image"] == item["image"]
        assert torch.equal(batch["coords"][0], whole["coords"])

    def test_two_bags_are_not_read_at_once(self) -> None:
        with pytest.raises(InputError, match="2 bags in a batch of bags that are read in blocks"):
            one_bag([{}, {}])


def test_unequal_bags_are_collated_and_come_apart_again(tmp_path: Path) -> None:
    sizes = [5, 7]
    items: list[dict[str, Any]] = [
        {"image": write_cells(tmp_path, str(n), CELLS[:n]), "bag_id": str(n), "label": n % 2, "instance_label": [1] * n}
        for n in sizes
    ]
    bags = [load(**item) for item in items]
    copies = [dict(bag) for bag in bags]  # the collation pads in place
    batch = next(iter(DataLoader(Dataset(copies), batch_size=2, collate_fn=pad_list_data_collate)))
    assert batch["image"].shape == (2, DIMENSION, 7)
    assert batch["mask"].sum(dim=(1, 2)).tolist() == sizes
    assert batch["source"] == [item["image"] for item in items]
    for bag, back in zip(bags, decollate_batch(batch), strict=True):
        real = back["mask"][0] > 0
        for key in ("image", "coords", "instance_label", "stored_coords"):
            torch.testing.assert_close(back[key][:, real], bag[key])
            assert (back[key][:, ~real] == 0).all()
        assert back["about"] == bag["about"]
        assert back["bag_id"] == bag["bag_id"]


def test_micrometres_become_pixels_where_the_user_says_of_what_size(tmp_path: Path) -> None:
    cells = tissue()
    path = write_stamp(tmp_path, "slide", cells * 256.0)
    plain, told = (PatchBagd(slide_mpp=mpp)(load_image()({"image": str(path)})) for mpp in (None, 0.25))
    said = json.loads(told["about"])["slides"][0]
    assert (said["unit"], said["mpp"], said["pitch"], said["tile"]) == ("level-0 pixels", 0.25, 1024, 1024)
    np.testing.assert_array_equal(told["stored_coords"][1:].T.numpy(), cells * 1024)
    assert torch.equal(told["coords"], plain["coords"])
    assert json.loads(plain["about"])["slides"][0]["unit"] == "micrometres"


def test_what_a_file_says_goes_before_what_the_user_says(tmp_path: Path) -> None:
    path = tmp_path / "own.h5"
    features = some_features(len(CELLS))
    sides = Level0Pixels(PITCH), Level0Pixels(PITCH)
    write_features(
        path,
        PatchFeatures(features, Level0Coords(CELLS * PITCH), *sides, MicronsPerPixel(0.5), "e", "own", (9999, 9999)),
    )
    for mpp, wanted in ((None, 0.5), (0.25, 0.5)):
        bag = PatchBagd(slide_mpp=mpp)(load_image()({"image": str(path)}))
        assert json.loads(bag["about"])["slides"][0]["mpp"] == wanted
    foreign = PatchBagd(slide_mpp=0.25)(load_image()({"image": write_cells(tmp_path)}))
    assert json.loads(foreign["about"])["slides"][0]["mpp"] == 0.25


@pytest.mark.parametrize("sizes", [(3,), (3, 5)])
def test_a_bag_alone_is_not_copied_and_several_are_padded_at_their_end(sizes: tuple[int, ...]) -> None:
    bags: list[dict[Hashable, Any]] = [
        {"image": torch.rand(4, n), "mask": torch.ones(1, n), "bag_id": str(n), "annotation": ["a", "b"]} for n in sizes
    ]
    batch = collate_bags(bags)
    assert batch["image"].shape == (len(sizes), 4, max(sizes))
    assert batch["mask"].sum(dim=2).flatten().tolist() == list(sizes)
    assert batch["bag_id"] == [str(n) for n in sizes]
    for row, bag in zip(batch["image"], bags, strict=True):
        assert torch.equal(row[:, : bag["image"].shape[1]], bag["image"])
    if len(sizes) == 1:
        assert batch["image"].data_ptr() == bags[0]["image"].data_ptr()
