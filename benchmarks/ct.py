# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""CT inference, from folders of DICOM files to the results, timed beside its bare parts: decoding and the layers."""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import pydicom
import torch
from monai.bundle import ConfigParser
from torch import Tensor

from benchmarks.slices import bare_stack, features_of
from demo.heads import Head, plan_head, write_series
from scripts.networks import MILNetwork
from scripts.networks.graph import no_graph
from scripts.outputs.writers import SaveImageResultsd

ROOT = Path(__file__).parents[1]
SEED = 0
CONFIGS = ROOT / "configs" / "ct"
BUNDLE = ROOT / "bundle" / "hemorrhage_ct_smooth_mil"
Answer = TypeVar("Answer")


def every_step(transforms: Sequence[Any]) -> list[Any]:
    """Return the steps of a pipeline, with each writer for itself."""
    nested = (step.writers if isinstance(step, SaveImageResultsd) else [step] for step in transforms)
    return [*chain.from_iterable(nested)]


class Clock:
    """Seconds by the name of what took them."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def timed(self, name: str, call: Callable[..., Answer]) -> Callable[..., Answer]:
        def timed_call(*args: Any, **kwargs: Any) -> Answer:
            start = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - start

        return timed_call


def run_in_parts(parser: ConfigParser, finding: str) -> dict[str, float]:
    """Seconds of each part of `inference.json` as a person would start it, its libraries and network already loaded.

    Args:
        parser: Of the config, with its keys.
        finding: What making the dataset is called.
    """
    clock = Clock()
    parser.get_parsed_content("network")
    clock.timed(finding, parser.get_parsed_content)("dataset")
    for name in ("preprocessing", "postprocessing"):
        steps = parser.get_parsed_content(name)
        steps.transforms = [clock.timed(type(step).__name__, step) for step in every_step(steps.transforms)]
    evaluator = parser.get_parsed_content("evaluator")
    evaluator.inferer = clock.timed("network", evaluator.inferer)
    before, start = sum(clock.seconds.values()), time.perf_counter()
    evaluator.run()
    clock.seconds["the rest"] = time.perf_counter() - start - (sum(clock.seconds.values()) - before)
    return clock.seconds


class Inference:
    """A run of `inference.json` as a person would start it, its libraries and network already loaded.

    Args:
        folder: Of the scans, the weights and the results; made on first use.
        scans: How many.
        overrides: Config files besides inference.json.
    """

    def __init__(self, folder: str, scans: int, overrides: Sequence[str]) -> None:
        self.scans, self.weights, self.results = (Path(folder) / name for name in ("scans", "model.pt", "results"))
        self.configs = [str(CONFIGS / name) for name in ("inference.json", *overrides)]
        if not self.weights.exists():
            write_scans(self.scans, scans)
            torch.manual_seed(SEED)
            torch.save(self.parser().get_parsed_content("network_def").state_dict(), self.weights)

    def parser(self) -> ConfigParser:
        parser = ConfigParser()
        parser.read_config(self.configs)
        parser.update(
            {
                "bundle_root": str(BUNDLE),
                "dataset_dir": str(self.scans),
                "output_dir": str(self.results),
                "ckpt_path": str(self.weights),
                "device": "cpu",
                "amp": False,
                "threshold": 0.0,  # each scan is positive, so that there are slices to report
                "skip_finished": False,
            }
        )
        return parser

    def run(self) -> dict[str, float]:
        """Seconds of each part, from the folder to the last file."""
        return run_in_parts(self.parser(), "finding the scans")

    def bags(self) -> list[dict[str, Tensor]]:
        """What the network gets of each scan."""
        loader = self.parser().get_parsed_content("dataloader")
        return [{key: bag[key] for key in ("image", "coords", "mask")} for bag in loader]

    def read_pixels(self) -> None:
        read_pixels(self.scans)


def profile(folder: str, scans: int, overrides: Sequence[str] = (), calls: int = 3, untimed: int = 1) -> dict[str, Any]:
    """Seconds of the whole, its parts and the bare parts, and how many times as long the whole takes as those."""
    inference = Inference(folder, scans, overrides)
    bags = inference.bags()
    forward = bare_forward(inference.parser().get_parsed_content("network_def").eval(), bags)

    whole, parts, bare, ratios = [], [], [], []
    for _ in range(untimed + calls):  # in turn, so that a change of the machine's pace meets all of them
        parts.append(inference.run())
        whole.append({"all": sum(parts[-1].values())})
        clock = Clock()
        clock.timed("reading the pixels", inference.read_pixels)()
        clock.timed("bare stack and head", forward)()
        bare.append(clock.seconds)
        ratios.append(whole[-1]["all"] / sum(bare[-1].values()))
    return {
        "slices": sum(bag["image"].shape[-1] for bag in bags),
        "ratio": median(ratios[untimed:]),
        "whole": medians(whole[untimed:]),
        "part of it": medians(parts[untimed:]),
        "bare": medians(bare[untimed:]),
    }


def bare_forward(network: MILNetwork, bags: Sequence[Mapping[str, Tensor]]) -> Callable[[], list[Tensor]]:
    """The logits of bags by the bare stack of the network's encoder, its pooling and its head; slices lie ready."""
    stack = bare_stack(network.encoder).eval()
    ready = [
        bag["image"][0].permute(3, 0, 1, 2).contiguous(memory_format=torch.channels_last) for bag in bags
    ]  # [N, C, H, W] of each

    @torch.no_grad()
    def forward() -> list[Tensor]:
        logits = []
        for slices in ready:
            x = features_of(stack(slices)).t()[None]  # [1, D, N]
            mask = torch.ones_like(x[:, :1])
            logits.append(network.head(network.aggregator(x, mask, no_graph(mask)).embedding))
        return logits

    return forward


def medians(calls: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: median(call[name] for call in calls) for name in calls[0]}


def read_pixels(folder: Path) -> None:
    for file in folder.rglob("*.dcm"):
        _ = pydicom.dcmread(file).pixel_array


def write_scans(folder: Path, scans: int) -> None:
    for case in range(scans):
        name = f"scan_{case}"
        (folder / name).mkdir(parents=True)
        write_series(Head(plan_head(SEED, case, positive=True), SEED), name, SEED, folder / name)
