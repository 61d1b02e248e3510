# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""An interrupted training ends as an unbroken one, and numbers that are not finite never replace a model."""

import errno
import random
import re
from multiprocessing import active_children
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset
from monai.engines import PrepareBatchExtraInput, SupervisedEvaluator, SupervisedTrainer
from monai.handlers import (
    EarlyStopHandler,
    IgniteMetricHandler,
    LrScheduleHandler,
    ValidationHandler,
    from_engine,
)  # fmt: skip
from monai.optimizers import WarmupCosineSchedule
from monai.transforms import Compose, Lambdad, RandScaleIntensityd
from torch import Tensor, nn

from scripts.core.errors import InputError
from scripts.engine.batches import BagDataset, HoldBags
from scripts.engine.evaluator import AnswerOfBagd, BagInferer
from scripts.engine.provenance import origin_file
from scripts.engine.training import (
    ClipGradients,
    Curriculum,
    EpochSeeds,
    ResumeTraining,
    SaveBest,
    StopIfNotFinite,
    criterion,
    run_name,
    warmup_then_cosine,
)  # fmt: skip
from scripts.losses import SmoothMILLoss
from scripts.networks import FeatureProjection, GatedAttentionPool, MILNetwork

CPU = torch.device("cpu")


def bags() -> list[dict[str, Any]]:
    """Eight bags of three instances, those of label 1 brighter."""
    made = torch.Generator().manual_seed(0)
    return [
        {"bag_id": f"bag {k}", "image": torch.randn(4, 3, generator=made) + k % 2, "mask": torch.ones(1, 3),
         "label": torch.tensor([float(k % 2)])}
        for k in range(8)
    ]  # fmt: skip


def drawn_anywhere(image: Tensor) -> Tensor:
    """What depends on numpy's and Python's generators too, as a transform of somebody else may."""
    return image + 0.1 * random.random() + 0.1 * float(np.random.rand())  # noqa: NPY002


class Run:
    """A small training with everything that resuming touches."""

    def __init__(
        self,
        folder: Path,
        epochs: int = 6,
        lr: float = 0.05,
        stop_after: int | None = None,
        data: list[dict[str, Any]] | None = None,
        hidden: int = 4,
        workers: int = 0,
        patience: int = 99,
        held: bool = False,
    ) -> None:
        torch.manual_seed(0)
        head = nn.Sequential(nn.Dropout(0.3), nn.Linear(4, 1))
        self.network = MILNetwork(FeatureProjection(4, 4), GatedAttentionPool(4, hidden), head, spatial_dims=1)
        augmentation = Compose([RandScaleIntensityd("image", 0.5, prob=0.5), Lambdad("image", drawn_anywhere)])
        dataset = BagDataset(data or bags(), augmentation, cache_dir=None)
        loader = DataLoader(dataset, batch_size=2, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
        self.bags = HoldBags({"training": loader})
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=lr)
        schedule = WarmupCosineSchedule(optimizer, 2, epochs, warmup_multiplier=0.3)
        self.scheduler = LrScheduleHandler(schedule, print_lr=False)  # type: ignore[arg-type]
        stop = StopIfNotFinite(str(folder / "model.pt"))
        self.saver = SaveBest(str(folder / "model.pt"), self.network)
        self.early_stop = EarlyStopHandler(patience, lambda engine: -engine.state.metrics["val_loss"])
        loss = IgniteMetricHandler(
            loss_fn=nn.BCEWithLogitsLoss(), output_transform=from_engine(["logits", "label"])
        )  # fmt: skip
        self.evaluator = SupervisedEvaluator(
            CPU, DataLoader(Dataset(bags()), batch_size=1), self.network, inferer=BagInferer(),
            prepare_batch=PrepareBatchExtraInput({"mask": "mask"}),
            postprocessing=AnswerOfBagd("pred"), key_val_metric={"val_loss": loss},
            val_handlers=[stop, self.saver, self.early_stop], metric_cmp_fn=lambda now, best: now < best,
        )  # fmt: skip
        self.loss = SmoothMILLoss(alpha=0.1)
        self.rates: list[float] = []
        self.trainer = SupervisedTrainer(
            CPU, epochs, loader, self.network, optimizer, self.loss,
            prepare_batch=PrepareBatchExtraInput({"mask": "mask"}),
            train_handlers=[
                *([self.bags] if held else []), EpochSeeds(7, loader), stop,
                self.scheduler, ValidationHandler(1, self.evaluator),
                ResumeTraining(
                    str(folder / "unfinished.pt"), str(folder / "model.pt"), {"learning_rate": lr}, self.network,
                    self.evaluator, self.saver, self.early_stop,
                    {"optimizer": optimizer, "lr_schedule": schedule, "loss": self.loss}, "the run",
                ),
            ],
        )  # fmt: skip
        self.early_stop.set_trainer(self.trainer)
        self.trainer.add_event_handler(
            Events.EPOCH_STARTED, lambda engine: self.rates.append(optimizer.param_groups[0]["lr"])
        )
        self.seen: list[tuple[int, list[str], Tensor]] = []  # epoch, names of the bags, what became of them
        self.trainer.add_event_handler(Events.GET_BATCH_COMPLETED, self.look)
        if stop_after is not None:
            self.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=stop_after), self.interrupt)

    def look(self, engine: Engine) -> None:
        batch: Any = engine.state.batch
        self.seen.append((engine.state.epoch, batch["bag_id"], batch["image"]))

    def interrupt(self) -> None:
        raise KeyboardInterrupt

    def weights(self) -> Tensor:
        return torch.cat([value.flatten() for value in self.network.state_dict().values()])


