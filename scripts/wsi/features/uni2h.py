# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""UNI2-h, as its makers release features: h5 as CLAM's, both arrays with a leading axis of 1."""

from scripts.wsi.features.base import Head
from scripts.wsi.features.clam import Clam


class Uni2h(Clam):
    """One slide as a batch of one."""

    name = "UNI2-h"

    def reads(self, head: Head) -> bool:
        return {"features", "coords"} <= {*head.hdf5} and head.dataset("features").ndim == 3
