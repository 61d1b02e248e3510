# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
import hashlib
import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn

from scripts.core.errors import InputError
from scripts.wsi.encoders import SeededTileCNN, TileEncoder, named_by_timm, timm_model
from tests.shared_data import ROOT

RECIPES = {  # file → name in TRIDENT, features, parameters, side of a tile; of publications and model cards
    "resnet50": ("resnet50", 1024, 8_543_296, 256),
    "uni": ("uni_v1", 1024, 303_350_784, 256),
    "uni2_h": ("uni_v2", 1536, 681_394_176, 256),
    "virchow2": ("virchow2", 2560, 631_239_424, 224),
    "h_optimus_0": ("hoptimus0", 1536, 1_134_774_272, 224),
    "h_optimus_1": ("hoptimus1", 1536, 1_134_774_272, 224),
    "phikon": ("phikon", 768, 85_798_656, 224),
    "phikon_v2": ("phikon_v2", 1024, 303_350_784, 224),
    "conch": ("conch_v1", 512, None, 512),
}
IN_TIMM = sorted(RECIPES.keys() - {"conch"})


def test_timm_is_asked_for_the_network_without_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def create_model(name: str, **settings: Any) -> nn.Module:
        if name != "vit":
            raise RuntimeError(f"Unknown model ({name})")
        asked.update(settings)
        return nn.Identity()

    layers = SimpleNamespace(SwiGLUPacked=nn.Bilinear)
    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model, layers=layers))
    assert isinstance(timm_model("vit", num_classes=0, init_values=1e-5), nn.Identity)
    assert asked == {"pretrained": False, "num_classes": 0, "init_values": 1e-5}
    timm_model("vit", mlp_layer="SwiGLUPacked")
    assert asked["mlp_layer"] is nn.Bilinear
    with pytest.raises(InputError, match=r"timm makes no vit of .*no attribute 'SwiGLU'"):
        timm_model("vit", mlp_layer="SwiGLU")
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
    settings += [{"pooling": "token"}, {"pooling": "token+mean"}, {"pooling": "token+mean", "prefix_tokens": 5}]
    assert len({TileEncoder(nn.Identity(), "", None, **given).extra_repr() for given in settings}) == len(settings)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"weight": torch.ones(4)}, "weights of another network than colours .*size mismatch for weight"),
        ({"weight": torch.ones(1, 3), "fc.bias": torch.ones(2)}, "Unexpected key.*fc.bias"),
        ({"state_dict": 3}, "Missing key.*weight"),
        ({"head.weight": torch.ones(4)}, "Missing key.*weight.*; Unexpected key.*head.weight.*give those of it"),
        (
            {"weight": torch.ones(1, 3), "blocks.0.ls1.gamma": torch.ones(4)},
            r'Unexpected key.*"blocks.0.ls1.gamma".*give --encoder#backbone#init_values 1e-5, as they scale layers',
        ),
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


