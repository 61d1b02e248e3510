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

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from scripts.data.origins import remember_training, trained_encoder
from scripts.errors import InputError


def test_inference_learns_what_the_network_was_trained_on(tmp_path: Path) -> None:
    remember_training(str(tmp_path), [{"encoder": "uni_v1"}], ["N", "DCIS"])
    assert trained_encoder(str(tmp_path / "model.pt")) == "uni_v1"
    assert json.loads((tmp_path / "model.json").read_text())["class_names"] == ["N", "DCIS"]


def test_of_converted_weights_nobody_knows(tmp_path: Path) -> None:
    assert trained_encoder(str(tmp_path / "model.pt")) == ""


@pytest.mark.parametrize("content", ["", "[]", "{}"])
def test_a_spoiled_record_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(InputError, match=r"model\.json does not say what the network was trained on: train again"):
        trained_encoder(str(tmp_path / "model.pt"))


def test_of_several_processes_the_first_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second = SimpleNamespace(is_initialized=lambda: True, get_rank=lambda: 1)
    monkeypatch.setattr("scripts.data.origins.dist", second)
    remember_training(str(tmp_path), [{"encoder": "uni_v1"}], None)
    assert list(tmp_path.iterdir()) == []
