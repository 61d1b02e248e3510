# Copyright (c) 2026 the smooth MIL bundle authors
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Feature files round trip, become bags, and say what is wrong with them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.data.utils import pad_list_data_collate
from monai.transforms import Compose, LoadImaged

from scripts.data.features import (
    FeatureReader,
    PatchBagd,
    PatchBlocksd,
    PatchFeatures,
    find_features,
    in_pitches,
    one_bag,
    read_blocks,
    read_features,
    read_header,
    write_features,
)
from scripts.errors import InputError
from scripts.units import Level0Coords, Level0Pixels, MicronsPerPixel

PITCH = 513.026  # 256 pixels at 0.5 of a slide with 0.2495


def some_slide(patches: int = 7, dimension: int = 4, seed: int = 0, dtype: type = np.float16) -> PatchFeatures:
    rng = np.random.default_rng(seed)
    cells = np.stack(np.divmod(rng.choice(400, patches, replace=False), 20), axis=1) + np.array([3, 11])
    return PatchFeatures(
        features=rng.normal(size=(patches, dimension)).astype(dtype),
        coords=Level0Coords(np.rint(cells * PITCH).astype(np.int64).reshape(-1, 2)),
        pitch=Level0Pixels(PITCH),
        tile=Level0Pixels(PITCH),
        mpp=MicronsPerPixel(0.2495),
        encoder="mean colour",
        slide_id=f"slide {seed}",
        slide_size=(20_000, 30_000),
        thumbnail=rng.integers(0, 256, (30, 20, 3), dtype=np.uint8),
        thumbnail_downsample=1000.0,
    )


def load_image() -> LoadImaged:
    reader: Any = FeatureReader()  # MONAI's annotation forgets that it takes an instance
    return LoadImaged(keys="image", reader=reader, image_only=True)


def load(**item: object) -> dict:
    pipeline = Compose([load_image(), PatchBagd("image")])
    return pipeline(item)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_what_is_written_is_read(tmp_path: Path, dtype: type) -> None:
    slide = some_slide(dtype=dtype)
    write_features(tmp_path / "a.h5", slide)
    back = read_features(tmp_path / "a.h5")
    for field in dataclasses.fields(PatchFeatures):
        before, after = getattr(slide, field.name), getattr(back, field.name)
        np.testing.assert_array_equal(before, after)
        assert type(before) is type(after), field.name
    assert back.features.dtype == dtype
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]


def test_what_is_unknown_stays_unknown(tmp_path: Path) -> None:
    slide = dataclasses.replace(some_slide(0), mpp=None, thumbnail=None, thumbnail_downsample=None)
    write_features(tmp_path / "a.h5", slide)
    back = read_features(tmp_path / "a.h5")
    assert (back.mpp, back.thumbnail, back.thumbnail_downsample) == (None, None, None)
    assert back.features.shape == (0, 4)
    assert read_header(tmp_path / "a.h5").patches == 0


def test_the_file_is_as_documented(tmp_path: Path) -> None:
    slide = some_slide()
    write_features(tmp_path / "a.h5", slide)
    with h5py.File(tmp_path / "a.h5") as file:
        assert set(file) == {"features", "coords", "thumbnail"}
        assert dict(file.attrs) == {
            "format": "smooth-mil-features/1",
            "slide_id": "slide 0",
            "encoder": "mean colour",
            "pitch_level0": PITCH,
            "tile_level0": PITCH,
            "mpp": 0.2495,
            "slide_width": 20_000,
            "slide_height": 30_000,
            "thumbnail_downsample": 1000.0,
        }


