# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""What a person types is checked before anything runs."""

import re
from pathlib import Path

import pytest
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset

from scripts.core.errors import InputError, input_error_message
from scripts.engine.launch import prepare_run, refuse_unknown_keys, typed_keys
from tests.core.test_cli import bad_transform, caught
from tests.shared_data import ROOT


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_message_is_found_behind_monai_and_its_workers_and_a_fault_has_none(num_workers: int) -> None:
    loader = DataLoader(Dataset([1, 2], transform=bad_transform), num_workers=num_workers)
    error = caught(lambda: list(loader))
    assert not isinstance(error, InputError)
    assert input_error_message(error) == "scan_7 is empty: copy it again"

    def fault_while_bad_input_is_handled() -> None:
        try:
            bad_transform(0)
        except InputError:
            _ = 1 / 0

    assert input_error_message(caught(fault_while_bad_input_is_handled)) is None


@pytest.mark.usefixtures("restored")
def test_the_folder_of_the_results_is_made_unless_the_model_is_missing(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    step = {"_target_": f"{prepare_run.__module__}.prepare_run", "writes_to": [str(folder)]}
    error = caught(lambda: ConfigParser({"run": {**step, "ckpt_path": "model.pt"}}).get_parsed_content("run"))
    assert "model.pt is missing" in str(input_error_message(error))
    assert not folder.exists()
    ConfigParser({"run": step}).get_parsed_content("run")
    assert folder.is_dir()


CONFIGS = str(ROOT / "bundle" / "pathology_wsi_smooth_mil" / "configs")


def test_a_mistyped_key_of_a_config_is_refused() -> None:
    """MONAI would take it for a new key that nothing reads."""
    files = f"['{CONFIGS}/train.json','{CONFIGS}/hmil.json']"
    for given, message in (
        ("--in-feature=64", "--in_feature is no key of train.json, hmil.json, perhaps in_features"),
        ("--nonsense#deep 3", "--nonsense#deep is no key of train.json, hmil.json: "),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            refuse_unknown_keys(typed_keys(["run", "--config_file", files, "--max_epochs", "2", *given.split()]))
    for given in (
        f"run --config_file={CONFIGS}/train.json --network_def#head#bias False --max-epochs=2 --seed=-1",
        f"run --config_file {CONFIGS}/inference.json --max_epochs 2",  # as it was given to training
        *("-q --durations=3 tests", "run --config_file missing.json --what 3", "run --args_file args.json --what 3"),
    ):
        refuse_unknown_keys(typed_keys(given.split()))
