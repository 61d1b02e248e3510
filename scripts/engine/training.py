# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""What a training needs beside its engine: it resumes, it stops before it loses a model, it knows how far it is."""

import io
import logging
import math
import pickle
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from monai.data.utils import set_rnd
from monai.engines import IterationEvents, Trainer
from monai.handlers import EarlyStopHandler
from monai.optimizers import WarmupCosineSchedule
from monai.utils import set_determinism
from torch import nn
from torch.utils.data import DataLoader

from scripts.core.errors import InputError
from scripts.core.files import write_whole
from scripts.engine.operating_point import operating_file
from scripts.engine.provenance import network_settings, origin_file
from scripts.engine.run_record import run_file

LARGEST = 1e6  # loss or logit of a network that learns: one beyond has diverged, though its numbers may be finite

logger = logging.getLogger(__name__)


def run_name(path: str, settings: Mapping[str, Any]) -> str:
    """Return the MLflow run of the unfinished training in a file, or a new name: a resumed training is one run.

    Other settings than those of the unfinished training are refused, unless its first epoch was not whole.

    Args:
        path: file of the state.
        settings: as of ResumeTraining.
    """
    state = _read_unfinished(Path(path))
    same = all(state["settings"].get(key) == str(now) for key, now in settings.items())
    if state["epoch"] > 0:
        _refuse_other_settings(Path(path), state["settings"], settings)
    return str(state["run_name"]) if same and state["run_name"] else time.strftime("train_%Y%m%d_%H%M%S")


def _refuse_other_settings(path: Path, before: Mapping[str, str], settings: Mapping[str, Any]) -> None:
    for name, now in settings.items():
        if (was := before.get(name, "unknown to its version")) != str(now):
            values = f"{name} {was}, not {now}" if len(f"{was}{now}") < 80 else f"another {name}"
            raise InputError(
                f"{path} is an unfinished training with {values}: "
                "give that again to go on with it, or delete the file to begin anew"
            )


