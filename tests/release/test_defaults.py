# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""What training wrote beside weights are the defaults of a release, and what does not fit is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.core.errors import InputError
from scripts.engine.operating_point import operating_file
from scripts.engine.provenance import origin_file
from scripts.release.defaults import (
    Configs,
    Weights,
    example_image,
    fitting_network,
    read_weights,
    require_no_place,
    trained_configs,
    trained_metadata,
)
from scripts.release.tree import source_folder
from tests.release.trained import shipped, write_weights
from tests.shared_data import ROOT
from tests.test_configs import content


def defaults(path: Path, wing: str) -> tuple[Weights, Configs]:
    weights = read_weights(path)
    return weights, trained_configs(shipped(wing), source_folder(wing), weights)


def metadata_of(wing: str, weights: Weights, configs: Configs, classes: int = 1) -> dict[str, Any]:
    return trained_metadata(content(ROOT / "configs" / wing / "metadata.json"), configs, weights, classes, {})


def test_every_config_of_head_ct_has_the_sizes_of_the_training(tmp_path: Path) -> None:
    weights, configs = defaults(write_weights(tmp_path, "ct", windows=[[40, 80], [50, 150], [30, 30]]), "ct")
    for name in ("train.json", "inference.json", "features.json"):
        assert configs[name]["image_size"] == 16
        assert configs[name]["channels"] == [4, 4]
        assert configs[name]["preprocessing"] == shipped("ct")[name]["preprocessing"]
        assert configs[name].keys() == shipped("ct")[name].keys()
    network = fitting_network(configs, weights)
    assert network(example_image(configs, 1)).shape == (1, 1)
    told = metadata_of("ct", weights, configs)
    image = told["network_data_format"]["inputs"]["image"]
    assert (image["num_channels"], image["spatial_shape"]) == (3, [16, 16, "*"])
    assert image["channel_def"] == {"0": "window 40/80", "1": "window 50/150", "2": "window 30/30"}
    assert told["operating_point"] == {"threshold": 0.25, "scaling": [1.0, 0.5], "origin": "chosen by a test"}
    assert told["score"] == {"name": "instance", "smoothing": 0.7}
    assert told["eval_metrics"] == {}


@pytest.mark.parametrize(("wing", "files", "key"), [("wsi", ("classes", "bracs"), "val_class_accuracy"),
                                                    ("wsi", ("hmil", "bracs"), "val_class_accuracy")])  # fmt: skip
def test_several_classes_are_told_and_validated_as_they_were_trained(
    tmp_path: Path, wing: str, files: tuple[str, ...], key: str
) -> None:
    weights, configs = defaults(write_weights(tmp_path, wing, *files), wing)
    names = ["N", "PB", "UDH", "FEA", "ADH", "DCIS", "IC"]
    assert configs["train.json"]["class_names"] == configs["inference.json"]["class_names"] == names
    assert list(configs["train.json"]["validation_metrics"]) == [key]
    assert configs["train.json"]["loss"] == shipped(wing)["hmil.json" if "hmil" in files else "train.json"]["loss"]
    assert fitting_network(configs, weights)(example_image(configs, 1)).shape == (1, 7)
    told = metadata_of(wing, weights, configs, 7)
    assert told["network_data_format"]["inputs"]["image"]["num_channels"] == 8
    pred = told["network_data_format"]["outputs"]["pred"]
    assert (pred["num_channels"], list(pred["channel_def"].values())) == (7, names)
    assert told["label_classes"].endswith("its class: N, PB, UDH, FEA, ADH, DCIS, IC")


