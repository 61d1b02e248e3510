# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""A config of 0.4.0 ends in one line that says what its paths are called now."""

import re
from pathlib import Path
from pydoc import locate

import pytest

from scripts.core.errors import InputError
from scripts.engine.launch import MOVED, refuse_moved
from tests.bundle.commands import bundle, monai_bundle
from tests.shared_data import ROOT


def test_every_new_path_exists_and_no_old_one_does() -> None:
    assert [new for new in MOVED.values() if locate(new) is None] == []
    for old in MOVED.keys() - {"scripts.running.prepare_run"}:
        assert locate(old) is None, old


def test_the_changelog_has_the_same_table() -> None:
    rows = re.findall(r"^\| `(scripts\.\S+)` \| `(scripts\.\S+)` \|", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert dict(rows) == dict(MOVED)


def test_an_override_file_of_0_4_0_is_refused_wherever_it_names_an_old_path() -> None:
    encoder = {"_target_": "scripts.networks.SeededTileCNN", "seed": 3}
    message = "scripts.networks.SeededTileCNN of 0.4.0 is scripts.wsi.encoders.SeededTileCNN now: write that into"
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        refuse_moved({"transforms": [{"_target_": "Compose"}, {"inner": encoder}]})
    refuse_moved({"_target_": "scripts.networks.HMIL", "list": [1, None, "scripts.networks.SeededTileCNN"]})


@pytest.mark.slow
def test_a_whole_config_of_0_4_0_ends_in_one_line(tmp_path: Path) -> None:
    config, old = bundle("wsi") / "configs" / "inference.json", tmp_path / "inference.json"
    old.write_text(config.read_text().replace("scripts.engine.launch.prepare_run", "scripts.running.prepare_run"))
    ended = monai_bundle("run", "--config_file", str(old), cwd=bundle("wsi"), check=False)
    assert ended.returncode != 0
    assert ended.stderr.splitlines()[-1] == (
        "error: scripts.running.prepare_run of 0.4.0 is scripts.engine.launch.prepare_run now: "
        "write that into the config that names it"
    )
    assert "Traceback" not in ended.stderr
