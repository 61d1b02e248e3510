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
from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.engines import SupervisedTrainer
from torch.nn.functional import cross_entropy

from scripts.curriculum import Curriculum

BRACS = {"benign": ["N", "PB", "UDH"], "atypical": ["FEA", "ADH"], "malignant": ["DCIS", "IC"]}
PANDA = {"benign": ["0"], "low grade": ["1", "2"], "high grade": ["3", "4", "5"]}  # our own grouping of ISUP grades


def watched_engine(loss: Any) -> tuple[Engine, list[float]]:
    seen: list[float] = []
    engine = Engine(lambda engine, batch: seen.append(loss.progress))
    Curriculum(loss).attach(engine)
    return engine, seen


def test_progress_is_the_share_of_epochs_that_lie_behind() -> None:
    engine, seen = watched_engine(SimpleNamespace(progress=None))
    engine.run([0, 1], max_epochs=4)
    assert seen == [0, 0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75]


def test_a_resumed_training_goes_on_with_its_progress() -> None:
    engine, seen = watched_engine(SimpleNamespace(progress=None))
    engine.add_event_handler(Events.STARTED, lambda engine: vars(engine.state).update(epoch=3))  # as ResumeTraining
    engine.run([0], max_epochs=5)
    assert seen == [0.6, 0.8]


@pytest.mark.parametrize("hierarchy", [BRACS, PANDA], ids=["BRACS", "PANDA"])
def test_network_loss_and_curriculum_are_built_from_json_and_train(hierarchy: dict[str, list[str]]) -> None:
    parser = ConfigParser(
        {
            "hierarchy": hierarchy,
            "network": {
                "_target_": "scripts.networks.hmil.HMIL",
                "in_features": 6,
                "hierarchy": "@hierarchy",
                "embed_features": 8,
                "hidden_features": 5,
            },
            "loss": {"_target_": "scripts.losses.HierarchicalLoss", "hierarchy": "@hierarchy"},
            "handlers": [{"_target_": "scripts.curriculum.Curriculum", "loss": "@loss"}],
        }
    )
    torch.manual_seed(0)
    network, loss, handlers = (parser.get_parsed_content(name) for name in ("network", "loss", "handlers"))
    classes = sum(len(fine) for fine in hierarchy.values())
    assert network.eval()(torch.randn(2, 6, 4)).shape == (2, classes)

    bags = [{"image": torch.randn(1, 6, 5) + 2 * k, "label": torch.tensor([[float(k)]])} for k in range(classes)]

    @torch.no_grad()
    def of_the_fine_label() -> float:
        logits = torch.cat([network.eval()(bag["image"]) for bag in bags])
        return float(cross_entropy(logits, torch.arange(classes)))

    before = of_the_fine_label()
    adam = torch.optim.Adam(network.parameters(), lr=0.01)
    SupervisedTrainer(torch.device("cpu"), 20, bags, network, adam, loss, train_handlers=handlers).run()
    assert loss.progress == 0.95
    assert of_the_fine_label() < 0.8 * before
