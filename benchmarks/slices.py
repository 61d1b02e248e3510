# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The slice network of head CT beside its bare stack: the same layers as plain torch, fed in the layout they like."""

import copy
from collections.abc import Callable, Hashable, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.bags import Runs, runs_of
from benchmarks.measure import Request, in_turns, peak_of
from benchmarks.report import Section, Table, Target, number, spread
from benchmarks.runner import Runner
from scripts.networks import SliceCNN

BOTH = ("step", "forward")
AT_ONCE = 8
SMALL: dict[str, Any] = {"size": 64, "channels": (16, 32, 32, 32)}


def bare_stack(encoder: nn.Module) -> nn.Sequential:
    """The convolutions and normalisations of a slice network in plain layers: slices [N, C, H, W] → maps.

    Conv → ReLU → BatchNorm → MaxPool, in channels_last. It gathers nothing, knows no mask and drops nothing out.
    """
    norms = (layer for layer in encoder.modules() if isinstance(layer, nn.BatchNorm2d))
    layers: list[nn.Module] = []
    for conv in encoder.modules():
        if isinstance(conv, nn.Conv2d):
            layers += [copy.deepcopy(conv), nn.ReLU(inplace=True), copy.deepcopy(next(norms)), nn.MaxPool2d(2)]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def features_of(maps: Tensor) -> Tensor:
    """Maps [N, C, h, w] flattened to features [N, D] in the order of SliceCNN."""
    return maps.permute(0, 2, 3, 1).flatten(1)


def bare(n: int, scans: int = 1, device: str = "cpu", autocast: str | None = None, **options: Any) -> Runs:
    """The stack on slices that are ready, of however many scans."""
    encoder = _encoder(**options)
    slices = _slices(n, encoder.image_size, device).contiguous(memory_format=torch.channels_last)
    stack = bare_stack(encoder).to(device)
    return _of_features(stack, lambda: stack(slices), device, autocast)


def slice_network(n: int, device: str = "cpu", autocast: str | None = None, **options: Any) -> Runs:
    encoder = _encoder(**options).to(device)
    image = _slices(n, encoder.image_size, device).permute(1, 2, 3, 0)[None]  # [1, C, H, W, N] as SliceWindowsd has it
    mask = torch.ones(1, 1, n, device=device)
    return _of_features(encoder, lambda: encoder(image, mask), device, autocast)


