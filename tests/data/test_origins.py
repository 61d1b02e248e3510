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

from scripts.data.origins import RememberTraining, trained_encoder
from scripts.errors import InputError


def remember(folder: Path, encoder: str = "uni_v1", class_names: list[str] | None = None) -> None:
    validator = Engine(lambda engine, batch: None)
    RememberTraining(str(folder / "model.pt"), [{"encoder": encoder}], class_names).attach(validator)
    assert not list(folder.iterdir())  # not before there are weights that it is true of
    validator.run([0])


def test_inference_learns_what_the_network_was_trained_on(tmp_path: Path) -> None:
    remember(tmp_path)
    assert trained_encoder(str(tmp_path / "model.pt")) == "uni_v1"
    assert trained_encoder(str(tmp_path / "other.pt")) == ""  # of converted weights nobody knows


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
    assert trained_encoder(str(tmp_path / "model.pt"), trained) == "uni_v1"
    with pytest.raises(InputError, match=message):
        trained_encoder(str(tmp_path / "model.pt"), asked)


@pytest.mark.parametrize("content", ["", "[]", "{}"])
def test_a_spoiled_record_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.origin.json").write_text(content)
    with pytest.raises(InputError, match=r"model\.origin\.json does not say what the network was trained on: train"):
        trained_encoder(str(tmp_path / "model.pt"))


def test_of_several_processes_the_first_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second = SimpleNamespace(is_initialized=lambda: True, get_rank=lambda: 1)
    monkeypatch.setattr("scripts.data.origins.dist", second)
    remember(tmp_path)
    assert list(tmp_path.iterdir()) == []
