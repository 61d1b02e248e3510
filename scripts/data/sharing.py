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

"""Work that several processes share without talking until they are done: those of torchrun, or of a scheduler."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TypeVar

from torch import distributed

LONGEST_WAIT = timedelta(days=20)  # of a process for the others
Item = TypeVar("Item")


class Share:
    """What this process takes of work for all, by RANK and WORLD_SIZE of its environment; alone it takes everything.

    Attributes:
        joined: whether it knows where the others are (torchrun says so), so that one can speak for all.
        speaks: whether it is the one that does.
    """

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", 0))
        self.processes = int(os.environ.get("WORLD_SIZE", 1))
        self.joined = self.processes == 1 or "MASTER_ADDR" in os.environ
        self.speaks = self.rank == 0 or not self.joined

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        return items[self.rank :: self.processes]

    def gathered(self, found: Mapping[str, str]) -> dict[str, str]:
        """What all have found; torchrun ends every process as soon as one fails, so none may before all are done."""
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
