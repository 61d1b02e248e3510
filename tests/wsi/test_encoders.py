# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
import hashlib
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from scripts.core.errors import InputError
from scripts.wsi.encoders import SeededTileCNN, TileEncoder, timm_model


def test_timm_is_asked_for_the_network_without_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def create_model(name: str, **settings: Any) -> nn.Module:
        if name != "vit":
            raise RuntimeError(f"Unknown model ({name})")
        asked.update(settings)
        return nn.Identity()

    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model))
    assert isinstance(timm_model("vit", num_classes=0, init_values=1e-5), nn.Identity)
    assert asked == {"pretrained": False, "num_classes": 0, "init_values": 1e-5}
    with pytest.raises(InputError, match=r"timm makes no vat of {} \(Unknown model \(vat\)\); see timm.list_models"):
        timm_model("vat")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"^the encoder vit needs timm, which is not installed: pip install timm$"):
        timm_model("vit")


def test_seeded_tile_cnn_depends_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = SeededTileCNN(seed=3)
    torch.manual_seed(2)
    tiles = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(first(tiles), SeededTileCNN(seed=3)(tiles), rtol=0, atol=0)
    assert not torch.allclose(first(tiles), SeededTileCNN(seed=4)(tiles))
    assert first.name == "seeded_tile_cnn_3"


PLAIN: dict[str, Any] = {"mean": [0, 0, 0], "std": [1, 1, 1]}


def small_network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1))


def test_tiles_are_normalised_by_mean_and_spread() -> None:
    tiles, mean, std = torch.rand(2, 3, 8, 8), torch.tensor([0.7, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.1])
    encoder = TileEncoder(nn.AdaptiveAvgPool2d(1), "colours", None, mean=mean.tolist(), std=std.tolist())
    torch.testing.assert_close(encoder(tiles), (tiles.mean(dim=(2, 3)) - mean) / std)
    assert not encoder.state_dict()  # what is in no file is not saved
    imagenet = TileEncoder(nn.AdaptiveAvgPool2d(1), "colours", None)(torch.full((1, 3, 8, 8), 0.5))
    torch.testing.assert_close(imagenet, torch.tensor([[0.015 / 0.229, 0.044 / 0.224, 0.094 / 0.225]]))


def test_tiles_are_brought_to_the_size_the_network_takes() -> None:
    """A gradient stays one, and its mean its mean; half as many pixels are means of what they cover."""
    ramp = ((torch.arange(16) + 0.5) / 16).expand(1, 3, 16, 16)
    shown = TileEncoder(nn.Flatten(), "", None, size=8, **PLAIN)(ramp).view(3, 8, 8)
    torch.testing.assert_close(shown[:, :, 1:-1], ((torch.arange(8) + 0.5) / 8).expand(3, 8, 8)[:, :, 1:-1])
    assert TileEncoder(nn.Flatten(), "", None, **PLAIN)(ramp).numel() == 3 * 16 * 16


def test_the_weights_of_a_file_are_used_and_name_the_encoder(tmp_path: Path) -> None:
    torch.manual_seed(5)
    trained = small_network().eval()
    state = {**trained.state_dict(), "fc.weight": torch.ones(2, 4)}
    tiles = torch.rand(2, 3, 8, 8)
    path = tmp_path / "weights.pt"
    for content in (state, {"state_dict": state, "epoch": 3}, {"model": state}):
        torch.save(content, path)
        encoder = TileEncoder(small_network(), "small", str(path), leave_out=["fc."], **PLAIN).eval()
        torch.testing.assert_close(encoder(tiles), trained(tiles).flatten(1))
        assert encoder.name == f"small (sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]})"


def test_without_weights_they_are_random_but_the_same_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    tiles = torch.rand(4, 3, 16, 16)
    with caplog.at_level(logging.WARNING):
        encoders = [TileEncoder(small_network(), "small", None, seed=seed).eval() for seed in (0, 0, 1)]
    assert "random" in caplog.text
    assert "--encoder_weights" in caplog.text
    assert [encoder.name for encoder in encoders] == [f"small (random, seed {seed})" for seed in (0, 0, 1)]
    first, second, other = (encoder(tiles) for encoder in encoders)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert not torch.allclose(first, other)
    assert first.std() > 0.05  # not of zeros


def test_what_is_kept_of_it_changes_with_what_it_does_to_tiles() -> None:
    """Features of other settings are refused by it."""
    settings: list[dict[str, Any]] = [{}, {"mean": [0, 0, 0]}, {"std": [1, 1, 1]}, {"size": 224}]
    assert len({TileEncoder(nn.Identity(), "", None, **given).extra_repr() for given in settings}) == 4


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"weight": torch.ones(4)}, "weights of another network than colours .*size mismatch for weight"),
        ({"weight": torch.ones(1, 3), "fc.bias": torch.ones(2)}, "Unexpected key.*fc.bias"),
        ({"state_dict": 3}, "Missing key.*weight"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, state: Any, message: str) -> None:
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(InputError, match=message) as caught:
        TileEncoder(nn.Linear(3, 1, bias=False), "colours", str(tmp_path / "weights.pt"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("backbone", [nn.Identity(), None])
def test_a_file_of_something_else_or_none_is_refused(tmp_path: Path, backbone: nn.Module | None) -> None:
    path = tmp_path / "weights.pt"
    for content in (None, b"", b"no weights at all"):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InputError, match=r"weights.pt: .*--encoder_w|holds no weights|no TorchScript") as caught:
            TileEncoder(backbone, "colours", str(path))
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="a TorchScript encoder needs its file: --encoder_weights FILE"):
        TileEncoder(None, "torchscript", None)
