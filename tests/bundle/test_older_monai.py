# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Both bundles train, evaluate and infer with the oldest MONAI that is supported."""

import json
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from tests.bundle.commands import bundle, environment, run, write_cohort
from tests.shared_data import ROOT

OLDER = ROOT / ".venv" / "older"  # which `make .venv/ready` puts there, beside the pinned one
VERSION = "1.5.2"
SCRIPT = """
import sys
task, data, results, version, older = sys.argv[1:]
sys.path.insert(0, older)
import monai
sys.path.remove(older)  # where there is a package `tests` too
from tests.bundle.commands import run_here
assert monai.__version__ == version, monai.__version__
if task == "wsi":
    run_here(task, ["features"], dataset_dir=data, tile_size=128)
small = {"in_features": 128} if task == "wsi" else {"image_size": 32, "channels": [8, 8], "batch_size": 2}
keys = {"dataset_dir": data, "ckpt_dir": results, "output_dir": results, "num_workers": 0, **small}
run_here(task, ["train"], max_epochs=2, **keys)
run_here(task, ["train", "evaluate"], **keys)
run_here(
    task, ["inference"], dataset_dir=data, datalist=f"{data}/datalist.json", output_dir=results + "/new",
    ckpt_path=results + "/model.pt",
)
"""


@pytest.mark.parametrize("task", ["ct", "wsi"])
def test_the_metadata_say_which_versions_are_tried_besides(task: str) -> None:
    metadata = json.loads((bundle(task) / "configs" / "metadata.json").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    monai = SpecifierSet(metadata["supported_versions"]["monai"])
    tried = ("1.5.1", VERSION, metadata["monai_version"])
    assert [monai.contains(each) for each in tried] == [False, True, True]
    assert metadata["supported_versions"]["python"] == project["requires-python"]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["ct", "wsi"])
def test_an_older_monai_runs_the_bundle(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not OLDER.is_dir():
        pytest.skip("make .venv/ready installs an older MONAI there")
    data, results = write_cohort(tmp_path, task), tmp_path / "results"
    monkeypatch.setattr("tests.bundle.commands.environment", lambda: {**environment(), "PYTHONPATH": str(ROOT)})
    run(sys.executable, "-c", SCRIPT, task, str(data), str(results), VERSION, str(OLDER), cwd=tmp_path)
    for table in (results / "metrics.json", results / "new" / "summary.csv"):
        assert table.is_file()
