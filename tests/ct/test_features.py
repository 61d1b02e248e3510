# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
import csv
import json
from collections.abc import Callable, Hashable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn

from scripts.core.errors import InputError
from scripts.ct.encode import SliceEncoder
from scripts.ct.features import (
    SliceFeatures,
    SliceFeaturesd,
    find_slice_features,
    read_slice_features,
    write_slice_features,
)
from scripts.networks import Features, GatedAttentionPool, MILNetwork, SliceCNN
from tests.ct.series import couch, sop_uid, tilted, write_series
from tests.shared_data import ROOT

SIZE = 16


class MeanOfWindows(nn.Module):
    """Features that a test can compute for itself."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[bool, bool, int]] = []

    def forward(self, slices: Tensor) -> Tensor:
        self.seen.append((self.training, torch.is_grad_enabled(), len(slices)))
        return slices.mean(dim=(2, 3))


def network(encoder: nn.Module, features: int) -> MILNetwork:
    return MILNetwork(encoder, GatedAttentionPool(features, 8), nn.Linear(features, 1), spatial_dims=1)


def slice_cnn() -> SliceCNN:
    return SliceCNN(SIZE, channels=(4, 4))


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tilted DICOM series of 5 slices, a NIfTI volume of 3, and a datalist of both."""
    folder = tmp_path_factory.mktemp("scans")
    rng = np.random.default_rng(0)
    pixels = rng.integers(-100, 200, (5, 12, 10)).astype(np.int16)
    write_series(folder / "a", pixels, couch(5, 4.0), ImageOrientationPatient=list(tilted(15.0)))
    volume = rng.normal(40, 30, (12, 10, 3)).astype(np.float32)
    nib.save(nib.Nifti1Image(volume, np.diag([-1.0, -1.0, 4.0, 1.0])), folder / "b.nii.gz")
    bags: dict[str, list[dict[str, Any]]] = {
        "training": [{"image": "a", "label": 1, "instance_label": {sop_uid(k): int(k == 2) for k in range(5)}}],
        "test": [{"image": "b.nii.gz", "label": 0, "instance_label": [0, 0, 0], "bag_id": "second"}],
    }
    (folder / "datalist.json").write_text(json.dumps(bags))
    return folder


def extraction(folder: Path, output: Path, **changes: Any) -> ConfigParser:
    """features.json with an encoder that a test can follow."""
    config = ConfigParser()
    config.read_config(ROOT / "configs" / "ct" / "features.json")
    datalist = folder / "datalist.json"
    here = {"dataset_dir": str(folder), "datalist": str(datalist), "output_dir": str(output), "device": "cpu"}
    small = {"image_size": SIZE, "block_size": 2, "num_workers": 0}
    config.update({**here, **small, "encoder": MeanOfWindows(), "encoder_name": "mean of windows", **changes})
    return config


def extract(folder: Path, output: Path, **changes: Any) -> None:
    extraction(folder, output, **changes).get_parsed_content("extractor").run()


def scan_bag(folder: Path, item: dict[str, Any]) -> dict[Hashable, Any]:
    """The bag of the scan itself."""
    preprocessing: Any = extraction(folder, folder).get_parsed_content("preprocessing")
    bag: dict[Hashable, Any] = preprocessing({**item, "image": str(folder / item["image"])})
    return bag


def listed(path: Path) -> dict[str, list[dict[str, Any]]]:
    content: dict[str, list[dict[str, Any]]] = json.loads((path / "datalist.json").read_text())
    return content


def some_scan(slices: int = 3) -> SliceFeatures:
    return SliceFeatures(
        features=np.random.default_rng(0).normal(size=(slices, 4)).astype(np.float32),
        positions_mm=np.arange(slices) * 2.5 - 0.1,
        sop_instance_uids=[f"1.2.{k}" for k in range(slices)],
        about={"tilt_degrees": 12.5, "warnings": ["unevenly spaced"]},
        encoder="an encoder",
        settings="{}",
        source="a hash",
    )


