# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The parts of the run: which cases, which targets, which tables."""

import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any
from xml.etree import ElementTree

from benchmarks import peers
from benchmarks.belief import calibration, coverage
from benchmarks.defaults import defaults
from benchmarks.gpu import gpu
from benchmarks.measure import Request
from benchmarks.ours import smtap_operations
from benchmarks.report import Section, Table, Target, exponent, large, number, ratio, spread
from benchmarks.runner import Outcomes, Runner, sizes_that_fit
from benchmarks.slices import slices

SIZES = (1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000)
ALPHAS = (0.1, 0.5, 0.7, 0.9, 0.99)
LINEAR = 1.1  # the exponent of N that still counts as linear: a sort is N log N, and large bags leave the caches
SKIPPED_PEERS = "The peers' environment is not there: ours alone."
STEPS = ("step", "step, Adam", "forward")
SMALL_STEPS = ("step", "forward")  # loading torch.optim takes longer than all of it
IMAGES = "head CT on images, batches of 4"
SCANS_OF_LOOP: dict[str, Any] = {"columns": 128, "channels": [16, 32, 32, 32], "batch_size": 4}


def parity(runner: Runner) -> Section:
    """Run tests/peers where torchmil is: both sides must be the same network."""
    title = "The same results as torchmil"
    if not runner.with_peers:
        return runner.section("parity", title, SKIPPED_PEERS)
    runner.say("tests/peers in the peers' environment ...")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        pytest = [str(peers.PYTHON), "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        done = subprocess.run([*pytest, "tests/peers"], cwd=peers.ROOT, capture_output=True, text=True)
        if not report.exists():
            raise RuntimeError(f"tests/peers did not run:\n{done.stdout}\n{done.stderr}")
        suite = ElementTree.parse(report).getroot()[0]
    count = {key: int(suite.attrib[key]) for key in ("tests", "failures", "errors", "skipped")}
    if done.returncode:
        runner.say(done.stdout)
    return runner.section(
        "parity",
        title,
        "Logits, instance scores and every gradient of SmAP and SmTAP with torchmil's weights, to 1e-5: `tests/peers`.",
        [
            Target("tests of parity with torchmil that fail", count["failures"] + count["errors"], 0),
            Target("tests of parity with torchmil that pass", _passed(count), 1, at_least=True),
        ],
        [Table(list(count), [[str(value) for value in count.values()]])],
        count,
    )


def _passed(count: dict[str, int]) -> int:
    return count["tests"] - count["failures"] - count["errors"] - count["skipped"]


def smap(runner: Runner) -> Section:
    n, larger, columns = (600, 1_200, 64) if runner.small else (20_000, 50_000, 1024)
    options, runs = {"columns": columns}, SMALL_STEPS if runner.small else STEPS
    got = runner.in_turn(
        {
            "SmAP, ours": Request("ours", "smap", [n], options, runs, calls=10),
            "SmAP, torchmil": Request("theirs", "smap", [n], options, runs, calls=2),
            "without smoothing, ours": Request("ours", "attention_pool", [n], options, runs, calls=10),
            "SmAP, ours, larger": Request("ours", "smap", [larger], options),
        }
    )
    ours, theirs = got.seconds("SmAP, ours", "step", n), got.seconds("SmAP, torchmil", "step", n)
    plain = got.seconds("without smoothing, ours", "step", n)
    here, there = f"{n:,} × {columns}", f"{larger:,} × {columns}"
    return runner.section(
        "smap",
        "SmAP, a training step",
        "Placement early, attention of 128, tanh, 10 steps, α trained, one linear layer as head, binary cross-entropy. "
        "A step is forward, loss and backward. Ours builds its graph within the step; torchmil is given its normalised "
        "sparse adjacency in float32, which its dataset would have made beforehand, in float64. "
        f"The speed asked for is torchmil's time over ours. {_peers_note(runner)}",
        [
            Target(f"SmAP step, {here}: torchmil / ours", ratio(theirs, ours), 15, "×", at_least=True),
            Target(f"SmAP step, {here}: with / without smoothing", ratio(ours, plain), 1.5, "×"),
            Target(f"SmAP step, {here}: peak memory", got.peak_gb("SmAP, ours", "step", n), 0.2, "GB"),
            Target(f"SmAP step, {there}", got.seconds("SmAP, ours, larger", "step", larger), 0.6, "s"),
            Target(f"SmAP step, {there}: peak memory", got.peak_gb("SmAP, ours, larger", "step", larger), 0.4, "GB"),
        ],
        [
            got.table(),
            _ratios(
                got,
                runs,
                n,
                {
                    "torchmil / ours": ("SmAP, torchmil", "SmAP, ours"),
                    "with / without smoothing": ("SmAP, ours", "without smoothing, ours"),
                },
            ),
        ],
        {"cases": got.as_list()},
    )


def operator(runner: Runner) -> Section:
    n, small = (600, 400) if runner.small else (100_000, 2_500)
    got = runner.in_turn({"exact, lattice": Request("ours", "exact", [n], runs=["forward"], calls=1)})
    errors = runner.figures("errors", n=small, columns=16, alphas=ALPHAS, steps=10)
    rows = [[number(alpha), *(f"{row[name]:.1e}" for name in row)] for alpha, row in zip(ALPHAS, errors, strict=True)]
    return runner.section(
        "operator",
        "The smooth operator by itself",
        f"On a graph that is there, without gradient. Errors are ‖G − G*‖ / ‖G*‖ for white noise U on {small:,} "
        "patches, with G* from a sparse solve by SciPy in float64; the two approximations take 10 steps, in float32.",
        [Target(f"exact operator, {n:,} × 128, α = 0.9", got.seconds("exact, lattice", "forward", n), 4, "s")],
        [got.table(), Table(["α", "exact", "recursion of the paper", "Chebyshev (accelerated)"], rows, "Errors:")],
        {"cases": got.as_list(), "errors": dict(zip(map(str, ALPHAS), errors, strict=True))},
    )


def graph(runner: Runner) -> Section:
    n = 1_000 if runner.small else 50_000
    got = runner.in_turn({"graph": Request("ours", "graph", [n], runs=["build"], calls=5)})
    return runner.section(
        "graph",
        "Who is whose neighbour",
        "`build_graph` of a blob of tissue, 8 neighbours.",
        [Target(f"graph of {n:,} patches", got.seconds("graph", "build", n), 0.05, "s")],
        [got.table()],
        {"cases": got.as_list()},
    )


def smtap(runner: Runner) -> Section:
    n, columns = (300, 64) if runner.small else (10_000, 512)
    half = n // 2
    runs, options = ("step", "forward"), {"columns": columns}
    got = runner.in_turn(
        {
            "SmTAP, ours": Request("ours", "smtap", [n], options, runs, calls=1, untimed=0),
            "SmTAP, torchmil, no mask": Request("theirs", "smtap", [n], options, runs, calls=1, untimed=0),
            "SmTAP, torchmil, mask": Request("theirs", "smtap", [n], {**options, "masked": True}, runs, 1, 0),
        }
    )
    square = 64 if runner.small else 4096
    got.update(runner.in_turn({"matrix product": Request("ours", "matmul", [square], runs=["multiply"], calls=5)}))
    halved = Request("ours", "smtap", [half], options, runs, calls=1, untimed=0)
    got.update(runner.in_turn({"SmTAP, ours, half the bag": halved}, rounds=1))  # for its memory alone
    targets = []
    for run in runs:
        peers_seconds = {mask: got.seconds(f"SmTAP, torchmil, {mask}", run, n) for mask in ("no mask", "mask")}
        known = {mask: seconds for mask, seconds in peers_seconds.items() if seconds is not None}
        best = min(known, key=lambda mask: known[mask]) if known else "no mask"
        value = ratio(peers_seconds[best], got.seconds("SmTAP, ours", run, n))
        targets.append(
            Target(f"SmTAP {run}, {n:,} × {columns}: torchmil ({best}) / ours", value, 1.5, "×", at_least=True)
        )
    speed = ratio(2 * square**3, got.seconds("matrix product", "multiply", square))  # operations per second
    bounds = [
        [run, number(operations / 1e9), number(ratio(operations, speed), "s")]
        for run, operations in smtap_operations(n, columns).items()
    ]
    whole, part = got.peak_gb("SmTAP, ours", "step", n), got.peak_gb("SmTAP, ours, half the bag", "step", half)
    targets.append(
        Target("SmTAP step: peak memory of a bag / of half of it (an N×N tensor: 4)", ratio(whole, part), 2.5)
    )
    return runner.section(
        "smtap",
        "SmTAP",
        "8 heads, 2 layers, then SmAP; attention among all instances. torchmil runs with a mask, as its collate makes "
        "one, and without; its faster one counts. One N×N matrix in float32 would be "
        f"{number(4 * n * n / 1e9, 'GB')} for each head. Nearly all of it are matrix products, of attention and of "
        f"linear layers: in float32 nobody is faster than the bound below. {_peers_note(runner)}",
        targets,
        [
            got.table(),
            Table(["", "billions of operations", "bound: the same at the speed of torch's own matrix product"], bounds),
        ],
        {"cases": got.as_list()},
    )


def streaming(runner: Runner) -> Section:
    n, columns = (1_000, 64) if runner.small else (100_000, 1024)
    with tempfile.TemporaryDirectory() as folder:
        options = {"folder": folder, "columns": columns}
        got = runner.in_turn(
            {
                "SmAP, file in blocks": Request("streaming", "in_blocks", [n], options, ["predict"], calls=2),
                "SmAP, file at once": Request("streaming", "at_once", [n], options, ["predict"], calls=2),
                "SmAP, bag in memory": Request("streaming", "in_memory", [n], options, ["predict"], calls=2),
            },
            rounds=2,
        )
    blocks, memory = (got.seconds(f"SmAP, {how}", "predict", n) for how in ("file in blocks", "bag in memory"))
    here = f"{n:,} × {columns} in a file"
    return runner.section(
        "streaming",
        "A bag that stays in its file",
        "Scores of a bag whose features are in a file (float32, in the system's cache), by `StreamingInferer`, 2048 "
        "patches at a time; of the same bag in memory, by `BagInferer`; and from the file, transforms included. "
        "SmAP weighs the features themselves, so the blocks are read twice.",
        [
            Target(f"{here}, in blocks: peak memory", got.peak_gb("SmAP, file in blocks", "predict", n), 0.5, "GB"),
            Target(f"{here}: time in blocks / in memory", ratio(blocks, memory), 1.5, "×"),
        ],
        [got.table()],
        {"cases": got.as_list()},
    )


def evidence(runner: Runner) -> Section:
    n, columns, turns = (1_000, 64, 1) if runner.small else (100_000, 1024, 5)
    networks: dict[str, dict[str, Any]] = {
        "SmAP of the config": {},
        "SmAP on the features themselves": {"projected": False},
        "SmAP, a hidden layer in its head": {"hidden": True},
    }
    runs = ("with evidence", "without")
    requests = {
        name: Request("ours", "evidence", [n], {"columns": columns, **options}, runs, calls=1)
        for name, options in networks.items()
    }
    got = runner.in_turn(requests, rounds=1)  # for their memory
    in_turns = {
        name: [
            turn
            for _ in range(1 if runner.small else runner.rounds)
            for turn in runner.figures("evidence_in_turns", n=n, turns=turns, columns=columns, **options)
        ]
        for name, options in networks.items()
    }
    ratios = {name: [turn[runs[0]] / turn[runs[1]] for turn in in_turns[name]] for name in networks}
    memory = [got.peak_gb("SmAP of the config", run, n) for run in runs]
    rows = [
        [
            name,
            *(number(median(turn[run] for turn in in_turns[name]), "s") for run in runs),
            f"{median(ratios[name]):.3g} ({min(ratios[name]):.3g} to {max(ratios[name]):.3g})",
            *(number(got.peak_gb(name, run, n), "GB") for run in runs),
        ]
        for name in networks
    ]
    return runner.section(
        "evidence",
        "What each instance adds, beside the answer itself",
        f"Inference of {n:,} patches with {columns} features in memory, graph included: logits, scores and attention, "
        "with and without the logit, the share and the leave-one-out change of each instance. Both take turns in one "
        "process, once untimed; the ratio is the median of the turns'. Behind a head with a hidden layer there is the "
        "leave-one-out change alone, for which the head is asked about an embedding for each instance; that is told "
        "and not judged.",
        [
            *(
                Target(f"{name}, {n:,} × {columns}: with / without evidence", median(ratios[name]), 1.3, "×")
                for name in networks
                if "hidden" not in networks[name]
            ),
            Target("peak memory: with / without evidence", ratio(*memory), 1.3, "×"),
        ],
        [Table(["network", *runs, "with / without (least to most)", *(f"memory, {run}" for run in runs)], rows)],
        {"turns": in_turns, "cases": got.as_list()},
    )


def ct(runner: Runner) -> Section:
    scans, calls, rounds, overrides = (1, 1, 1, ["small.json"]) if runner.small else (3, 3, 2, [])
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"folder": folder, "scans": scans, "overrides": overrides, "calls": calls}
        processes = [runner.figures("profile", module="ct", **options) for _ in range(rounds)]
    rows = [
        [what, name, spread([each[what][name] / scans for each in processes])]
        for what in ("whole", "part of it", "bare")
        for name in processes[0][what]
    ]
    value = median(each["ratio"] for each in processes)
    return runner.section(
        "ct",
        "Head CT, from DICOM folders to all outputs",
        "`configs/ct/inference.json` with SA-DMIL, from finding the scans to the last file of each, in a process that "
        "has run it before; loading libraries and making the network are not timed. Beside it what no such program can "
        "do without: pydicom reading the pixels of every file, and of the network the bare channels_last stack (as in "
        "the part slices), pooling and head on slices that are ready. "
        f"Phantoms, {processes[0]['slices']} slices of 512 × 512 in all, not compressed and in the system's "
        "cache, each called positive so that there are slices to report; on the CPU.",
        [Target("head CT, DICOM folders to all outputs: time / that of its bare parts", value, 1.5, "×")],
        [Table(["seconds per scan", "", "median (fastest to slowest process)"], rows)],
        {"processes": processes},
    )


