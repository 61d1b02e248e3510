# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The packages that a bundle's metadata declare, and which installed ones a process is not to see beside them."""

import json
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distributions, packages_distributions, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ONLY_DECLARED = Path(__file__).with_name("only_declared")  # on PYTHONPATH, it hides what $NOT_DECLARED lists


def declared(folder: Path) -> set[str]:
    """The packages that the bundle in a folder declares."""
    metadata = json.loads((folder / "configs" / "metadata.json").read_text())
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


def not_declared(folder: Path) -> dict[str, list[str]]:
    """What $NOT_DECLARED lists for a bundle: modules and distributions that are installed here and not declared."""
    allowed = with_dependencies(declared(folder))
    assert {canonicalize_name(name) for name in declared(folder)} <= allowed, "declared, but not installed here"
    tops, installed = packages_distributions(), {each.metadata["Name"] for each in distributions()}
    return {
        "modules": [top for top, owners in tops.items() if not allowed & set(map(canonicalize_name, owners))],
        "distributions": [name for name in installed if canonicalize_name(name) not in allowed],
    }
