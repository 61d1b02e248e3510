# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""An ONNX file answers as the network does, for bags of any size; one that does not is not kept."""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from scripts.core.errors import InputError
from scripts.engine.onnx import export_onnx
from scripts.networks import BagPrediction, MILNetwork, SmoothOperator
from scripts.networks.hmil import HMIL
from tests.networks.compositions import FEATURES
from tests.networks.compositions import network as composition

onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
pytest.importorskip("onnxscript", reason="needs onnxscript")

# One for each thing that the exporter has to follow; the other compositions are made of the same operations.
EXPORTED = (
    "instance mean",
    "gated, slots",
    "smooth early, chain, spacing",
    "smooth early, lattice weighted by features",
    "smooth early, accelerated",
    "smooth early, exact lattice",
    "smooth transformer, landmarks",
    "smooth transformer, lattice",
)
HIERARCHY = {"benign": ["N", "PB"], "malignant": ["DCIS", "IC"]}


def assert_same(path: Path, net: nn.Module, image: Tensor, coords: Tensor, mask: Tensor) -> None:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    bag = {"image": image.numpy(), "coords": coords.numpy(), "mask": mask.numpy()}
    answers = session.run(["pred", "scores", "attention"], {one.name: bag[one.name] for one in session.get_inputs()})
    with torch.no_grad():
        wanted = net.predict(image, coords, mask)  # type: ignore[operator]
    for got, one in zip(answers, (wanted.logits, wanted.scores, wanted.attention), strict=True):
        torch.testing.assert_close(torch.from_numpy(got), one, atol=1e-5, rtol=1e-4)


def network(name: str) -> MILNetwork:
    """A composition that smooths in few terms: the exporter unrolls each, for seconds."""
    net = composition(name)
    for part in net.modules():
        if isinstance(part, SmoothOperator):
            part.steps = 3
            part.alpha_logit.data.fill_(-1.5)
    return net


@pytest.fixture
def untraced() -> Iterator[None]:
    """The measuring of coverage makes the exporter twice as slow."""
    tracer = sys.gettrace()
    sys.settrace(None)
    yield
    sys.settrace(tracer)


@pytest.mark.slow
@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("name", EXPORTED)
def test_onnxruntime_gives_the_logits_and_scores(name: str, tmp_path: Path) -> None:
    """Bags of other sizes than the example, on lattices and chains of another form, with padding at their end."""
    net = network(name)
    export_onnx(net, str(tmp_path / "model.onnx"), torch.rand(1, FEATURES, 6))
    generator = torch.Generator().manual_seed(0)
    for n in (1, 2, 5, 16) if net.slots else (1, 2, 5, 90):
        place = torch.randperm(n, generator=generator)
        coords = (torch.stack([place // 9, place % 9]) if net.spatial_dims == 2 else place[None]).float()[None]
        image, mask = torch.randn(1, FEATURES, n, generator=generator), torch.ones(1, 1, n)
        assert_same(tmp_path / "model.onnx", net, image, coords, mask)
        mask[..., n - n // 3 :] = 0
        if n != 2 and not net.slots:
            assert_same(tmp_path / "model.onnx", net, image, coords, mask)


@pytest.mark.slow
def test_the_answer_without_an_instance_behind_a_head_that_is_not_linear_too(tmp_path: Path) -> None:
    net = network("gated")
    net.head = nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 1))
    net.linear = False
    export_onnx(net, str(tmp_path / "model.onnx"), torch.rand(1, FEATURES, 4))  # which asks it of other sizes


@pytest.mark.slow
def test_hierarchies_too(tmp_path: Path) -> None:
    slides = HMIL(FEATURES, HIERARCHY, embed_features=5, hidden_features=4).eval()
    export_onnx(slides, str(tmp_path / "slides.onnx"), torch.rand(1, FEATURES, 3))
    mask = torch.tensor([[[1.0, 1, 1, 1, 0]]])
    assert_same(tmp_path / "slides.onnx", slides, torch.rand(1, FEATURES, 5), torch.zeros(1, 1, 5), mask)


@pytest.mark.slow
def test_the_weights_are_those_of_the_checkpoint_and_the_network_is_left_as_it_was(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained = network("smooth early, exact lattice")
    for parameter in trained.parameters():
        parameter.data += 0.3
    torch.save({"model": trained.state_dict()}, tmp_path / "model.pt")
    net = network("smooth early, exact lattice").train()
    terms = net.aggregator.smooth._terms  # type: ignore[union-attr]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with caplog.at_level(logging.INFO):
        export_onnx(net, str(tmp_path / "model.onnx"), torch.rand(1, FEATURES, 4), str(tmp_path / "model.pt"))
    assert "onnxruntime answers as the network does" in caplog.text
    content = (tmp_path / "model.onnx").read_bytes()
    assert b"site-packages" not in content
    assert b".py" not in content  # no path of the machine that made it
    coords = torch.tensor([[[0.0, 1, 1], [0.0, 0, 1]]])
    assert_same(tmp_path / "model.onnx", trained, torch.rand(1, FEATURES, 3), coords, torch.ones(1, 1, 3))

    assert net.training
    assert net.aggregator.smooth._terms == terms  # type: ignore[union-attr]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert logging.root.manager.disable == logging.NOTSET


@pytest.mark.parametrize("more", [1.0, torch.nan])
def test_a_file_that_answers_otherwise_is_not_kept(tmp_path: Path, more: float) -> None:
    class TwoFaced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.honest = network("mean")

        def predict(self, image: Tensor, coords: Tensor, mask: Tensor) -> BagPrediction:
            said: BagPrediction = self.honest.predict(image, coords, mask)
            return said if torch.compiler.is_exporting() else said._replace(logits=said.logits + more)

    with pytest.raises(RuntimeError, match="answers otherwise than the network"):
        export_onnx(TwoFaced(), str(tmp_path / "model.onnx"), torch.rand(1, FEATURES, 4))
    assert list(tmp_path.iterdir()) == []


def test_an_example_of_one_instance_and_a_missing_package_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without onnxruntime the file is written, and a warning says that it was not run."""
    with pytest.raises(InputError, match="holds one instance, and so would every bag: give 2 or more"):
        export_onnx(network("mean"), str(tmp_path / "model.onnx"), torch.rand(1, FEATURES, 1))
    missing = ["onnx"]
    monkeypatch.setattr("scripts.engine.onnx.optional_import", lambda name: (None, name not in missing))
    given = (network("mean"), str(tmp_path / "model.onnx"), torch.rand(1, FEATURES, 4))
    for missing in (["onnx"], ["onnxscript"]):
        with pytest.raises(InputError, match=f"ONNX export needs the package {missing[0]}: pip install"):
            export_onnx(*given)
    missing = ["onnxruntime"]
    export_onnx(*given)
    assert "was not run: onnxruntime is not installed" in caplog.text
    assert (tmp_path / "model.onnx").stat().st_size > 0
