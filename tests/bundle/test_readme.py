# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The commands of README.md, extracted and run, so that they cannot rot."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
from sklearn.metrics import roc_auc_score

from tests.bundle.commands import run, write_cohort
from tests.shared_data import ROOT

pytestmark = pytest.mark.slow
README = (ROOT / "README.md").read_text()


def blocks(text: str) -> list[str]:
    return re.findall(r"^```bash\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def section(title: str) -> str:
    """The commands below one heading of the README."""
    text = re.search(rf"^### {title}$(.*?)^##", README, flags=re.MULTILINE | re.DOTALL)
    assert text, f"README.md has no section {title}"
    return "".join(blocks(text.group(1)))


def test_every_block_belongs_to_a_section_that_is_run() -> None:
    assert "".join(blocks(README)) == section("Head CT") + section("Whole slides")
    assert README.count("python -m monai.bundle run") == 7


def rows(table: Path) -> list[dict[str, str]]:
    with table.open() as file:
        return list(csv.DictReader(file))


def metrics_agree_with_tables(folder: Path) -> None:
    """The figures of the three test bags, computed anew by scikit-learn from what the tables say."""
    metrics, bags = json.loads((folder / "metrics.json").read_text()), rows(folder / "summary.csv")
    assert metrics["bags"] == len(bags) == 3
    expected = roc_auc_score([int(b["label"]) for b in bags], [float(b["probability"]) for b in bags])
    assert metrics["bag_auroc"]["value"] == pytest.approx(expected, abs=1e-6)
    instances = rows(folder / "instances.csv")
    expected = roc_auc_score([int(i["truth"]) for i in instances], [float(i["score"]) for i in instances])
    assert metrics["instance_auroc_ungated"]["value"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
@pytest.mark.xdist_group("ct")
def test_the_commands_for_head_ct(tmp_path: Path) -> None:
    data = write_cohort(tmp_path, "ct")
    shutil.copytree(data / "scans" / "scan_000", tmp_path / "new_scans" / "somebody")
    commands = section("Head CT").replace("/data/head_ct", str(data)).replace("/data/", f"{tmp_path}/")
    run("bash", "-euc", commands, cwd=ROOT)
    results = tmp_path / "results" / "ct"
    metrics_agree_with_tables(results / "test")
    (new,) = rows(results / "new_scans" / "summary.csv")
    assert new["bag_id"] == "somebody"
    assert int(new["instances"]) == len(list((data / "scans" / "scan_000").iterdir()))
    assert (results / "new_scans" / "somebody" / "slices.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.xdist_group("wsi")
def test_the_commands_for_slides(tmp_path: Path) -> None:
    data = write_cohort(tmp_path, "wsi")
    (tmp_path / "new_features").symlink_to(data / "features")
    commands = f"cd bundle/hemorrhage_ct_smooth_mil\n{section('Whole slides')}"
    commands = commands.replace("/data/slides", str(data)).replace("/data/", f"{tmp_path}/")
    run("bash", "-euc", commands, cwd=ROOT)
    results = tmp_path / "results" / "wsi"
    metrics_agree_with_tables(results / "test")
    assert len(rows(results / "new_features" / "summary.csv")) == 11
    assert (results / "new_features" / "slide_000" / "map.png").stat().st_size > 10_000
