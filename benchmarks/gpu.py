# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The part of the run for a GPU: it prints as it goes, a case that fails costs only itself, and it ends in time.

All of it also runs on a CPU with small bags: `python -m benchmarks gpu --device cpu --small`.
"""

import copy
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import Request
from benchmarks.ours import noise, smap_network, smtap_network
from benchmarks.report import Section, Table, Target, number, ratio, spread
from benchmarks.runner import Outcomes, Runner
from benchmarks.slices import BOTH, SMALL, head_ct_parts, ratios, scan_of_noise
from scripts.networks import MILNetwork

MINUTES = 9  # from when on no case begins, and none goes on: a machine is lent for ten at a time
PRECISIONS = {"bf16": "bfloat16", "fp32": None, "fp16": "float16"}
SAME = 1e-5
Beside = dict[str, dict[str, dict[str, Any]]]  # turns and memory of both sides, by precision and run
HOW = (
    "Time is that of a call after which the device was waited for, median of the calls of one process. Peak memory is "
    "what the allocator of torch gave out at most, less what it had given out before. float32 is float32 on both "
    "sides: TF32 is off in matrix products and convolutions; bf16 and fp16 are torch's autocast. Beside each figure "
    "stands its bound or peer of the same run: the same network without smoothing; torchmil's network; ten steps of "
    "the recursion for the exact operator; a sort of as many numbers for the graph; for a large bag, the bag copied "
    "once. `head CT` is the network and the loss of `train.json` on a batch, its bound the bare channels_last stack "
    "(as in the part slices) in the same precision, in turns with it in one process. An epoch is that of the part "
    "loop, at full size, from scans held in memory; its steps run the first four batches again and again. Results are "
    "the same if no logit, score or gradient of a training step is further from the CPU's than the share named of the "
    "largest, in float32."
)


@dataclass(frozen=True)
class Case:
    """What to time, and beside which case of the same size and run it stands; of itself: beside another run."""

    request: Request
    beside: str = ""
    run: str = ""  # of the other case, if it is another one


def cases(device: str, small: bool) -> dict[str, Case]:
    """By name; what was asked for first comes first, should the time not suffice for all."""
    smap, smtap, exact, graph, many = (
        ([300, 600], [150, 300], 600, 600, 2_000)
        if small
        else ([20_000, 100_000], [10_000, 40_000], 100_000, 50_000, 1_000_000)
    )
    wide, middle, widest = (16, 16, 16) if small else (1024, 512, 1536)
    on = {"device": device}
    early, heads, most = ({**on, "columns": columns} for columns in (wide, middle, widest))
    mixed = {**heads, "autocast": "bfloat16"}
    return {
        "SmAP": Case(Request("ours", "smap", smap, early, BOTH, 10, 3), "without smoothing"),
        "without smoothing": Case(Request("ours", "attention_pool", smap, early, BOTH, 10, 3)),
        "SmTAP, bf16": Case(Request("ours", "smtap", smtap, mixed, BOTH, 5), "SmTAP"),
        "SmTAP": Case(Request("ours", "smtap", smtap, heads, BOTH, 5), "SmTAP, torchmil"),
        "SmAP, torchmil": Case(Request("theirs", "smap", smap, early, BOTH, 5), "SmAP"),
        "SmTAP, torchmil": Case(Request("theirs", "smtap", smtap, heads, BOTH, 3), "SmTAP"),
        "TransMIL (Nyström), torchmil": Case(Request("theirs", "transmil", smtap, heads, BOTH, 3), "SmTAP"),
        "SmAP, a large bag": Case(
            Request("ours", "smap_of_many", [many], most, (*BOTH, "copy"), 3), "SmAP, a large bag", "copy"
        ),
        "exact, lattice": Case(Request("ours", "exact", [exact], on, ["forward"], 5), "ten steps, lattice"),
        "ten steps, lattice": Case(Request("ours", "exact", [exact], {**on, "mode": "approx"}, ["forward"], 5)),
        "exact, chain": Case(Request("ours", "exact_chain", [exact], on, ["forward"], 5), "ten steps, chain"),
        "ten steps, chain": Case(Request("ours", "exact_chain", [exact], {**on, "mode": "approx"}, ["forward"], 5)),
        "graph": Case(Request("ours", "graph", [graph], on, ["build"], 10), "a sort of as many", "sort"),
        "a sort of as many": Case(Request("ours", "sort", [graph], on, ["sort"], 10)),
    }


def gpu(runner: Runner) -> Section:
    device = runner.device or ("cuda" if runner.figures("cuda_device") else None)
    if device is None:
        return runner.section("gpu", "On a GPU", "No CUDA here: skipped.")
    name = device if device == "cpu" else runner.figures("cuda_device")
    if not runner.small:
        runner = replace(runner, until=time.monotonic() + 60 * MINUTES)
    wanted = cases(device, runner.small)
    if runner.with_peers and device != "cpu" and not runner.figures("cuda_device", module="theirs"):
        runner.say("the peers' environment has no CUDA: ours alone")
        wanted = {name: case for name, case in wanted.items() if case.request.module != "theirs"}
    heads = _head_ct(runner, device)
    epoch = _told(runner, lambda: _epoch(runner, device), "an epoch of cached scans")
    apart = _told(runner, lambda: runner.figures("apart", "gpu", device=device, small=runner.small), "the same results")
    for network, far in (apart or {}).items():
        runner.say(f"  {network}: {', '.join(f'{what} {far[what]:.1e}' for what in APART)} from the CPU's")
    got = _in_order(runner, {name: case.request for name, case in wanted.items()})
    return Section(
        "gpu",
        "On a GPU",
        HOW,
        runner.small,
        {**runner.where(), "GPU": name},
        _targets(wanted, got, heads, epoch, apart),
        [
            Table(HEADER, _rows(wanted, got)),
            Table(CT_HEADER, _ct_rows(heads), "Head CT:"),
            Table(["an epoch", "its steps", "ratio"], _epoch_rows(epoch), "An epoch of cached scans, seconds:"),
            Table(["network", *APART], _apart_rows(apart), "How far from the CPU's, of the largest:"),
        ],
        {"cases": got.as_list(), "head CT": heads, "epoch": epoch, "apart": apart},
    )


HEADER = ["case", "instances", "what", "milliseconds", "instances per second", "peak memory", "beside it", "times that"]
CT_HEADER = [
    *("precision", "what", "seconds, median (fastest to slowest turn)", "slices per second", "peak memory"),
    *("bare stack", "its memory", "times that, median (least to most)"),
]
APART = ("logits", "scores", "gradients")


def _told(runner: Runner, ask: Callable[[], Any], what: str) -> Any:
    """An answer, or None of what failed, or for which no time was left: the others have theirs."""
    if runner.small:  # where a mistake shall show
        return ask()
    try:
        return ask()
    except RuntimeError as error:
        runner.say(f"{what}: no answer: {str(error).strip().splitlines()[-1]}")
        return None


def _in_order(runner: Runner, requests: Mapping[str, Request]) -> Outcomes:
    got = Outcomes()
    for name, request in requests.items():
        answer = _told(runner, partial(runner.in_turn, {name: request}, 1), name)
        for (_, run, n), outcome in (answer or {}).items():
            memory = number(max(outcome.peak_bytes) / 1e9, "GB")
            runner.say(f"  {name}, {n:,}, {run}: {number(1e3 * median(outcome.seconds), 'ms')}, {memory}")
        got.update(answer or {})
    return got


def _head_ct(runner: Runner, device: str) -> Beside:
    """Turns and memory of head CT and its bare stack, by precision."""
    n, scans, turns, options = (6, 2, 1, SMALL) if runner.small else (140, 4, 10, {})
    found: Beside = {}
    for precision, autocast in PRECISIONS.items():
        settings = {"device": device, "autocast": autocast, "scans": scans, **options}
        what = f"head CT, {precision}"
        ask = partial(runner.figures, "beside_bare", "slices", what, n=n, turns=turns, network="head_ct", **settings)
        answer = _told(runner, ask, what)
        if answer is not None:
            found[precision] = {run: {**of, "slices": n} for run, of in answer.items()}
            step = answer["step"]
            memory = number(step["peak_bytes"]["ours"] / 1e9, "GB")
            runner.say(f"  {what}: step / bare stack {spread(ratios(step['turns']), '×')}, {memory}")
    return found


def _epoch(runner: Runner, device: str) -> dict[str, Any]:
    """An epoch of 64 scans of 16 phantoms, and its steps."""
    options: dict[str, Any] = {"bags": 4, "instances": 1, "columns": 64, "channels": [16, 32, 32, 32], "epochs": 1}
    if not runner.small:
        options = {"bags": 64, "instances": 16, "columns": 512, "epochs": 2}
    with tempfile.TemporaryDirectory() as folder:
        home = {"home": f"{folder}/cohort", "kind": "ct scans"}
        told: dict[str, Any] = runner.figures("turns", "loop", **home, **options, device=device, kept=4)
    runner.say(f"  an epoch / its steps: {number(told['ratio'], '×')}")
    return told


def apart(device: str, small: bool) -> dict[str, dict[str, float]]:
    """How far logits, scores and gradients of a training step are from the CPU's, as a share of the largest."""
    n, tokens, slices, columns = (300, 100, 3, 16) if small else (20_000, 2_000, 8, 512)
    scan = scan_of_noise(slices, 64 if small else 512)
    networks: dict[str, tuple[MILNetwork, Tensor, Tensor]] = {
        "SmAP": (smap_network(columns), *noise(n, columns, "cpu")),
        "SmTAP": (smtap_network(columns), *noise(tokens, columns, "cpu")),
        "head CT": (head_ct_parts("cpu", **(SMALL if small else {}))[0], scan["image"][None], scan["coords"][None]),
    }
    found = {}
    for name, (network, image, coords) in networks.items():
        for layer in network.modules():
            if isinstance(layer, nn.Dropout):
                layer.p = 0.0  # which draws other numbers on each device
        there = _step(copy.deepcopy(network).to(device), image.to(device), coords.to(device))
        here = _step(network, image, coords)
        found[name] = {what: _far(here[what], there[what]) for what in APART}
    return found


