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
from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from ignite.engine import Engine

from scripts.data.origins import Origin, RememberTraining, trained_with
from scripts.errors import InputError


def remember(folder: Path, encoder: str = "uni_v1", class_names: list[str] | None = None) -> None:
    validator = Engine(lambda engine, batch: None)
    RememberTraining(str(folder / "model.pt"), [{"encoder": encoder, "patch_um": 128.0}], class_names).attach(validator)
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


@pytest.mark.parametrize("content", ["", "[]", "{}"])
def test_a_spoiled_record_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.origin.json").write_text(content)
    with pytest.raises(InputError, match=r"model\.origin\.json does not say what the network was trained on: train"):
        trained_with(str(tmp_path / "model.pt"))


def test_of_several_processes_the_first_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second = SimpleNamespace(is_initialized=lambda: True, get_rank=lambda: 1)
    monkeypatch.setattr("scripts.data.origins.dist", second)
    remember(tmp_path)
    assert list(tmp_path.iterdir()) == []