def wsi(runner: Runner) -> Section:
    slides, tiles, calls, rounds, patches = (1, 9, 1, 1, 500) if runner.small else (2, 1200, 3, 2, 50_000)
    encoders: dict[str, list[str]] = {"seeded convolution": []}
    if not runner.small:
        encoders["MONAI's resnet18"] = ["encoder_monai.json"]
    extraction: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for place, (name, overrides) in enumerate(encoders.items()):
            share = tiles if place == 0 else tiles // 4  # the larger encoder takes far longer for each
            options: dict[str, Any] = {"slides": slides, "tiles": share, "overrides": overrides, "calls": calls}
            options["folder"] = f"{folder}/{place}"
            extraction[name] = [runner.figures("extraction_profile", module="wsi", **options) for _ in range(rounds)]
        reading = [
            runner.figures("inference_profile", module="wsi", folder=f"{folder}/h5", patches=patches, calls=calls)
            for _ in range(rounds)
        ]
    rows = [
        [
            name,
            f"{each[0]['tiles']:,}",
            *(number(median(run[key] for run in each)) for key in ("tiles per second", "bound")),
        ]
        for name, each in extraction.items()
    ]
    parts = [[name, spread([run["part of it"][name] for run in reading])] for name in reading[0]["part of it"]]
    seconds = median(run["whole"]["all"] for run in reading)
    return runner.section(
        "wsi",
        "Whole slides: features, and from features to all outputs",
        "`configs/wsi/features.json`, tiles of 256 pixels of synthetic pyramidal TIFFs, 2 workers, to the last byte of "
        "the feature file; the bound is OpenSlide reading each tile, one by one, and the encoder's forward pass on "
        f"tiles that are ready, in sequence. `configs/wsi/inference.json`: one slide of {patches:,} patches with 1024 "
        "features, from its file to the last file of results, in a process that has run it before. On the CPU.",
        [
            *(
                Target(
                    f"features.json, {name}: tiles per second / bound",
                    median(run["share of the bound"] for run in each),
                    0.85,
                    at_least=True,
                )
                for name, each in extraction.items()
            ),
            Target(f"inference of {patches:,} patches, h5 to all outputs", seconds, 10, "s"),
        ],
        [
            Table(["encoder", "tiles", "tiles per second", "bound"], rows),
            Table(["inference, seconds", "median (fastest to slowest process)"], parts),
        ],
        {"extraction": extraction, "inference": reading},
    )