def _step(network: MILNetwork, image: Tensor, coords: Tensor) -> dict[str, list[Tensor]]:
    prediction = network.train()(image, coords)
    weights = torch.randn(prediction.scores.shape, generator=torch.Generator().manual_seed(1)).to(image.device)
    (prediction.logits.sum() + (weights * prediction.scores).sum()).backward()
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    return {"logits": [prediction.logits], "scores": [prediction.scores], "gradients": gradients}


def _far(here: list[Tensor], there: list[Tensor]) -> float:
    pairs = list(zip(here, there, strict=True))
    largest = max(float(a.detach().abs().max()) for a, _ in pairs)
    return max(float((a.detach() - b.detach().cpu()).abs().max()) for a, b in pairs) / largest


def _targets(
    wanted: Mapping[str, Case],
    got: Outcomes,
    heads: Beside,
    epoch: Mapping[str, Any] | None,
    apart: Mapping[str, Mapping[str, float]] | None,
) -> list[Target]:
    smap, smtap = wanted["SmAP"].request, wanted["SmTAP"].request
    (n, more), m = smap.sizes, smtap.sizes[0]
    here, there = (f"{each:,} × {smap.options['columns']}" for each in (n, more))
    of_heads = f"{m:,} × {smtap.options['columns']}"
    faster = ratio(got.seconds("SmTAP, torchmil", "step", m), got.seconds("SmTAP", "step", m))
    bf16 = heads.get("bf16")
    furthest = None if apart is None else max(max(each.values()) for each in apart.values())
    return [
        Target(f"GPU: SmAP step, {here}", _ms(got, "SmAP", n), 5, "ms"),
        Target(f"GPU: SmAP step, {there}", _ms(got, "SmAP", more), 8, "ms"),
        Target(f"GPU: SmTAP step, {of_heads}, bf16", _ms(got, "SmTAP, bf16", m), 20, "ms"),
        Target(f"GPU: SmTAP step, {of_heads}, fp32: torchmil / ours", faster, 1, "×", at_least=True),
        Target(
            "GPU: head CT step, bf16 / bare stack", median(ratios(bf16["step"]["turns"])) if bf16 else None, 1.25, "×"
        ),
        Target("GPU: an epoch of cached scans / its steps", epoch["ratio"] if epoch else None, 1.2, "×"),
        Target("GPU: how far from the CPU's results, of the largest", furthest, SAME),
    ]