def head_ct(n: int, scans: int = 4, device: str = "cpu", autocast: str | None = None, **options: Any) -> Runs:
    """The network and the loss of train.json on a batch of scans, n slices in all, as the loader collates them."""
    from scripts.engine.batches import PrepareBags, collate_bags  # which load MONAI, for seconds

    network, loss = head_ct_parts(device, **options)
    batch: dict[Any, Any] = collate_bags([scan_of_noise(n // scans, network.encoder.image_size) for _ in range(scans)])
    image, _, _, named = PrepareBags()(batch, device)
    label = torch.ones(scans, 1, device=device)

    def answer() -> Any:
        return network(image, **named)

    return runs_of(network, answer, lambda: loss(answer(), label), device, autocast)


def head_ct_parts(device: str, size: int = 512, channels: Sequence[int] | None = None) -> tuple[Any, Any]:
    """The network and the loss of train.json."""
    from benchmarks.loop import SCANS, config_of

    settings = {"image_size": size, "device": device, **({} if channels is None else {"channels": list(channels)})}
    torch.manual_seed(0)
    config = config_of(SCANS, settings)
    return config.get_parsed_content("network"), config.get_parsed_content("loss")


def scan_of_noise(n: int, size: int) -> dict[Hashable, Tensor]:
    """A bag as the preprocessing leaves it: image [C, H, W, N] lies in memory as [N, C, H, W]."""
    image = _slices(n, size, "cpu").permute(1, 2, 3, 0)
    return {"image": image, "coords": torch.arange(n).float()[None], "mask": torch.ones(1, n)}


def beside_bare(n: int, turns: int, network: str = "slice_network", **options: Any) -> dict[str, dict[str, Any]]:
    """Of a step and of a forward pass: seconds of both ways in each turn, and then the peak memory of each."""
    ours, stack = globals()[network](n, **options), bare(n, **options)
    device, found = options.get("device", "cpu"), {}
    for run in BOTH:
        sides = {"ours": ours[run], "bare": stack[run]}
        took = in_turns(sides, turns, device)
        found[run] = {"turns": took, "peak_bytes": {side: peak_of(call, device) for side, call in sides.items()}}
    return found


def ratios(turns: Sequence[dict[str, float]]) -> list[float]:
    return [turn["ours"] / turn["bare"] for turn in turns]


def _encoder(size: int = 512, channels: Sequence[int] | None = None, slices_at_once: int | None = None) -> SliceCNN:
    torch.manual_seed(0)
    options: dict[str, Any] = {} if channels is None else {"channels": channels}
    if slices_at_once is not None:
        options["slices_at_once"] = slices_at_once
    return SliceCNN(size, **options)


def _slices(n: int, size: int, device: str) -> Tensor:
    """Windows of noise, [N, 3, H, W]."""
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)


def _of_features(network: nn.Module, answer: Callable[[], Tensor], device: str, autocast: str | None) -> Runs:
    """The loss is a mean square."""
    return runs_of(network, answer, lambda: answer().float().square().mean(), device, autocast)


def slices(runner: Runner) -> Section:
    n, scan, turns, rounds = (3, 4, 1, 1) if runner.small else (16, 60, 5, 2)
    options: dict[str, Any] = SMALL if runner.small else {}
    size, whole = options.get("size", 512), f"slice network, {scan} slices"
    recomputed = f"{whole}, {AT_ONCE} at once"
    requests = {
        "slice network": Request("slices", "slice_network", [n], options, BOTH, calls=1, warm=2),
        "bare stack": Request("slices", "bare", [n], options, BOTH, calls=1, warm=2),
        whole: Request("slices", "slice_network", [scan], options, calls=1, untimed=0, warm=2),
    }
    some = {**options, "slices_at_once": AT_ONCE}
    requests[recomputed] = Request("slices", "slice_network", [scan], some, calls=1, untimed=0, warm=2)
    got = runner.in_turn(requests, rounds=1)  # for their memory
    processes = [runner.figures("beside_bare", "slices", n=n, turns=turns, **options) for _ in range(rounds)]
    took = {run: [turn for each in processes for turn in each[run]["turns"]] for run in BOTH}
    rows = []
    for run in BOTH:
        for name, side in (("slice network", "ours"), ("bare stack", "bare")):
            seconds = [turn[side] for turn in took[run]]
            memory = number(got.peak_gb(name, run, n), "GB")
            rows.append([name, run, spread(seconds), number(n / median(seconds)), memory])
    within = [[run, spread(ratios(took[run]), "×")] for run in BOTH]
    here = f"{n} slices of {size} × {size}"
    return runner.section(
        "slices",
        "The slice network",
        "`SliceCNN` with its gathering and its mask beside the bound: the same convolutions, ReLU, batch norm and "
        "pooling as plain layers of torch in channels_last, without dropout, on slices that are ready. A step is "
        "forward, mean square and backward; forward is in evaluation. Both take turns in one process, once untimed; "
        "the ratio is the median of the turns'.",
        [
            Target(f"slice network, forward, {here} / bare stack", median(ratios(took["forward"])), 1.1, "×"),
            Target(f"slice network, step, {here} / bare stack", median(ratios(took["step"])), 1.15, "×"),
            Target(
                f"step of {scan} slices, {AT_ONCE} at once: peak memory", got.peak_gb(recomputed, "step", scan), 2, "GB"
            ),
        ],
        [
            Table(["", "what", "seconds, median (fastest to slowest turn)", "slices per second", "peak memory"], rows),
            Table(["slice network / bare stack", "median (least to most)"], within),
            got.table(),
        ],
        {"turns": took, "cases": got.as_list()},
    )
