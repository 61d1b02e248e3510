# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint on disk to files that inference reads: all there, or none."""

import json
import logging
import pickle
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch

from scripts.core.errors import InputError
from scripts.networks import MILNetwork
from scripts.weights.convert import convert_checkpoint
from scripts.weights.sa_dmil import released_as
from scripts.weights.torchmil import TorchmilSettings
from tests.shared_data import shared_data
from tests.weights.configured import network
from tests.weights.tf_checkpoint import full_names, sa_dmil_tensors, write_checkpoint

FEATURES, HIDDEN = 6, 4
SMABMIL = {
    "last_layer.weight": torch.ones(1, FEATURES),
    "last_layer.bias": torch.zeros(1),
    "pool.proj1.weight": torch.ones(HIDDEN, FEATURES),
    "pool.proj1.bias": torch.zeros(HIDDEN),
    "pool.proj2.weight": torch.ones(1, HIDDEN),
    "pool.sm.sm.coef": torch.tensor(3.0),
}


@pytest.fixture
def smabmil(tmp_path: Path) -> Path:
    path = tmp_path / "smabmil.pth"
    torch.save(SMABMIL, path)
    return path


def loaded(bundle: str, model: Path, *overrides: Path) -> MILNetwork:
    return network(bundle, torch.load(model, weights_only=True), *overrides)


@pytest.mark.parametrize("given", ["att.ckpt.index", "att.ckpt.data-00000-of-00001", "."])
def test_sa_dmil_becomes_a_model_of_the_ct_bundle(tmp_path: Path, given: str, caplog: pytest.LogCaptureFixture) -> None:
    sa_dmil = write_checkpoint(tmp_path / "there", full_names(sa_dmil_tensors(outputs=2)), "att.ckpt")
    model = tmp_path / "new" / "att.pt"
    with caplog.at_level(logging.INFO):
        convert_checkpoint(sa_dmil.parent / given, model)
    loaded("ct", model)
    told = json.loads(model.with_suffix(".origin.json").read_text())["config"]
    assert told == {"network_def#slots": 57, "score": "attention", "score_smoothing": 0}  # as configs/ct/released.json
    assert sorted(path.name for path in model.parent.iterdir()) == ["att.origin.json", "att.pt"]
    for fact in ("not one of the three that were released", "inferred", "research use only", f"wrote {model}"):
        assert fact in caplog.text