def interrupted(folder: Path, **run: Any) -> None:
    stopped = Run(folder, **run)
    with pytest.raises(KeyboardInterrupt):
        stopped.trainer.run()
    stopped.bags.end_workers()  # as the end of a program does


@pytest.mark.parametrize("workers", [(0, 0), pytest.param((2, 1), marks=pytest.mark.slow)])
@pytest.mark.parametrize("stop_after", [2, 13, 16])  # within the first epoch, in the middle of one, at an epoch's end
def test_an_interrupted_training_ends_as_an_unbroken_one(
    tmp_path: Path, stop_after: int, workers: tuple[int, int]
) -> None:
    whole = Run(tmp_path / "whole")
    whole.trainer.run()
    interrupted(tmp_path / "stopped", stop_after=stop_after, workers=workers[0])
    rest = Run(tmp_path / "stopped", workers=workers[1], held=True)  # there may be more room the second time
    rest.trainer.run()
    assert rest.rates == whole.rates[stop_after // 4 - (stop_after == 16) :]
    assert torch.equal(rest.weights(), whole.weights())
    best = [torch.load(tmp_path / name / "model.pt", weights_only=True) for name in ("whole", "stopped")]
    assert all(torch.equal(best[0][name], best[1][name]) for name in best[0])
    assert rest.evaluator.state.best_metric == whole.evaluator.state.best_metric
    assert sorted(path.name for path in (tmp_path / "stopped").iterdir()) == ["model.pt"]


@pytest.mark.slow
def test_however_many_workers_an_epoch_has_its_order_and_a_bag_its_draws(tmp_path: Path) -> None:
    """The bag of an epoch draws the same wherever it is in the order, which persistent workers leave as it is."""
    runs = [Run(tmp_path / str(workers), epochs=3, workers=workers, held=workers > 1) for workers in (0, 1, 2)]
    for run in runs:
        run.trainer.run()
        seen = {
            (epoch, name): image for epoch, names, images in run.seen for name, image in zip(names, images, strict=True)
        }
        assert len(seen) == 24
        assert [(epoch, names) for epoch, names, _ in run.seen] == [(epoch, names) for epoch, names, _ in runs[0].seen]
        for (_, _, one), (_, _, other) in zip(run.seen, runs[0].seen, strict=True):
            assert torch.equal(one, other)
        for k in range(8):  # and another one in each epoch
            assert len({float(seen[epoch, f"bag {k}"].sum()) for epoch in (1, 2, 3)}) == 3
        assert torch.equal(run.weights(), runs[0].weights())  # so dropout drew the same too
    orders = [[name for epoch, names, _ in runs[0].seen if epoch == k for name in names] for k in (1, 2, 3)]
    assert len({tuple(order) for order in orders}) == 3


@pytest.mark.slow
def test_workers_persist_and_end_with_the_training(tmp_path: Path) -> None:
    others = set(active_children())
    run, workers = Run(tmp_path, epochs=3, workers=2, held=True), []
    run.trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: workers.append(set(active_children()) - others))
    run.trainer.run()
    assert len(workers) == 12
    assert len(workers[0]) == 2
    assert set.union(*workers) == workers[0]
    assert not set(active_children()) - others


