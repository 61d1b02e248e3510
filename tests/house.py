# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The house as the sources build it: its rooms, and which imports which. `python -m tests.house` prints it."""

import ast
from collections.abc import Iterator, Mapping

from tests.shared_data import ROOT

# From the ground up: a room may import what stands behind it here, all of which is above it in this table.
# A room is a folder; a file is one where it stands above the rooms beside it.
HOUSE: Mapping[str, str] = {
    "core": "",
    "networks": "",
    "losses": "networks",
    "metrics": "core networks",
    "datalist": "core",
    "doctor": "core datalist",
    "engine": "core networks",
    "weights": "core engine",
    "outputs": "core metrics engine",
    "studies": "core datalist metrics engine outputs",
    "release": "core engine studies",
    "ct.dicom": "core",
    "ct": "core engine ct.dicom",
    "ct.outputs": "core outputs ct.dicom",
    "ct.datalist": "core datalist ct.dicom ct",
    "ct.doctor": "core doctor ct.dicom ct ct.datalist",
    "ct.node": "core outputs",
    "ct.cli": "core doctor studies ct.datalist ct.doctor ct.node",
    "wsi.features": "core",
    "wsi.slides": "core wsi.features",
    "wsi.annotations": "core",
    "wsi": "core engine wsi.features wsi.slides wsi.annotations",
    "wsi.outputs": "core outputs wsi.features wsi.slides wsi.annotations",
    "wsi.datalist": "core datalist wsi.features wsi.slides",
    "wsi.doctor": "core doctor wsi.features wsi.slides wsi.annotations wsi.datalist",
    "wsi.cli": "core doctor wsi.features wsi wsi.datalist wsi.doctor",
    "__main__": "core engine weights outputs studies release ct.cli wsi.cli",
}
TORCH_ALONE = ("networks", "losses")  # so that they can be lifted out, scripted and exported

Sources = Mapping[str, str]  # dotted name of a module → its text; a package goes by its own name


def sources() -> dict[str, str]:
    """The text of every module of the package."""
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


def room_of(module: str) -> str:
    """The innermost room of HOUSE that a module is or lies in; its folder where there is none."""
    name = module.removeprefix("scripts.")
    while name not in HOUSE and "." in name:
        name = name.rpartition(".")[0]
    return name


def arrows(texts: Sources) -> dict[str, set[str]]:
    """Room → the other rooms that it imports."""
    found: dict[str, set[str]] = {room: set() for room in HOUSE}
    for module in texts.keys() - {"scripts"}:
        rooms = {room_of(other) for other in imported(module, texts) if other.startswith("scripts.")}
        found.setdefault(room_of(module), set()).update(rooms - {room_of(module)})
    return found


def floors(graph: Mapping[str, set[str]]) -> dict[str, int]:
    """Room → how many rooms it stands on, one upon the other."""
    height: dict[str, int] = {}
    for room in HOUSE:
        height[room] = 1 + max((height.get(other, 0) for other in graph[room]), default=-1)
    return height


def drawn(texts: Sources) -> str:
    """The house in words: a line per room with its floor, files, lines and arrows, and the sums."""
    graph = arrows(texts)
    height = floors(graph)
    size = {module: text.count("\n") for module, text in texts.items()}
    lines = [f"{'room':<16}{'floor':>5}{'files':>7}{'lines':>7}  imports"]
    for room in HOUSE:
        own = [size[module] for module in texts if room_of(module) == room and module != "scripts"]
        imports = " ".join(sorted(graph[room]))
        lines.append(f"{room:<16}{height[room]:>5}{len(own):>7}{sum(own):>7}  {imports}".rstrip())
    wings = [{a.partition(".")[0], b.partition(".")[0]} for a, to in graph.items() for b in to]
    lines.append(
        f"{len(HOUSE)} rooms on {max(height.values()) + 1} floors, {len(wings)} arrows, "
        f"{wings.count({'ct', 'wsi'})} between the wings; {len(texts)} files, {sum(size.values())} lines"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    print(drawn(sources()))
