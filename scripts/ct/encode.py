# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Encodes each slice once, the first of two stages of training: one feature file per scan."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import Dataset
from monai.utils import ensure_tuple
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from scripts.core.bags import load_bags
from scripts.core.errors import InputError
from scripts.core.files import sha256_of, write_whole
from scripts.ct.features import SliceFeatures, opened_features, write_slice_features
from scripts.ct.scans import find_scans
from scripts.engine.extraction import encode, refuse_changes, tell_failures

logger = logging.getLogger(__name__)


class SliceEncoder(nn.Module):
    """A network of the encoder of a MILNetwork alone: slices [B, windows, rows, columns] → features [B, D].

    Args:
        encoder: (image [1, windows, rows, columns, B], mask [1, 1, B]) → [1, D, B].
        ckpt_path: a `model.pt` whose encoder it takes; without one its weights are random.
        seed: of the random weights.
    """

    def __init__(self, encoder: nn.Module, ckpt_path: str | None = None, seed: int = 0) -> None:
        super().__init__()
        self.encoder = encoder
        if ckpt_path is None:
            logger.warning("the encoder's weights are random, good for a trial alone: give a model.pt (--ckpt_path)")
            _draw_weights(encoder, seed)
            origin = f"random, seed {seed}"
        elif not Path(ckpt_path).is_file():
            raise InputError(f"{ckpt_path} is missing: train or convert weights first, or give --ckpt_path FILE")
        else:
            state: dict[str, Tensor] = torch.load(ckpt_path, map_location="cpu", weights_only=True)
            prefix = "encoder."
            weights = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            if not weights:
                raise InputError(f"{ckpt_path} holds no weights of an encoder: give a model.pt trained on whole scans")
            encoder.load_state_dict(weights)
            origin = f"sha256 {sha256_of(ckpt_path)[:16]}"
        self.name = f"{type(encoder).__name__} ({origin})"

    def forward(self, slices: Tensor) -> Tensor:
        mask = torch.ones(1, 1, len(slices), device=slices.device)
        features: Tensor = self.encoder(slices.movedim(0, -1)[None], mask)
        return features[0].t()


