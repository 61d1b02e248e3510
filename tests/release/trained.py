# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Weights of small networks, with what a training writes beside them."""

from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from scripts.engine.operating_point import OperatingPoint, write_operating_point
from scripts.release.defaults import Configs
from scripts.studies.runs import BUNDLES
from tests.shared_data import ROOT
from tests.test_configs import content

SMALL: dict[str, dict[str, Any]] = {"ct": {"image_size": 16, "channels": [4, 4]}, "wsi": {"in_features": 8}}


def shipped(wing: str) -> Configs:
    """The configs of a bundle but for its metadata."""
    paths = sorted((ROOT / "configs" / wing).glob("*.json"))
    return {path.name: content(path) for path in paths if path.name != "metadata.json"}


def write_weights(folder: Path, wing: str, *overrides: str, **keys: Any) -> Path:
    """A model.pt that a training with these override files and keys would write, but for the training."""
    path = folder / "model.pt"
    folder.mkdir(exist_ok=True)
    config = ConfigParser()
    config.read_config([ROOT / "configs" / wing / f"{name}.json" for name in ("train", *overrides)])
    config.update({**SMALL[wing], **keys})
    config["remember"] = {
        "_target_": "scripts.engine.provenance.RememberTraining",
        "ckpt_path": str(path),
        "bundle_root": str(ROOT / "bundle" / BUNDLES[wing]),
    }
    torch.manual_seed(0)
    torch.save(config.get_parsed_content("network_def").state_dict(), path)
    config.get_parsed_content("remember").write()
    write_operating_point(path, OperatingPoint(0.25, (1.0, 0.5), "chosen by a test"))
    return path
