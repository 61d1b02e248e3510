# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""A bundle is made of tracked files alone, whatever else lies in its folder."""

import json
import subprocess
from pathlib import Path

import pytest

from scripts.core.errors import InputError
from scripts.release import tree
from scripts.release.tree import bundle_files, source_folder
from tests.bundle.commands import BUNDLES
from tests.shared_data import ROOT

FILES = ("LICENSE", "configs/train.json", "docs/README.md", "scripts/__main__.py", "scripts/ct/reader.py")
OF_A_USER = ("models/model.pt", "eval/summary.csv", "data/scan.nii", "scripts/__pycache__/x.py", "configs/.train.json")
NOTES = ("configs/patients.json", "scripts/ct/mine.py", "docs/scan.png")


@pytest.fixture
def used(tmp_path: Path) -> Path:
    """The folder of a bundle that somebody has used."""
    for name in (*FILES, *OF_A_USER, *NOTES):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / "configs" / "link.json").symlink_to(tmp_path / "data" / "scan.nii")
    return tmp_path


def git(folder: Path, *words: str) -> None:
    subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True)


def test_of_a_repository_tracked_files_alone_are_taken_from_the_parts_of_a_bundle(used: Path) -> None:
    git(used, "init")
    git(used, "add", *FILES, "data/scan.nii", "docs/scan.png", "configs/link.json")
    assert set(bundle_files(used)) == set(FILES)


@pytest.mark.parametrize("within_another", [False, True])
def test_of_a_release_the_files_that_its_manifest_lists_are_taken(
    used: Path, within_another: bool, caplog: pytest.LogCaptureFixture
) -> None:
    if within_another:
        git(used.parent, "init")
    with pytest.raises(
        InputError, match=r"is neither a git repository nor a release with a manifest.json: nothing tel"
    ):
        bundle_files(used)
    (used / "manifest.json").write_text(json.dumps(dict.fromkeys([*FILES, "models/model.pt"], "")))
    assert set(bundle_files(used)) == set(FILES)
    assert "left out, as they are no part of the sources: configs/patients.json, scripts/ct/mine.py" in caplog.text


def test_where_git_cannot_say_nothing_is_taken(used: Path) -> None:
    (used / ".git").write_text("gitdir: /nowhere")
    with pytest.raises(
        InputError, match=r"^git does not say which files of .* are tracked: fatal: not a git repository"
    ):
        bundle_files(used)


def test_changes_that_are_not_committed_are_told(used: Path, caplog: pytest.LogCaptureFixture) -> None:
    git(used, "init")
    git(used, "add", *FILES)
    git(used, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-m", "first")
    bundle_files(used)
    assert "not committed" not in caplog.text
    (used / FILES[1]).write_text("changed")
    bundle_files(used)
    assert "released with changes that are not committed" in caplog.text
    assert FILES[1] in caplog.text


@pytest.mark.parametrize("wing", BUNDLES)
def test_the_links_of_a_bundle_are_followed_and_the_whole_package_is_in_both(wing: str) -> None:
    files = bundle_files(source_folder(wing))
    configs = ROOT / "configs" / wing
    assert {f"configs/{path.relative_to(configs)}" for path in configs.rglob("*.json")} <= set(files)
    assert {"LICENSE", "configs/logging.conf", "docs/README.md", "docs/data_license.txt"} <= set(files)
    assert {"scripts/ct/reader.py", "scripts/wsi/reader.py", "scripts/__main__.py"} <= set(files)
    assert not [path for path in files if path.startswith(("models", "tests", "demo", "benchmarks", "docs/how_to"))]


def test_a_folder_that_is_no_bundle_or_another_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"^'mri' is no bundle: give ct \(head CT\) or wsi \(slides\)$"):
        source_folder("mri")
    monkeypatch.setattr(tree, "bundle_folder", lambda _: Path("/elsewhere"))
    with pytest.raises(InputError, match=r"is another bundle: give the command in /elsewhere$"):
        source_folder("ct")
