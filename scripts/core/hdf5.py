# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""HDF5 files that hold their own arrays: one may name any file of this computer to be read in place of an array."""

import os
from pathlib import Path

import h5py

from scripts.core.errors import InputError


def refuse_links(path: str | Path, group: h5py.Group) -> None:
    """Refuse a file that would have another one read in its place."""
    for name in group:
        if isinstance(group.get(name, getlink=True), h5py.ExternalLink):
            raise _elsewhere(path, name)


def require_own(path: str | Path, dataset: h5py.Dataset) -> None:
    """Refuse a dataset that lies in another file, by external storage, as a virtual dataset or behind a link."""
    if dataset.external or dataset.is_virtual or os.fsdecode(h5py.h5f.get_name(dataset.id)) != str(path):
        raise _elsewhere(path, dataset.name)


def require_all_own(path: str | Path, file: h5py.File) -> None:
    """Refuse a file of whose datasets, right in it, any lies in another file."""
    refuse_links(path, file)
    for name in file:
        if isinstance(found := file.get(name), h5py.Dataset):
            require_own(path, found)


def _elsewhere(path: str | Path, name: str) -> InputError:
    return InputError(f"{name} of {path} lies in another file; give a file that holds its own arrays")