def test_what_is_written_is_read_and_what_is_not_of_the_same_slices_is_not_written(tmp_path: Path) -> None:
    unlike: list[dict[str, Any]] = [{"positions_mm": np.zeros(2)}, {"sop_instance_uids": ["1"]}]
    for change in (*unlike, {"features": np.zeros(3, np.float32)}):
        with pytest.raises(InputError, match=r"a.h5: .* should be of the same slices; extract the features"):
            write_slice_features(tmp_path / "a.h5", replace(some_scan(), **change))
    assert list(tmp_path.iterdir()) == []
    for scan in (replace(some_scan(1), sop_instance_uids=[], about={}), some_scan()):
        write_slice_features(tmp_path / "a.h5", scan)
        back = read_slice_features(tmp_path / "a.h5")
        np.testing.assert_array_equal(back.features, scan.features)
        np.testing.assert_array_equal(back.positions_mm, scan.positions_mm)
        assert replace(back, features=scan.features, positions_mm=scan.positions_mm) == scan
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]
    with h5py.File(tmp_path / "a.h5") as file:  # as documented
        shapes = {"features": (3, 4), "positions_mm": (3,), "sop_instance_uids": (3,), "about": ()}
        assert {name: data.shape for name, data in file.items()} == shapes
        assert (file.attrs["format"], file.attrs["encoder"]) == ("smooth-mil-slices/1", "an encoder")
        assert (file.attrs["tilt_degrees"], file.attrs["source"]) == (12.5, "a hash")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda file: file.__delitem__("positions_mm"), "holds no dataset `positions_mm`"),
        (lambda file: file.attrs.__delitem__("encoder"), "lacks the root attribute `encoder`"),
        (lambda file: file.attrs.__setitem__("format", "smooth-mil-features/1"), "not in the format smooth-mil-slices"),
        (lambda file: file["features"].__setitem__((0, 0), np.nan), "features hold NaN or infinite values"),
    ],
)
def test_a_spoilt_file_is_named_in_one_line(tmp_path: Path, spoil: Callable, message: str) -> None:
    path = tmp_path / "a.h5"
    write_slice_features(path, some_scan())
    with h5py.File(path, "a") as file:
        spoil(file)
    with pytest.raises(InputError, match=rf"a\.h5.*{message}|{message}.*a\.h5"):
        read_slice_features(path)
    path.write_text("no HDF5")
    for place, flaw in ((path, "a.h5 is not an HDF5 file"), (tmp_path / "b.h5", "no feature file .*b.h5")):
        with pytest.raises(InputError, match=flaw):
            read_slice_features(place)


def test_a_bag_of_features_is_the_bag_of_the_scan_in_a_datalist_like_the_given_one(scans: Path, tmp_path: Path) -> None:
    extract(scans, tmp_path)
    names = {"training": "a", "test": "second"}
    assert find_slice_features(tmp_path) == [
        {"image": str(tmp_path / f"{name}.h5"), "bag_id": name} for name in names.values()
    ]
    assert listed(tmp_path).keys() == names.keys()
    for section, (item,) in listed(scans).items():
        (new,) = listed(tmp_path)[section]
        assert new == {**item, "bag_id": names[section], "image": f"{names[section]}.h5"}
        wanted = scan_bag(scans, item)
        given: dict[Any, Any] = {**new, "image": str(tmp_path / new["image"])}
        got = SliceFeaturesd("image")(given)
        torch.testing.assert_close(got["image"], wanted["image"].mean(dim=(1, 2)))
        for key in ("coords", "mask", "label", "instance_label"):
            assert torch.equal(got[key], wanted[key]), key
        assert json.loads(got["about"]) == json.loads(wanted["about"])
        assert json.loads(got["instances"]) == [
            {key: slice_[key] for key in ("id", "position_mm")} for slice_ in json.loads(wanted["instances"])
        ]
        assert got["source"] == str(tmp_path / new["image"])
        assert got.keys() >= wanted.keys() - {"bag_id"}


