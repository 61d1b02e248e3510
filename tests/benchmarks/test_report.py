# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
import json
import math
from pathlib import Path

import pytest

from benchmarks.__main__ import written
from benchmarks.report import Section, Table, Target, exponent, large, number, page, ratio, read, spread

WHERE = {"processor": "one of paper", "cores": "2"}


def test_the_exponent_is_the_power_of_n_and_fixed_cost_hides_growth_until_bags_are_large() -> None:
    for power in (0.5, 2.0):
        assert exponent({n: 3e-6 * n**power for n in (1_000, 5_000, 200_000)}) == pytest.approx(power)
    assert exponent({1_000: 1.0}) is None
    seconds = {n: 0.05 + 1e-6 * n for n in (1_000, 10_000, 1_000_000, 2_000_000)}
    assert large(seconds).keys() == {10_000, 1_000_000, 2_000_000}
    assert (exponent(seconds) or 1) < (exponent(large(seconds)) or 0) < 1


def test_targets_are_judged_and_numbers_rounded() -> None:
    at_most = [Target("seconds", measured, 0.6, "s").verdict for measured in (0.5, 0.6, 0.61, math.nan)]
    assert at_most == ["reached", "reached", "missed", "missed"]
    at_least = [Target("times faster", measured, 15, "×", at_least=True).verdict for measured in (14.9, 15, None)]
    assert at_least == ["missed", "reached", "not measured"]
    texts = [number(0.12345, "s"), number(12.345, "×"), number(1234.5, ""), number(0.00001234, ""), number(None, "s")]
    assert texts == ["0.123 s", "12.3×", "1,234", "1e-05", "–"]
    assert (ratio(6.0, 2.0), ratio(None, 2.0), ratio(6.0, None)) == (3.0, None, None)
    assert spread([0.3, 0.1, 0.2]) == "0.2 (0.1 to 0.3) s"


def section(name: str, quick: bool = False) -> Section:
    targets = [Target("ours", 0.2, 0.1, "s"), Target("faster", 20.0, 15, "×", at_least=True), Target("theirs", None, 1)]
    tables = [Table(["case", "seconds"], [["a|b", "0.2"]], "A caption:")]
    figures = {"cases": [{"seconds": [0.2]}]}
    return Section(name, f"Title of {name}", "How it was done.", quick, WHERE, targets, tables, figures)


def test_the_page_judges_targets_of_a_full_run_alone() -> None:
    text, quick = page([section("smap")], "Preface."), page([section("smap", quick=True)], "Preface.")
    assert "| ours | 0.2 s | ≤ 0.1 s | missed |" in text
    assert "| faster | 20× | ≥ 15× | reached |" in text
    assert "| theirs | – | ≤ 1 | not measured |" in text
    assert "A caption:\n\n| case | seconds |\n| --- | --- |\n| a\\|b | 0.2 |" in text
    assert "Measured on processor one of paper, cores 2." in text
    assert "not judged" in quick
    assert not any(verdict in quick for verdict in ("| missed |", "| reached |"))


def test_sections_come_back_from_their_files_in_the_order_of_the_run(tmp_path: Path) -> None:
    wanted = [section("smap"), section("growth")]
    for each in reversed(wanted):
        each.write(tmp_path)
    (tmp_path / "hmil.json").write_text('{"a result": "of another kind"}')
    (tmp_path / "list.json").write_text("[]")
    assert page(written(tmp_path), "") == page(wanted, "")
    assert read(tmp_path / "hmil.json") is None
    assert json.loads((tmp_path / "smap.json").read_text())["targets"][0]["verdict"] == "missed"