def _ms(got: Outcomes, name: str, n: int) -> float | None:
    seconds = got.seconds(name, "step", n)
    return None if seconds is None else 1e3 * seconds


def _rows(wanted: Mapping[str, Case], got: Outcomes) -> list[list[str]]:
    rows = []
    for (name, run, n), outcome in got.items():
        case, seconds = wanted[name], median(outcome.seconds)
        other = case.run or run
        beside = got.seconds(case.beside, other, n) if (case.beside, other) != (name, run) else None
        rows.append(
            [
                *(name, f"{n:,}", run, number(1e3 * seconds), number(n / seconds)),
                number(max(outcome.peak_bytes) / 1e9, "GB"),
                "–"
                if beside is None
                else f"{case.beside if case.beside != name else other}: {number(1e3 * beside, 'ms')}",
                number(ratio(seconds, beside), "×"),
            ]
        )
    return rows


def _ct_rows(found: Beside) -> list[list[str]]:
    rows = []
    for precision, by_run in found.items():
        for run, of in by_run.items():
            seconds = {side: [turn[side] for turn in of["turns"]] for side in ("ours", "bare")}
            memory = {side: number(peak / 1e9, "GB") for side, peak in of["peak_bytes"].items()}
            each = number(of["slices"] / median(seconds["ours"]))
            beside = number(median(seconds["bare"]), "s")
            times = spread(ratios(of["turns"]), "×")
            rows.append([precision, run, spread(seconds["ours"]), each, memory["ours"], beside, memory["bare"], times])
    return rows


def _epoch_rows(epoch: Mapping[str, Any] | None) -> list[list[str]]:
    if epoch is None:
        return []
    return [[spread(epoch["epoch"], ""), spread(epoch["bare"], ""), number(epoch["ratio"], "×")]]


def _apart_rows(apart: Mapping[str, Mapping[str, float]] | None) -> list[list[str]]:
    return [[name, *(f"{each[what]:.1e}" for what in APART)] for name, each in (apart or {}).items()]
