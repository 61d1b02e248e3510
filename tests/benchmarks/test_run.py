# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""What is measured is what it is called, and the page says so."""

import json
import math
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import written
from benchmarks.bags import adjacency, edges, features, tissue
from benchmarks.measure import Request, _peak, _settled, measure
from benchmarks.report import Section, Table, Target, exponent, large, number, page, ratio, read, spread
from benchmarks.runner import Runner
from benchmarks.sections import SECTIONS
from scripts.networks import build_graph
from tests.shared_data import ROOT

PARTS = sorted(SECTIONS.keys() - {"parity", "calibration"})  # the last trains networks, if quickly


@pytest.mark.slow
def test_a_run_of_small_bags_works_and_what_is_for_a_gpu_runs_on_the_cpu(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--small", "--no-peers", "--device", "cpu"]
    done = subprocess.run([*command, "--into", str(tmp_path), *PARTS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(path.stem for path in tmp_path.glob("*.json")) == PARTS
    targets = json.loads((tmp_path / "gpu.json").read_text())["targets"]
    unknown = [target["what"] for target in targets if target["value"] is None]
    assert len(unknown) == 1
    assert "torchmil" in unknown[0]
    assert targets[-1]["value"] == 0  # as far as results of the CPU are from themselves
    text = (tmp_path / "README.md").read_text()
    assert "not judged" in text
    assert "reached" not in text
    assert json.loads((tmp_path / "smap.json").read_text())["measured"]["cases"][0]["seconds"][0] > 0


def test_without_the_peers_theirs_is_not_measured_and_a_case_that_fails_says_why() -> None:
    runner = Runner(small=True, with_peers=False, rounds=1)
    assert runner.in_turn({"torchmil": Request("theirs", "smap", [100])}) == {}
    assert runner.in_turn({}).seconds("torchmil", "step", 100) is None
    with pytest.raises(AttributeError, match="no_such_case"):
        runner.figures("no_such_case")
    with pytest.raises(RuntimeError, match="no_such_case"):
        replace(runner, small=False).figures("no_such_case")


def test_memory_is_what_a_case_takes_above_what_was_there_and_time_that_of_a_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = torch.ones(30_000_000)  # 120 MB
    before = _settled()
    taken = torch.ones(20_000_000)  # 80 MB
    del taken
    assert _peak("cpu") - before == pytest.approx(80e6, abs=15e6)
    before = _settled()
    assert _peak("cpu") - before < 15e6  # the mark fell again
    assert there.sum() == 30_000_000
    monkeypatch.setattr("benchmarks.ours.graph", lambda n: {"build": lambda: time.sleep(n * 1e-4)})
    (record, *_) = measure(Request("ours", "graph", [500], runs=["build"]))
    assert record.n == 500
    assert 0.05 <= record.seconds < 0.5


def test_the_bag_is_a_blob_with_holes_and_no_patch_alone_and_both_sides_have_the_same_neighbours() -> None:
    for n in (2, 60, 1_000, 4_000):
        coords = tissue(n)
        assert coords.shape == torch.unique(coords, dim=1).shape == (2, n)
        assert torch.equal(coords, tissue(n))
        assert torch.equal(features(n, 3), features(n, 3))
        assert n < 60 or int(torch.bincount(edges(coords)[0], minlength=n).min()) > 0
    coords = tissue(500)
    graph = build_graph(coords.float()[None])
    ours = torch.zeros(500, 500).scatter_add_(1, graph.neighbours[0].t(), graph.weights[0].t())
    theirs = adjacency(coords).to_dense()
    assert torch.equal(ours > 0, theirs > 0)
    degree = ours.sum(dim=1)
    torch.testing.assert_close(theirs.float(), ours / torch.sqrt(degree[:, None] * degree))


@pytest.mark.slow
def test_a_disturbed_process_is_run_again_only_with_patience(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.runner.Watch.others", lambda watch: 0.5)
    for patience, runs in ((0.0, 1), (0.01, 3)):
        runner = Runner(small=False, with_peers=False, rounds=1, patience=patience)
        runner.figures("cuda_device")
        assert capsys.readouterr().out.count("cuda_device ...") == runs
        assert runner.where()["share of the cores that other work took"] == "50 %"


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


def test_the_page_judges_targets_of_a_full_run_and_sections_come_back_in_order(tmp_path: Path) -> None:
    targets = [Target("ours", 0.2, 0.1, "s"), Target("faster", 20.0, 15, "×", at_least=True)]
    targets.append(Target("theirs", None, 1))
    tables = [Table(["case", "seconds"], [["a|b", "0.2"]], "A caption:")]
    where, figures = {"processor": "one of paper", "cores": "2"}, {"cases": [{"seconds": [0.2]}]}
    smap = Section("smap", "Title of smap", "How it was done.", False, where, targets, tables, figures)
    text, quick = page([smap], "Preface."), page([replace(smap, quick=True)], "Preface.")
    assert "| ours | 0.2 s | ≤ 0.1 s | missed |" in text
    assert "| faster | 20× | ≥ 15× | reached |" in text
    assert "| theirs | – | ≤ 1 | not measured |" in text
    assert "A caption:\n\n| case | seconds |\n| --- | --- |\n| a\\|b | 0.2 |" in text
    assert "Measured on processor one of paper, cores 2." in text
    assert "not judged" in quick
    assert not any(verdict in quick for verdict in ("| missed |", "| reached |"))
    wanted = [smap, replace(smap, name="growth", title="Title of growth")]
    for each in reversed(wanted):
        each.write(tmp_path)
    (tmp_path / "hmil.json").write_text('{"a result": "of another kind"}')
    (tmp_path / "list.json").write_text("[]")
    assert page(written(tmp_path), "") == page(wanted, "")
    assert read(tmp_path / "hmil.json") is None
    assert json.loads((tmp_path / "smap.json").read_text())["targets"][0]["verdict"] == "missed"
