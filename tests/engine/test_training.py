# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""An interrupted training goes on where it was, and a loss is told how far its training is."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import CheckpointSaver, IgniteMetricHandler, ValidationHandler, from_engine
from torch import nn

from scripts.core.errors import InputError
from scripts.engine.provenance import origin_file
from scripts.engine.training import Curriculum, ResumeTraining

DATA = [{"image": torch.full((1, 1), float(i)), "label": torch.full((1, 1), 2.0 * i)} for i in range(1, 4)]


def interrupt() -> None:
    raise KeyboardInterrupt


class Run:
    """A tiny training with everything that resuming touches."""

    def __init__(
        self, folder: Path, epochs: int, lr: float = 0.01, activation: nn.Module | None = None, bias: bool = True
    ) -> None:
        torch.manual_seed(0)
        # dropout needs the random state of before
        self.network = nn.Sequential(nn.Dropout(0.3), nn.Linear(1, 1, bias), activation or nn.Identity())
        optimizer = torch.optim.Adam(self.network.parameters(), lr=lr)
        cpu, model, state = torch.device("cpu"), str(folder / "model.pt"), str(folder / "unfinished.pt")
        lowest: dict[str, Any] = {
            "save_key_metric": True,
            "key_metric_filename": "model.pt",
            "key_metric_negative_sign": True,
        }
        saver = CheckpointSaver(str(folder), {"model": self.network}, **lowest)
        loss = IgniteMetricHandler(loss_fn=nn.MSELoss(), output_transform=from_engine(["pred", "label"]))
        self.evaluator = SupervisedEvaluator(
            cpu,
            DATA,
            self.network,
            key_val_metric={"val_loss": loss},
            val_handlers=[saver],
            metric_cmp_fn=lambda a, b: a < b,
        )
        resume = ResumeTraining(state, model, {"learning_rate": lr}, self.network, optimizer, self.evaluator, saver)
        handlers = [ValidationHandler(1, self.evaluator), resume]
        self.trainer = SupervisedTrainer(
            cpu, epochs, DATA, self.network, optimizer, nn.MSELoss(), train_handlers=handlers
        )
        self.epochs: list[int] = []
        self.trainer.add_event_handler(Events.EPOCH_STARTED, lambda engine: self.epochs.append(engine.state.epoch))

    def until_the_end(self) -> "Run":
        self.trainer.run()
        return self

    def interrupted_after(self, epoch: int) -> None:
        self.trainer.add_event_handler(Events.EPOCH_STARTED(once=epoch + 1), interrupt)
        with pytest.raises(KeyboardInterrupt):
            self.trainer.run()

    @property
    def weight(self) -> float:
        return float(self.network.state_dict()["1.weight"])


def test_an_interrupted_training_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    whole = Run(tmp_path / "whole", 6).until_the_end()
    Run(tmp_path / "stopped", 6).interrupted_after(3)
    rest = Run(tmp_path / "stopped", 6).until_the_end()
    assert rest.epochs == [4, 5, 6]
    assert rest.weight == pytest.approx(whole.weight, rel=1e-6)
    assert rest.evaluator.state.best_metric == pytest.approx(whole.evaluator.state.best_metric, rel=1e-6)


def test_a_worse_network_does_not_replace_the_best_of_before(tmp_path: Path) -> None:
    Run(tmp_path, 3).interrupted_after(2)
    best = torch.load(tmp_path / "model.pt", weights_only=True)
    state = torch.load(tmp_path / "unfinished.pt", weights_only=True)
    state["best_metric"] = 1e-9  # nothing that follows can be better
    torch.save(state, tmp_path / "unfinished.pt")
    assert Run(tmp_path, 3).until_the_end().evaluator.state.best_metric == 1e-9
    assert torch.equal(torch.load(tmp_path / "model.pt", weights_only=True)["1.weight"], best["1.weight"])


def test_a_finished_training_leaves_no_state_and_starts_anew(tmp_path: Path) -> None:
    model = tmp_path / "model.pt"
    Run(tmp_path, 2).until_the_end()
    assert list(tmp_path.iterdir()) == [model]
    best = model.read_bytes()
    origin_file(model).write_text("of the first")
    assert Run(tmp_path, 2).until_the_end().epochs == [1, 2]
    (kept,) = tmp_path.glob("model_*.pt")
    assert kept.read_bytes() == best
    assert origin_file(kept).read_text() == "of the first"
    assert not origin_file(model).exists()  # that of the second is not told yet


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"bias": False}, "an unfinished training of another network: delete it"),
        # the weights fit, so nothing else would tell
        ({"activation": nn.ReLU()}, "with 2.kind Tanh, not ReLU: give that again to go on"),
        # the optimizer's state would bring the old learning rate back without a word
        ({"lr": 0.5}, "with learning_rate 0.01, not 0.5: give that again to go on"),
    ],
)
def test_an_unfinished_training_of_something_else_is_refused(
    tmp_path: Path, other: dict[str, Any], message: str
) -> None:
    same: dict[str, Any] = {"activation": nn.Tanh()}
    Run(tmp_path, 3, **same).interrupted_after(1)
    with pytest.raises(InputError, match=rf"unfinished\.pt .*{re.escape(message)}"):
        Run(tmp_path, 3, **{**same, **other}).until_the_end()


def test_progress_is_the_share_of_epochs_that_lie_behind_and_goes_on_after_a_pause() -> None:
    loss: Any = SimpleNamespace(progress=None)
    for epochs_before, epochs, wanted in ((0, 4, [0, 0.25, 0.5, 0.75]), (3, 5, [0.6, 0.8])):
        seen: list[float] = []
        engine = Engine(lambda engine, batch: seen.append(loss.progress))  # noqa: B023
        engine.add_event_handler(Events.STARTED, lambda engine, n=epochs_before: vars(engine.state).update(epoch=n))
        Curriculum(loss).attach(engine)
        engine.run([0, 1], max_epochs=epochs)
        assert seen[::2] == seen[1::2] == wanted