def _read_unfinished(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {"epoch": 0, "settings": {}, "run_name": ""}
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        for key in ("epoch", "settings", "run_name", "parts", "best_metric", "best_metric_epoch", "best_loss"):
            state[key]
        return state
    except (RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise InputError(f"{path} is damaged, or of an earlier version: delete it to begin anew") from error


def criterion(metrics: Mapping[str, Metric], best_by: str) -> dict[str, Metric]:
    """Return the metric by which the best network is chosen: the lowest val_loss, or the highest of any other."""
    if best_by not in metrics:
        raise InputError(f"--best_by {best_by} is no metric of the validation: one of {', '.join(metrics)} is wanted")
    return {best_by: metrics[best_by]}


def warmup_then_cosine(
    optimizer: torch.optim.Optimizer, warmup_epochs: int, max_epochs: int, final_learning_rate: float
) -> WarmupCosineSchedule:
    """Return a schedule by epochs: the learning rate rises, then falls as a cosine to the final one."""
    learning_rate = optimizer.param_groups[0]["lr"]
    if not 0 <= warmup_epochs <= max_epochs:
        raise InputError(f"--warmup_epochs is {warmup_epochs}: give 0 to {max_epochs}, which is --max_epochs")
    if not 0 <= final_learning_rate <= learning_rate:
        raise InputError(
            f"--final_learning_rate is {final_learning_rate}: give 0 to {learning_rate}, which is --learning_rate"
        )
    return WarmupCosineSchedule(
        optimizer, warmup_epochs, max_epochs, end_lr=final_learning_rate, warmup_multiplier=1 / (warmup_epochs + 1)
    )


class EpochSeeds:
    """An ignite handler of the trainer that seeds every random generator when an epoch begins, from seed and epoch.

    An epoch then draws the same whether or not the training was interrupted before it, and however many workers load
    the bags: torch, numpy, Python, CUDA and the transforms of each bag. Each process draws its own.

    Args:
        seed: that of the training.
        loader: of a `BagDataset`; another dataset's draws repeat only where workers do not persist.
    """

    def __init__(self, seed: int, loader: DataLoader) -> None:
        if seed < 0:
            raise InputError(f"--seed is {seed}: give 0 or more")
        self.seed = seed
        self.loader = loader

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self.set_seeds)

    def set_seeds(self, engine: Engine) -> None:
        seed = int(np.random.SeedSequence([self.seed, engine.state.epoch, _rank()]).generate_state(1)[0])
        set_determinism(seed)
        getattr(self.loader.dataset, "seed_draws", lambda seed: set_rnd(self.loader.dataset, seed))(seed)
        if self.loader._iterator is not None:  # workers that persist: others draw a number before the order is drawn
            torch.empty((), dtype=torch.int64).random_()


class ClipGradients:
    """An ignite handler of the trainer that shortens gradients to a largest norm before each step of the optimizer.

    Args:
        optimizer: whose step follows; under mixed precision its gradients have their true scale by then.
        max_norm: of all gradients together.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, max_norm: float) -> None:
        if not max_norm > 0:
            raise InputError(f"--clip_gradient is {max_norm}: give a number above 0, or leave it out")
        self.optimizer = optimizer
        self.max_norm = max_norm

    def attach(self, engine: Engine) -> None:
        self.optimizer.register_step_pre_hook(self.clip)

    def clip(self, optimizer: torch.optim.Optimizer, *arguments: Any) -> None:
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], self.max_norm)


class StopIfNotFinite:
    """An ignite handler of the trainer and of its validator that ends a training where numbers are lost or beyond 1e6.

    A loss is checked before its gradient is taken; logits and the criterion before the best network is chosen, so the
    weights that were kept are those of the best finite epoch. In the validator it stands before the saver.

    Args:
        model: file of the best network.
    """

    def __init__(self, model: str) -> None:
        self.model = Path(model)

    def attach(self, engine: Engine) -> None:
        if isinstance(engine, Trainer):
            engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self.check_loss)
        else:
            engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self.check_logits)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.check_criterion)

    def check_loss(self, engine: Engine) -> None:
        loss: torch.Tensor = engine.state.output["loss"]  # type: ignore[index]
        sound = _is_sound(loss).float()
        if dist.is_initialized():
            dist.all_reduce(sound, dist.ReduceOp.MIN)  # or the other processes would wait for this one
        if not sound:
            if _is_sound(loss):
                raise InputError(f"the training loss of another process is lost in epoch {engine.state.epoch}")
            batch: Mapping[str, Any] = engine.state.batch  # type: ignore[assignment]
            at_fault = self._at_fault(engine, batch)
            self._stop(f"the training loss is {loss.item():.3g}", engine, batch["bag_id"], at_fault)

    def check_logits(self, engine: Engine) -> None:
        logits: torch.Tensor = engine.state.output["pred"][0]["pred"]["logits"]  # type: ignore[index]
        lost, bags = ~_is_sound(logits), engine.state.batch["bag_id"]  # type: ignore[index]
        if lost.any():
            at = [bag for bag, lost_there in zip(bags, lost.any(dim=1), strict=True) if lost_there]
            self._stop(f"a logit of the validation is {logits[lost][0].item():.3g}", engine, at, [])

    def check_criterion(self, engine: Any) -> None:
        name = engine.state.key_metric_name
        if not np.isfinite(engine.state.metrics[name]):
            raise InputError(
                f"{name} is {engine.state.metrics[name]} in epoch {engine.state.epoch}: an AUROC needs validation bags "
                "of both kinds; give another --best_by, or other bags for the validation"
            )

    @staticmethod
    @torch.no_grad()
    def _at_fault(engine: Any, batch: Mapping[str, Any]) -> list[str]:
        """Return the bags of a batch whose own loss is not finite, where that is not so of all of them."""
        network = getattr(engine.network, "module", engine.network).eval()
        images, labels, _, named = engine.prepare_batch(batch, engine.state.device, engine.non_blocking)
        lost = []
        for k, bag_id in enumerate(batch["bag_id"]):
            prediction = network.predict(images[k : k + 1], **{key: value[k : k + 1] for key, value in named.items()})
            if not _is_sound(engine.loss_function(prediction, labels[k : k + 1])):
                lost.append(bag_id)
        values_lost = [bag_id for k, bag_id in enumerate(batch["bag_id"]) if not torch.isfinite(images[k]).all()]
        return values_lost or (lost if len(lost) < len(batch["bag_id"]) else [])

    def _stop(self, what: str, engine: Engine, bags: Sequence[str], at_fault: Sequence[str]) -> None:
        where = f"{what} in epoch {engine.state.epoch}, at {', '.join(at_fault or bags)}"
        if at_fault:
            todo = "the rest of its batch is sound: look at its values, or take it out of the datalist"
        else:
            todo = "give a smaller --learning_rate, or a smaller --clip_gradient (none unless given)"
        if engine.state.epoch > 1:
            todo += f", and delete {self.model.with_name('unfinished.pt')}"
        kept = f"the best network so far is in {self.model}" if self.model.is_file() else "no network was kept"
        raise InputError(f"{where}: {todo}; {kept}")


def _is_sound(numbers: torch.Tensor) -> torch.Tensor:
    return numbers.detach().abs() <= LARGEST  # NaN is not


class SaveBest:
    """An ignite handler of the validator that keeps the network of the best epoch.

    Of epochs whose criterion is the same, that with the lowest val_loss is the best. The file is replaced whole, where
    MONAI's CheckpointSaver removes the best network before it writes the next.

    Args:
        model: file of the best network.
        network: that is trained.
    """

    def __init__(self, model: str, network: nn.Module) -> None:
        self.model = Path(model)
        self.network = getattr(network, "module", network)  # DDP wraps the network
        self.loss = math.inf  # of the best epoch

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)

    def save(self, engine: Any) -> None:
        state, loss = engine.state, float(engine.state.metrics["val_loss"])
        if state.metrics[state.key_metric_name] == state.best_metric and loss < self.loss:
            state.best_metric_epoch = state.epoch
        if state.best_metric_epoch == state.epoch:
            self.loss = loss
            _write(self.network.state_dict(), self.model)


class ResumeTraining:
    """An ignite handler of the trainer that keeps the state of an unfinished training and resumes it at the next start.

    It stands behind the validation, so that a state never lacks the validation of its epoch. A training that finishes
    removes the file.

    Args:
        path: file of the state, written after every epoch.
        model: file of the best network; that of an earlier training is kept under another name.
        settings: what the training must have in common with the unfinished one, beside the network.
        network: that is trained.
        evaluator: its best metric so far is remembered.
        saver: of the best network; its loss is remembered too.
        early_stop: its patience goes on.
        states: name → what else has a state_dict: the optimizer, a schedule, a loss with a memory.
        run_name: of MLflow, so that the resumed training is the same run.
    """

    def __init__(
        self,
        path: str,
        model: str,
        settings: Mapping[str, Any],
        network: nn.Module,
        evaluator: Engine,
        saver: SaveBest,
        early_stop: EarlyStopHandler,
        states: Mapping[str, Any],
        run_name: str,
    ) -> None:
        self.path = Path(path)
        self.model = Path(model)
        self.network = getattr(network, "module", network)  # DDP wraps the network
        self.settings = {name: str(value) for name, value in {**settings, **network_settings(network)}.items()}
        self.settings["processes"] = str(dist.get_world_size() if dist.is_initialized() else 1)
        self.evaluator = evaluator
        self.saver = saver
        self.early_stop = early_stop
        self.states = states
        self.run_name = run_name

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.resume)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def resume(self, engine: Engine) -> None:
        """Load the state of an unfinished training, or keep the model of an earlier, finished one."""
        state = _read_unfinished(self.path)
        if state["epoch"] == 0:  # nothing to resume
            self._keep_earlier_model()
            self.save(engine)
            return
        _refuse_other_settings(self.path, state["settings"], self.settings)
        try:
            for name, part in self._parts(engine).items():
                part.load_state_dict(state["parts"][name])
        except (KeyError, RuntimeError, ValueError) as error:
            raise InputError(
                f"{self.path} is an unfinished training of another network: delete it, or give another --ckpt_dir"
            ) from error
        engine.state.epoch = state["epoch"]
        engine.state.iteration = state["epoch"] * (engine.state.epoch_length or 0)
        if state["best_metric_epoch"] > 0 and self._model_is_whole():
            vars(self.evaluator.state).update({name: state[name] for name in ("best_metric", "best_metric_epoch")})
            self.saver.loss = state["best_loss"]
        logger.info("training goes on after epoch %d (to begin anew, delete %s)", state["epoch"], self.path)

    def _model_is_whole(self) -> bool:
        try:
            torch.load(self.model, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
            logger.warning("%s was lost in the interruption: the best network from here on is kept", self.model)
            return False
        return True

    def _parts(self, engine: Engine) -> dict[str, Any]:
        scaler = getattr(engine, "scaler", None)  # of mixed precision
        patience = self.early_stop._handler  # MONAI gives no other way to its count
        parts = {"network": self.network, "scaler": scaler, "patience": patience, **self.states}
        return {name: part for name, part in parts.items() if part is not None}

    def _keep_earlier_model(self) -> None:
        if self.model.is_file() and _rank() == 0 and not self.path.is_file():
            finished = time.strftime("%Y%m%d_%H%M%S", time.localtime(self.model.stat().st_mtime))
            kept = self.model.rename(self.model.with_stem(f"{self.model.stem}_{finished}"))
            for beside in (origin_file, operating_file, run_file):
                if beside(self.model).is_file():
                    beside(self.model).rename(beside(kept))
            logger.info("the model of an earlier training is kept as %s", kept)

    def save(self, engine: Engine) -> None:
        """Write the state whole."""
        state = {
            "settings": self.settings,
            "run_name": self.run_name,
            "parts": {name: part.state_dict() for name, part in self._parts(engine).items()},
            "epoch": engine.state.epoch,
            "best_metric": float(getattr(self.evaluator.state, "best_metric", -1)),
            "best_metric_epoch": int(getattr(self.evaluator.state, "best_metric_epoch", -1)),
            "best_loss": self.saver.loss,
        }
        _write(state, self.path)

    def finish(self, engine: Engine) -> None:
        """Remove the state and log which epoch was the best, and whether it was the last."""
        if _rank() > 0:
            return
        self.path.unlink(missing_ok=True)
        epochs, best = engine.state.epoch, getattr(self.evaluator.state, "best_metric_epoch", -1)
        if best > 0:
            logger.info("trained for %d epochs; the best is epoch %d: %s", epochs, best, self.model)
        group = engine.optimizer.param_groups[0]  # type: ignore[attr-defined]
        fell = group["lr"] < 0.1 * group.get("initial_lr", 0)
        if best == self.evaluator.state.epoch and not fell:  # that of the last validation
            logger.warning("the best epoch is the last: the training had not converged; give more --max_epochs")


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _write(state: Mapping[str, Any], path: Path) -> None:
    """Write a file of torch whole; of several processes the first does."""
    if _rank() == 0:
        content = io.BytesIO()  # torch's own writer does not say why it fails
        torch.save(state, content)
        write_whole(path, content.getvalue())


class Curriculum:
    """An ignite handler of the trainer that sets the loss's `progress` to e/E when epoch e of E begins, counted from 0.

    It is read from the trainer's state, so a resumed training goes on with the progress it had.

    Args:
        loss: that reads its `progress`.
    """

    def __init__(self, loss: Any) -> None:
        self.loss = loss

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self.set_progress)

    def set_progress(self, engine: Engine) -> None:
        assert engine.state.max_epochs is not None  # MONAI's trainers count epochs
        self.loss.progress = (engine.state.epoch - 1) / engine.state.max_epochs
