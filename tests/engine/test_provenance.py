# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from ignite.engine import Engine
from torch import nn

from scripts.core.errors import InputError
from scripts.engine.provenance import Origin, RememberTraining, require_network, trained_with
from scripts.networks import FeatureProjection, GatedAttentionPool, MILNetwork, SmoothAttentionPool


def smap(
    placement: str = "early",
    mode: str = "approx",
    momentum: float = 0.1,
    dropout: float = 0.0,
    activation: str = "tanh",
) -> MILNetwork:
    head = nn.Sequential(nn.Dropout(dropout), nn.BatchNorm1d(8, momentum=momentum), nn.Linear(8, 1))
    pool = SmoothAttentionPool(8, 4, placement=placement, mode=mode, activation=activation)
    return MILNetwork(FeatureProjection(16, 8), pool, head, spatial_dims=2)


def abmil() -> MILNetwork:
    return MILNetwork(FeatureProjection(16, 8), GatedAttentionPool(8, 4), nn.Linear(8, 1))


def remember(
    folder: Path, encoder: str = "uni_v1", class_names: list[str] | None = None, network: nn.Module | None = None
) -> None:
    validator = Engine(lambda engine, batch: None)
    bags = [{"encoder": encoder, "patch_um": 128.0}]
    RememberTraining(str(folder / "model.pt"), network or smap(), bags, class_names).attach(validator)
    assert not list(folder.iterdir())  # not before there are weights that it is true of
    validator.run([0])


def test_inference_learns_what_the_network_was_trained_on(tmp_path: Path) -> None:
    remember(tmp_path)
    assert trained_with(str(tmp_path / "model.pt")) == Origin("uni_v1", 128.0)
    assert trained_with(str(tmp_path / "other.pt")) is None  # of converted weights nobody knows


def test_another_encoder_is_refused_and_one_that_nobody_names_is_told(caplog: pytest.LogCaptureFixture) -> None:
    trained = Origin("UNI_v1", 0.0)
    trained.compare("uni_v1", 128.0)
    Origin("", 0.0).compare("anything", 128.0)
    assert not caplog.messages
    with pytest.raises(InputError, match="of the encoder conch, the network was trained on those of UNI_v1: give"):
        trained.compare("conch", 0.0)
    trained.compare("", 0.0)
    (told,) = caplog.messages
    assert "trained on those of UNI_v1; state theirs with --encoder_name" in told


@pytest.mark.parametrize(("patch_um", "warned"), [(128.0, False), (130.0, False), (0.0, False), (256.0, True)])
def test_another_magnification_is_told(caplog: pytest.LogCaptureFixture, patch_um: float, warned: bool) -> None:
    Origin("e", 128.0).compare("e", patch_um)
    assert [m[:46] for m in caplog.messages] == ["patches are 256 micrometres apart, those the n"] * warned


@pytest.mark.parametrize(
    ("trained", "asked", "message"),
    [
        (
            ["a", "b", "c"],
            ["c", "b", "a"],
            "for the classes a, b, c, and is asked for the classes c, b, a: name",
        ),
        (
            ["0", "1"],
            None,
            "for the classes 0, 1, and is asked for one label, positive or not: name the",
        ),
        (None, ["N", "IC"], "trained for one label, positive or not, and is asked for the classes N, IC"),
    ],
)
def test_other_classes_are_refused(
    tmp_path: Path, trained: list[str] | None, asked: list[str] | None, message: str
) -> None:
    remember(tmp_path, class_names=trained)
    assert trained_with(str(tmp_path / "model.pt"), trained) == Origin("uni_v1", 128.0)
    with pytest.raises(InputError, match=message):
        trained_with(str(tmp_path / "model.pt"), asked)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (smap(mode="exact"), "a network with aggregator.smooth.exact false, the one asked for has true: give the over"),
        (smap(placement="late"), 'with aggregator.placement "early", the one asked for has "late": give the override'),
        (smap(activation="relu"), 'with aggregator.activation.kind "Tanh", the one asked for has "ReLU": give the'),
        (abmil(), 'with aggregator.kind "SmoothAttentionPool", the one asked for has "GatedAttentionPool": give the'),
        (nn.Linear(16, 1), 'with kind "MILNetwork", the one asked for has "Linear": give the override files and keys'),
        (nn.DataParallel(smap(mode="exact")), "smooth.exact false, the one asked for has true"),
    ],
    ids=["exact", "placement", "activation", "pool", "bare", "wrapped"],
)
def test_a_network_that_the_weights_fit_and_were_not_trained_in_is_refused(
    tmp_path: Path, asked: nn.Module, message: str
) -> None:
    smap().load_state_dict(smap(mode="exact").state_dict())  # so nobody else would notice
    remember(tmp_path)
    with pytest.raises(InputError, match=re.escape(message)):
        require_network(str(tmp_path / "model.pt"), asked)


def test_what_matters_to_training_alone_may_differ(tmp_path: Path) -> None:
    remember(tmp_path, network=smap(momentum=0.01, dropout=0.5))
    require_network(str(tmp_path / "model.pt"), smap().eval())
    require_network(str(tmp_path / "other.pt"), smap(mode="exact"))  # of weights that nothing is known of


def test_who_means_it_takes_the_line_out(tmp_path: Path) -> None:
    remember(tmp_path)
    path = tmp_path / "model.origin.json"
    kept = [line for line in path.read_text().splitlines() if 'smooth.exact"' not in line]
    path.write_text("\n".join(kept))
    require_network(str(tmp_path / "model.pt"), smap(mode="exact"))


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"encoder": "", "patch_um": 0, "class_names": null, "network": 1}']
)
def test_a_spoiled_record_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.origin.json").write_text(content)
    for reads in (trained_with, lambda path: require_network(path, smap())):
        with pytest.raises(
            InputError, match=r"model\.origin\.json does not say what the network was trained on: train"
        ):
            reads(str(tmp_path / "model.pt"))


def test_of_several_processes_the_first_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second = SimpleNamespace(is_initialized=lambda: True, get_rank=lambda: 1)
    monkeypatch.setattr("scripts.engine.provenance.dist", second)
    remember(tmp_path)
    assert list(tmp_path.iterdir()) == []
