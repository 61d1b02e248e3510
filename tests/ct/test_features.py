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
from monai.data import Dataset
from monai.transforms import Compose, LoadImaged, Orientationd
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from scripts.core.errors import InputError
from scripts.ct.encode import SliceEncoder, SliceFeatureExtractor
from scripts.ct.features import (
    SliceFeatures,
    SliceFeaturesd,
    find_slice_features,
    read_slice_features,
    write_slice_features,
)
from scripts.ct.reader import SeriesReader
from scripts.ct.transforms import ScanBagd, SliceWindowsd
from scripts.engine.evaluator import ReadableBags
from scripts.networks import Features, GatedAttentionPool, MILNetwork, SliceCNN
from tests.ct.series import couch, sop_uid, tilted, write_series
from tests.shared_data import ROOT

SIZE = 16
reader: Any = SeriesReader()  # MONAI's annotation forgets that it takes an instance
PREPROCESSING = Compose(
    [
        LoadImaged(keys="image", reader=reader, ensure_channel_first=True),
        Orientationd(keys="image", axcodes="LPS", labels=None),
        ScanBagd(keys="image"),
        SliceWindowsd(keys="image", size=SIZE),
    ]
)


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


def extractor(folder: Path, output: Path, encoder: nn.Module | None = None, **settings: Any) -> SliceFeatureExtractor:
    def read(bags: list[dict[str, Any]]) -> Dataset:
        return ReadableBags(bags, PREPROCESSING)

    given: dict[str, Any] = {
        "dataset_dir": str(folder),
        "datalist": str(folder / "datalist.json"),
        "output_dir": str(output),
        "read": read,
        "encoder": MeanOfWindows() if encoder is None else encoder,
        "encoder_name": "mean of windows",
        "settings": {"image_size": SIZE, "windows": [[40, 80]]},
        "block_size": 2,
        **settings,
    }
    return SliceFeatureExtractor(**given)


def scan_bag(folder: Path, item: dict[str, Any]) -> dict[Hashable, Any]:
    """The bag of the scan itself."""
    bag: Any = PREPROCESSING({**item, "image": str(folder / item["image"])})
    return dict(bag)


def features_bag(path: Path, item: dict[str, Any] | None = None) -> dict[Hashable, Any]:
    given: Any = {**(item or {}), "image": str(path)}
    return SliceFeaturesd("image")(given)


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


# the file


def test_what_is_written_is_read(tmp_path: Path) -> None:
    for scan in (some_scan(), replace(some_scan(1), sop_instance_uids=[], about={})):
        write_slice_features(tmp_path / "a.h5", scan)
        back = read_slice_features(tmp_path / "a.h5")
        np.testing.assert_array_equal(back.features, scan.features)
        np.testing.assert_array_equal(back.positions_mm, scan.positions_mm)
        assert replace(back, features=scan.features, positions_mm=scan.positions_mm) == scan
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]
    write_slice_features(tmp_path / "a.h5", some_scan())
    with h5py.File(tmp_path / "a.h5") as file:  # as documented
        assert {name: data.shape for name, data in file.items()} == {
            "features": (3, 4), "positions_mm": (3,), "sop_instance_uids": (3,), "about": (),
        }  # fmt: skip
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
    with pytest.raises(InputError, match=message) as caught:
        read_slice_features(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "change", [{"positions_mm": np.zeros(2)}, {"sop_instance_uids": ["1"]}, {"features": np.zeros(3, np.float32)}]
)
def test_what_is_not_of_the_same_slices_is_not_written(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"a.h5: .* should be of the same slices; extract the features"):
        write_slice_features(tmp_path / "a.h5", replace(some_scan(), **change))
    assert list(tmp_path.iterdir()) == []


# extraction


def test_a_bag_of_features_is_the_bag_of_the_scan_in_a_datalist_like_the_given_one(scans: Path, tmp_path: Path) -> None:
    extractor(scans, tmp_path).run()
    before, after = listed(scans), listed(tmp_path)
    assert {name: [bag["image"] for bag in bags] for name, bags in after.items()} == {
        "training": ["a.h5"], "test": ["second.h5"],
    }  # fmt: skip
    for name in before:
        for key in ("label", "instance_label"):
            assert after[name][0][key] == before[name][0][key]
    assert find_slice_features(tmp_path) == [
        {"image": str(tmp_path / f"{name}.h5"), "bag_id": name} for name in ("a", "second")
    ]
    for section, bags in listed(scans).items():
        (new,) = listed(tmp_path)[section]
        wanted = scan_bag(scans, bags[0])
        got = features_bag(tmp_path / new["image"], new)
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
    encoder = SliceEncoder(slice_cnn(), str(tmp_path / "model.pt"))
    extractor(scans, tmp_path, encoder).run()
    head = network(Features(width), width).eval()
    left = {name: value for name, value in whole.state_dict().items() if not name.startswith("encoder.")}
    head.load_state_dict(left)
    scan, features = scan_bag(scans, listed(scans)["training"][0]), features_bag(tmp_path / "a.h5")
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
    encoder = MeanOfWindows().train()
    extractor(scans, tmp_path, encoder).run()
    assert encoder.seen == [(False, False, count) for count in (2, 2, 1, 2, 1)]  # in evaluation, without gradient
    (tmp_path / "a.h5").unlink()
    encoder = MeanOfWindows()
    extractor(scans, tmp_path, encoder).run()
    assert len(encoder.seen) == 3
    assert caplog.messages[-1] == "1 scans done, 1 skipped (already there), 0 failed"


