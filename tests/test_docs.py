# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""What the documentation names exists: modules, configs, keys, make targets, pages and their headings."""

import ast
import inspect
import json
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from scripts.__main__ import VERBS
from scripts.core.cli import refuse_unknown
from scripts.engine.launch import refuse_unknown_keys
from tests.house import sources
from tests.shared_data import ROOT
from tests.test_layering import definitions

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
OURS = {"mine.json"}  # what a page calls a file of the reader's
MONAI_KEYS = {"config_file", "filepath", "ckpt_file", "meta_file", "name", "bundle_dir", "url"}


@cache
def configs(task: str) -> dict[str, set[str]]:
    """Name of each config of a bundle → its keys."""
    folder = ROOT / "configs" / task
    return {str(path.relative_to(folder)): set(json.loads(path.read_text())) for path in folder.rglob("*.json")}


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def headings(page: Path) -> set[str]:
    """The anchors of a page, as both mkdocs and GitHub make them."""
    titles = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


def commands(page: Path, of: str) -> Iterator[str]:
    """Every command of a page with these words, such as "monai.bundle", on one line."""
    for block in re.findall(r"^```(?:shell|bash)\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL):
        lines = block.replace("\\\n", " ").splitlines()
        yield from (line for line in lines if of in line)


def defined(text: str) -> set[str]:
    """The names at the top of a module, imported ones too."""
    body = ast.parse(text).body
    imports = [node for node in body if isinstance(node, (ast.Import, ast.ImportFrom))]
    return {*definitions(text), *(alias.asname or alias.name for node in imports for alias in node.names)}


def exists(dotted: str) -> bool:
    """Whether a dotted name is a room, a module or a name in one."""
    texts = sources()
    if dotted in texts or any(module.startswith(f"{dotted}.") for module in texts):
        return True
    module, _, name = dotted.rpartition(".")
    return module in texts and name in defined(texts[module])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_what_exists(page: Path) -> None:
    text = page.read_text()
    dotted = {name for name in re.findall(r"\bscripts(?:\.\w+)+", text) if not name.endswith((".py", ".…"))}
    assert {name for name in dotted if not exists(name)} == set()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", text, flags=re.MULTILINE)) <= targets
    known = configs("ct").keys() | configs("wsi").keys() | OURS
    assert set(re.findall(r"configs/(?:ct/|wsi/)?((?:encoders/)?\w+\.json)", text)) <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)|^\[[^\]]+\]: (\S+)$", prose(page), flags=re.MULTILINE)
    for link in (one or other for one, other in links):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in headings(target), link


def of_all_pages(of: str) -> list[Any]:
    return [pytest.param(line, id=f"{page.stem}-{i}") for page in PAGES for i, line in enumerate(commands(page, of))]


@pytest.mark.parametrize("command", of_all_pages("monai.bundle"))
def test_a_command_names_files_and_keys_of_one_bundle(command: str) -> None:
    files = set(re.findall(r"configs/((?:encoders/)?\w+\.json)", command)) - OURS
    fitting = [task for task in ("ct", "wsi") if files <= configs(task).keys()]
    assert fitting, files
    keys = set(re.findall(r"--(\w+)", command)) - MONAI_KEYS - {"standalone", "nproc_per_node"}
    assert any(keys <= set().union(*(configs(task)[file] for file in files)) for task in fitting), keys


@pytest.mark.parametrize("command", of_all_pages("-m scripts "))
def test_a_command_gives_its_verb_what_that_takes(command: str) -> None:
    words = shlex.split(command)
    typed = words[words.index("scripts") + 1 :]
    refuse_unknown(typed, VERBS)
    if typed[0] in ("crossval", "search"):  # which take every key of the configs besides
        flags = dict(re.findall(r"--(\S+) ('[^']*'|\S+)", " ".join(typed)))
        files = ["train.json", *filter(None, flags.get("config", "").split(","))]
        own = inspect.signature(VERBS[typed[0]]).parameters  # type: ignore[arg-type]
        of_configs = {name: value for name, value in flags.items() if name not in own}
        paths = [str(ROOT / "configs" / typed[1] / file) for file in files]
        assert all(Path(path).is_file() for path in paths)
        refuse_unknown_keys({"config_file": ",".join(paths), **of_configs})


def test_every_page_is_in_the_navigation_and_every_module_in_the_api_reference_and_in_the_tree() -> None:
    linked = set(re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text()))
    assert linked == {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    pages = [path.read_text() for path in (ROOT / "docs" / "api").glob("*.md")]
    listed = [name for text in pages for name in re.findall(r"^::: (\S+)$", text, flags=re.MULTILINE)]
    assert sorted(listed) == sorted(sources())
    text = (ROOT / "docs" / "architecture.md").read_text()
    tree = re.search(r"^```text\nscripts/\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert tree
    folders, drawn = ["scripts"], list[str]()
    for line in tree.group(1).splitlines():
        name = line.split()[0]
        folders = folders[: (len(line) - len(line.lstrip())) // 4]
        drawn.append("/".join([*folders, name]))
        folders = [*folders, name.rstrip("/")]
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "scripts").rglob("*.py")}
    assert {path for path in drawn if path.endswith(".py")} == files
    assert len(drawn) == len(set(drawn))


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/reference/commands.md"])
def test_a_table_of_make_has_every_target(page: str) -> None:
    targets = re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    listed = re.findall(r"^\| `make (\w+)`", (ROOT / page).read_text(), flags=re.MULTILINE)
    assert sorted(listed) == sorted(set(targets) - {"help"})
