# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Exported code has the form that the zoo's isort and black leave as it is, and means the same."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.release.form import in_zoo_form
from tests.shared_data import ROOT
from zoo.check import FORMS

CODE = """import torch
from monai.data import \\
    MetaTensor

from scripts.core.errors import InputError
from numpy import float32

x = {"a": 1,
     "b": [2, 3]}
"""
WANTED = """import torch
from monai.data import MetaTensor
from numpy import float32
from scripts.core.errors import InputError

x = {"a": 1, "b": [2, 3]}
"""


def all_texts() -> dict[str, str]:
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in (ROOT / "scripts").rglob("*.py")}


def test_our_own_package_stands_among_others_and_the_form_is_black_s() -> None:
    assert in_zoo_form({"a.py": CODE})["a.py"] == WANTED


def test_it_changes_no_meaning_and_is_stable() -> None:
    paths = ["scripts/core/record.py", "scripts/networks/mil.py", "scripts/ct/reader.py"]
    texts = {path: (ROOT / path).read_text(encoding="utf-8") for path in paths}
    formed = in_zoo_form(texts)
    for path, text in texts.items():
        before, now = (
            [ast.dump(node) for node in ast.parse(each).body if not isinstance(node, (ast.Import, ast.ImportFrom))]
            for each in (text, formed[path])
        )
        assert before == now
    assert in_zoo_form(formed) == formed


def test_exceptions_of_the_linter_stay_on_their_lines(tmp_path: Path) -> None:
    excepted = {path: text for path, text in all_texts().items() if "# noqa" in text}
    for path, text in in_zoo_form(excepted).items():
        (tmp_path / path.replace("/", ".")).write_text(text, encoding="utf-8")
    ran = subprocess.run([sys.executable, "-m", *FORMS[-1], str(tmp_path)], capture_output=True, text=True)
    assert (ran.stdout, ran.stderr) == ("", "")


def test_where_the_tools_are_not_installed_the_code_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "black", None)
    assert in_zoo_form({"a.py": CODE}) == {"a.py": CODE}
    assert "isort and black are not installed" in caplog.text