def loop(runner: Runner) -> Section:
    few = 8 if runner.small else None
    cohorts: dict[str, dict[str, Any]] = {
        "head CT on features, batches of 8": {"kind": "ct", "bags": few or 400, "instances": 34, "columns": 1152},
        "slides, one by one": {"kind": "wsi", "bags": few or 200, "instances": 400, "columns": 1024},
        IMAGES: {"kind": "ct scans", "bags": 8, "instances": 8, **SCANS_OF_LOOP},
    }
    if runner.small:
        cohorts[IMAGES].update(bags=4, instances=1, columns=64)
    rounds, epochs = (1, 1) if runner.small else (runner.rounds, 8)
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"folder": folder, "cohorts": cohorts, "epochs": epochs}
        processes = [runner.figures("loop_profile", module="loop", **options) for _ in range(rounds)]
    rows = [
        [name, *(spread([median(run[name][what]) for run in processes]) for what in ("epoch", "bare"))]
        for name in cohorts
    ]
    ratios = {name: [run[name]["ratio"] for run in processes] for name in cohorts}
    for row, name in zip(rows, cohorts, strict=True):
        row.append(spread(ratios[name], "×"))
    size = cohorts[IMAGES]["columns"]
    return runner.section(
        "loop",
        "The loop of a training",
        "`train.json` of both bundles (head CT also with `on_features.json`): an epoch as it is run, with its seeds, "
        "bags, log, MLflow and the state to resume from, but without validation. Bare is forward, loss, backward and "
        "step of the same network on the same batches, which are ready. Bare epochs and others take turns in one "
        "process, the first of each untimed. Bags of noise, of about as many instances: "
        + " and ".join(f"{each['bags']} of {each['instances']} × {each['columns']}" for each in [*cohorts.values()][:2])
        + f"; and {cohorts[IMAGES]['bags']} phantoms in DICOM, read once and held in memory, augmented "
        f"by the loader's workers in every epoch, {size} × {size} pixels. On a CPU these workers share the cores with "
        "the steps, so that this ratio is told and not judged; the part gpu judges it.",
        [Target(f"{name}: an epoch / bare", median(ratios[name]), 1.5, "×") for name in cohorts if name != IMAGES],
        [Table(["training", "epoch, median (fastest to slowest process)", "bare", "epoch / bare"], rows)],
        {"processes": processes},
    )


