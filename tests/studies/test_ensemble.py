# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The config of an ensemble is that of its member, so that references within it lead where they led."""

import json

import pytest
import torch
from monai.bundle import ConfigParser

from scripts.networks import Ensemble
from scripts.studies.ensemble import ensemble_of
from tests.shared_data import ROOT


@pytest.mark.parametrize(
    ("wing", "files"), [("ct", ["train"]), ("ct", ["train", "on_features", "smtap"]), ("wsi", ["train"])]
)
def test_members_are_made_as_the_network_of_the_config(wing: str, files: list[str]) -> None:
    parser = ConfigParser(
        ConfigParser.load_config_files([str(ROOT / "configs" / wing / f"{name}.json") for name in files])
    )
    alone = {name: value.shape for name, value in parser.get_parsed_content("network_def").state_dict().items()}
    parser["network_def"] = json.loads(json.dumps(ensemble_of(parser["network_def"], 3)))
    parser.parse(reset=True)
    ensemble = parser.get_parsed_content("network_def")
    assert isinstance(ensemble, Ensemble)
    assert [{name: value.shape for name, value in one.state_dict().items()} for one in ensemble.members] == [alone] * 3
    torch.testing.assert_close(ensemble.slope, torch.ones(3))
    assert parser.get_parsed_content("network_def").slots == parser["network_def"].get("slots")