def test_a_write_that_fails_leaves_the_finished_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.h5"
    write_features(path, some_slide())
    before = path.read_bytes()

    def disk_full(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(h5py.File, "create_dataset", disk_full)
    with pytest.raises(OSError, match="disk full"):
        write_features(path, some_slide(seed=1))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def drop(name: str) -> Callable[[h5py.File], None]:
    return lambda file: file.__delitem__(name)


def replace(name: str, values: np.ndarray) -> Callable[[h5py.File], None]:
    def act(file: h5py.File) -> None:
        del file[name]
        file[name] = values

    return act


def mark(name: str, value: object) -> Callable[[h5py.File], None]:
    return lambda file: file.attrs.__setitem__(name, value)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop("features"), "holds no dataset `features`"),
        (drop("coords"), "holds no dataset `coords`"),
        (replace("coords", np.zeros((6, 2), int)), r"features \(7, 4\) and coords \(6, 2\) should be"),
        (replace("coords", np.zeros((7, 2))), "coords float64 should be float32 or float16 and integers"),
        (replace("features", np.zeros((1, 7, 4), np.float32)), r"features \(1, 7, 4\) and coords"),
        (replace("features", np.full((7, 4), np.nan, np.float32)), "features hold NaN or infinite values"),
        (mark("format", "other/2"), "is not of the form smooth-mil-features/1"),
        (lambda file: file.attrs.__delitem__("mpp"), "lacks the root attribute `mpp`"),
        (mark("pitch_level0", 0.0), "pitch_level0 or tile_level0 is not above 0"),
    ],
)
def test_a_spoilt_file_is_named_in_one_line(tmp_path: Path, spoil: Callable, message: str) -> None:
    path = tmp_path / "a.h5"
    write_features(path, some_slide())
    with h5py.File(path, "a") as file:
        spoil(file)
    with pytest.raises(InputError, match=message) as caught:
        read_features(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "extract" in str(caught.value)


def test_a_missing_file_and_a_text_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no feature file .*gone.h5"):
        read_features(tmp_path / "gone.h5")
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(InputError, match=r"text.h5 is not an HDF5 file or is damaged"):
        read_features(tmp_path / "text.h5")


def test_nothing_malformed_is_written(tmp_path: Path) -> None:
    slide = some_slide()
    with pytest.raises(InputError, match="NaN"):
        write_features(tmp_path / "a.h5", dataclasses.replace(slide, features=slide.features * np.nan))
    assert list(tmp_path.iterdir()) == []


def test_the_error_survives_load_image(tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(InputError, match=r"text.h5 is not an HDF5 file") as caught:
        load_image()({"image": str(tmp_path / "text.h5")})
    assert "\n" not in str(caught.value)


def test_a_bag_is_plain_tensors_of_the_slide(tmp_path: Path) -> None:
    slide = some_slide()
    path = tmp_path / "a.h5"
    write_features(path, slide)
    bag = load(image=str(path), bag_id="a", label=1)
    for key, shape in {"image": (4, 7), "coords": (2, 7), "mask": (1, 7), "label": (1,)}.items():
        assert bag[key].shape == shape
        assert bag[key].dtype == torch.float32
        assert not isinstance(bag[key], MetaTensor)
    np.testing.assert_array_equal(bag["image"].numpy(), slide.features.T.astype(np.float32))
    assert bag["mask"].all()
    assert bag["label"].tolist() == [1.0]
    assert (bag["source"], bag["bag_id"]) == (str(path), "a")
    assert json.loads(bag["instances"]) == [
        {"id": i, "x": int(x), "y": int(y)} for i, (x, y) in enumerate(slide.coords)
    ]
    assert "instance_label" not in bag


def test_coords_are_places_on_the_lattice_and_x_comes_first(tmp_path: Path) -> None:
    cells = np.array([[4, 9], [5, 9], [9, 7], [4, 8]])
    slide = dataclasses.replace(some_slide(4), coords=Level0Coords(np.rint(cells * PITCH).astype(np.int64)))
    write_features(tmp_path / "a.h5", slide)
    coords = load(image=str(tmp_path / "a.h5"))["coords"]
    assert (coords - coords.round()).abs().max() < 0.01
    assert coords.round().T.tolist() == [[0, 2], [1, 2], [5, 0], [0, 1]]


def test_a_pitch_is_not_a_tile(tmp_path: Path) -> None:
    coords = Level0Coords(np.array([[100, 50], [228, 50], [100, 178]]))
    np.testing.assert_array_equal(in_pitches(coords, Level0Pixels(128.0)), [[0, 0], [1, 0], [0, 1]])


def test_an_annotation_labels_the_tiles_it_covers(tmp_path: Path) -> None:
    slide = dataclasses.replace(some_slide(3), coords=Level0Coords(np.array([[1000, 500], [1513, 500], [1000, 1013]])))
    write_features(tmp_path / "a.h5", slide)
    ring = [[1500, 490], [2100, 490], [2100, 900], [1500, 900], [1500, 490]]  # 78 % of the second tile
    annotation = tmp_path / "a.geojson"
    annotation.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    assert load(image=str(tmp_path / "a.h5"), annotation=str(annotation))["instance_label"].tolist() == [[0, 1, 0]]


def test_given_instance_labels(tmp_path: Path) -> None:
    write_features(tmp_path / "a.h5", some_slide(3))
    item = {"image": str(tmp_path / "a.h5")}
    labels = load(**item, instance_label=[0, 1, 1])["instance_label"]
    assert labels.tolist() == [[0, 1, 1]]
    assert labels.dtype == torch.float32
    bag = load_image()({**item, "instance_label": [0, 1]})
    with pytest.raises(InputError, match=r"2 instance labels for the 3 patches of .*a.h5; give one per patch"):
        PatchBagd("image")(bag)


def test_a_slide_without_patches_is_no_bag(tmp_path: Path) -> None:
    write_features(tmp_path / "a.h5", some_slide(0))
    bag = load_image()({"image": str(tmp_path / "a.h5")})
    with pytest.raises(InputError, match=r"a.h5 holds no patches .*leave it out"):
        PatchBagd("image")(bag)


def test_a_bag_in_blocks_is_the_same_bag(tmp_path: Path) -> None:
    write_features(tmp_path / "a.h5", some_slide(patches=7))
    item: dict[Hashable, Any] = {
        "image": str(tmp_path / "a.h5"),
        "label": 1,
        "bag_id": "a",
        "instance_label": [0, 1, 0, 0, 1, 0, 0],
    }
    whole = Compose([LoadImaged("image", reader=FeatureReader), PatchBagd("image")])(dict(item))
    in_blocks = PatchBlocksd("image")(dict(item))
    assert in_blocks.keys() == whole.keys()
    for key in whole.keys() - {"image"}:
        if isinstance(whole[key], torch.Tensor):
            assert torch.equal(whole[key], in_blocks[key])
        else:
            assert whole[key] == in_blocks[key]
    for size in (1, 3, 7, 100):
        blocks = list(read_blocks(in_blocks["image"], size))
        assert max(block.shape[2] for block in blocks) == min(size, 7)
        assert torch.equal(torch.cat(blocks, dim=2)[0], whole["image"])
    batch = one_bag([in_blocks])
    assert batch["image"] == [str(tmp_path / "a.h5")]
    assert decollate_batch(batch)[0]["image"] == str(tmp_path / "a.h5")
    assert torch.equal(batch["coords"][0], whole["coords"])


def test_blocks_of_a_chunked_and_compressed_file_are_the_same(tmp_path: Path) -> None:
    slide = some_slide(patches=50)
    write_features(tmp_path / "a.h5", slide)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file["features"]
        file.create_dataset("features", data=slide.features, chunks=(8, 2), compression="gzip")
    blocks = torch.cat(list(read_blocks(str(tmp_path / "a.h5"), 7)), dim=2)
    assert torch.equal(blocks[0], torch.from_numpy(slide.features).float().t())


def test_blocks_that_are_kept_stay_what_they_were(tmp_path: Path) -> None:
    """Their pages are given back while somebody may still hold them."""
    slide = some_slide(patches=300, dimension=64, dtype=np.float32)
    write_features(tmp_path / "a.h5", slide)
    kept = list(read_blocks(str(tmp_path / "a.h5"), 16))
    assert torch.equal(torch.cat(kept, dim=2)[0], torch.from_numpy(slide.features).t())


def test_nan_in_a_block_is_told_when_it_is_read(tmp_path: Path) -> None:
    write_features(tmp_path / "a.h5", some_slide(patches=7))
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["features"][6, 0] = np.nan
    with pytest.raises(InputError, match=r"NaN or infinite values \(file .*a\.h5\)"):
        list(read_blocks(str(tmp_path / "a.h5"), 4))


def test_two_bags_are_not_read_in_blocks_at_once() -> None:
    with pytest.raises(InputError, match="2 bags in a batch of bags that are read in blocks"):
        one_bag([{}, {}])


def test_unequal_bags_are_collated_and_come_apart_again(tmp_path: Path) -> None:
    sizes = [5, 9]
    items = []
    for seed, patches in enumerate(sizes):
        write_features(tmp_path / f"{seed}.h5", some_slide(patches, seed=seed))
        items.append({"image": str(tmp_path / f"{seed}.h5"), "bag_id": str(seed), "label": seed})
    bags = [load(**item, instance_label=[1] * size) for item, size in zip(items, sizes, strict=True)]
    copies = [dict(bag) for bag in bags]  # the collation pads in place
    batch = next(iter(DataLoader(Dataset(copies), batch_size=2, collate_fn=pad_list_data_collate)))
    assert batch["image"].shape == (2, 4, 9)
    assert batch["coords"].shape == (2, 2, 9)
    assert batch["label"].tolist() == [[0.0], [1.0]]
    assert batch["mask"].sum(dim=(1, 2)).tolist() == sizes
    assert batch["source"] == [item["image"] for item in items]
    for bag, back in zip(bags, decollate_batch(batch), strict=True):
        real = back["mask"][0] > 0
        for key in ("image", "coords", "instance_label"):
            torch.testing.assert_close(back[key][:, real], bag[key])
            assert (back[key][:, ~real] == 0).all()
        assert back["instances"] == bag["instances"]
        assert back["bag_id"] == bag["bag_id"]


def test_find_features_lists_in_order_and_leaves_out_the_empty(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, patches in [("b", 3), ("a", 2), ("empty", 0)]:
        write_features(tmp_path / f"{name}.h5", some_slide(patches))
    (tmp_path / "notes.txt").write_text("")
    assert find_features(tmp_path) == [
        {"image": str(tmp_path / "a.h5"), "bag_id": "a"},
        {"image": str(tmp_path / "b.h5"), "bag_id": "b"},
    ]
    assert "empty.h5 holds no patches" in caplog.text


@pytest.mark.parametrize("folder", [".", "gone"])
def test_find_features_without_a_file(tmp_path: Path, folder: str) -> None:
    with pytest.raises(InputError, match=r"no feature file \(\*.h5\) in "):
        find_features(tmp_path / folder)
