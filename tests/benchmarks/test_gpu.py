# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
import time
from typing import Any

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu import apart, cases
from benchmarks.measure import Request
from benchmarks.runner import Runner
from scripts.networks import MILNetwork


def test_without_a_gpu_and_without_a_device_it_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    section = gpu.gpu(Runner(small=True, with_peers=False, rounds=1))
    assert section.how == "No CUDA here: skipped."
    assert section.targets == ()


@pytest.mark.parametrize("small", [False, True])
def test_each_case_stands_beside_one_that_has_its_sizes_and_its_run(small: bool) -> None:
    wanted = cases("cuda", small)
    for case in wanted.values():
        assert case.request.options["device"] == "cuda"
        if case.beside:
            other = wanted[case.beside].request
            assert list(other.sizes) == list(case.request.sizes)
            assert set(case.request.runs) <= set(other.runs) or case.run in other.runs


def test_a_case_that_fails_is_told_and_costs_only_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def answered(runner: Runner, requests: Any, what: str) -> Any:
        if "first" in what:
            raise RuntimeError("first failed:\nTraceback\ntorch.OutOfMemoryError: CUDA out of memory")
        return [[{"run": "step", "n": 5, "seconds": 0.25, "peak_bytes": 3_000_000_000}]]

    monkeypatch.setattr(Runner, "_ask", answered)
    runner = Runner(small=False, with_peers=False, rounds=1)
    got = gpu._in_order(runner, {name: Request("ours", "smap", [5]) for name in ("first", "second")})
    assert list(got) == [("second", "step", 5)]
    printed = capsys.readouterr().out
    assert "first: no answer: torch.OutOfMemoryError: CUDA out of memory" in printed
    assert "second, 5, step: 250 ms, 3 GB" in printed


def test_no_process_lasts_longer_than_there_is_time() -> None:
    runner = Runner(small=False, with_peers=False, rounds=1, until=time.monotonic() - 1)
    with pytest.raises(RuntimeError, match="cuda_device did not end in time"):
        runner.figures("cuda_device")


def test_what_is_apart_is_told_as_a_share_of_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(apart("cpu", small=True)) == {"SmAP", "SmTAP", "head CT"}
    step, calls = gpu._step, []

    def other(network: MILNetwork, *bag: torch.Tensor) -> dict[str, list[torch.Tensor]]:
        calls.append(network)
        told = step(network, *bag)
        if len(calls) % 2:  # on the device
            told["scores"] = [told["scores"][0] + 0.125 * told["scores"][0].abs().max()]
        return told

    monkeypatch.setattr(gpu, "_step", other)
    for each in apart("cpu", small=True).values():
        assert each == pytest.approx({"logits": 0, "scores": 0.125, "gradients": 0}, rel=1e-4)
