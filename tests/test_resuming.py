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

from pathlib import Path

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import CheckpointSaver, IgniteMetricHandler, ValidationHandler, from_engine
from torch import nn

from scripts.errors import InputError
from scripts.origins import origin_file
from scripts.resuming import ResumeTraining

DATA = [{"image": torch.full((1, 1), float(i)), "label": torch.full((1, 1), 2.0 * i)} for i in range(1, 4)]


class Run:
    """A tiny training with everything that resuming touches."""

    def __init__(
        self,
        folder: Path,
        epochs: int,
        lr: float = 0.01,
        stop_after: int | None = None,
        activation: nn.Module | None = None,
    ) -> None:
        torch.manual_seed(0)
        # dropout needs the random state of before
        self.network = nn.Sequential(nn.Dropout(0.3), nn.Linear(1, 1), activation or nn.Identity())
        optimizer = torch.optim.Adam(self.network.parameters(), lr=lr)
        cpu = torch.device("cpu")
        self.saver = CheckpointSaver(
            str(folder), {"model": self.network}, save_key_metric=True, key_metric_filename="model.pt",
            key_metric_negative_sign=True,
        )  # fmt: skip
        loss = IgniteMetricHandler(loss_fn=nn.MSELoss(), output_transform=from_engine(["pred", "label"]))
        self.evaluator = SupervisedEvaluator(
            cpu, DATA, self.network, key_val_metric={"val_loss": loss}, val_handlers=[self.saver],
            metric_cmp_fn=lambda now, best: now < best,
        )  # fmt: skip
        self.epochs: list[int] = []
        self.trainer = SupervisedTrainer(
            cpu, epochs, DATA, self.network, optimizer, nn.MSELoss(),
            train_handlers=[
                ValidationHandler(1, self.evaluator),
                ResumeTraining(
                    str(folder / "unfinished.pt"), str(folder / "model.pt"), {"learning_rate": lr},
                    self.network, optimizer, self.evaluator, self.saver,
                ),
            ],
        )  # fmt: skip
        self.trainer.add_event_handler(Events.EPOCH_STARTED, lambda engine: self.epochs.append(engine.state.epoch))
        if stop_after is not None:
            self.trainer.add_event_handler(Events.EPOCH_STARTED(once=stop_after + 1), self.interrupt)

    def interrupt(self) -> None:
        raise KeyboardInterrupt

    @property
    def weight(self) -> float:
        return float(self.network.state_dict()["1.weight"])


def test_an_interrupted_training_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    whole = Run(tmp_path / "whole", 6)
    whole.trainer.run()

    folder = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        Run(folder, 6, stop_after=3).trainer.run()
    rest = Run(folder, 6)
    rest.trainer.run()

    assert rest.epochs == [4, 5, 6]
    assert rest.weight == pytest.approx(whole.weight, rel=1e-6)
    assert rest.evaluator.state.best_metric == pytest.approx(whole.evaluator.state.best_metric, rel=1e-6)


def test_a_worse_network_does_not_replace_the_best_of_before(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        Run(tmp_path, 3, stop_after=2).trainer.run()
    best = torch.load(tmp_path / "model.pt", weights_only=True)
    state = torch.load(tmp_path / "unfinished.pt", weights_only=True)
    state["best_metric"] = 1e-9  # nothing that follows can be better
    torch.save(state, tmp_path / "unfinished.pt")
    rest = Run(tmp_path, 3)
    rest.trainer.run()
    assert rest.evaluator.state.best_metric == 1e-9
    assert torch.equal(torch.load(tmp_path / "model.pt", weights_only=True)["1.weight"], best["1.weight"])


def test_a_finished_training_leaves_no_state_and_starts_anew(tmp_path: Path) -> None:
    first = Run(tmp_path, 2)
    first.trainer.run()
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]
    best = (tmp_path / "model.pt").read_bytes()
    origin_file(tmp_path / "model.pt").write_text("of the first")
    again = Run(tmp_path, 2)
    again.trainer.run()
    assert again.epochs == [1, 2]
    (kept,) = tmp_path.glob("model_*.pt")
    assert kept.read_bytes() == best
    assert origin_file(kept).read_text() == "of the first"
    assert not origin_file(tmp_path / "model.pt").exists()  # that of the second is not told yet


def test_an_unfinished_training_of_another_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        Run(tmp_path, 3, stop_after=1).trainer.run()
    other = Run(tmp_path, 3)
    del other.network[1].bias
    with pytest.raises(InputError, match=r"unfinished\.pt is an unfinished training of another network: delete it"):
        other.trainer.run()


def test_an_unfinished_training_of_a_network_set_otherwise_is_refused(tmp_path: Path) -> None:
    """The weights fit, so nothing else would tell."""
    with pytest.raises(KeyboardInterrupt):
        Run(tmp_path, 3, activation=nn.Tanh(), stop_after=1).trainer.run()
    with pytest.raises(InputError, match=r"unfinished training with 2\.kind Tanh, not ReLU: give that again to go on"):
        Run(tmp_path, 3, activation=nn.ReLU()).trainer.run()


def test_an_unfinished_training_with_other_settings_is_refused(tmp_path: Path) -> None:
    """The optimizer's state would bring the old learning rate back without a word."""
    with pytest.raises(KeyboardInterrupt):
        Run(tmp_path, 3, stop_after=1).trainer.run()
    with pytest.raises(InputError, match=r"unfinished training with learning_rate 0\.01, not 0\.5: give that again"):
        Run(tmp_path, 3, lr=0.5).trainer.run()