def test_two_stages_say_what_one_does(scans: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    width = slice_cnn().out_features
    whole = network(slice_cnn(), width).eval()
    torch.save(whole.state_dict(), tmp_path / "model.pt")
    extract(scans, tmp_path, encoder=SliceEncoder(slice_cnn(), str(tmp_path / "model.pt")))
    head = network(Features(width), width).eval()
    left = {name: value for name, value in whole.state_dict().items() if not name.startswith("encoder.")}
    head.load_state_dict(left)
    scan = scan_bag(scans, listed(scans)["training"][0])
    features = SliceFeaturesd("image")({"image": str(tmp_path / "a.h5")})
    with torch.no_grad():
        one, two = (
            net.predict(bag["image"][None], bag["coords"][None], bag["mask"][None])
            for net, bag in ((whole, scan), (head, features))
        )
    torch.testing.assert_close(two.logits, one.logits)
    torch.testing.assert_close(two.attention, one.attention)


def test_slices_go_through_in_blocks_and_a_finished_scan_is_skipped(
    scans: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    first, second = MeanOfWindows().train(), MeanOfWindows()
    extract(scans, tmp_path, encoder=first)
    assert first.seen == [(False, False, count) for count in (2, 2, 1, 2, 1)]  # in evaluation, without gradient
    (tmp_path / "a.h5").unlink()
    extract(scans, tmp_path, encoder=second)
    assert len(second.seen) == 3
    assert "1 scans done, 1 skipped (already there), 0 failed" in caplog.messages


def test_the_file_of_another_scan_is_made_anew(tmp_path: Path) -> None:
    """Two cohorts that name their scans alike, and one output_dir."""
    output = tmp_path / "features"
    bags = {"training": [{"image": "scan.nii", "bag_id": "case1", "label": 1}]}
    for slices, name in ((1, "one"), (2, "two"), (1, "one")):
        cohort = tmp_path / name
        cohort.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(np.full((8, 8, slices), 40, np.float32), np.eye(4)), cohort / "scan.nii")
        (cohort / "datalist.json").write_text(json.dumps(bags))
        extract(cohort, output)
        assert len(read_slice_features(output / "case1.h5").features) == slices
    with h5py.File(output / "case1.h5", "a") as file:
        assert str(tmp_path) not in str(dict(file.attrs))
        del file.attrs["source"]  # as an earlier version left it
    (tmp_path / "one" / "scan.nii").write_text("no image")
    with pytest.raises(InputError, match=r"^1 of 1 scans failed"):
        extract(tmp_path / "one", output)
    assert not (output / "case1.h5").exists()
    assert listed(output) == {"training": []}


@pytest.mark.parametrize(
    ("change", "unlike"),
    [
        ({"preprocessing#transforms#0#reader#series": "1"}, r"preprocessing \w{16}, now \w{16}"),
        ({"windows": [[40, 80]]}, r"windows \[.*\], now \[\[40, 80\]\]"),
        ({"encoder_name": "another"}, "encoder mean of windows, now another"),
    ],
)
def test_features_of_another_kind_are_not_mixed_in(
    scans: Path, tmp_path: Path, change: dict[str, Any], unlike: str
) -> None:
    extract(scans, tmp_path)
    extract(scans, tmp_path)
    with pytest.raises(InputError, match=rf"a.h5 was made .* \(.*{unlike}.*\); choose another output_dir"):
        extract(scans, tmp_path, **change)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_scan_that_fails_is_named_at_the_end(scans: Path, tmp_path: Path, workers: int) -> None:
    bags = {"training": [{"image": "bad.nii"}, {"image": "a"}], "test": [{"image": "worse.nii"}]}
    (tmp_path / "datalist.json").write_text(json.dumps(bags))
    (tmp_path / "a").symlink_to(scans / "a")
    for name in ("bad.nii", "worse.nii"):
        (tmp_path / name).write_text("no image")
    output = tmp_path / "features"
    names = r"^2 of 3 scans failed \(bad, worse\): .*bad.nii cannot be read .*; "
    with pytest.raises(InputError, match=names + r".*what is done is skipped \(all reasons: failed.csv\)$"):
        extract(tmp_path, output, num_workers=workers)
    with (output / "failed.csv").open(newline="") as file:
        assert [row["bag_id"] for row in csv.DictReader(file)] == ["bad", "worse"]
    there = {name: [bag["image"] for bag in bags] for name, bags in listed(output).items()}
    assert there == {"training": ["a.h5"], "test": []}
    for name in ("bad.nii", "worse.nii"):
        (tmp_path / name).unlink()
        nib.save(nib.Nifti1Image(np.zeros((8, 8, 3), np.float32), np.eye(4)), tmp_path / name)
    extract(tmp_path, output, num_workers=workers)
    assert not (output / "failed.csv").exists()
    assert len(listed(output)["test"]) == 1


def test_without_a_datalist_every_scan_is_found_and_one_that_is_none_is_refused(scans: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"no feature file \(\*.h5\) in .*; extract its features again, or .*: python -m scripts features ct",
    ):
        find_slice_features(tmp_path)
    extract(scans, tmp_path, datalist=None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5", "b.h5"]
    with pytest.raises(InputError, match="holds the datalist of the scans themselves: give another output_dir"):
        extract(scans, scans)
    sections = {"training": [{"image": "a", "bag_id": "x"}], "test": [{"image": "b.nii.gz", "bag_id": "x"}]}
    (tmp_path / "twice.json").write_text(json.dumps(sections))
    (tmp_path / "list.json").write_text("[]")
    for name, message in (
        ("none.json", "cannot read the datalist"),
        ("list.json", "has no bags"),
        ("twice.json", "two scans with the bag_id x: give each its own"),
    ):
        with pytest.raises(InputError, match=message):
            extract(scans, tmp_path, datalist=str(tmp_path / name))


def test_random_weights_come_from_the_seed_and_leave_chance_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    slices = torch.rand(4, 3, SIZE, SIZE)
    state = torch.get_rng_state()
    one, again, other = (SliceEncoder(slice_cnn(), seed=seed).eval() for seed in (1, 1, 2))
    torch.set_rng_state(state)
    assert torch.equal(one(slices), again(slices))
    assert not torch.equal(one(slices), other(slices))
    assert (one.name, other.name) == ("SliceCNN (random, seed 1)", "SliceCNN (random, seed 2)")
    assert "weights are random" in caplog.messages[0]
    names = set()
    for _ in range(2):
        torch.save(network(slice_cnn(), 36).state_dict(), tmp_path / "model.pt")
        names.add(SliceEncoder(slice_cnn(), str(tmp_path / "model.pt")).name)
    assert len(names) == 2
    torch.save({"head.weight": torch.zeros(1)}, tmp_path / "head.pt")
    with pytest.raises(InputError, match=r"head.pt holds no weights of an encoder"):
        SliceEncoder(slice_cnn(), str(tmp_path / "head.pt"))


@pytest.mark.slow
def test_accumulated_steps_are_the_step_of_a_larger_batch(tmp_path: Path) -> None:
    """Four scans in one batch or one by one: unequal lengths, with the penalty, without batch statistics or dropout."""
    bags = [{"image": f"{case}.h5", "label": case % 2} for case in range(4)]
    for case in range(4):
        features = np.random.default_rng(case).normal(size=(12 + case, 8)).astype(np.float32)
        scan = SliceFeatures(features, np.arange(12 + case) * 5.0, [], {}, "noise", "{}")
        write_slice_features(tmp_path / f"{case}.h5", scan)
    (tmp_path / "datalist.json").write_text(json.dumps({"training": bags, "validation": bags}))
    weights = []
    for batch, steps in ((4, 1), (1, 4), (1, 1)):
        torch.manual_seed(0)
        config = ConfigParser()
        config.read_config([ROOT / "configs" / "ct" / f"{name}.json" for name in ("train", "on_features")])
        config.update({"batch_size": batch, "accumulation_steps": steps, "slice_drop": 0.0, "learning_rate": 0.1})
        config.update({"dataset_dir": str(tmp_path), "in_features": 8, "max_epochs": 1, "train#handlers": []})
        config.update({"optimizer#_target_": "torch.optim.SGD", "network_def#head": "$torch.nn.Linear(64, 1)"})
        config.get_parsed_content("train#trainer").run()
        weights.append(torch.nn.utils.parameters_to_vector(config.get_parsed_content("network").parameters()))
    at_once, accumulated, one_by_one = weights
    torch.testing.assert_close(accumulated, at_once, atol=1e-5, rtol=1e-4)
    assert (one_by_one - at_once).abs().max() > 1e-3


def test_a_file_whose_arrays_lie_in_another_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write_slice_features(path, SliceFeatures(np.ones((3, 4), np.float32), np.arange(3.0), [], {}, "tiny", "{}"))
    (tmp_path / "secret").write_bytes(bytes(48))
    with h5py.File(path, "r+") as file:
        del file["features"]
        file.create_dataset("features", (3, 4), np.float32, external=[(str(tmp_path / "secret"), 0, 48)])
    with pytest.raises(InputError, match=r"^/features of .*a.h5 lies in another file; give a file that holds its own"):
        read_slice_features(path)
