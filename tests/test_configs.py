# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""What the configurations, the metadata and the bundle folders must agree on."""

import inspect
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from pydoc import locate
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ComponentLocator, ConfigParser
from monai.transforms.traits import RandomizableTrait

from scripts.core.errors import input_error_message
from scripts.core.record import BagResultd
from scripts.engine.provenance import DESCRIBED
from scripts.engine.run_record import fingerprint
from scripts.networks import HMIL, GatedAttentionPool, MILNetwork, SmoothAttentionPool, SmoothTransformer
from tests.bundle.commands import BUNDLES
from tests.shared_data import ROOT, shared_data

CONFIGS = sorted((ROOT / "configs").rglob("*.json"))
METADATA = [ROOT / "metadata.json", *sorted((ROOT / "configs").glob("*/metadata.json"))]
RUNNABLE = [path for path in CONFIGS if path.name != "metadata.json"]
WHOLE = {"train", "inference", "features", "metadata"}  # every other file changes keys of train.json
RECIPES = [path for path in RUNNABLE if path.parent.name == "encoders"]  # of features.json, each stated in full
OVERRIDES = [path for path in RUNNABLE if path.stem not in WHOLE and path not in RECIPES]
OF_INFERENCE = {"onnx", "streaming", "multi_gpu_inference"}  # they change keys of inference.json
OF_FEATURES = {"encoder_monai", "encoder_timm", "encoder_torchscript"}  # of features.json
NEW_KEYS = {  # that a file may add
    "onnx": {"onnx_path"},
    "streaming": {"block_size"},
    "on_features": {"in_features", "find"},  # the second is a key of inference.json
    "evaluate": {"ckpt_path", "section", "operating_point", "faithfulness"},
    "multi_gpu_inference": {"initialize", "finalize"},
    "encoder_monai": {"encoder_weights"},
    "encoder_torchscript": {"encoder_weights"},
    "encoder_timm": {"encoder_weights", "encoder_model"},
    "multi_gpu_train": {
        *("train#sampler", "train#dataloader#sampler", "validate#sampler", "validate#dataloader#sampler", "finalize")
    },
}

each_bundle = pytest.mark.parametrize("bundle", BUNDLES)