def test_a_released_checkpoint_is_recognised_by_its_hash(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert released_as("57ae38f0" + "1" * 56) == "att_0_9"
    assert released_as("fc734d20" + "1" * 56) is None  # the whole hash is known
    with caplog.at_level(logging.INFO):
        convert_checkpoint(shared_data("sa_mil/checkpoints/baseline.ckpt.index"), tmp_path)
    assert "SA-DMIL, released as baseline (sha256 fc734d204520" in caplog.text
    assert "inferred" not in caplog.text  # its head has one output
    assert "badly calibrated" in caplog.text


def test_torchmil_becomes_a_model_and_its_network_the_same_whatever_holds_the_weights(tmp_path: Path) -> None:
    given, model, override = (tmp_path / name for name in ("best.ckpt", "smabmil.pt", "smabmil.json"))
    parameters = {name: torch.nn.Parameter(tensor) for name, tensor in SMABMIL.items()}
    written = set()
    for held in (
        SMABMIL,
        parameters,
        *({"epoch": 3, key: SMABMIL} for key in ("state_dict", "model_state_dict", "model")),
    ):
        torch.save(held, given)
        convert_checkpoint(given, model, settings=TorchmilSettings(steps=7), force=True)
        written.add(model.read_bytes())
    assert len(written) == 1
    config = json.loads(override.read_text(encoding="utf-8"))
    assert config == json.loads(model.with_suffix(".origin.json").read_text())["config"]
    assert (config["in_features"], config["network_def"]["aggregator"]["steps"]) == (FEATURES, 7)
    predicted = loaded("wsi", model, override).predict(
        torch.ones(1, FEATURES, 4), torch.tensor([[[0.0, 0, 1, 1], [0, 1, 0, 1]]])
    )
    # four equal patches, all neighbours of each other, stay as they are: f = 4 tanh(6), z = 1, logit 6
    torch.testing.assert_close(predicted.scores, torch.full((1, 1, 4), 4 * float(np.tanh(6))))
    torch.testing.assert_close(predicted.logits, torch.tensor([[6.0]]))


@pytest.mark.parametrize("there", ["out.pt", "out.json", "out.origin.json"])
def test_nothing_is_overwritten_unless_forced(smabmil: Path, tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("mine")
    with pytest.raises(InputError, match=f"{there} exists: give another name, or --force"):
        convert_checkpoint(smabmil, tmp_path / "out.pt")
    assert (tmp_path / there).read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {there, smabmil.name}
    convert_checkpoint(smabmil, tmp_path / "out.pt", force=True)
    loaded("wsi", tmp_path / "out.pt", tmp_path / "out.json")


def test_a_failed_write_and_an_output_that_cannot_be_leave_no_file(smabmil: Path, tmp_path: Path) -> None:
    with (
        patch.object(Path, "write_text", side_effect=OSError("the disk is full")),  # behind the weights
        pytest.raises(InputError, match=r"out\.origin\.json \(the disk is full\): make room there"),
    ):
        convert_checkpoint(smabmil, tmp_path / "out" / "out.pt")
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(InputError, match=r"out.pth is neither a folder nor a .pt file: give models, or models/model"):
        convert_checkpoint(smabmil, tmp_path / "out.pth")
    with pytest.raises(InputError, match=r"cannot write to .*: give another folder"):
        convert_checkpoint(smabmil, smabmil / "out.pt")


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("nothing.pt", None, "nothing.pt is missing: give an .index of TensorFlow, or a .pt of torchmil"),
        ("nothing.index", "sa-dmil", r"nothing.index cannot be read \(No such file or directory\)"),
        ("text.pt", None, "text.pt is no torch file, or holds more than tensors: save it with torch.save"),
        ("text.pt", "sa-dmil", "text.pt is no index of a TensorFlow 2 checkpoint"),
        ("code.pt", None, "code.pt is no torch file, or holds more than tensors"),
        ("scripted.pt", None, "scripted.pt is no torch file, or holds more than tensors"),
        ("list.pt", None, "list.pt holds no state dict: save it with torch.save"),
        ("numbers.pt", None, "numbers.pt holds no state dict"),
        ("other.index", None, "layer_with_weights-0/kernel .* it is missing: give one of the checkpoints"),
        ("coef.pt", None, "`pool.sm.sm.coef` is -1.0"),
        ("two", None, "two holds 2 .index files: give one checkpoint by its name"),
        ("list.pt", "keras", "--kind 'keras' is not known: give sa-dmil or torchmil"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, name: str, kind: str | None, message: str) -> None:
    (tmp_path / "text.pt").write_text("no weights")
    (tmp_path / "code.pt").write_bytes(pickle.dumps({"model": Path("x")}))
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"epoch": 3}, tmp_path / "numbers.pt")
    torch.save({**SMABMIL, "pool.sm.sm.coef": torch.tensor(-1.0)}, tmp_path / "coef.pt")
    torch.jit.script(torch.nn.Linear(1, 1)).save(str(tmp_path / "scripted.pt"))
    write_checkpoint(tmp_path, {"dense/kernel": np.ones(3, np.float32)}, "other")
    for name_of_index in ("a.index", "b.index"):
        (tmp_path / "two").mkdir(exist_ok=True)
        (tmp_path / "two" / name_of_index).touch()
    with pytest.raises(InputError, match=message) as error:
        convert_checkpoint(tmp_path / name, tmp_path / "new" / "out.pt", kind=kind)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "new").exists()
