# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""A hook of mkdocs: the API pages are drawn from a copy of the package in which every room has an `__init__.py`.

The rooms have none, and griffe, which parses the sources, leaves out folders without one below a package.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority

_copies: list[Path] = []


@event_priority(100)  # before mkdocstrings reads its paths
def on_config(config: Any) -> None:
    """Copy the package and let mkdocstrings read the copy."""
    copy = Path(tempfile.mkdtemp(prefix="docs-"))
    _copies.append(copy)
    package = Path(config["config_file_path"]).parent / "scripts"
    for source in package.rglob("*.py"):
        target = copy / source.relative_to(package.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        (target.parent / "__init__.py").touch()
        shutil.copyfile(source, target)
    config["plugins"]["mkdocstrings"].config["handlers"]["python"]["paths"] = [str(copy)]


def on_post_build(**_: Any) -> None:
    """Remove the copy."""
    while _copies:
        shutil.rmtree(_copies.pop())