def test_override_files_are_recognised_with_the_settings_that_belong_to_them(tmp_path: Path) -> None:
    small, ours = shipped("ct")["small.json"], shipped("ct")["on_features.json"]
    _, configs = defaults(write_weights(tmp_path / "a", "ct", **{key: small[key] for key in
                          ("image_size", "channels", "batch_norm_momentum")}), "ct")  # fmt: skip
    assert configs["train.json"]["learning_rate"] == small["learning_rate"]
    weights, configs = defaults(write_weights(tmp_path / "b", "ct", "on_features", in_features=6), "ct")
    assert configs["train.json"]["augmentation"] == ours["augmentation"]
    assert configs["train.json"]["in_features"] == configs["inference.json"]["in_features"] == 6
    image = metadata_of("ct", weights, configs)["network_data_format"]["inputs"]["image"]
    assert (image["num_channels"], image["spatial_shape"]) == (6, ["*"])
    assert image["channel_def"] == {"0": "slice features"}
    assert fitting_network(configs, weights)(example_image(configs, 1)).shape == (1, 1)


def test_weights_of_the_other_bundle_or_of_another_network_are_refused(tmp_path: Path) -> None:
    ct, wsi = write_weights(tmp_path / "ct", "ct"), write_weights(tmp_path / "wsi", "wsi")
    with pytest.raises(InputError, match=r"model.origin.json describes weights of another bundle: no config of this"):
        defaults(ct, "wsi")
    origin_file(ct).unlink()
    with pytest.raises(
        InputError,
        match=r"does not fit the network \(Missing key.*\), as model.origin.json is missing beside them: give",
    ):
        fitting_network(defaults(ct, "ct")[1], read_weights(ct))
    torch.save(torch.load(ct, weights_only=True), wsi)
    operating_file(wsi).unlink()
    with pytest.raises(
        InputError, match=r"does not fit the network \(.*, as it belongs to other weights: give weights"
    ):
        fitting_network(defaults(wsi, "wsi")[1], read_weights(wsi))


def test_an_origin_that_names_code_is_refused(tmp_path: Path) -> None:
    path = write_weights(tmp_path, "ct")
    stored = json.loads(origin_file(path).read_text())
    stored["config"]["network_def"]["head"] = "$__import__('os').getcwd()"
    origin_file(path).write_text(json.dumps(stored))
    with pytest.raises(
        InputError, match=r"names \"\$__import__\('os'\).getcwd\(\)\", which no config of this run does"
    ):
        defaults(path, "ct")


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (b"no weights", "holds no weights that can be read: give the model.pt of a training"),
        ({"epoch": 3, "model": {}}, "holds more than the tensors of one network: give the model.pt of a training"),
        ({"head.weight": torch.tensor(float("nan"))}, "holds NaN or infinite weights: train again"),
        (None, "is missing: train first, or give another --weights"),
    ],
)
def test_a_file_that_holds_no_usable_weights_is_refused(tmp_path: Path, saved: Any, message: str) -> None:
    path = tmp_path / "model.pt"
    if isinstance(saved, bytes):
        path.write_bytes(saved)
    elif saved is not None:
        torch.save(saved, path)
    with pytest.raises(InputError, match=f"^{path} {message}$"):
        read_weights(path)


def test_an_operating_point_of_other_weights_and_a_place_on_a_computer_are_refused(tmp_path: Path) -> None:
    path = write_weights(tmp_path, "wsi")
    point = operating_file(path)
    stored = json.loads(point.read_text())
    point.write_text(json.dumps({**stored, "origin": "chosen on /data/hospital/patients"}))
    with pytest.raises(InputError, match=r"^model.operating_point.json names a place .*'chosen on /data/hospital/pati"):
        read_weights(path)
    point.write_text(json.dumps({**stored, "weights_sha256": "0"}))
    with pytest.raises(
        InputError, match=r"was chosen for other weights: choose one by python -m scripts calibrate, or"
    ):
        read_weights(path)


@pytest.mark.parametrize(
    "text",
    ["/data", "~/x", r"C:\scans", "file:///x", "path:/home/me", "[/data/x]", "../mine", "$torch.load('/home/me/a.pt')"],
)
def test_a_place_is_told_from_other_words(text: str) -> None:
    with pytest.raises(InputError, match=r"^it names a place on a computer"):
        require_no_place("it", {"key": ["fine", text]})
    require_no_place("it", {"a/b": "3/4 of https://x.org/a, $@bundle_root + '/models/model.pt' and 1 / 2"})
