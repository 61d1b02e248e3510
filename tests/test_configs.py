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
from scripts.networks import HMIL, GatedAttentionPool, MILNetwork, SmoothAttentionPool, SmoothTransformer
from tests.shared_data import ROOT, shared_data

BUNDLES = {"ct": "hemorrhage_ct_smooth_mil", "wsi": "pathology_wsi_smooth_mil"}
CONFIGS = sorted((ROOT / "configs").glob("*/*.json"))
METADATA = [ROOT / "metadata.json", *sorted((ROOT / "configs").glob("*/metadata.json"))]
RUNNABLE = [path for path in CONFIGS if path.name != "metadata.json"]
WHOLE = {"train", "inference", "features", "metadata"}  # every other file changes keys of train.json
OVERRIDES = [path for path in RUNNABLE if path.stem not in WHOLE]
OF_INFERENCE = {"onnx", "streaming", "multi_gpu_inference"}  # they change keys of inference.json
OF_FEATURES = {"encoder_monai", "encoder_timm", "encoder_torchscript"}  # of features.json
NEW_KEYS = {  # that a file may add
    "onnx": {"onnx_path"},
    "streaming": {"block_size"},
    "on_features": {"in_features", "find"},  # the second is a key of inference.json
    "evaluate": {"ckpt_path", "section"},
    "multi_gpu_inference": {"initialize", "finalize"},
    "encoder_monai": {"encoder_weights"},
    "encoder_torchscript": {"encoder_weights"},
    "encoder_timm": {"encoder_weights", "encoder_model"},
    "multi_gpu_train": {
        "train#sampler", "train#dataloader#sampler", "validate#sampler", "validate#dataloader#sampler", "finalize",
    },
}  # fmt: skip

ELSEWHERE = NEW_KEYS.keys() - {"on_features"}  # what they change is not in both train.json and inference.json

each_bundle = pytest.mark.parametrize("bundle", BUNDLES)
each_metadata = pytest.mark.parametrize("path", METADATA, ids=lambda path: path.parent.name)


def changed(path: Path) -> ConfigParser:
    """The file whose keys an override changes."""
    whole = "inference" if path.stem in OF_INFERENCE else "features" if path.stem in OF_FEATURES else "train"
    return ConfigParser(content(path.parent / f"{whole}.json"))