def test_the_file_of_another_scan_is_made_anew(tmp_path: Path) -> None:
    """Two cohorts that name their scans alike, and one output_dir."""
    for number, cohort in enumerate(("one", "two"), start=1):
        (tmp_path / cohort).mkdir()
        volume = np.full((8, 8, number), 40 * number, np.float32)
        nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / cohort / "scan.nii")
        bags = {"training": [{"image": "scan.nii", "bag_id": "case1", "label": number - 1}]}
        (tmp_path / cohort / "datalist.json").write_text(json.dumps(bags))
    output = tmp_path / "features"
    for cohort, slices in (("one", 1), ("two", 2), ("one", 1)):
        extractor(tmp_path / cohort, output).run()
        assert len(read_slice_features(output / "case1.h5").features) == slices
        again = MeanOfWindows()
        extractor(tmp_path / cohort, output, again).run()
        assert again.seen == []
    with h5py.File(output / "case1.h5", "a") as file:
        assert str(tmp_path) not in str(dict(file.attrs))
        del file.attrs["source"]  # as an earlier version left it
    (tmp_path / "one" / "scan.nii").write_text("no image")
    with pytest.raises(InputError, match=r"^1 of 1 scans failed"):
        extractor(tmp_path / "one", output).run()
    assert not (output / "case1.h5").exists()
    assert listed(output) == {"training": []}


@pytest.mark.slow
def test_other_preprocessing_is_refused_by_the_config(scans: Path, tmp_path: Path) -> None:
    def run(**changes: Any) -> None:
        config = ConfigParser()
        config.read_config(ROOT / "configs" / "ct" / "features.json")
        config.update(
            {
                "dataset_dir": str(scans), "output_dir": str(tmp_path), "image_size": 16, "channels": [4, 4],
                "num_workers": 0, "device": "cpu", **changes,
            }
        )  # fmt: skip
        config.get_parsed_content("extractor").run()

    run()
    run()
    told = r"a.h5 was made with another .* settings \(preprocessing \w{16}, now \w{16}\); choose another output_dir"
    with pytest.raises(InputError, match=told):
        run(**{"preprocessing#transforms#0#reader#series": "1"})
    with pytest.raises(InputError, match=r"settings \(.*windows \[.*\], now \[\[40, 80\]\]"):
        run(windows=[[40, 80]])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_scan_that_fails_is_named_at_the_end(scans: Path, tmp_path: Path, workers: int) -> None:
    bags = {"training": [{"image": "bad.nii"}, {"image": "a"}], "test": [{"image": "worse.nii"}]}
    (tmp_path / "datalist.json").write_text(json.dumps(bags))
    (tmp_path / "a").symlink_to(scans / "a")
    for name in ("bad.nii", "worse.nii"):
        (tmp_path / name).write_text("no image")
    output = tmp_path / "features"
    told = (
        r"^2 of 3 scans failed \(bad, worse\): .*bad.nii cannot be read .*; "
        r".*what is done is skipped \(all reasons: failed.csv\)$"
    )
    with pytest.raises(InputError, match=told):
        extractor(tmp_path, output, num_workers=workers).run()
    with (output / "failed.csv").open(newline="") as file:
        assert [row["bag_id"] for row in csv.DictReader(file)] == ["bad", "worse"]
    assert {name: [bag["image"] for bag in bags] for name, bags in listed(output).items()} == {
        "training": ["a.h5"], "test": [],
    }  # fmt: skip
    for name in ("bad.nii", "worse.nii"):
        (tmp_path / name).unlink()
        nib.save(nib.Nifti1Image(np.zeros((8, 8, 3), np.float32), np.eye(4)), tmp_path / name)
    extractor(tmp_path, output, num_workers=workers).run()
    assert not (output / "failed.csv").exists()
    assert len(listed(output)["test"]) == 1


def test_without_a_datalist_every_scan_is_found_and_none_is_written(scans: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no feature file \(\*.h5\) in .*; extract the features first"):
        find_slice_features(tmp_path)
    extractor(scans, tmp_path, datalist=None).run()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5", "b.h5"]
    with pytest.raises(InputError, match="holds the datalist of the scans themselves: give another output_dir"):
        extractor(scans, scans).run()


TWO_OF_ONE_NAME = json.dumps(
    {"training": [{"image": "a", "bag_id": "x"}], "test": [{"image": "b.nii.gz", "bag_id": "x"}]}
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read the datalist"),
        ("[]", "has no bags"),
        ("{", "JSON"),
        (TWO_OF_ONE_NAME, "two scans with the bag_id x: give each its own"),
    ],
)
def test_a_datalist_that_is_none_is_told(scans: Path, tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "d.json").write_text(text)
    with pytest.raises(InputError, match=message):
        extractor(scans, tmp_path, datalist=str(tmp_path / "d.json")).run()


