# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The commands of README.md, run on the packages that the bundle's metadata declare: all others are hidden."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name
from sklearn.metrics import roc_auc_score

from tests.bundle.commands import bundle, run, write_cohort
from tests.bundle.declared import ONLY_DECLARED, declared, not_declared, with_dependencies
from tests.house import sources
from tests.outputs.results import table
from tests.shared_data import ROOT

README = (ROOT / "README.md").read_text()
SECTIONS = {"ct": "Head CT", "wsi": "Whole slides"}
OTHER = {"ct": "wsi", "wsi": "ct"}
Alone = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.slow
each_kind = pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.xdist_group(kind)) for kind in OTHER])


def blocks(text: str) -> list[str]:
    return re.findall(r"^```bash\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def section(title: str) -> str:
    """The commands below one heading of the README."""
    text = re.search(rf"^### {title}$(.*?)^##", README, flags=re.MULTILINE | re.DOTALL)
    assert text, f"README.md has no section {title}"
    return "".join(blocks(text.group(1)))


@pytest.fixture
def alone(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Alone:
    """Runs a command as a person does who has installed what the bundle declares."""
    monkeypatch.setenv("NOT_DECLARED", json.dumps(not_declared(bundle(kind))))
    monkeypatch.setenv("IMPORTED", str(tmp_path / "imported.txt"))
    path = f"PYTHONPATH={ONLY_DECLARED}"
    return lambda *command, cwd=None: run("env", path, *command, cwd=cwd or bundle(kind))


@each_kind
def test_the_packages_of_the_other_bundle_are_hidden_and_no_others(kind: str, alone: Alone) -> None:
    """Else the tests below would say nothing."""
    others = with_dependencies(declared(bundle(OTHER[kind]))) - with_dependencies(declared(bundle(kind)))
    tops = packages_distributions()
    for packages, hidden in ((others, True), (declared(bundle(kind)), False)):
        owners = {canonicalize_name(name) for name in packages}
        names = [top for top, of in tops.items() if owners & set(map(canonicalize_name, of)) and top.isidentifier()]
        assert names
        code = f"from importlib.util import find_spec; print([n for n in {names} if find_spec(n)])"
        assert alone(sys.executable, "-c", code).stdout.strip() == str([] if hidden else names)


@each_kind
def test_every_module_of_the_bundles_own_working_can_be_imported(kind: str, alone: Alone) -> None:
    modules = [module for module in sources() if not f"{module}.".startswith(f"scripts.{OTHER[kind]}.")]
    alone(sys.executable, "-c", f"import importlib\nfor name in {modules}: importlib.import_module(name)")


def test_every_block_belongs_to_a_section_that_is_run() -> None:
    assert "".join(blocks(README)) == "".join(map(section, SECTIONS.values()))
    assert README.count("python -m monai.bundle run") == 7


def metrics_agree_with_tables(folder: Path) -> None:
    """The figures of the three test bags, computed anew by scikit-learn from what the tables say."""
    metrics, bags = json.loads((folder / "metrics.json").read_text()), table(folder / "summary.csv")
    assert metrics["bags"] == len(bags) == 3
    expected = roc_auc_score([int(b["label"]) for b in bags], [float(b["probability"]) for b in bags])
    assert metrics["bag_auroc"]["value"] == pytest.approx(expected, abs=1e-6)
    instances = table(folder / "instances.csv")
    expected = roc_auc_score([int(i["truth"]) for i in instances], [float(i["score"]) for i in instances])
    assert metrics["instance_auroc_ungated"]["value"] == pytest.approx(expected, abs=1e-6)


@each_kind
def test_the_commands_run_and_use_all_that_is_declared(kind: str, alone: Alone, tmp_path: Path) -> None:
    data = write_cohort(tmp_path, kind)
    commands = section(SECTIONS[kind]).replace("/data/head_ct", str(data)).replace("/data/slides", str(data))
    commands = commands.replace("/data/", f"{tmp_path}/")
    if kind == "ct":
        shutil.copytree(data / "scans" / "scan_000", tmp_path / "new_scans" / "somebody")
        new, bags, picture = "new_scans", 1, "somebody/slices.png"
    else:
        (tmp_path / "new_features").symlink_to(data / "features")
        commands = f"cd bundle/hemorrhage_ct_smooth_mil\n{commands}"
        new, bags, picture = "new_features", 11, "slide_000/map.png"
    examined = alone("bash", "-euc", commands, cwd=ROOT).stdout
    results = tmp_path / "results" / kind
    metrics_agree_with_tables(results / "test")
    assert [row["status"] for row in table(results / new / "summary.csv")] == ["done"] * bags
    assert (results / new / picture).stat().st_size > 10_000
    assert ", 0 FAIL\n" in examined
    assert all(package in examined for package in declared(bundle(kind)))
    imported, tops = set((tmp_path / "imported.txt").read_text().split()), packages_distributions()
    used = {canonicalize_name(name) for top in imported for name in tops.get(top, ())}
    assert {canonicalize_name(name) for name in declared(bundle(kind))} <= used
