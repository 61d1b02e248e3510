# Copyright (c) 2026 the smooth MIL bundle authors
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""What the feature files of slides and of scans have in common: how they are opened, found and filled."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor, nn

from scripts.errors import InputError
from scripts.files import write_whole

NAMED = 5  # of those that failed, in the line at the end


@contextmanager
def opened_features(
    path: str | Path, form: str, datasets: Sequence[str], attributes: Sequence[str]
) -> Iterator[h5py.File]:
    """A feature file of one form, read only; what it lacks is said in one line."""
    if not Path(path).is_file():
        raise InputError(f"no feature file {path}; correct the path or extract the features first")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise InputError(f"{path} is not an HDF5 file or is damaged; extract its features again") from error
    with file:
        for name in datasets:
            if name not in file:
                raise InputError(f"{path} holds no dataset `{name}`; extract its features again")
        if file.attrs.get("format") != form:
            raise InputError(f"{path} is not of the form {form} (root attribute `format`); extract its features again")
        missing = [name for name in attributes if name not in file.attrs]
        if missing:
            raise InputError(f"{path} lacks the root attribute `{missing[0]}`; extract its features again")
        yield file


def feature_files(directory: str | Path) -> list[Path]:
    """The feature files of a directory in order of their names."""
    paths = sorted(Path(directory).glob("*.h5"))
    if not paths:
        raise InputError(f"no feature file (*.h5) in {directory}; extract the features first")
    return paths


def tell_failures(table: Path, failures: Mapping[str, str], column: str, of: str) -> None:
    """Why each of those that failed did so: a table of all, and an error that names some; neither if none did.

    Args:
        table: the csv, beside the feature files.
        failures: name → reason.
        column: of the names, in the table.
        of: what there was in all, such as "12 slides".
    """
    table.unlink(missing_ok=True)
    if not failures:
        return
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([(column, "error"), *failures.items()])
    write_whole(table, text.getvalue())
    names, more = ", ".join(list(failures)[:NAMED]), ", ..." if len(failures) > NAMED else ""
    raise InputError(
        f"{len(failures)} of {of} failed ({names}{more}): {next(iter(failures.values()))}; "
        f"mend and run again, what is done is skipped (all reasons: {table.name})"
    )


def require_finite(path: str | Path, features: np.ndarray) -> None:
    if not np.isfinite(features).all():
        raise InputError(f"features hold NaN or infinite values (file {path}); extract the features again")


@torch.inference_mode()
def encode(encoder: nn.Module, name: str, images: Tensor, dtype: torch.dtype) -> np.ndarray:
    """(B, D) features of images [B, ...]."""
    features: Tensor = encoder(images).to(dtype)
    if features.ndim != 2 or len(features) != len(images):
        raise InputError(f"encoder {name} gave {tuple(features.shape)} for {len(images)} images; it must give [B, D]")
    if not features.isfinite().all():
        raise InputError(f"encoder {name} gave NaN or values beyond {str(dtype)[6:]}; check its weights")
    return features.cpu().numpy()
