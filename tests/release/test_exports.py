# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""A TorchScript file has the same bytes each time, no path, and the answers of the network."""

import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser, load_bundle_config
from torch import nn

from scripts.core.errors import InputError
from scripts.release import exports
from scripts.release.exports import export_models, export_torchscript, require_close
from tests.release.trained import SMALL, shipped
from tests.shared_data import ROOT

EXTRA = {"metadata.json": {"version": "1"}, "inference.json": {"in_features": 8}}


@pytest.fixture
def network() -> Any:
    torch.manual_seed(0)
    return ConfigParser({**shipped("wsi")["inference.json"], **SMALL["wsi"]}).get_parsed_content("network_def").eval()


def test_a_torchscript_file_is_the_same_each_time_and_holds_no_path_of_this_computer(
    network: nn.Module, tmp_path: Path
) -> None:
    paths = [tmp_path / name / "model.ts" for name in "ab"]
    for path in paths:
        path.parent.mkdir()
        assert export_torchscript(network, torch.rand(1, 8, 4), path, EXTRA) == 0
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with zipfile.ZipFile(paths[0]) as archive:
        everything = b"".join(map(archive.read, archive.namelist()))
    assert str(ROOT).encode() not in everything
    assert b"timestamp" not in everything
    constants = re.findall(rb"  (\w+) : Final\[int\] = \d+\n  (\w+) : Final\[int\]", everything)
    assert (b"in_features", b"out_features") in constants
    assert all(one < other for one, other in constants)
    assert load_bundle_config(str(paths[0]), "inference.json")["in_features"] == 8


def test_an_export_that_answers_otherwise_is_refused(network: nn.Module) -> None:
    def ask(*bag: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = network(*bag)
        return answer + 3e-5

    with pytest.raises(
        InputError, match=r"^model.onnx answers otherwise than model.pt \(pred differs by [23]\.\de-05, 1"
    ):
        require_close("model.onnx", ask, network, torch.rand(1, 8, 4))
    with pytest.raises(InputError, match=r"\(pred differs by nan"):
        require_close("model.onnx", lambda *bag: ask(*bag) * torch.nan, network, torch.rand(1, 8, 4))


def test_without_its_packages_there_is_no_onnx_file_and_a_line_says_so(
    network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(exports, "optional_import", lambda package: (None, package == "onnx"))
    assert list(export_models(network, torch.rand(1, 8, 4), tmp_path, EXTRA)) == ["model.ts"]
    assert "no model.onnx, as its export or its check needs onnxscript and onnxruntime: pip install" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["model.ts"]