def test_patience_goes_on_after_a_pause(tmp_path: Path) -> None:
    """With a learning rate of 0 no epoch is better than the first: two more are waited for in all."""
    interrupted(tmp_path, lr=0.0, patience=2, stop_after=9)
    rest = Run(tmp_path, lr=0.0, patience=2)
    rest.trainer.run()
    assert rest.trainer.state.epoch == 3


def test_two_epochs_draw_different_numbers(tmp_path: Path) -> None:
    run = Run(tmp_path, lr=0.0, epochs=2)
    run.trainer.run()
    assert len({float(images.sum()) for _, _, images in run.seen}) == 8


def test_a_worse_network_does_not_replace_the_best_of_before(tmp_path: Path) -> None:
    interrupted(tmp_path, stop_after=9)
    best = torch.load(tmp_path / "model.pt", weights_only=True)
    state = torch.load(tmp_path / "unfinished.pt", weights_only=True)
    state["best_metric"] = 1e-9  # nothing that follows can be better
    torch.save(state, tmp_path / "unfinished.pt")
    rest = Run(tmp_path)
    rest.trainer.run()
    assert rest.evaluator.state.best_metric == 1e-9
    kept = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(torch.equal(kept[name], best[name]) for name in best)


def test_a_finished_training_leaves_no_state_and_the_next_keeps_its_model(tmp_path: Path) -> None:
    Run(tmp_path, 2).trainer.run()
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]
    best = (tmp_path / "model.pt").read_bytes()
    origin_file(tmp_path / "model.pt").write_text("of the first")
    again = Run(tmp_path, 2)
    again.trainer.run()
    assert len(again.rates) == 2
    (kept,) = tmp_path.glob("model_*.pt")
    assert kept.read_bytes() == best
    assert origin_file(kept).read_text() == "of the first"
    assert not origin_file(tmp_path / "model.pt").exists()


@pytest.mark.parametrize(("lr", "warned"), [(0.0, False), (0.05, True)])
def test_a_best_epoch_that_is_the_last_has_not_converged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, lr: float, warned: bool
) -> None:
    Run(tmp_path, 2, lr=lr).trainer.run()
    assert ("had not converged; give more --max_epochs" in caplog.text) == warned


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"hidden": 5}, "an unfinished training of another network: delete it"),
        # the optimizer's state would bring the old learning rate back without a word
        ({"lr": 0.5}, "with learning_rate 0.05, not 0.5: give that again to go on"),
    ],
)
def test_an_unfinished_training_of_something_else_is_refused(
    tmp_path: Path, other: dict[str, Any], message: str
) -> None:
    interrupted(tmp_path, stop_after=5)
    with pytest.raises(InputError, match=rf"unfinished\.pt .*{re.escape(message)}"):
        Run(tmp_path, **other).trainer.run()


