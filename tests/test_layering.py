# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Who may import whom, by the table in tests/house.py; and how large the house may be."""

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter

import pytest

from tests.house import HOUSE, TORCH_ALONE, Sources, arrows, drawn, imported, room_of, sources
from tests.shared_data import ROOT

MOST_FILES, MOST_LINES_OF_A_FILE, MOST_LINES_OF_A_FUNCTION = 154, 400, 60
MOST_LINES, MOST_LINES_OF_TESTS = 24_670, 1.2  # of tests for each of the package
IN_SEVERAL_MODULES = {"logger", "__all__", "datalist", "doctor"}  # the last two are verbs of each wing


def violations(texts: Sources) -> list[str]:
    """Each import that the table does not allow, in words."""
    found = []
    for module in texts.keys() - {"scripts"}:  # which holds a line of text alone
        room = room_of(module)
        if room not in HOUSE:
            found.append(f"{module} lies in no room of the table: give it one")
            continue
        for other in imported(module, texts):
            top = other.partition(".")[0]
            if top != "scripts":
                if room in TORCH_ALONE and top != "torch" and top not in sys.stdlib_module_names:
                    found.append(f"{module} imports {other}: {room} imports torch alone")
            elif room_of(other) not in {room, *HOUSE.get(room, "").split()}:
                found.append(f"{module} imports {other}: {room} may not import {room_of(other)}")
    return found


def cycle(texts: Sources) -> list[str]:
    """Modules that import each other in a ring; empty where there is an order to load them in."""
    try:
        TopologicalSorter({module: set(imported(module, texts)) & texts.keys() for module in texts}).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def definitions(text: str) -> Iterator[str]:
    """The names that a module defines at its top, private ones too."""
    for node in ast.parse(text).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        for target in getattr(node, "targets", [getattr(node, "target", None)]):
            if isinstance(target, ast.Name):
                yield target.id


def test_no_module_imports_what_its_room_may_not_and_there_is_an_order_to_load_them_in() -> None:
    assert violations(sources()) == []
    assert cycle(sources()) == []


def test_a_name_has_one_home() -> None:
    homes: dict[str, set[str]] = {}
    for module, text in sources().items():
        for name in definitions(text):
            homes.setdefault(name, set()).add(module)
    assert {name: sorted(at) for name, at in homes.items() if len(at) > 1 and name not in IN_SEVERAL_MODULES} == {}


def test_the_table_allows_only_rooms_above_that_are_used_and_no_arrow_between_the_wings() -> None:
    used = arrows(sources())
    assert {room: used[room] for room in HOUSE} == {room: set(allowed.split()) for room, allowed in HOUSE.items()}
    above: list[str] = []
    for room, allowed in HOUSE.items():
        assert set(allowed.split()) <= set(above)
        above.append(room)
        wings = {each.partition(".")[0] for each in (room, *allowed.split())} & {"ct", "wsi"}
        assert len(wings) < 2 or room == "__main__"
    printed = drawn(sources())
    assert "0 between the wings" in printed
    assert all(f"{room} " in printed for room in HOUSE)


@pytest.mark.parametrize(
    ("module", "line", "problem"),
    [
        ("scripts.losses.new", "import torch, numpy as np", "losses imports torch alone"),
        ("scripts.core.new", "from ..networks import MILNetwork", "core may not import networks"),
        ("scripts.ct.new", "def f():\n    from scripts.wsi import reader", "ct may not import wsi"),
        ("scripts.wsi.features.new", "import scripts.ct.dicom.tags", "wsi.features may not import ct.dicom"),
        ("scripts.ct.new", "from scripts.ct.outputs import picture", "ct may not import ct.outputs"),
        ("scripts.attic.new", "import os", "lies in no room"),
    ],
)
def test_a_wrong_import_is_reported(module: str, line: str, problem: str) -> None:
    assert [problem in told for told in violations({**sources(), module: line})] == [True]


def test_a_ring_of_imports_is_reported() -> None:
    ring = {
        "scripts.ct": "",
        "scripts.ct.a": "from scripts.ct.b import x",
        "scripts.ct.b": "def f():\n    from . import c",
        "scripts.ct.c": "import scripts.ct.a",
    }
    assert violations(ring) == []
    assert set(cycle(ring)) == ring.keys() - {"scripts.ct"}


def test_the_house_stays_small_enough_to_find_ones_way_in() -> None:
    texts = sources()
    lines = {module: text.count("\n") for module, text in texts.items()}
    functions = {
        f"{module}.{node.name}": (node.end_lineno or 0) - node.lineno + 1
        for module, text in texts.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
    assert {module: n for module, n in lines.items() if n > MOST_LINES_OF_A_FILE} == {}
    assert {name: n for name, n in functions.items() if n > MOST_LINES_OF_A_FUNCTION} == {}
    assert len(texts) <= MOST_FILES
    assert sum(lines.values()) <= MOST_LINES


def test_the_tests_are_no_larger_than_what_they_test_allows() -> None:
    tests = sum(path.read_text(encoding="utf-8").count("\n") for path in (ROOT / "tests").rglob("*.py"))
    assert tests <= MOST_LINES_OF_TESTS * sum(text.count("\n") for text in sources().values())
