# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""What the extraction of features of slides and of scans has in common: shares of the work, encoding, failures."""

import csv
import math
import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, distributed, nn

from scripts.core.errors import InputError
from scripts.core.files import whole_file

LONGEST_WAIT = timedelta(days=20)  # of a process for the others
ALIKE = 1e-3  # relative: what was rounded when it was stored
NAMED = 5  # of those that failed, in the line at the end

Item = TypeVar("Item")


class Share:
    """The share of the work that this process takes, by RANK and WORLD_SIZE of its environment; alone it takes all."""

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", 0))
        self.processes = int(os.environ.get("WORLD_SIZE", 1))
        # torchrun says where the others are, so that one can speak for all
        self.joined = self.processes == 1 or "MASTER_ADDR" in os.environ
        self.speaks = self.rank == 0 or not self.joined

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return those of the items that are this process's."""
        return items[self.rank :: self.processes]

    def gathered(self, found: Mapping[str, str]) -> dict[str, str]:
        """Return what all have found; torchrun ends every process when one fails, so none may before all are done."""
        if self.processes == 1 or not self.joined:
            return dict(found)
        started_here = not distributed.is_initialized()
        if started_here:
            distributed.init_process_group("gloo", timeout=LONGEST_WAIT)
        everything: list[dict[str, str]] = [{}] * self.processes
        distributed.all_gather_object(everything, dict(found))
        if started_here:
            distributed.destroy_process_group()
        return {name: value for each in everything for name, value in each.items()}


def tell_failures(
    table: Path, failures: Mapping[str, str], column: str, of: str, others: str = "what is done is skipped"
) -> None:
    """Write a table of why each of those that failed did so, and raise an error that names some; neither if none did.

    Its columns are `column`, of the names, and the reasons; `of` says what there was in all, such as "12 slides", and
    `others` what becomes of those that did not fail.
    """
    table.unlink(missing_ok=True)
    if not failures:
        return
    with whole_file(table) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([(column, "error"), *failures.items()])
    names, more = ", ".join(list(failures)[:NAMED]), ", ..." if len(failures) > NAMED else ""
    raise InputError(
        f"{len(failures)} of {of} failed ({names}{more}): {next(iter(failures.values()))}; "
        f"correct and run again, {others} (all reasons: {table.name})"
    )


def refuse_changes(
    path: Path, then: Mapping[str, Any], now: Mapping[str, Any], as_before: Mapping[str, str] | None = None
) -> None:
    """Refuse to go on in a folder whose features were made otherwise: they would be trained on as if they were one.

    `as_before` holds what to type for a setting to be as it was; it is told where it has all that changed.
    """
    changed = [name for name in {**now, **then} if not _alike(then.get(name), now.get(name))]
    if changed:
        told = "; ".join(f"{name} {then.get(name, 'unknown')}, now {now.get(name, 'unknown')}" for name in changed)
        ways = "choose another output_dir"
        if as_before is not None and as_before.keys() >= set(changed):
            ways += f", or go on as before with {' '.join(as_before[name] for name in changed)}"
        raise InputError(f"{path} was made with another encoder or settings ({told}); {ways}")


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=ALIKE)
    return bool(one == other)


@torch.inference_mode()
def encode(encoder: nn.Module, name: str, images: Tensor, dtype: torch.dtype) -> np.ndarray:
    """Return the features (B, D) of images [B, ...], all finite."""
    features: Tensor = encoder(images).to(dtype)
    if features.ndim != 2 or len(features) != len(images):
        raise InputError(f"encoder {name} gave {tuple(features.shape)} for {len(images)} images; it must give [B, D]")
    if not features.isfinite().all():
        raise InputError(f"encoder {name} gave NaN or values beyond {str(dtype)[6:]}; check its weights")
    return features.cpu().numpy()