class Answering(nn.Module):
    """Gives the same whatever it is asked, and has a weight."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer
        self.weight = nn.Parameter(torch.zeros(2))

    def forward(self, tiles: Tensor) -> Any:
        return self.answer


def test_pooling_takes_the_class_token_or_adds_the_mean_of_the_image_or_that_of_a_map() -> None:
    tokens = torch.randn(2, 5 + 7, 3)
    tokens[:, 1:5] = 100  # registers, which are none of the image
    pooled = TileEncoder(Answering(tokens), "", None, pooling="token+mean", prefix_tokens=5)(torch.rand(2, 3, 4, 4))
    torch.testing.assert_close(pooled, torch.stack([torch.cat([each[0], sum(each[5:]) / 7]) for each in tokens]))
    first = TileEncoder(Answering(tokens), "", None, pooling="token")(torch.rand(2, 3, 4, 4))
    torch.testing.assert_close(first, tokens[:, 0], rtol=0, atol=0)
    features = torch.arange(2 * 3 * 4.0).view(1, 2, 3, 4)
    for answer in (features, [features], (features,)):  # timm's features_only gives a list
        pooled = TileEncoder(Answering(answer), "", None, pooling="map")(torch.rand(1, 3, 4, 4))
        assert pooled.tolist() == [[11 / 2, 12 + 11 / 2]]


@pytest.mark.parametrize(
    ("answer", "settings", "message"),
    [
        (
            [torch.rand(1, 4, 2, 2)] * 2,
            {},
            r"twig \(random, seed 0\) gave 2 outputs, .*#out_indices \[3\], and .*pooling map",
        ),
        ({"x": 3}, {}, "gave dict outputs, not one tensor"),
        (torch.rand(1, 4), {"pooling": "map"}, r"gave \[1, 4\], which pooling map does not take"),
        (torch.rand(1, 4), {"pooling": "token"}, r"gave \[1, 4\], which pooling token does not take"),
        (torch.rand(1, 4), {"dimension": 5}, r"gave 4 features, not 5: .*--encoder#dimension"),
        (torch.rand(1, 4), {"pooling": "max"}, "pooling max is none of token, token.mean, map and null"),
    ],
)
def test_what_is_no_vector_per_tile_is_refused_in_a_line(answer: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        TileEncoder(Answering(answer), "twig", None, **settings)(torch.rand(1, 3, 4, 4))
    assert "\n" not in str(caught.value)


def test_a_file_is_read_only_if_it_has_the_sha256_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(b"no weights")
    with pytest.raises(InputError, match=rf"weights.pt has the sha256 [0-9a-f]{{64}}, not {'0' * 64}: give the file"):
        TileEncoder(small_network(), "small", str(path), sha256="0" * 64)
    torch.save(small_network().state_dict(), path)
    TileEncoder(small_network(), "small", str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest().upper())


def test_weights_of_safetensors_are_read_by_that_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, state = tmp_path / "model.safetensors", {"weight": torch.tensor([3.0, 4.0])}
    path.write_bytes(b"anything")
    monkeypatch.setitem(sys.modules, "safetensors", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "safetensors.torch", SimpleNamespace(load_file=lambda _: state))
    encoder = TileEncoder(Answering(torch.rand(1, 4)), "small", str(path))
    assert encoder.get_parameter("backbone.weight").tolist() == [3, 4]
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(InputError, match=r"model.safetensors needs safetensors, .*: pip install safetensors$"):
        TileEncoder(Answering(torch.rand(1, 4)), "small", str(path))


def test_weights_that_transformers_named_are_renamed_and_query_key_and_value_put_together() -> None:
    """Names as a ViT of transformers has them, and a DINOv2, whose blocks scale their layers; one block of each."""
    draw = lambda *shape: torch.randn(shape)  # noqa: E731
    self_attention = "encoder.layer.11.attention.attention"
    parts = {
        f"{self_attention}.{name}.{what}": draw(2, 2)
        for name in ("key", "query", "value")
        for what in ("weight", "bias")
    }
    ours = {"cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings"}
    for what in ("weight", "bias"):
        ours |= {
            f"patch_embed.proj.{what}": f"embeddings.patch_embeddings.projection.{what}",
            f"blocks.11.attn.proj.{what}": f"encoder.layer.11.attention.output.dense.{what}",
            f"norm.{what}": f"layernorm.{what}",
        }
    vit = {
        f"blocks.11.{new}.{what}": f"encoder.layer.11.{old}.{what}"
        for new, old in {
            "norm1": "layernorm_before",
            "norm2": "layernorm_after",
            "mlp.fc1": "intermediate.dense",
            "mlp.fc2": "output.dense",
        }.items()
        for what in ("weight", "bias")
    }
    dino = {
        f"blocks.11.{name}": f"encoder.layer.11.{name}" for name in ("norm1.weight", "norm2.bias", "mlp.fc1.weight")
    }
    dino |= {f"blocks.11.ls{i}.gamma": f"encoder.layer.11.layer_scale{i}.lambda1" for i in (1, 2)}
    for names in ({**ours, **vit}, {**ours, **dino}):
        state = {**parts, **{old: draw(2) for old in names.values()}, "embeddings.mask_token": draw(2)}
        named = named_by_timm(state)
        assert named.keys() == {*names, "blocks.11.attn.qkv.weight", "blocks.11.attn.qkv.bias"}
        assert all(torch.equal(named[new], state[old]) for new, old in names.items())
        rows = [parts[f"{self_attention}.{name}.bias"] for name in ("query", "key", "value")]
        assert torch.equal(named["blocks.11.attn.qkv.bias"], torch.cat(rows))


def recipe(name: str, **keys: Any) -> ConfigParser:
    config = ConfigParser()
    config.read_config([ROOT / "configs/wsi" / file for file in ("features.json", f"encoders/{name}.json")])
    config.update(keys)
    return config


def test_every_recipe_is_known_here_and_in_the_documentation() -> None:
    files = {path.stem for path in (ROOT / "configs/wsi/encoders").glob("*.json")}
    assert files == RECIPES.keys()
    page = (ROOT / "docs/how_to/extract_features.md").read_text()
    for name, (_, dimension, _, side) in RECIPES.items():
        assert f"`{name}.json` | {dimension} | {side}, 0.5 |" in page


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_states_all_of_an_encoder_and_is_called_as_trident_calls_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    called, dimension, _, side = RECIPES[name]
    answer = {"resnet50": [torch.rand(1, 1024, 14, 14)], "virchow2": torch.rand(1, 261, 1280)}
    network = Answering(answer.get(name, torch.rand(1, dimension)))
    timm = SimpleNamespace(create_model=lambda *_, **__: network, layers=SimpleNamespace(SwiGLUPacked=None))
    monkeypatch.setitem(sys.modules, "timm", timm)
    path = tmp_path / "weights.pt"
    if name == "conch":
        torch.jit.script(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 512))).save(str(path))
    else:
        torch.save(network.state_dict(), path)
        assert recipe(name).get_parsed_content("encoder_name") == f"{called} (random, seed 0)"
    config = recipe(name, encoder_weights=str(path))
    plain, own = (
        json.loads((ROOT / "configs/wsi" / file).read_text()) for file in ("features.json", f"encoders/{name}.json")
    )
    assert own.keys() - plain.keys() == {"encoder_weights", "encoder_sha256"}
    assert (config.get_parsed_content("encoder_name"), config["tile_size"], config["mpp"]) == (called, side, 0.5)
    encoder = config.get_parsed_content("encoder")
    assert encoder(torch.rand(1, 3, side, side)).shape == (1, dimension)
    assert encoder.weights == hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    assert encoder.size == (448 if name == "conch" else 224)
    config = recipe(name, encoder_weights=str(path), encoder_sha256="0" * 64)
    with pytest.raises(RuntimeError, match="Failed to instantiate") as caught:
        config.get_parsed_content("encoder")
    assert "has the sha256" in str(caught.value.__cause__)


@pytest.mark.parametrize("name", IN_TIMM)
def test_a_recipe_makes_the_network_that_was_published(name: str) -> None:
    """Its parameters and features, without memory for them."""
    pytest.importorskip("timm", reason="timm is no dependency: pip install timm")
    _, dimension, parameters, _ = RECIPES[name]
    settings = recipe(name)["encoder"]
    backbone = {key: value for key, value in settings["backbone"].items() if key != "_target_"}
    with torch.device("meta"):
        network = timm_model(**backbone).eval()
        assert sum(each.numel() for each in network.parameters()) == parameters
        pooling = {key: settings[key] for key in ("pooling", "prefix_tokens") if key in settings}
        encoder = TileEncoder(nn.Identity(), name, None, **pooling)
        assert encoder._pooled(network(torch.empty(2, 3, 224, 224))).shape == (2, dimension)