def _draw_weights(network: nn.Module, seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in network.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")  # features neither vanish nor explode
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


@dataclass(eq=False)
class SliceFeatureExtractor:
    """The writer of `output_dir/<bag_id>.h5` for each scan that has no such file yet, or one made of another scan.

    Where a datalist was given, one of the same sections and labels is written beside the files. Scans that cannot be
    read are left out, and named in an error at the end.

    Args:
        dataset_dir: folder of the scans, and what the paths of the datalist are relative to.
        datalist: the scans and their labels; without one all scans in dataset_dir are taken.
        output_dir: directory of the feature files, made if absent.
        read: bags → a dataset of them with the entries of `ScanBagd`; {"bag_id", "failed"} of one that cannot be read.
        encoder: network from slices [B, windows, rows, columns] to [B, D].
        encoder_name: written into the files, which are refused when extraction goes on with another encoder.
        settings: what else the features depend on; written and refused likewise.
        block_size: slices per call of the encoder.
        num_workers: processes that read scans.
        device: where the encoder runs.
    """

    dataset_dir: str
    datalist: str | None
    output_dir: str
    read: Callable[[list[dict[str, Any]]], Dataset]
    encoder: nn.Module
    encoder_name: str
    settings: Mapping[str, Any]
    block_size: int = 16
    num_workers: int = 0
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        self.encoder.to(self.device).eval()
        self.new_datalist = Path(self.output_dir, "datalist.json")

    def run(self) -> None:
        """Encode every scan that has no feature file of its own yet."""
        sections = self._sections()
        bags = {bag["bag_id"]: bag for bag in chain.from_iterable(sections.values())}
        now = {"encoder": self.encoder_name, **json.loads(json.dumps(self.settings))}
        sources = {}  # of the scans whose features are there
        for path in sorted(Path(self.output_dir).glob("*.h5")):
            with opened_features(path) as file:
                refuse_changes(path, {"encoder": file.attrs["encoder"], **json.loads(file.attrs["settings"])}, now)
                sources[path] = file.attrs.get("source")
        left = [bag for bag in bags.values() if sources.get(self._file(bag)) != _source(bag["image"])]
        failures = self._extract(left)
        if self.datalist is not None:
            there = {
                name: [{**bag, "image": self._file(bag).name} for bag in listed if bag["bag_id"] not in failures]
                for name, listed in sections.items()
            }
            write_whole(self.new_datalist, json.dumps(there, indent=1) + "\n")
        done, skipped = len(left) - len(failures), len(bags) - len(left)
        logger.info("%d scans done, %d skipped (already there), %d failed", done, skipped, len(failures))
        tell_failures(Path(self.output_dir, "failed.csv"), failures, "bag_id", f"{len(bags)} scans")

    def _sections(self) -> dict[str, list[dict[str, Any]]]:
        if self.datalist is None:
            return {"": find_scans(self.dataset_dir)}
        names = _section_names(self.datalist)
        sections = {name: load_bags(self.datalist, name, self.dataset_dir, labelled=False) for name in names}
        images: dict[str, Any] = {}
        for bag in chain.from_iterable(sections.values()):
            if images.setdefault(bag["bag_id"], bag["image"]) != bag["image"]:
                twice = f"two scans with the bag_id {bag['bag_id']}"
                raise InputError(f'{self.datalist} has {twice}: give each its own "bag_id"')
        if self.new_datalist.resolve() == Path(self.datalist).resolve():
            raise InputError(f"{self.output_dir} holds the datalist of the scans themselves: give another output_dir")
        return sections

    def _extract(self, bags: list[dict[str, Any]]) -> dict[str, str]:
        """Encode and write; return why each of those that failed did so."""
        failures: dict[str, str] = {}
        pin = torch.device(self.device).type == "cuda"
        loader = DataLoader(self.read(bags), batch_size=None, num_workers=self.num_workers, pin_memory=pin)
        for given, bag in zip(bags, tqdm(loader, desc="scans", unit="scan", total=len(bags)), strict=True):
            if "failed" in bag:
                failures[bag["bag_id"]] = bag["failed"]
                self._file(bag).unlink(missing_ok=True)  # it is of another scan
            else:
                write_slice_features(self._file(bag), self._encoded(bag, _source(given["image"])))
        return failures

    def _encoded(self, bag: Mapping[str, Any], source: str) -> SliceFeatures:
        instances = json.loads(bag["instances"])
        ids = [instance["id"] for instance in instances]
        slices: Tensor = bag["image"].movedim(-1, 0)  # [N, windows, rows, columns]
        blocks = (block.to(self.device, non_blocking=True) for block in slices.split(self.block_size))
        return SliceFeatures(
            features=np.concatenate([encode(self.encoder, self.encoder_name, b, torch.float32) for b in blocks]),
            positions_mm=np.array([instance["position_mm"] for instance in instances]),
            sop_instance_uids=ids if all(isinstance(id_, str) for id_ in ids) else [],
            about=json.loads(bag.get("about", "{}")),
            encoder=self.encoder_name,
            settings=json.dumps(self.settings, sort_keys=True),
            source=source,
        )

    def _file(self, bag: Mapping[str, Any]) -> Path:
        return Path(self.output_dir, f"{bag['bag_id']}.h5")


def _source(image: str | Sequence[str]) -> str:
    """Return what tells one scan from another: a hash of its path or paths."""
    paths = "\n".join(map(os.path.abspath, ensure_tuple(image)))
    return hashlib.blake2b(os.fsencode(paths), digest_size=8).hexdigest()


def _section_names(datalist: str) -> list[str]:
    with suppress(OSError, ValueError, AttributeError):
        content = json.loads(Path(datalist).read_text())
        if names := [name for name, bags in content.items() if isinstance(bags, list) and bags]:
            return names
    return ["training"]  # which says what is wrong with the file