def test_one_whose_first_epoch_was_not_whole_may_begin_anew_with_other_settings(tmp_path: Path) -> None:
    interrupted(tmp_path, stop_after=1)
    Run(tmp_path, 1, lr=0.5).trainer.run()
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_a_resumed_training_is_the_run_that_it_was(tmp_path: Path) -> None:
    state, settings = str(tmp_path / "unfinished.pt"), {"learning_rate": 0.05}
    assert run_name(state, settings).startswith("train_2")
    interrupted(tmp_path, stop_after=1)
    assert run_name(state, settings) == "the run"
    assert run_name(state, {"learning_rate": 0.5}).startswith("train_2")  # of the first epoch nothing is kept
    interrupted(tmp_path, stop_after=5)
    with pytest.raises(InputError, match=r"with learning_rate 0\.05, not 0\.5: give that again"):
        run_name(state, {"learning_rate": 0.5})
    Path(state).write_bytes(b"PK")
    with pytest.raises(InputError, match=r"unfinished\.pt is damaged, or of an earlier version: delete it"):
        run_name(state, settings)


def with_nan(k: int) -> list[dict[str, Any]]:
    data = bags()
    data[k]["image"][0, 1] = torch.nan
    return data


def test_a_bag_whose_loss_alone_is_not_finite_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"training loss is nan in epoch 1, at bag 4: the rest of its batch"):
        Run(tmp_path, data=with_nan(4)).trainer.run()


@pytest.mark.parametrize(("step", "rate", "at"), [(9, 1e30, "3"), (21, 1e30, "6"), (21, 1e8, "6"), (24, 1e8, "6")])
def test_a_training_that_diverges_stops_and_the_best_finite_network_stays(
    tmp_path: Path, step: int, rate: float, at: str
) -> None:
    """Numbers that are beyond any use though finite, and an epoch's last step, too."""
    run, best = Run(tmp_path), []

    def explode(engine: Engine) -> None:
        best.append((tmp_path / "model.pt").read_bytes())
        run.trainer.optimizer.param_groups[0]["lr"] = rate

    run.trainer.add_event_handler(Events.ITERATION_STARTED(once=step), explode)
    with pytest.raises(
        InputError, match=rf"in epoch {at}, at bag \d.*: give a smaller --learning_rate, or a smaller --clip"
    ) as e:
        run.trainer.run()
    assert f"delete {tmp_path}/unfinished.pt; the best network so far is in {tmp_path}/model.pt" in str(e.value)
    assert (tmp_path / "model.pt").read_bytes() == best[0]
    assert all(value.isfinite().all() for value in torch.load(tmp_path / "model.pt", weights_only=True).values())


def test_a_network_that_loses_its_numbers_in_an_epochs_last_step_is_never_the_best(tmp_path: Path) -> None:
    run = Run(tmp_path)
    last = run.network.head.get_parameter("1.weight")
    run.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=4), lambda engine: last.data.fill_(torch.nan))
    with pytest.raises(InputError, match=r"a logit of the validation is nan in epoch 1, at bag 0: .* no network"):
        run.trainer.run()
    assert not (tmp_path / "model.pt").exists()


