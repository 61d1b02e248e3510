# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Converted weights in the network that inference makes of the configs."""

from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from torch import Tensor

from scripts.networks import MILNetwork
from tests.shared_data import ROOT


def network(bundle: str, state: dict[str, Tensor], *overrides: Path, **given: Any) -> MILNetwork:
    config = ConfigParser()
    config.read_config([ROOT / "configs" / bundle / "inference.json", *overrides])
    config.update(given)
    made = config.get_parsed_content("network_def")
    assert isinstance(made, MILNetwork)
    made.load_state_dict(state)  # strict: nothing is missing, nothing is left
    return made.eval()