def growth(runner: Runner) -> Section:
    sizes = (200, 400, 800) if runner.small else SIZES
    tall = sizes_that_fit(sizes, 4 * 4 * 1024)  # the bag, its transposition, and room for two more
    cases = {
        "graph": Request("ours", "graph", sizes, runs=["build"]),
        "SmAP step, 128 features": Request("ours", "smap", sizes, {"columns": 128}),
        "SmAP step, 1024 features": Request("ours", "smap", tall, {"columns": 1024}, calls=2),
        "exact, lattice, 128 columns": Request("ours", "exact", sizes, runs=["forward"], calls=2),
        "exact, chain, 128 columns": Request("ours", "exact_chain", sizes, runs=["forward"], calls=2),
    }
    with tempfile.TemporaryDirectory() as folder:
        options = {"folder": folder, "columns": 128}
        cases["SmAP in blocks, 128 features"] = Request("streaming", "in_blocks", sizes, options, ["predict"])
        got = runner.in_turn(cases, rounds=2)
    rows, each, targets, exponents = [], [], [], {}
    for name, request in cases.items():
        seconds = got.by_size(name, request.runs[0])
        overall, of_large = exponent(seconds), exponent(large(seconds))
        exponents[name] = {"all": overall, "large": of_large}
        rows.append([name, *(number(seconds.get(n)) for n in sizes), number(overall), number(of_large)])
        each.append([name, *(number(1e6 * seconds[n] / n) if n in seconds else "–" for n in sizes)])
        targets.append(Target(f"{name}: time grows as N to the power of", overall, LINEAR))
    at = [f"{n:,}" for n in sizes]
    return runner.section(
        "growth",
        "Growth with the number of instances",
        f"The exponent is the slope of log time over log N, from end to end; up to {LINEAR} counts as linear. Small "
        "bags are all fixed cost, so the exponent from 10,000 instances on stands beside it. Where a bag leaves a "
        "cache of the processor, each instance costs more, and over this range that shows as a larger exponent.",
        targets,
        [
            Table(["seconds at N =", *at, "exponent", "exponent from 10,000 on"], rows),
            Table(["microseconds per instance at N =", *at], each),
        ],
        {"cases": got.as_list(), "exponents": exponents},
    )


