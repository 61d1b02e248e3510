# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import h5py
import numpy as np
import pytest

from scripts.core.errors import InputError
from scripts.core.hdf5 import require_all_own


@pytest.mark.parametrize("way", ["external", "virtual", "link", "link in a group"])
def test_a_file_that_would_have_another_one_read_is_refused(tmp_path: Path, way: str) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["a"] = np.arange(6)
    with h5py.File(tmp_path / "own.h5", "w") as file:
        file["a"] = np.arange(6)
        file["gone"] = h5py.SoftLink("/nowhere")
        require_all_own(tmp_path / "own.h5", file)
        if way == "external":
            file.create_dataset("b", 6, np.int64, external=[(str(tmp_path / "secret"), 0, 48)])
        elif way == "virtual":
            layout = h5py.VirtualLayout((6,), np.int64)
            layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "a", (6,))
            file.create_virtual_dataset("b", layout)
        else:
            link = h5py.ExternalLink(str(tmp_path / "other.h5"), "a")
            file["b" if way == "link" else "group/a"] = link
            if way == "link in a group":
                file["b"] = h5py.SoftLink("/group/a")
        with pytest.raises(InputError, match=r"own.h5 lies in another file; give a file that holds its own arrays$"):
            require_all_own(tmp_path / "own.h5", file)