def test_a_criterion_that_is_no_number_stops_before_a_network_is_chosen_by_it(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.evaluator.state.key_metric_name = "val_bag_auroc"
    run.evaluator.state.metrics["val_bag_auroc"] = torch.nan  # of bags of one kind
    with pytest.raises(InputError, match=r"val_bag_auroc is nan in epoch 0: an AUROC needs validation bags of both"):
        StopIfNotFinite("model.pt").check_criterion(run.evaluator)


def test_of_epochs_that_are_alike_the_one_with_the_lowest_loss_is_kept(tmp_path: Path) -> None:
    network = nn.Linear(1, 1, bias=False)
    saver = SaveBest(str(tmp_path / "model.pt"), network)
    state: Any = SimpleNamespace(key_metric_name="val_bag_auroc")
    kept = []
    # the validator has compared the criterion by then
    for epoch, auroc, loss, best in (
        (1, 0.8, 0.5, 1),
        (2, 0.8, 0.6, 1),
        (3, 0.8, 0.4, 1),
        (4, 0.7, 0.1, 3),
        (5, 0.9, 0.9, 5),
    ):
        nn.init.constant_(network.weight, epoch)
        vars(state).update(epoch=epoch, metrics={"val_bag_auroc": auroc, "val_loss": loss}, best_metric_epoch=best)
        state.best_metric = 0.9 if epoch == 5 else 0.8
        saver.save(SimpleNamespace(state=state))
        kept.append(torch.load(tmp_path / "model.pt", weights_only=True)["weight"].item())
        assert state.best_metric_epoch == kept[-1]
    assert kept == [1, 1, 3, 3, 5]


def test_a_network_that_cannot_be_written_leaves_the_best_of_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, best = Run(tmp_path, lr=0.01), []

    def fill(engine: Engine) -> None:
        best.append((tmp_path / "model.pt").read_bytes())
        monkeypatch.setattr(Path, "write_bytes", Mock(side_effect=OSError(errno.ENOSPC, "full")))

    run.trainer.add_event_handler(Events.EPOCH_STARTED(once=3), fill)
    with pytest.raises(InputError, match=r"cannot write .*model\.pt \(No space left on device\): make room there"):
        run.trainer.run()
    assert (tmp_path / "model.pt").read_bytes() == best[0]
    monkeypatch.undo()
    rest, whole = Run(tmp_path, lr=0.01), Run(tmp_path / "whole", lr=0.01)
    rest.trainer.run()
    whole.trainer.run()
    assert torch.equal(rest.weights(), whole.weights())


def test_a_warm_up_beyond_the_end_and_a_final_rate_above_the_first_are_refused() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    for given, message in (
        ((5, 4, 0.0), "--warmup_epochs is 5: give 0 to 4, which is --max_epochs"),
        ((-1, 4, 0.0), "--warmup_epochs is -1: give 0 to 4"),
        ((0, 4, 0.2), "--final_learning_rate is 0.2: give 0 to 0.1, which is --learning_rate"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            warmup_then_cosine(optimizer, *given)
    schedule, rates = warmup_then_cosine(optimizer, 1, 4, 0.01), []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.05, 0.1, 0.075, 0.025, 0.01])


def test_gradients_are_clipped_before_the_step() -> None:
    weight = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    ClipGradients(optimizer, 0.5).attach(Engine(lambda engine, batch: None))
    weight.grad = torch.tensor([3.0, 4.0])
    optimizer.step()
    torch.testing.assert_close(weight.data, torch.tensor([-0.3, -0.4]))
    with pytest.raises(InputError, match="--clip_gradient is 0: give a number above 0"):
        ClipGradients(optimizer, 0)


def test_a_criterion_that_is_no_metric_is_refused_with_those_there_are() -> None:
    metrics: dict[str, Any] = {"val_loss": object(), "val_bag_auroc": object()}
    assert criterion(metrics, "val_bag_auroc") == {"val_bag_auroc": metrics["val_bag_auroc"]}
    with pytest.raises(
        InputError, match="--best_by auroc is no metric of the validation: one of val_loss, val_bag_auroc"
    ):
        criterion(metrics, "auroc")


def test_progress_is_the_share_of_epochs_that_lie_behind_and_goes_on_after_a_pause() -> None:
    loss: Any = SimpleNamespace(progress=None)
    for epochs_before, epochs, wanted in ((0, 4, [0, 0.25, 0.5, 0.75]), (3, 5, [0.6, 0.8])):
        seen: list[float] = []
        engine = Engine(lambda engine, batch: seen.append(loss.progress))  # noqa: B023
        engine.add_event_handler(Events.STARTED, lambda engine, n=epochs_before: vars(engine.state).update(epoch=n))
        Curriculum(loss).attach(engine)
        engine.run([0, 1], max_epochs=epochs)
        assert seen[::2] == seen[1::2] == wanted
