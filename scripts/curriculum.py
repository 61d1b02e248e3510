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
"""A loss that changes over the epochs is told how far the training has come."""

from __future__ import annotations

from typing import Optional, Protocol

from ignite.engine import Engine, Events


class KnowsProgress(Protocol):
    progress: Optional[float]  # the share of all epochs that lies behind, from 0 up to but not 1


class Curriculum:
    """Ignite handler of a trainer: sets the loss's `progress` to e/E when epoch e of E begins, counted from 0.

    It is read from the trainer's state, so a resumed training goes on with the progress it had.
    """

    def __init__(self, loss: KnowsProgress) -> None:
        self.loss = loss

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self.set_progress)

    def set_progress(self, engine: Engine) -> None:
        assert engine.state.max_epochs is not None  # MONAI's trainers count epochs
        self.loss.progress = (engine.state.epoch - 1) / engine.state.max_epochs
