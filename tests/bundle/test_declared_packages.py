# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Each bundle runs on the packages that its own metadata declares, and no more: all others are hidden from it."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, distributions, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.bundle.commands import bundle, run, write_cohort
from tests.house import sources
from tests.shared_data import ROOT

KINDS = {"ct": "wsi", "wsi": "ct"}  # and the other one
pytestmark = [
    pytest.mark.slow,
    pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.xdist_group(kind)) for kind in KINDS]),
]
Python = Callable[..., subprocess.CompletedProcess[str]]


def declared(kind: str) -> set[str]:
    metadata = json.loads((bundle(kind) / "configs" / "metadata.json").read_text())
    return {"monai", "torch", "numpy", *metadata["required_packages_version"]}


def with_dependencies(packages: Iterable[str]) -> set[str]:
    """The packages, those that pip installs with them, and so on."""
    waiting, found = list(packages), set[str]()
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        try:
            needed = map(Requirement, requires(name) or [])
        except PackageNotFoundError:
            continue  # such as CUDA's libraries beside a torch for CPUs
        found.add(name)
        waiting += [each.name for each in needed if each.marker is None or each.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture
def python(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Python:
    """Python as a person runs it in the bundle's folder, who has installed what the bundle declares."""
    allowed = with_dependencies(declared(kind))
    missing = {canonicalize_name(name) for name in declared(kind)} - allowed
    assert not missing, "declared, but not installed here"
    tops = packages_distributions()
    hidden = {
        "modules": [top for top, owners in tops.items() if not allowed & set(map(canonicalize_name, owners))],
        "distributions": [
            each.metadata["Name"] for each in distributions() if canonicalize_name(each.metadata["Name"]) not in allowed
        ],
    }
    monkeypatch.setenv("NOT_DECLARED", json.dumps(hidden))
    monkeypatch.setenv("IMPORTED", str(tmp_path / "imported.txt"))
    path = f"PYTHONPATH={ROOT / 'tests' / 'bundle' / 'only_declared'}"

    def python(*arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        return run("env", path, sys.executable, *map(str, arguments), cwd=bundle(kind), check=check)

    return python


def test_the_packages_of_the_other_bundle_are_hidden_and_no_others(kind: str, python: Python) -> None:
    """Else the tests below would say nothing."""
    allowed = with_dependencies(declared(kind))
    others = with_dependencies(declared(KINDS[kind])) - allowed
    tops = packages_distributions()
    for packages, outcome in ((others, "hidden"), (declared(kind), "found")):
        owners = {canonicalize_name(name) for name in packages}
        names = [top for top, of in tops.items() if owners & set(map(canonicalize_name, of)) and top.isidentifier()]
        assert names
        code = f"from importlib.util import find_spec; print([n for n in {names} if find_spec(n)])"
        expected = [] if outcome == "hidden" else names
        assert python("-c", code).stdout.strip() == str(expected)


def test_every_module_of_the_bundles_own_working_can_be_imported(kind: str, python: Python) -> None:
    modules = [module for module in sources() if not f"{module}.".startswith(f"scripts.{KINDS[kind]}.")]
    python("-c", f"import importlib\nfor name in {modules}: importlib.import_module(name)")


def test_all_commands_run_and_use_all_that_is_declared(kind: str, python: Python, tmp_path: Path) -> None:
    data, models = write_cohort(tmp_path, kind), tmp_path / "models"
    small: tuple[object, ...] = ("--image_size", 32, "--channels", "[8,8]", "--batch_size", 2, "--num_workers", 0)

    def monai(files: str, *arguments: object) -> None:
        python("-m", "monai.bundle", "run", "--config_file", files, *arguments)

    if kind == "wsi":
        monai("configs/features.json", "--dataset_dir", data, "--tile_size", 128, "--num_workers", 1)
        small = ("--in_features", 128, "--num_workers", 0)
    cohort, evaluated, read = ("--dataset_dir", data, "--ckpt_dir", models), tmp_path / "evaluated", tmp_path / "read"
    monai("configs/train.json", *cohort, "--output_dir", models, "--max_epochs", 1, *small)
    monai("['configs/train.json','configs/evaluate.json']", *cohort, "--output_dir", evaluated, *small)
    images = ("--dataset_dir", data / ("scans" if kind == "ct" else "features"))
    monai("configs/inference.json", *images, "--ckpt_path", models / "model.pt", "--output_dir", read, *small)
    assert (evaluated / "metrics.json").is_file()
    assert len(list(read.glob("*/result.json"))) == 11
    examined = python("-m", "scripts", "doctor", kind, data).stdout
    assert examined.splitlines()[-1].endswith(", 0 FAIL")
    assert all(package in examined for package in declared(kind))
    imported = set((tmp_path / "imported.txt").read_text().split())
    used = {canonicalize_name(name) for top in imported for name in packages_distributions().get(top, ())}
    assert {canonicalize_name(name) for name in declared(kind)} <= used
