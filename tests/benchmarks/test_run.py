# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.bags import adjacency, edges, features, tissue
from benchmarks.measure import Request, _peak, _settled, measure
from benchmarks.runner import Runner
from benchmarks.sections import SECTIONS
from scripts.networks import build_graph
from tests.shared_data import ROOT

PARTS = sorted(SECTIONS.keys() - {"parity"})


@pytest.mark.slow
def test_the_quick_run_works(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--quick", "--no-peers", "--into", str(tmp_path), "--only", *PARTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(path.stem for path in tmp_path.glob("*.json")) == PARTS
    text = (tmp_path / "README.md").read_text()
    assert "not judged" in text
    assert "reached" not in text
    assert json.loads((tmp_path / "smap.json").read_text())["measured"]["cases"][0]["seconds"][0] > 0


def test_without_the_peers_theirs_is_not_measured_and_a_case_that_fails_says_why() -> None:
    runner = Runner(quick=True, with_peers=False, rounds=1)
    assert runner.in_turn({"torchmil": Request("theirs", "smap", [100])}) == {}
    assert runner.in_turn({}).seconds("torchmil", "step", 100) is None
    with pytest.raises(RuntimeError, match="no_such_case"):
        runner.figures("no_such_case")


def test_memory_is_what_a_case_takes_above_what_was_there() -> None:
    there = torch.ones(30_000_000)  # 120 MB
    before = _settled()
    taken = torch.ones(20_000_000)  # 80 MB
    del taken
    assert _peak("cpu") - before == pytest.approx(80e6, abs=15e6)
    before = _settled()
    assert _peak("cpu") - before < 15e6  # the mark fell again
    assert there.sum() == 30_000_000


def test_the_time_is_that_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.ours.graph", lambda n: {"build": lambda: time.sleep(n * 1e-4)})
    record = measure(Request("ours", "graph", [500], runs=["build"]))[0]
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
        runner = Runner(quick=True, with_peers=False, rounds=1, patience=patience)
        runner.figures("cuda_device")
        assert capsys.readouterr().out.count("cuda_device ...") == runs
        assert runner.where()["share of the cores that other work took"] == "50 %"
