# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""A network is described once, at training, and every run that uses its weights takes that up."""

import json
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ignite.engine import Engine
from monai.bundle import ConfigParser

from scripts.core.errors import InputError, input_error_message
from scripts.engine import provenance
from scripts.engine.provenance import Origin, RememberTraining, origin_file, take_up_training, trained_with

TRAIN: dict[str, Any] = {
    "image_size": 512,
    "class_names": None,
    "negative_class": None,
    "threshold": 0.5,
    "network_def": {"_target_": "torch.nn.Linear", "_desc_": "small", "in_features": "@image_size", "out_features": 1},
    "preprocessing": ["load", "window"],
}
INFERENCE: dict[str, Any] = {**TRAIN, "preprocessing": ["load", "keep a copy", "window"]}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle with its two shipped configs, and an override file that names a pool."""
    (tmp_path / "configs").mkdir()
    for name, config in (("train", TRAIN), ("inference", INFERENCE), ("metadata", {"version": "1"})):
        (tmp_path / "configs" / f"{name}.json").write_text(json.dumps(config))
    (tmp_path / "configs" / "pool.json").write_text(json.dumps({"preprocessing": ["$lambda: 'the bundle names this'"]}))
    return tmp_path


def component(function: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": f"scripts.engine.provenance.{function}", **arguments}


def trained(bundle: Path, bags: Any = (), **overrides: Any) -> str:
    """The path of weights that a training with these keys named has described."""
    weights = str(bundle / "model.pt")
    origin_file(weights).unlink(missing_ok=True)
    remember_it = component("RememberTraining", ckpt_path=weights, bundle_root=str(bundle), bags=bags)
    parser = ConfigParser({**deepcopy(TRAIN), "remember": remember_it})
    parser.update({key.replace("__", "#"): value for key, value in overrides.items()})
    remember: Any = parser.get_parsed_content("remember")
    validator = Engine(lambda engine, batch: None)
    remember.attach(validator)
    assert not origin_file(weights).exists()  # not before there are weights that it is true of
    validator.run([0])
    return weights


def taken_up(bundle: Path, weights: str, typed: tuple[str, ...] = (), **named: Any) -> Any:
    """What the next step of an inference with these keys named sees."""
    step = component("take_up_training", ckpt_path=weights, bundle_root=str(bundle), typed=list(typed))
    seen = ("image_size", "class_names", "negative_class")
    after = {"network": "@network_def", **{key: f"@{key}" for key in seen}}
    parser = ConfigParser({**deepcopy(INFERENCE), "run": [step, after]})
    parser.update({key.replace("__", "#"): value for key, value in named.items()})
    parser.parse()
    for index in range(2):  # as a workflow runs them, one by one
        result = parser.get_parsed_content(f"run::{index}")
    return {**result, "preprocessing": parser["preprocessing"]}


def refused(bundle: Path, weights: str, typed: tuple[str, ...] = (), **named: Any) -> str:
    """The line that a person sees: MONAI wraps what its components raise."""
    with pytest.raises(RuntimeError) as error:
        taken_up(bundle, weights, typed, **named)
    return str(input_error_message(error.value))


def test_what_was_left_as_shipped_is_as_it_was_trained(bundle: Path) -> None:
    keys: dict[str, Any] = {"image_size": 64, "class_names": ["N", "IC"], "network_def__out_features": 2}
    weights = trained(bundle, **keys)
    found = taken_up(bundle, weights)
    assert (found["image_size"], found["class_names"]) == (64, ["N", "IC"])
    assert (found["network"].in_features, found["network"].out_features) == (64, 2)
    assert found["preprocessing"] == INFERENCE["preprocessing"]  # training's own words for the shipped one
    # naming what was trained is no contradiction
    assert taken_up(bundle, weights, ("image_size",), **keys)["network"].in_features == 64


def test_another_preprocessing_than_the_shipped_one_is_taken_up_and_one_of_ones_own_contradicts(bundle: Path) -> None:
    assert taken_up(bundle, trained(bundle, preprocessing=["features"]))["preprocessing"] == ["features"]
    told = refused(bundle, trained(bundle), preprocessing=["load", "keep a copy", "other"])
    assert 'with preprocessing#2 "window", this run names "other"' in told


def test_a_run_without_a_network_and_the_same_preprocessing_in_blocks_are_no_contradiction(bundle: Path) -> None:
    """As features.json, which makes an encoder alone, and as streaming.json."""
    weights = trained(bundle, image_size=64)
    (bundle / "configs" / "streaming.json").write_text(json.dumps({"preprocessing": ["in blocks"]}))
    found = taken_up(bundle, weights, preprocessing=["in blocks"])
    assert (found["image_size"], found["preprocessing"]) == (64, ["in blocks"])
    step = component("take_up_training", ckpt_path=weights, bundle_root=str(bundle))
    ConfigParser({"image_size": 64, "step": step}).get_parsed_content("step")


@pytest.mark.parametrize(
    ("typed", "named", "told"),
    [
        ((), {"image_size": 32}, "with image_size 64, this run names 32"),
        (("image_size",), {"image_size": 512}, "with image_size 64, this run names 512"),  # shipped, and typed
        ((), {"network_def___target_": "torch.nn.Identity"}, 'network_def#_target_ "torch.nn.Linear", this run names'),
        ((), {"class_names": ["a", "b"]}, 'with class_names null, this run names ["a", "b"]'),
    ],
)
def test_a_contradiction_is_refused_with_the_key_and_both_values(
    bundle: Path, typed: tuple[str, ...], named: dict[str, Any], told: str
) -> None:
    weights = trained(bundle, image_size=64)
    assert told in refused(bundle, weights, typed, **named)


def test_weights_that_nothing_describes_have_the_network_of_the_config(
    bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert taken_up(bundle, str(bundle / "converted.pt"), image_size=32)["network"].in_features == 32
    (bundle / "old.origin.json").write_text('{"encoder": "uni", "patch_um": 128, "config": {}}')
    assert taken_up(bundle, str(bundle / "old.pt"))["network"].in_features == 512
    assert trained_with(str(bundle / "old.pt")) == Origin("uni", 128.0)
    assert [message.split(":")[0] for message in caplog.messages] == [
        "converted.origin.json is not there",
        "old.origin.json describes no network",
    ]


def beside(bundle: Path, **config: Any) -> str:
    """Weights with a file beside them that somebody has written by hand."""
    origin_file(bundle / "m.pt").write_text(json.dumps({"encoder": "", "patch_um": 0, "config": config}))
    return str(bundle / "m.pt")


@pytest.mark.parametrize(
    "code",
    [
        *("$__import__('os').system('id')", "%/etc/passwd", "os.system", "torch.nn.Linear.__call__"),
        *("torch.nn.parallel.distributed.os.system", "torch.nn.init.constant_", "scripts.networks.nn.Linear"),
    ],
)
def test_a_file_beside_weights_may_not_bring_code_of_its_own(bundle: Path, code: str) -> None:
    for place in ("image_size#_target_", "network_def#bias#_target_", "network_def#_target_"):
        told = refused(bundle, beside(bundle, **{"image_size": {}, "network_def#bias": {}, place: code}))
        assert f"m.origin.json names {code!r}" in told
        assert "which no config of this run does: if you trust it, name the config file" in told
    if code[0] in "$%":
        for key in ("image_size", "network_def#bias", "mine"):
            assert f"m.origin.json names {code!r}" in refused(bundle, beside(bundle, **{key: code}))


def test_a_file_beside_weights_sets_nothing_but_what_describes_a_network_of_this_bundle(bundle: Path) -> None:
    (bundle / "configs" / "inference.json").write_text(json.dumps({**INFERENCE, "run": [], "version": "1"}))
    for key in ("threshold", "run", "version"):
        told = refused(bundle, beside(bundle, **{key: 0}))
        assert f"m.origin.json sets {key}, which does not describe a network: remove it" in told
    told = refused(bundle, beside(bundle, image_size=4, windows=[]))
    assert told.endswith("m.origin.json describes weights of another bundle: no config of this one has windows")


def test_how_results_are_reported_may_be_named_anew(bundle: Path) -> None:
    weights = trained(bundle, negative_class="N")
    assert taken_up(bundle, weights)["negative_class"] == "N"
    assert taken_up(bundle, weights, ("negative_class",), negative_class="other")["negative_class"] == "other"


def test_weights_from_before_scores_flag_by_attention_as_they_did_unless_a_score_is_typed(bundle: Path) -> None:
    weights = trained(bundle)
    shipped = {"score": "instance", "score_smoothing": 0.7}
    for name, config in (("train", TRAIN), ("inference", INFERENCE)):
        (bundle / "configs" / f"{name}.json").write_text(json.dumps({**config, **shipped}))
    seen: dict[str, Any] = {**shipped, "negative_class": "$[@score, @score_smoothing]"}  # shows both
    assert taken_up(bundle, weights, **seen)["negative_class"] == ["attention", 0]
    assert taken_up(bundle, weights, ("score",), **seen)["negative_class"] == ["instance", 0]


def test_a_key_of_the_users_own_that_the_network_refers_to_comes_with_it(bundle: Path) -> None:
    weights = trained(bundle, my_width=7, network_def__out_features="@my_width")
    assert taken_up(bundle, weights)["network"].out_features == 7
    assert "with my_width 7, this run names 8" in refused(bundle, weights, my_width=8)


def test_code_that_the_bundle_or_the_user_names_may_be_taken_up(bundle: Path) -> None:
    named = ["$lambda: 'the bundle names this'"]
    known = trained(bundle, preprocessing=named)
    assert taken_up(bundle, known)["preprocessing"] == named
    origin_file(known).unlink()
    mine = trained(bundle, preprocessing=["$1 + 1"])
    assert taken_up(bundle, mine, preprocessing=["$1 + 1"])["preprocessing"] == ["$1 + 1"]
    assert "names '$1 + 1', which no config" in refused(bundle, mine)


def test_the_features_that_were_trained_on_are_remembered_and_a_damaged_description_is_an_error(bundle: Path) -> None:
    weights = trained(bundle, bags=[{"encoder": "uni_v1", "patch_um": 128.0}])
    assert trained_with(weights) == Origin("uni_v1", 128.0)
    assert trained_with(str(bundle / "other.pt")) is None
    of_0_4_0 = '{"encoder": "uni", "patch_um": 128, "class_names": null, "network": {}}'
    for content in ("", "[]", '{"encoder": "", "patch_um": "far"}', of_0_4_0):
        origin_file(weights).write_text(content)
        with pytest.raises(InputError, match=r"model\.origin\.json does not describe how the network was trained"):
            trained_with(weights)


def test_another_encoder_is_refused_and_one_not_stated_or_another_scale_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    origin = Origin("UNI_v1", 128.0)
    Origin().compare("anything", 128.0)
    for close_or_unknown in (128.0, 130.0, 0.0):
        origin.compare("uni_v1", close_or_unknown)
    assert not caplog.messages
    with pytest.raises(InputError, match="of the encoder conch, the network was trained on those of UNI_v1: give"):
        origin.compare("conch", 0.0)
    origin.compare("", 256.0)
    unstated, scale = caplog.messages
    assert "UNI_v1; state theirs with --encoder_name" in unstated
    assert "256 micrometres apart, those the network was trained on 128" in scale


def test_of_several_processes_the_first_writes(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second = SimpleNamespace(is_initialized=lambda: True, get_rank=lambda: 1)
    monkeypatch.setattr("scripts.engine.provenance.dist", second)
    assert not origin_file(trained(bundle)).exists()


def test_outside_a_config_there_is_none_to_remember(tmp_path: Path) -> None:
    for function in (RememberTraining, take_up_training):
        with pytest.raises(RuntimeError, match="no config is being run"):
            function(beside(tmp_path, a=1), str(tmp_path))


def test_of_two_bundles_in_one_process_each_takes_up_what_its_own_configs_say(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package that both import lies in one of them."""
    other = tmp_path / "other"
    (other / "configs").mkdir(parents=True)
    for name in ("train", "inference"):
        (other / "configs" / f"{name}.json").write_text(json.dumps({"preprocessing": ["another"]}))
    weights = trained(bundle, image_size=64)
    monkeypatch.setattr(provenance, "__file__", str(other / "scripts" / "engine" / "provenance.py"))
    after = taken_up(bundle, weights)
    assert (after["image_size"], after["preprocessing"]) == (64, INFERENCE["preprocessing"])