def named(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def content(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def parser(bundle: str, *names: str) -> ConfigParser:
    """The files merged in their order as the command line merges them, their macros resolved."""
    merged = ConfigParser()
    merged.read_config([ROOT / "configs" / bundle / f"{name}.json" for name in names])
    merged.resolve_macro_and_relative_ids()
    return merged


def has(config: ConfigParser, key: str) -> bool:
    try:
        config[key]
    except KeyError:
        return False
    return True


def nodes(value: Any) -> Iterator[Any]:
    """A JSON value and every one within it."""
    yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from nodes(inner)


def texts(path: Path) -> list[str]:
    return [node for node in nodes(content(path)) if isinstance(node, str)]


def components(path: Path) -> list[dict[str, Any]]:
    return [node for node in nodes(content(path)) if isinstance(node, dict) and "_target_" in node]


def pins(name: str) -> dict[str, str]:
    lines = (line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return dict(line.split("==") for line in lines if line and not line.startswith("-"))


def three(bundle: str) -> tuple[ConfigParser, ConfigParser, ConfigParser]:
    """What trains, what evaluates and what infers."""
    return parser(bundle, "train"), parser(bundle, "train", "evaluate"), parser(bundle, "inference")


def references(value: object) -> set[str]:
    return set(re.findall(r"@(\w+)", json.dumps(value)))


# --- train, evaluate and inference say the same


def of_network(bundle: str) -> set[str]:
    """Top-level keys that the network is made from."""
    return references(parser(bundle, "train")["network_def"]) - {"network_def"}


def preparation(config: ConfigParser) -> list[dict[str, Any]]:
    """What is done to every image, whatever a file calls it; a copy for the pictures changes nothing."""
    key = "preprocessing" if has(config, "preprocessing") else "train#preprocessing"
    return [step for step in config[key]["transforms"] if step["_target_"] != "CopyItemsd"]


@each_bundle
@pytest.mark.parametrize("files", [("inference",), ("train", "evaluate"), ("inference", "onnx")], ids="-".join)
def test_the_network_of_the_weights_is_taken_up_before_anything_else(bundle: str, files: tuple[str, ...]) -> None:
    first, *_ = parser(bundle, *files)["run"]
    assert first["_target_"] == "scripts.engine.launch.prepare_run"
    assert (first["ckpt_path"], first["bundle_root"]) == ("@ckpt_path", "@bundle_root")


@each_bundle
def test_training_describes_all_that_the_network_is_made_of(bundle: str) -> None:
    of_classes = {"class_names", "hierarchy", "negative_class"} if bundle == "wsi" else set()
    assert {"network_def", "preprocessing", *of_network(bundle), *of_classes} <= set(DESCRIBED)


@each_bundle
def test_network_and_preparation_are_the_same_wherever_they_are_named(bundle: str) -> None:
    train, evaluate, inference = three(bundle)
    assert train["network_def"] == evaluate["network_def"] == inference["network_def"]
    wanted = preparation(train)
    assert wanted
    assert wanted == preparation(evaluate) == preparation(inference)
    keys = of_network(bundle) | references(wanted) | {"threshold"}
    assert keys >= {"ct": {"image_size", "channels", "windows"}, "wsi": {"in_features"}}[bundle]
    for key in keys:
        assert train[key] == evaluate[key] == inference[key], key


@each_bundle
def test_training_adds_chance_alone(bundle: str) -> None:
    config = parser(bundle, "train")
    training = config.get_parsed_content("train#preprocessing").transforms
    validation = config.get_parsed_content("validate#preprocessing").transforms
    assert not any(isinstance(step, RandomizableTrait) for step in validation)
    assert list(map(type, training[: len(validation)])) == list(map(type, validation))
    assert all(isinstance(step, RandomizableTrait) for step in training[len(validation) :])
    assert (len(training) > len(validation)) == (bundle == "ct")


def test_features_are_made_as_training_sees_scans() -> None:
    features, train = parser("ct", "features"), parser("ct", "train")
    assert preparation(features) == preparation(train)
    assert features["encoder#encoder"] == train["network_def#encoder"]
    for key in references([preparation(features), features["encoder#encoder"]]):
        assert features[key] == train[key], key
    assert {f"@{key}" for key in references(preparation(features))} < set(features["extractor#settings"].values())


@each_bundle
def test_a_bag_is_collated_asked_and_judged_the_same(bundle: str) -> None:
    train, evaluate, inference = three(bundle)
    collations = [train["train#dataloader#collate_fn"], inference["dataloader#collate_fn"]]
    assert all(one == evaluate["validate#dataloader#collate_fn"] for one in collations)
    assert train["prepare_batch"] == evaluate["prepare_batch"] == inference["prepare_batch"]
    assert evaluate["validate#inferer"] == inference["inferer"]
    steps = evaluate["validate#postprocessing#transforms"]
    assert inference["postprocessing#transforms"][: len(steps)] == steps  # and then its files and pictures


@each_bundle
def test_the_network_is_what_the_metadata_say(bundle: str) -> None:
    image = content(ROOT / "configs" / bundle / "metadata.json")["network_data_format"]["inputs"]["image"]
    train = parser(bundle, "train")
    if bundle == "ct":
        assert image["num_channels"] == len(train["windows"]) == len(image["channel_def"])
        assert image["spatial_shape"] == [train["image_size"]] * 2 + ["*"]
        for (centre, width), channel in zip(train["windows"], image["channel_def"].values(), strict=True):
            assert channel.endswith(f" {centre}/{width}")
    else:
        assert image["num_channels"] == train["in_features"]
        assert image["spatial_shape"] == ["*"]


# --- what is kept of a scan between epochs


@pytest.fixture
def cached(tmp_path: Path) -> ConfigParser:
    """train.json on one small scan, with a cache."""
    rng = np.random.default_rng(0)
    nib.save(nib.Nifti1Image(rng.normal(40, 40, (8, 8, 12)).astype(np.float32), np.eye(4)), tmp_path / "scan.nii")
    bags = [{"image": "scan.nii", "label": 1}]
    (tmp_path / "datalist.json").write_text(json.dumps({"training": bags, "validation": bags}))
    config = ConfigParser(content(ROOT / "configs" / "ct" / "train.json"))
    config.update({"dataset_dir": str(tmp_path), "cache_dir": str(tmp_path / "cache"), "image_size": 8})
    return config


def test_all_before_the_first_random_transform_is_cached_once_for_training_and_validation(
    cached: ConfigParser, tmp_path: Path
) -> None:
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
        "from monai.bundle import ConfigParser; from monai.data.utils import pickle_hashing; "
        "c = ConfigParser(ConfigParser.load_config_file('configs/ct/train.json')); c['image_size'] = 8; "
        "print(pickle_hashing(list(c.get_parsed_content('preprocessing').transforms)).decode())"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.split()[-1] == cached.get_parsed_content("validate#dataset").transform_hash
    assert cached.get_parsed_content("train#dataset").transform_hash in ended.stdout


# --- small files that change a few keys


def test_an_override_changes_what_is_there() -> None:
    """The keys of an override are merged, not checked: a typo would change nothing and say nothing."""
    for path in OVERRIDES:
        base = changed(path)
        new = {key for key in content(path) if not has(base, key)}
        assert new == NEW_KEYS.get(path.stem, set()), path
        same = [key for key, value in content(path).items() if has(base, key) and base[key] == value]
        assert set(same) <= {"output_dir"}, path  # evaluation says once more where it writes


def test_what_an_override_does_to_the_network_it_can_do_to_inference() -> None:
    for path in (path for path in OVERRIDES if path.stem not in ELSEWHERE):
        bundle, inference = path.parent.name, ConfigParser(content(path.parent / "inference.json"))
        about_network = [key for key in content(path) if key.split("#")[0] in of_network(bundle) | {"network_def"}]
        assert all(has(inference, key) for key in about_network), path
        trained, used = parser(bundle, "train", path.stem), parser(bundle, "inference", path.stem)
        for key in ("network_def", *of_network(bundle)):
            assert trained[key] == used[key], (path, key)


@pytest.mark.parametrize(
    ("bundle", "files", "aggregator", "dims"),
    [
        ("ct", "inference small", GatedAttentionPool, 1),
        ("ct", "inference on_features", GatedAttentionPool, 1),
        ("ct", "inference smap", SmoothAttentionPool, 1),
        ("ct", "inference on_features smap", SmoothAttentionPool, 1),
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


@pytest.mark.parametrize(("name", "fine", "coarse"), [("bracs", 7, 3), ("panda", 6, 3)])
def test_several_classes_are_named_once_for_every_network(name: str, fine: int, coarse: int) -> None:
    flat = parser("wsi", "inference", "classes", name).get_parsed_content("network_def")
    assert flat.head.out_features == fine
    for order in (["hmil", name], [name, "hmil"]):
        network = parser("wsi", "inference", *order).get_parsed_content("network_def")
        assert isinstance(network, HMIL)
        assert (network.coarse.weigh.out_features, network.fine.weigh.out_features) == (coarse, fine)
        steps = parser("wsi", "train", *order).get_parsed_content("validate#postprocessing").transforms
        (judge,) = (step for step in steps if isinstance(step, BagResultd))
        assert len(judge.names) == len(judge.groups) == fine
        assert len(set(judge.groups)) == coarse


def test_hmil_without_a_hierarchy_says_what_is_missing() -> None:
    with pytest.raises(RuntimeError) as raised:
        parser("wsi", "train", "hmil").get_parsed_content("network_def")
    assert "name configs/bracs.json, panda.json" in str(input_error_message(raised.value))


def test_what_is_not_sa_dmil_has_no_penalty() -> None:
    assert parser("ct", "train").get_parsed_content("loss").alpha == 0.5
    for name in ("attention", "smap", "smtap", "abmil"):
        assert parser("ct", "train", name).get_parsed_content("loss").alpha == 0, name


@pytest.mark.parametrize("head", [[], ["smap"], ["smtap"], ["abmil"]])
def test_a_head_stands_on_slices_and_on_features(head: list[str]) -> None:
    for below, width in ([], 1152), (["on_features"], 256):
        network = parser("ct", "train", *below, *head).get_parsed_content("network_def")
        assert network.encoder.out_features == width
        instances = torch.rand(1, width, 5)
        pooled = network.aggregator(instances, torch.ones(1, 1, 5), network.graph(None, torch.ones(1, 1, 5)))
        assert network.head(pooled.embedding).shape == (1, 1)


@each_bundle
def test_the_same_settings_have_the_same_recipe(bundle: str, tmp_path: Path) -> None:
    """Or inference would never find that a scan is done."""
    (tmp_path / "model.pt").write_bytes(b"weights")

    def recipe(**changes: Any) -> str:
        config = parser(bundle, "inference")
        config.update({"bundle_root": str(ROOT / "bundle" / BUNDLES[bundle]), "ckpt_path": str(tmp_path / "model.pt")})
        config.update(changes)
        text: str = config.get_parsed_content("recipe")
        return text

    assert recipe() == recipe()
    assert recipe() != recipe(threshold=0.4)
    assert recipe() != recipe(**{"preprocessing#transforms#0#keys": ["image", "label"]})


# --- what the consumers of a bundle demand


def test_json_is_in_the_form_of_the_zoo() -> None:
    for path in [*CONFIGS, ROOT / "metadata.json"]:
        text = path.read_text(encoding="utf-8")
        assert text == json.dumps(json.loads(text), indent=4, ensure_ascii=False) + "\n", path


def test_nothing_is_written_that_breaks_away_from_the_bundle_folder() -> None:
    for text in (text for path in RUNNABLE for text in texts(path)):
        assert not re.match(r"%.*\.(json|ya?ml)", text), f"{text}: a macro of a file is relative to the working folder"
        assert "@_meta_" not in text, f"{text}: unknown to MONAI Label"
        assert not re.search(r"\$\s*(from|import\s+scripts)\b", text), f"{text}: scripts is reached by _target_ alone"
        assert not re.search(r"/(home|work|root|Users)/", text), f"{text}: a path of one machine"


@each_bundle
def test_handlers_are_literal_lists(bundle: str) -> None:
    """`--tracking mlflow` adds to the list, and can add to no expression."""
    for files in (["train"], ["train", "evaluate"], ["inference"]):
        config = parser(bundle, *files)
        for key in ("train#handlers", "validate#handlers", "handlers"):
            handlers = config[key] if has(config, key) else []
            assert isinstance(handlers, list)
            assert all(isinstance(handler, dict) or re.fullmatch(r"@[\w:#]+", handler) for handler in handlers)


def test_every_component_exists_and_ours_take_these_arguments() -> None:
    locator = ComponentLocator()
    for component in (component for path in RUNNABLE for component in components(path)):
        target = component["_target_"]
        found = locate(target) if "." in target else locator.get_component_module_name(target)
        assert found is not None, f"{target} cannot be imported"
        if target.startswith("scripts."):
            assert callable(found)
            arguments = {key: value for key, value in component.items() if not re.fullmatch(r"_\w+_", key)}
            bind = inspect.signature(found)
            (bind.bind_partial if component.get("_mode_") == "callable" else bind.bind)(**arguments)


# --- metadata


@each_metadata
def test_metadata_are_valid(path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(content(path), content(shared_data("monai/meta_schema_20240725.json")))
    assert content(path)["schema"].endswith("/meta_schema_20240725.json")


@each_metadata
def test_the_version_is_in_the_changelog_and_the_pins_are_those_installed(path: Path) -> None:
    metadata, pinned = content(path), pins("requirements.txt")
    assert metadata["version"] in metadata["changelog"]
    for name, package in (("monai", "monai"), ("pytorch", "torch"), ("numpy", "numpy")):
        assert metadata[f"{name}_version"] == pinned[package]
    required = metadata["required_packages_version"]
    assert required == {name: pinned.get(name) for name in required}


def test_the_umbrella_says_what_the_two_bundles_say() -> None:
    umbrella = content(ROOT / "metadata.json")
    ct, wsi = (content(ROOT / "configs" / bundle / "metadata.json") for bundle in BUNDLES)
    assert umbrella["network_data_format"] == ct["network_data_format"]
    assert umbrella["wsi_data_format"] == wsi["network_data_format"]
    for key in (
        "schema", "version", "changelog", "monai_version", "pytorch_version", "numpy_version", "authors", "copyright",
        "intended_use",
    ):  # fmt: skip
        assert umbrella[key] == ct[key] == wsi[key], key
    both = {**ct["required_packages_version"], **wsi["required_packages_version"]}
    assert umbrella["required_packages_version"] == both
    assert f'version = "{umbrella["version"]}"' in (ROOT / "pyproject.toml").read_text()


# --- folders, pins, licence


@each_bundle
def test_a_bundle_folder_is_made_of_relative_links(bundle: str) -> None:
    wanted = {"configs": f"configs/{bundle}", "docs": f"docs/{bundle}", "scripts": "scripts", "LICENSE": "LICENSE"}
    for link, target in wanted.items():
        path = ROOT / "bundle" / BUNDLES[bundle] / link
        assert not os.path.isabs(os.readlink(path))
        assert path.resolve() == (ROOT / target).resolve()
        assert path.exists()


def test_the_names_of_the_bundles_hold_no_word_by_which_monai_label_would_sort_them() -> None:
    names = sorted(path.name for path in (ROOT / "bundle").iterdir() if path.is_dir())
    assert names == sorted(BUNDLES.values())
    assert not [name for name in names if re.search("classification|detection|deepedit|deepgrow", name)]
    for bundle, name in BUNDLES.items():
        assert parser(bundle, "train")["experiment_name"] == name  # under which its runs are kept


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_the_constraints_hold_every_pin(name: str) -> None:
    def plain(package: str) -> str:
        return re.sub(r"[-_.]+", "-", package).lower()

    held = {plain(package): version for package, version in pins("constraints.txt").items()}
    wanted = {plain(package): version for package, version in pins(name).items()}
    assert wanted
    assert wanted == {package: held.get(package) for package in wanted}


def test_every_source_carries_the_licence() -> None:
    header = [
        "# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors",
        "# SPDX-License-Identifier: Apache-2.0",
    ]
    folders = ("scripts", "demo", "tests", "benchmarks")
    sources = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert len(sources) > 100
    assert [str(path) for path in sources if path.read_text().splitlines()[:2] != header] == []