def _ratios(got: Outcomes, runs: Sequence[str], n: int, of: Mapping[str, tuple[str, str]]) -> Table:
    """How many times as long, and how much memory, the first of two cases takes."""
    rows = []
    for run in runs:
        for what, (first, second) in of.items():
            slower = ratio(got.seconds(first, run, n), got.seconds(second, run, n))
            larger = ratio(got.peak_gb(first, run, n), got.peak_gb(second, run, n))
            rows.append([what, run, number(slower, "×"), number(larger, "×")])
    return Table(["ratio", "what", "time", "peak memory"], rows)


def _peers_note(runner: Runner) -> str:
    return "" if runner.with_peers else SKIPPED_PEERS


SECTIONS: dict[str, Callable[[Runner], Section]] = {
    "parity": parity,
    "smap": smap,
    "operator": operator,
    "graph": graph,
    "smtap": smtap,
    "streaming": streaming,
    "evidence": evidence,
    "slices": slices,
    "ct": ct,
    "wsi": wsi,
    "loop": loop,
    "growth": growth,
    "defaults": defaults,
    "gpu": gpu,
    "coverage": coverage,
    "calibration": calibration,
}
OF_PEERS = {"parity", "smap", "smtap", "gpu"}  # parts that measure them too
TRAININGS = {"defaults", "calibration"}  # of many minutes, which run when they are named
