# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from scripts.core.errors import InputError
from scripts.wsi.encoders import timm_model


def with_timm(monkeypatch: pytest.MonkeyPatch, create_model: Any) -> None:
    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model))


def test_timm_is_asked_for_the_network_without_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def create_model(name: str, **settings: Any) -> nn.Module:
        asked.update(settings, name=name)
        return nn.Identity()

    with_timm(monkeypatch, create_model)
    assert isinstance(timm_model("vit_small_patch16_224", num_classes=0, init_values=1e-5), nn.Identity)
    assert asked == {"name": "vit_small_patch16_224", "pretrained": False, "num_classes": 0, "init_values": 1e-5}


def test_without_timm_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"^the encoder vit needs timm, which is not installed: pip install timm$"):
        timm_model("vit")


def test_what_timm_does_not_know_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_model(name: str, **_: Any) -> nn.Module:
        raise RuntimeError(f"Unknown model ({name})")

    with_timm(monkeypatch, create_model)
    with pytest.raises(InputError, match=r"timm makes no vat of {} \(Unknown model \(vat\)\); see timm.list_models"):
        timm_model("vat")
