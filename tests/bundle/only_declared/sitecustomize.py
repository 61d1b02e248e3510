# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Makes a process behave as if the packages that $NOT_DECLARED lists were not installed, wherever it starts from.

Python imports a sitecustomize that lies on PYTHONPATH before anything else, also in the workers of a data loader.
"""

import atexit
import json
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import Distribution, DistributionFinder
from pathlib import Path
from types import ModuleType
from typing import Any

_HIDDEN = json.loads(os.environ["NOT_DECLARED"])
_MODULES, _DISTRIBUTIONS = frozenset(_HIDDEN["modules"]), frozenset(_HIDDEN["distributions"])


class DeclaredFinder(PathFinder):
    """Python's finder of modules and of installed distributions, without the hidden ones."""

    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return None if fullname.partition(".")[0] in _MODULES else super().find_spec(fullname, path, target)

    @staticmethod
    def find_distributions(context: Any = DistributionFinder.Context()) -> Iterator[Distribution]:  # type: ignore[override]  # noqa: B008
        found = PathFinder.find_distributions(context)
        return (each for each in found if each.metadata["Name"] not in _DISTRIBUTIONS)


def record_imported() -> None:
    """Add the top-level modules that this process has imported to $IMPORTED, a line each."""
    with Path(os.environ["IMPORTED"]).open("a") as file:
        file.writelines(f"{name}\n" for name in sorted({name.partition(".")[0] for name in list(sys.modules)}))


sys.meta_path[:] = [DeclaredFinder if finder is PathFinder else finder for finder in sys.meta_path]
atexit.register(record_imported)
