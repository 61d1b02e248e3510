# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The guard fails of what is slower twice, and says where to look and what to do."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import guard
from benchmarks.guard import PROCESSES, RATIOS, read_kept
from benchmarks.runner import Runner
from tests.shared_data import ROOT

NAMES = list(RATIOS)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[float]]:
    """What is measured of each ratio, one after the other; the last again and again."""
    given = {name: [2.0] for name in NAMES}

    def turns(runner: Runner, case: str, module: str, what: str, name: str, small: bool) -> list[tuple[float, float]]:
        left = given[name]
        ratio = left.pop(0) if len(left) > 1 else left[0]
        return [(ratio * seconds, seconds) for seconds in (0.5, 1.0, 0.25)]

    monkeypatch.setattr(Runner, "figures", turns)
    return given


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["python -m benchmarks", *words, "--into", str(folder)])
    return command.main()


@pytest.fixture
def kept(tmp_path: Path, measured: dict[str, list[float]], monkeypatch: pytest.MonkeyPatch) -> Path:
    assert run(tmp_path, monkeypatch, "guard", "--keep") == 0
    assert read_kept(tmp_path / "guard.json") == dict.fromkeys(NAMES, 2.0)
    return tmp_path


@pytest.mark.parametrize(
    ("values", "code", "verdict"),
    [
        ([2.48], 0, "| 2.48× | as kept |"),
        ([1.0], 0, "| 1× | as kept |"),
        ([2.52, 2.52], 1, "| 2.52×, 2.52× | slower |"),
        ([9.0, 2.1], 0, "| 9×, 2.1× | as kept, the second time |"),
    ],
)
def test_a_ratio_fails_that_is_more_than_a_quarter_too_high_twice(
    values: list[float],
    code: int,
    verdict: str,
    kept: Path,
    measured: dict[str, list[float]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    measured[NAMES[3]] = values
    assert run(kept, monkeypatch, "--quick") == code
    printed = capsys.readouterr().out
    assert f"| {NAMES[3]} | 2× {verdict}" in printed
    assert printed.count("| as kept |") == len(NAMES) - (verdict.count("as kept |") == 0)
    told = (
        f"slower than kept by more than 25 %: {NAMES[3]}: 2.52×, kept 2× (scripts/networks/encoders.py); "
        "if this is meant, keep the new ratios: python -m benchmarks guard --keep"
    )
    assert (told in printed) == bool(code)


def test_all_that_became_slower_is_named(
    kept: Path, measured: dict[str, list[float]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured[NAMES[0]] = measured[NAMES[-1]] = [4.0]
    assert run(kept, monkeypatch, "guard") == 1
    told = capsys.readouterr().out.splitlines()[-1]
    assert f"{NAMES[0]}: 4×, kept 2× (scripts/networks/smooth.py); {NAMES[-1]}: 4×, kept 2×" in told


def test_a_ratio_that_was_never_kept_says_so_and_is_no_pass(
    tmp_path: Path,
    measured: dict[str, list[float]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(tmp_path, monkeypatch, "--quick") == 1
    assert f"| {NAMES[0]} | – | 2× | not kept yet: python -m benchmarks guard --keep |" in capsys.readouterr().out
    assert not (tmp_path / "guard.json").exists()


def test_the_median_of_several_processes_is_kept_with_its_spread(
    tmp_path: Path, measured: dict[str, list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = [2.2, 1.8, 2.1, 2.0, 1.9]
    measured[NAMES[1]] = [*values]
    assert run(tmp_path, monkeypatch, "guard", "--keep") == 0
    found = json.loads((tmp_path / "guard.json").read_text())
    assert len(values) == PROCESSES
    assert found["ratios"][NAMES[1]] == {"ratio": 2.0, "least": 1.8, "most": 2.2, "of": values}
    assert "processor" in found["where"]


def test_ratios_that_spread_as_far_as_they_may_grow_are_not_kept(
    kept: Path, measured: dict[str, list[float]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (kept / "guard.json").read_text()
    measured[NAMES[1]] = [2.0, 2.6, 2.1]
    assert run(kept, monkeypatch, "guard", "--keep") == 1
    assert (
        f"nothing kept: too far apart to tell what became slower: {NAMES[1]}; wait until nothing else runs"
        in capsys.readouterr().out
    )
    assert (kept / "guard.json").read_text() == before


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["smop"], "no part smop: choose from parity, smap, "),
        (["guard", "smap"], "goes by itself"),
        (["smap", "--quick"], "goes by itself"),
        (["smap", "--keep"], "--keep is for the part guard"),
        (["guard", "--keep", "--small"], "--keep is for the part guard at full size"),
    ],
)
def test_words_that_do_not_go_together_are_refused(
    words: Sequence[str],
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        run(tmp_path, monkeypatch, *words)
    assert problem in capsys.readouterr().err


def test_it_says_where_to_look() -> None:
    assert [name for name, ratio in RATIOS.items() if not (ROOT / ratio.of).exists()] == []
    assert guard.ratio_of([(3.0, 1.0), (1.0, 1.0), (4.0, 2.0)]) == 2.0


@pytest.mark.slow
def test_every_ratio_can_be_measured(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "guard", "--small", "--into", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert [name for name in RATIOS if f"] {name} ...\n" not in done.stdout] == []
    assert f"{len(RATIOS)} ratios measured once, at small sizes: not compared" in done.stdout
    assert not (tmp_path / "guard.json").exists()
