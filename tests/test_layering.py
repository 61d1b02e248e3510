# Copyright (c) 2026 the smooth MIL bundle authors
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Who may import whom: read from the sources, so that a house stays a house."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter

import pytest

from tests.shared_data import ROOT

FLOORS = (  # from the ground up: a room imports itself and what is below it, never its neighbours on the same floor
    {"errors", "units"},
    {"files"},
    {"origins"},
    {"data", "networks", "weights", "running", "resuming", "curriculum", "cohorts"},
    {"losses", "metrics", "inferers", "exporting", "preparing"},
    {"outputs"},
    {"demo"},
    {"__main__"},
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
TORCH_ALONE = {"networks", "losses"}  # so that they can be lifted out, scripted and exported
OF_OURS_ALONE = {  # narrower than the floors say
    "losses": {"losses", "networks", "errors"},
    "networks": {"networks", "errors"},
    "running": {"errors", "files"},
    "resuming": {"origins", "errors", "files"},
    "weights": {"weights", "origins", "errors", "files"},
    "origins": {"errors", "files"},
    "curriculum": {"errors"},
    "cohorts": {"errors"},
    "inferers": {"networks", "errors"},
    "exporting": {"networks", "files", "errors"},
    "preparing": {"preparing", "data", "running", "files", "errors"},
}

Sources = Mapping[str, str]  # dotted name of a module → its text; a package goes by its own name


def sources() -> dict[str, str]:
    found = {}
    for path in sorted((ROOT / "scripts").rglob("*.py")):
        *folders, name = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(folders if name == "__init__" else [*folders, name])] = path.read_text(encoding="utf-8")
    return found


def imported(module: str, texts: Sources) -> Iterator[str]:
    """Every module that one imports, at its top or within a function, by its full name."""
    is_package = any(other.startswith(f"{module}.") for other in texts)
    for node in ast.walk(ast.parse(texts[module])):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            base = parts[: len(parts) + is_package - node.level] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                submodule = f"{origin}.{alias.name}"
                yield submodule if submodule in texts else origin


def room(module: str) -> str:
    return module.split(".")[1]


def violations(texts: Sources) -> list[str]:
    """Each import that no module of its room may have, in words."""
    found = []
    for module in texts:
        if module == "scripts":
            continue
        if room(module) not in FLOOR:
            found.append(f"{module}: no floor is known for it, give it one in FLOORS")
            continue
        for other in imported(module, texts):
            problem = _problem(room(module), other)
            if problem:
                found.append(f"{module} imports {other}: {problem}")
    return found


def _problem(here: str, other: str) -> str | None:
    top = other.split(".")[0]
    if top != "scripts":
        stranger = here in TORCH_ALONE and top != "torch" and top not in sys.stdlib_module_names
        return f"{here} imports torch alone" if stranger else None
    if other == "scripts":
        return "name the module"
    there = room(other)
    if there not in OF_OURS_ALONE.get(here, {there}):
        return f"of this package {here} imports {', '.join(sorted(OF_OURS_ALONE[here]))} alone"
    if there != here and FLOOR.get(there, len(FLOORS)) >= FLOOR[here]:
        return f"{there} is not below {here}"
    return None


def cycle(texts: Sources) -> list[str]:
    """Modules that import each other in a ring; empty where there is an order to load them in."""
    graph = {module: set(imported(module, texts)) & texts.keys() for module in texts}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        ring: list[str] = error.args[1]
        return ring
    return []


def test_no_room_imports_what_is_not_below_it() -> None:
    assert violations(sources()) == []


def test_there_is_an_order_to_load_the_modules_in() -> None:
    assert cycle(sources()) == []


def test_the_check_sees_the_imports_there_are() -> None:
    """An empty list of violations says nothing if no import is found."""
    texts = sources()
    assert {"scripts.data.results", "scripts.files", "ignite.engine"} <= set(imported("scripts.outputs.cohort", texts))
    assert "scripts.demo.phantoms" in set(imported("scripts.demo.cohorts", texts))  # from scripts.demo import phantoms
    assert "scripts.demo.pipeline" in set(imported("scripts.__main__", texts))  # within a function
    assert {room(module) for module in texts if module != "scripts"} >= {"networks", "losses", "data", "outputs"}


@pytest.mark.parametrize(
    ("module", "line", "problem"),
    [
        ("scripts.networks.new", "import monai", "networks imports torch alone"),
        ("scripts.networks.new", "import torch, numpy as np", "networks imports torch alone"),
        ("scripts.losses.new", "from monai.losses import DiceLoss", "losses imports torch alone"),
        ("scripts.networks.new", "from scripts.data.bags import load_bags", "of this package networks imports"),
        ("scripts.networks.new", "from scripts.units import Millimetres", "of this package networks imports"),
        ("scripts.losses.new", "from scripts.data import results", "of this package losses imports"),
        ("scripts.data.new", "from scripts.networks import MILNetwork", "networks is not below data"),
        ("scripts.data.new", "from ..networks import MILNetwork", "networks is not below data"),
        ("scripts.data.new", "def f():\n    from scripts.metrics import cohort", "metrics is not below data"),
        ("scripts.metrics.new", "import scripts.outputs.files", "outputs is not below metrics"),
        ("scripts.outputs.new", "from scripts.demo import page", "demo is not below outputs"),
        ("scripts.demo.new", "from scripts.__main__ import demo", "__main__ is not below demo"),
        ("scripts.errors", "from scripts.units import Millimetres", "units is not below errors"),
        ("scripts.running", "from scripts.units import Millimetres", "of this package running imports"),
        ("scripts.inferers", "from scripts.data import bags", "of this package inferers imports"),
        ("scripts.preparing.new", "from scripts.networks import MILNetwork", "of this package preparing imports"),
        ("scripts.data.new", "from scripts.preparing import cohort", "preparing is not below data"),
        ("scripts.attic.new", "import os", "no floor is known"),
        ("scripts.data.new", "from scripts import networks", "networks is not below data"),
    ],
)
def test_a_wrong_import_is_told(module: str, line: str, problem: str) -> None:
    assert [problem in told for told in violations({**sources(), module: line})] == [True]


@pytest.mark.parametrize("line", ["import math", "import torch", "from torch import nn", "from .graph import Graph"])
def test_what_a_network_needs_is_allowed(line: str) -> None:
    assert violations({**sources(), "scripts.networks.new": line}) == []


def test_a_ring_of_imports_is_told() -> None:
    ring = {
        "scripts.data": "",
        "scripts.data.a": "from scripts.data.b import x",
        "scripts.data.b": "def f():\n    from . import c",
        "scripts.data.c": "import scripts.data.a",
    }
    assert violations(ring) == []
    assert set(cycle(ring)) == {"scripts.data.a", "scripts.data.b", "scripts.data.c"}
