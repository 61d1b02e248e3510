# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Which files of the sources make a bundle: those that git tracks, or that the manifest of a release lists."""

import json
import logging
import subprocess
from pathlib import Path

from scripts.core.errors import InputError
from scripts.core.record import MANIFEST
from scripts.studies.runs import BUNDLES, bundle_folder

PARTS = ("LICENSE", "configs", "docs", "scripts")  # no models, eval or data: those of a used bundle are private
KINDS = ("", ".conf", ".json", ".md", ".py", ".txt")

logger = logging.getLogger(__name__)


def source_folder(wing: str) -> Path:
    """Return the folder of a bundle, linked or real, whose code is this very code."""
    folder = bundle_folder(wing)
    here = Path(__file__).parents[2].absolute()
    if folder not in (here, here / "bundle" / BUNDLES[wing]):  # whose code may be of another version
        raise InputError(f"{here} is another bundle: give the command in {folder}")
    return folder


def bundle_files(folder: Path) -> dict[str, Path]:
    """Return path in the bundle → the file that is there.

    The whole package is in both bundles, as one process that runs both has one `scripts`.
    """
    found, left_out = {}, []
    root = (folder / "scripts").resolve().parent
    known = _tracked_files(root) if (root / ".git").exists() else _listed_files(folder)
    for part in PARTS:
        base = (folder / part).resolve()
        for path in [base] if base.is_file() else sorted(base.rglob("*")):
            hidden = any(name.startswith((".", "__pycache__")) for name in path.relative_to(base).parts)
            if hidden or path.is_symlink() or not path.is_file() or path.suffix not in KINDS:
                continue
            name = "/".join([part, *path.relative_to(base).parts])
            if path in known:
                found[name] = path
            else:
                left_out.append(name)
    if left_out:
        logger.warning("left out, as they are no part of the sources: %s", ", ".join(left_out))
    return found


def _tracked_files(root: Path) -> set[Path]:
    """The files that git knows below the root of its work tree."""
    names = _git(root, "ls-files", "-z").split("\0")
    if changed := _git(root, "status", "--porcelain", "--untracked-files=no", "--", *PARTS):
        logger.warning("released with changes that are not committed:\n%s", changed.rstrip())
    return {root / name for name in names if name}


def _git(root: Path, *words: str) -> str:
    command = ["git", "-C", str(root), *words]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        raise InputError(
            f"git does not say which files of {root} are tracked: {said.strip().splitlines()[0]}"
        ) from error


def _listed_files(folder: Path) -> set[Path]:
    """The files that a bundle had when it was released."""
    try:
        names = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        problem = f"{folder} is neither a git repository nor a release with a {MANIFEST}"
        raise InputError(f"{problem}: nothing tells the files of the bundle from yours") from error
    return {folder.resolve() / name for name in names}