# the encoder of a network


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
    for seed in (0, 1):
        torch.manual_seed(seed)
        torch.save(network(slice_cnn(), 36).state_dict(), tmp_path / "model.pt")
        names.add(SliceEncoder(slice_cnn(), str(tmp_path / "model.pt")).name)
    assert len(names) == 2


def test_weights_without_an_encoder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none.pt is missing: train or convert weights first"):
        SliceEncoder(slice_cnn(), str(tmp_path / "none.pt"))
    torch.save({"head.weight": torch.zeros(1)}, tmp_path / "head.pt")
    with pytest.raises(InputError, match=r"head.pt holds no weights of an encoder"):
        SliceEncoder(slice_cnn(), str(tmp_path / "head.pt"))


# training on features, by the configs


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of noise; in positive scans a few neighbouring slices have four of them raised."""
    folder = tmp_path_factory.mktemp("features")
    rng = np.random.default_rng(0)
    sections: dict[str, list[dict[str, Any]]] = {"training": [], "validation": [], "test": []}
    for case in range(60):
        slices = int(rng.integers(12, 20))
        truth = np.zeros(slices, int)
        if case % 2:
            first = int(rng.integers(slices - 4))
            truth[first : first + 4] = 1
        features = rng.normal(size=(slices, 8)).astype(np.float32)
        features[truth == 1, :4] += 2
        uids = [f"{case}.{k}" for k in range(slices)]
        write_slice_features(
            folder / f"{case}.h5", SliceFeatures(features, np.arange(slices) * 5.0, uids, {}, "noise", "{}")
        )
        bag = {"image": f"{case}.h5", "label": case % 2, "instance_label": dict(zip(uids, truth.tolist(), strict=True))}
        sections["training" if case < 32 else "validation" if case < 36 else "test"].append(bag)
    (folder / "datalist.json").write_text(json.dumps(sections))
    return folder


def configured(cohort: Path, *overrides: str, **keys: Any) -> ConfigParser:
    """train.json on features, without the handlers that write files."""
    config = ConfigParser()
    config.read_config([ROOT / "configs" / "ct" / f"{name}.json" for name in ("train", "on_features", *overrides)])
    config.update({"dataset_dir": str(cohort), "in_features": 8, "num_workers": 0, "train#handlers": [], **keys})
    return config


@pytest.mark.slow
@pytest.mark.parametrize("head", [[], ["smap"], ["smtap"], ["abmil"]])
def test_a_head_learns_which_slices_are_positive(cohort: Path, head: list[str]) -> None:
    torch.manual_seed(0)
    config = configured(cohort, *head, max_epochs=12)
    config.get_parsed_content("train#trainer").run()
    net = config.get_parsed_content("network").eval()
    config["validate#dataset#data#section"] = "test"
    bags = config.get_parsed_content("validate#dataset")
    with torch.no_grad():
        said = [net.predict(bag["image"][None], bag["coords"][None], bag["mask"][None]) for bag in bags]
    assert roc_auc_score([float(bag["label"]) for bag in bags], [float(one.logits) for one in said]) > 0.9
    scores = torch.cat([one.scores[0, 0] for one in said])
    assert roc_auc_score(torch.cat([bag["instance_label"][0] for bag in bags]), scores) > 0.8


@pytest.mark.slow
def test_accumulated_steps_are_the_step_of_a_larger_batch(cohort: Path, tmp_path: Path) -> None:
    """Four scans in one batch or one by one: unequal lengths, with the penalty, without batch statistics or dropout."""
    four = {"training": listed(cohort)["training"][:4], "validation": listed(cohort)["validation"]}
    (tmp_path / "four.json").write_text(json.dumps(four))
    weights = []
    for batch, steps in ((4, 1), (1, 4), (1, 1)):
        torch.manual_seed(0)
        config = configured(
            cohort,
            datalist=str(tmp_path / "four.json"), max_epochs=1, batch_size=batch, accumulation_steps=steps,
            slice_drop=0.0, learning_rate=0.1,
        )  # fmt: skip
        config.update({"optimizer#_target_": "torch.optim.SGD", "network_def#head": "$torch.nn.Linear(256, 1)"})
        config.get_parsed_content("train#trainer").run()
        weights.append(torch.nn.utils.parameters_to_vector(config.get_parsed_content("network").parameters()))
    at_once, accumulated, one_by_one = weights
    torch.testing.assert_close(accumulated, at_once, atol=1e-5, rtol=1e-4)
    assert (one_by_one - at_once).abs().max() > 1e-3