def content(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def parser(bundle: str, *names: str) -> ConfigParser:
    """The files merged in their order as the command line merges them, their macros resolved."""
    merged = ConfigParser()
    merged.read_config([ROOT / "configs" / bundle / f"{name}.json" for name in names])
    merged.resolve_macro_and_relative_ids()
    return merged


def nodes(value: Any) -> Iterator[Any]:
    """A JSON value and every one within it."""
    yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from nodes(inner)


def pins(name: str) -> dict[str, str]:
    lines = (line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return dict(line.split("==") for line in lines if line and not line.startswith("-"))


def references(value: object) -> set[str]:
    return set(re.findall(r"@(\w+)", json.dumps(value)))


def of_network(bundle: str) -> set[str]:
    """Top-level keys that the network is made from."""
    return references(parser(bundle, "train")["network_def"]) - {"network_def"}


def preparation(config: ConfigParser) -> list[dict[str, Any]]:
    """What is done to every image, whatever a file calls it; a copy for the pictures changes nothing."""
    key = "preprocessing" if "preprocessing" in config else "train#preprocessing"
    return [step for step in config[key]["transforms"] if step["_target_"] != "CopyItemsd"]


@each_bundle
def test_the_network_of_the_weights_is_described_and_taken_up_before_anything_else(bundle: str) -> None:
    of_classes = {"class_names", "hierarchy", "negative_class"} if bundle == "wsi" else set()
    assert {"network_def", "preprocessing", *of_network(bundle), *of_classes} <= set(DESCRIBED)
    for files in (["inference"], ["train", "evaluate"], ["inference", "onnx"]):
        first, *_ = parser(bundle, *files)["run"]
        assert first["_target_"] == "scripts.engine.launch.prepare_run"
        assert (first["ckpt_path"], first["bundle_root"]) == ("@ckpt_path", "@bundle_root")


def for_no_viewer(steps: list[Any]) -> list[Any]:
    """The steps of inference of head CT without what viewers need: a loader apart, and where the image lay."""
    plain = [{**step} for step in steps]
    for step in plain:
        if step["_target_"] == "LoadImaged":
            step["ensure_channel_first"] = True
            step["reader"] = {key: value for key, value in step["reader"].items() if key != "most_slices"}
    plain = [step for step in plain if step["_target_"] != "EnsureChannelFirstd"]
    if len(plain) == len(steps):
        return steps
    assert plain[-1].pop("keep_meta")
    assert plain[-2].pop("require_head_ct") == "@require_head_ct"  # which changes no bag, as most_slices
    return plain


@each_bundle
def test_a_bag_is_prepared_collated_asked_and_judged_the_same_wherever(bundle: str) -> None:
    train, evaluate, inference = (parser(bundle, *files) for files in (["train"], ["train", "evaluate"], ["inference"]))
    wanted = preparation(train)
    assert wanted
    assert wanted == preparation(evaluate) == for_no_viewer(preparation(inference))
    keys = of_network(bundle) | references(wanted) | {"network_def", "prepare_batch"}
    assert keys >= {"ct": {"image_size", "channels", "windows"}, "wsi": {"in_features"}}[bundle]
    for key in keys:
        assert train[key] == evaluate[key] == inference[key], key
    for key in ("operating_point", "threshold", "scaling", "conformal"):
        assert evaluate[key] == inference[key], key
    collate = inference["dataloader#collate_fn"]
    assert train["train#dataloader#collate_fn"] == evaluate["validate#dataloader#collate_fn"]
    if bundle == "wsi":  # in head CT the scan keeps its metadata, with which the label map is written
        assert collate == train["train#dataloader#collate_fn"]
    assert evaluate["validate#inferer"] == inference["inferer"]
    steps = evaluate["validate#postprocessing#transforms"]
    assert inference["postprocessing#transforms"][: len(steps)] == steps  # and then its files and pictures


@each_bundle
def test_a_training_is_resumed_with_the_loss_and_the_bags_that_it_had(bundle: str) -> None:
    losses = []
    for alpha in (0.1, 0.2, 0.2):
        config = parser(bundle, "train")
        config["loss#alpha"] = alpha
        for part in ("train", "validate"):
            config[f"{part}#dataset"] = {"_target_": "Dataset", "data": [{"bag_id": part, "label": 1}]}
        losses.append(config.get_parsed_content("train#settings#loss"))
        for section, part in (("training", "train"), ("validation", "validate")):
            known = config.get_parsed_content(f"train#settings#{section}_bags")
            assert known == fingerprint([{"bag_id": part, "label": 1}])
    assert losses[0] != losses[1] == losses[2]


@each_bundle
def test_training_adds_chance_alone(bundle: str) -> None:
    config = parser(bundle, "train")
    if bundle == "wsi":  # where only a training that wants a part of its slides draws
        config["train#bags"], config["patches_per_step"] = [{"patches": 90}], 30
    training, validation = (config.get_parsed_content(f"{x}#preprocessing").transforms for x in ("train", "validate"))
    chance = [isinstance(step, RandomizableTrait) for step in training]
    assert chance == [False] * len(validation) + [True] * (len(training) - len(validation))
    assert list(map(type, training[: len(validation)])) == list(map(type, validation))
    assert any(chance)


def test_features_are_made_as_training_sees_scans() -> None:
    features, train = parser("ct", "features"), parser("ct", "train")
    assert preparation(features) == preparation(train)
    assert features["encoder#encoder"] == train["network_def#encoder"]
    for key in references([preparation(features), features["encoder#encoder"]]):
        assert features[key] == train[key], key
    assert {f"@{key}" for key in references(preparation(features))} < set(features["extractor#settings"].values())


def test_the_channels_are_the_windows_that_the_metadata_say() -> None:
    image = content(ROOT / "configs" / "ct" / "metadata.json")["network_data_format"]["inputs"]["image"]
    windows = [f"{centre}/{width}" for centre, width in parser("ct", "train")["windows"]]
    assert [channel.split()[-1] for channel in image["channel_def"].values()] == windows


@pytest.fixture
def cached(tmp_path: Path) -> ConfigParser:
    """train.json on one small scan, with a cache."""
    rng = np.random.default_rng(0)
    nib.save(nib.Nifti1Image(rng.normal(40, 40, (8, 8, 12)).astype(np.float32), np.eye(4)), tmp_path / "scan.nii")
    bags = [{"image": "scan.nii", "label": 1}]
    (tmp_path / "datalist.json").write_text(json.dumps({"training": bags, "validation": bags}))
    config = parser("ct", "train")
    config.update({"dataset_dir": str(tmp_path), "cache_dir": str(tmp_path / "cache"), "image_size": 8})
    return config


def test_what_is_before_the_first_random_transform_is_cached_once(cached: ConfigParser, tmp_path: Path) -> None:
    training, validation = (cached.get_parsed_content(f"{name}#dataset") for name in ("train", "validate"))
    training.transform.set_random_state(seed=3)
    before = training[0]
    (tmp_path / "scan.nii").unlink()
    training.transform.set_random_state(seed=3)
    again, other, plain = training[0], training[0], validation[0]
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert torch.equal(before["image"], again["image"])
    assert not torch.equal(again["image"], other["image"])  # drawn anew behind the cache
    assert plain["image"].shape == (3, 8, 8, 12)
    assert pickle.loads(pickle.dumps(training))[0]["label"].tolist() == [1]  # as a worker gets it


@pytest.mark.slow
def test_the_cache_is_found_again_by_another_process(cached: ConfigParser) -> None:
    code = (
        "from monai.data.utils import pickle_hashing; from tests.test_configs import parser; "
        "c = parser('ct', 'train'); c['image_size'] = 8; "
        "print(pickle_hashing(list(c.get_parsed_content('preprocessing').transforms)).decode())"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.split()[-1] == cached.get_parsed_content("validate#dataset").transform_hash
    assert cached.get_parsed_content("train#dataset").transform_hash in ended.stdout


def test_an_override_changes_what_is_there_and_does_to_inference_what_it_does_to_training() -> None:
    """The keys of an override are merged, not checked: a typo would change nothing and say nothing."""
    for path in OVERRIDES:
        bundle = path.parent.name
        whole = "inference" if path.stem in OF_INFERENCE else "features" if path.stem in OF_FEATURES else "train"
        base = ConfigParser(content(path.parent / f"{whole}.json"))
        assert {key for key in content(path) if key not in base} == NEW_KEYS.get(path.stem, set()), path
        same = [key for key, value in content(path).items() if key in base and base[key] == value]
        assert set(same) <= {"output_dir"}, path  # evaluation says once more where it writes
        if path.stem in NEW_KEYS.keys() - {"on_features"}:  # it changes what train.json or inference.json lacks
            continue
        inference, of_this = ConfigParser(content(path.parent / "inference.json")), of_network(bundle) | {"network_def"}
        assert all(key in inference for key in content(path) if key.split("#")[0] in of_this), path
        trained, used = parser(bundle, "train", path.stem), parser(bundle, "inference", path.stem)
        assert [key for key in of_this if trained[key] != used[key]] == [], path


@pytest.mark.parametrize(
    ("bundle", "files", "aggregator", "dims"),
    [
        ("ct", "inference small", GatedAttentionPool, 1),
        ("ct", "inference smap", SmoothAttentionPool, 1),
        ("ct", "inference on_features smtap", SmoothTransformer, 1),
        ("ct", "inference on_features abmil", GatedAttentionPool, 0),
        ("wsi", "inference", SmoothAttentionPool, 2),
        ("wsi", "inference abmil", GatedAttentionPool, 0),
        ("wsi", "inference smtap", SmoothTransformer, 2),
        ("wsi", "inference exact", SmoothAttentionPool, 2),
    ],
)
def test_a_composition_is_what_its_name_says(bundle: str, files: str, aggregator: type, dims: int) -> None:
    network = parser(bundle, *files.split()).get_parsed_content("network_def")
    assert isinstance(network, MILNetwork)
    assert (type(network.aggregator), network.spatial_dims) == (aggregator, dims)


@pytest.mark.parametrize(("name", "fine"), [("bracs", 7), ("panda", 6)])
def test_several_classes_are_named_once_for_every_network(name: str, fine: int) -> None:
    with pytest.raises(RuntimeError) as raised:
        parser("wsi", "train", "hmil").get_parsed_content("network_def")
    assert "name configs/bracs.json, panda.json" in str(input_error_message(raised.value))
    assert parser("wsi", "inference", "classes", name).get_parsed_content("network_def").head.out_features == fine
    for order in (["hmil", name], [name, "hmil"]):
        network = parser("wsi", "inference", *order).get_parsed_content("network_def")
        assert isinstance(network, HMIL)
        assert (network.coarse.weigh.out_features, network.fine.weigh.out_features) == (3, fine)
        steps = parser("wsi", "train", *order).get_parsed_content("validate#postprocessing").transforms
        (judge,) = (step for step in steps if isinstance(step, BagResultd))
        assert len(judge.names) == len(judge.groups) == fine
        assert len(set(judge.groups)) == 3


@pytest.mark.parametrize("head", [[], ["smap"], ["smtap"], ["abmil"]])
def test_a_head_stands_on_slices_and_on_features_and_what_is_not_sa_dmil_has_no_penalty(head: list[str]) -> None:
    for below, width in ([], 1152), (["on_features"], 64):
        network = parser("ct", "train", *below, *head).get_parsed_content("network_def")
        assert network.encoder.out_features == width
        instances, mask = torch.rand(1, width, 5), torch.ones(1, 1, 5)
        pooled = network.aggregator(instances, mask, network.graph(None, mask))
        assert network.head(pooled.embedding).shape == (1, 1)
    assert parser("ct", "train", *head).get_parsed_content("loss").penalty_weight == (0 if head else 0.5)
    assert parser("ct", "train", "attention").get_parsed_content("loss").penalty_weight == 0


def test_json_is_in_the_form_of_the_zoo() -> None:
    for path in [*CONFIGS, ROOT / "metadata.json"]:
        text = path.read_text(encoding="utf-8")
        assert text == json.dumps(json.loads(text), indent=4, ensure_ascii=False) + "\n", path


def test_nothing_is_written_that_breaks_away_from_the_bundle_folder() -> None:
    """A macro of a file is relative to the working folder, and MONAI Label knows no _meta_ and no `scripts`."""
    forbidden = r"^%.*\.(json|ya?ml)|@_meta_|\$\s*(from|import\s+scripts)\b|/(home|work|root|Users)/"
    found = [node for path in RUNNABLE for node in nodes(content(path)) if isinstance(node, str)]
    assert found
    assert [text for text in found if re.search(forbidden, text)] == []


@each_bundle
def test_handlers_are_literal_lists(bundle: str) -> None:
    """`--tracking mlflow` adds to the list, and can add to no expression."""
    for files in (["train"], ["train", "evaluate"], ["inference"]):
        config = parser(bundle, *files)
        for handlers in (config.get(key, []) for key in ("train#handlers", "validate#handlers", "handlers")):
            assert isinstance(handlers, list)
            assert all(isinstance(handler, dict) or re.fullmatch(r"@[\w:#]+", handler) for handler in handlers)


def test_every_component_exists_and_ours_take_these_arguments() -> None:
    locator = ComponentLocator()
    for component in (node for path in RUNNABLE for node in nodes(content(path))):
        target = component.get("_target_") if isinstance(component, dict) else None
        if target is None:
            continue
        found = locate(target) if "." in target else locator.get_component_module_name(target)
        assert found is not None, f"{target} cannot be imported"
        if target.startswith("scripts."):
            assert callable(found)
            arguments = {key: value for key, value in component.items() if not re.fullmatch(r"_\w+_", key)}
            bind = inspect.signature(found)
            (bind.bind_partial if component.get("_mode_") == "callable" else bind.bind)(**arguments)


@pytest.mark.parametrize("path", METADATA, ids=lambda path: path.parent.name)
def test_metadata_are_valid_with_the_version_in_the_changelog_and_the_pins_installed(path: Path) -> None:
    metadata, pinned = content(path), pins("requirements.txt")
    assert metadata["version"] in metadata["changelog"]
    assert f'version = "{metadata["version"]}"' in (ROOT / "pyproject.toml").read_text()
    for name, package in (("monai", "monai"), ("pytorch", "torch"), ("numpy", "numpy")):
        assert metadata[f"{name}_version"] == pinned[package]
    required = metadata["required_packages_version"]
    assert required == {name: pinned.get(name) for name in required}
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(metadata, content(shared_data("monai/meta_schema_20240725.json")))
    assert metadata["schema"].endswith("/meta_schema_20240725.json")


def test_the_umbrella_says_what_the_two_bundles_say() -> None:
    umbrella = content(ROOT / "metadata.json")
    ct, wsi = (content(ROOT / "configs" / bundle / "metadata.json") for bundle in BUNDLES)
    assert umbrella["network_data_format"] == ct["network_data_format"]
    assert umbrella["wsi_data_format"] == wsi["network_data_format"]
    for key in ("schema", "version", "changelog", "authors", "copyright", "intended_use"):
        assert umbrella[key] == ct[key] == wsi[key], key
    both = {**ct["required_packages_version"], **wsi["required_packages_version"]}
    assert umbrella["required_packages_version"] == both


@each_bundle
def test_a_bundle_folder_is_made_of_relative_links_and_has_a_name_that_monai_label_does_not_sort(bundle: str) -> None:
    wanted = {"configs": f"configs/{bundle}", "docs": f"docs/{bundle}", "scripts": "scripts", "LICENSE": "LICENSE"}
    for link, target in wanted.items():
        path = ROOT / "bundle" / BUNDLES[bundle] / link
        assert not os.path.isabs(os.readlink(path))
        assert path.resolve() == (ROOT / target).resolve()
        assert path.exists()
    assert {path.name for path in (ROOT / "bundle").iterdir() if path.is_dir()} == set(BUNDLES.values())
    assert not re.search("classification|detection|deepedit|deepgrow", BUNDLES[bundle])
    assert parser(bundle, "train")["experiment_name"] == BUNDLES[bundle]  # under which its runs are kept


def test_the_constraints_hold_every_pin() -> None:
    def held(name: str) -> dict[str, str]:
        return {re.sub(r"[-_.]+", "-", package).lower(): version for package, version in pins(name).items()}

    for name in ("requirements.txt", "requirements-dev.txt"):
        assert held(name)
        assert held(name).items() <= held("constraints.txt").items()


def test_every_source_carries_the_licence() -> None:
    header = (
        "# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors\n"
        "# SPDX-License-Identifier: Apache-2.0\n"
    )
    sources = [path for folder in ("scripts", "demo", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    assert len(sources) > 100
    assert [path for path in sources if not path.read_text().startswith(header)] == []
