# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""What a training needs beside its engine: it resumes, it stops before it loses a model, it knows how far it is."""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from monai.data import Dataset
from monai.engines.utils import IterationEvents
from monai.handlers import CheckpointSaver, EarlyStopHandler
from monai.transforms import Randomizable
from monai.utils import set_determinism
from torch import nn

from scripts.core.errors import InputError
from scripts.core.files import whole_file
from scripts.engine.operating_point import operating_file
from scripts.engine.provenance import network_settings, origin_file

logger = logging.getLogger(__name__)


def run_name(path: str, prefix: str = "train") -> str:
    """Return the MLflow run of the unfinished training in a file, or a new name: a resumed training is one run."""
    if Path(path).is_file():
        return str(torch.load(path, map_location="cpu", weights_only=True).get("run_name", "")) or run_name("", prefix)
    return time.strftime(f"{prefix}_%Y%m%d_%H%M%S")


def criterion(metrics: Mapping[str, Metric], best_by: str) -> dict[str, Metric]:
    """Return the metric of the validation by which the best network is chosen."""
    if best_by not in metrics:
        raise InputError(f"--best_by {best_by} is no metric of the validation: one of {', '.join(metrics)} is wanted")
    return {best_by: metrics[best_by]}


class EpochSeeds:
    """An ignite handler of the trainer that seeds every random generator when an epoch begins, from seed and epoch.

    An epoch then draws the same numbers whether or not the training was interrupted before it: torch, numpy, Python,
    CUDA, the data loader's workers and, where there are none, the transforms. Each process draws its own.

    Args:
        seed: that of the training.
        dataset: whose random transforms are seeded.
    """

    def __init__(self, seed: int, dataset: Dataset) -> None:
        self.seed = seed
        self.dataset = dataset

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self.set_seeds)

    def set_seeds(self, engine: Engine) -> None:
        seeds = np.random.SeedSequence([self.seed, engine.state.epoch, _rank()])
        seed = int(seeds.generate_state(1)[0])
        set_determinism(seed)
        if isinstance(self.dataset.transform, Randomizable):
            self.dataset.transform.set_random_state(seed)


class ClipGradients:
    """An ignite handler of the trainer that shortens gradients to a largest norm before each step of the optimizer.

    Args:
        optimizer: whose step follows; under mixed precision its gradients have their true scale by then.
        max_norm: of all gradients together.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, max_norm: float) -> None:
        self.optimizer = optimizer
        self.max_norm = max_norm

    def attach(self, engine: Engine) -> None:
        self.optimizer.register_step_pre_hook(self.clip)

    def clip(self, optimizer: torch.optim.Optimizer, *arguments: Any) -> None:
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], self.max_norm)


class StopIfNotFinite:
    """An ignite handler of the trainer that ends it with one line at the first loss or logit that is not finite.

    A loss is checked before its gradient is taken and logits before the best network is chosen, so the weights that
    were kept are those of the best finite epoch.

    Args:
        evaluator: that of the validation.
        model: file of the best network.
    """

    def __init__(self, evaluator: Engine, model: str) -> None:
        self.evaluator = evaluator
        self.model = Path(model)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self.check_loss)
        self.evaluator.add_event_handler(Events.ITERATION_COMPLETED, self.check_logits)

    def check_loss(self, engine: Engine) -> None:
        loss: torch.Tensor = engine.state.output["loss"]  # type: ignore[index]
        if not torch.isfinite(loss):
            batch: Mapping[str, Any] = engine.state.batch  # type: ignore[assignment]
            self._stop(f"the training loss is {loss.item()}", engine, batch["bag_id"], self._at_fault(engine, batch))

    def check_logits(self, engine: Engine) -> None:
        bags: Sequence[Mapping[str, Any]] = engine.state.batch  # type: ignore[assignment]
        results: Sequence[Mapping[str, Any]] = engine.state.output  # type: ignore[assignment]
        lost = [
            bag["bag_id"] for bag, of_bag in zip(bags, results, strict=True) if not of_bag["logits"].isfinite().all()
        ]
        if lost:
            self._stop("logits of the validation are not finite", engine, lost, [])

    @staticmethod
    @torch.no_grad()
    def _at_fault(engine: Any, batch: Mapping[str, Any]) -> list[str]:
        """Return the bags of a batch whose own loss is not finite, where that is not so of all of them."""
        network = getattr(engine.network, "module", engine.network).eval()
        images, labels, _, named = engine.prepare_batch(batch, engine.state.device, engine.non_blocking)
        lost = []
        for k, bag_id in enumerate(batch["bag_id"]):
            prediction = network.predict(images[k : k + 1], **{key: value[k : k + 1] for key, value in named.items()})
            if not torch.isfinite(engine.loss_function(prediction, labels[k : k + 1])):
                lost.append(bag_id)
        values_lost = [bag_id for k, bag_id in enumerate(batch["bag_id"]) if not torch.isfinite(images[k]).all()]
        return values_lost or (lost if len(lost) < len(batch["bag_id"]) else [])

    def _stop(self, what: str, engine: Engine, bags: Sequence[str], at_fault: Sequence[str]) -> None:
        where = f"{what} in epoch {engine.state.epoch}, at {', '.join(at_fault or bags)}"
        if at_fault:
            todo = "of its batch only that is not: look at its values, or take it out of the datalist"
        else:
            todo = "give a smaller --learning_rate, or --clip_gradient 1"
        best = getattr(self.evaluator.state, "best_metric_epoch", -1)
        kept = f"the best network so far, of epoch {best}, is in {self.model}" if best > 0 else "no network was kept"
        raise InputError(f"{where}: {todo}; {kept}")


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
        saver: of the best network, which a worse one must not replace after the pause.
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
        saver: CheckpointSaver,
        early_stop: EarlyStopHandler,
        states: Mapping[str, Any],
        run_name: str,
    ) -> None:
        self.path = Path(path)
        self.model = Path(model)
        self.network = getattr(network, "module", network)  # DDP wraps the network
        self.settings = {name: str(value) for name, value in {**network_settings(network), **settings}.items()}
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
        state: dict[str, Any] = {"epoch": 0}
        if self.path.is_file():
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        if state["epoch"] == 0:  # nothing to resume
            self._keep_earlier_model()
            self.save(engine)
            return
        for name, now in self.settings.items():
            if (then := state["settings"].get(name)) != now:
                raise InputError(
                    f"{self.path} is an unfinished training with {name} {then}, not {now}: "
                    "give that again to go on with it, or delete the file to begin anew"
                )
        try:
            for name, part in self._parts(engine).items():
                part.load_state_dict(state["parts"][name])
        except (KeyError, RuntimeError, ValueError) as error:
            raise InputError(
                f"{self.path} is an unfinished training of another network: delete it, or give another --ckpt_dir"
            ) from error
        engine.state.epoch, engine.state.iteration = state["epoch"], state["iteration"]
        if state["best_metric_epoch"] > 0:
            vars(self.evaluator.state).update({name: state[name] for name in ("best_metric", "best_metric_epoch")})
            highest = self.evaluator.metric_cmp_fn(1, 0)  # type: ignore[attr-defined]  # of the criterion, or the lowest
            self.saver.load_state_dict({"_saved": [(state["best_metric"] * (1 if highest else -1), self.path.name)]})
        logger.info("training goes on after epoch %d (to begin anew, delete %s)", state["epoch"], self.path)

    def _parts(self, engine: Engine) -> dict[str, Any]:
        scaler = getattr(engine, "scaler", None)  # of mixed precision
        patience = self.early_stop._handler  # MONAI gives no other way to its count
        parts = {"network": self.network, "scaler": scaler, "patience": patience, **self.states}
        return {name: part for name, part in parts.items() if part is not None}

    def _keep_earlier_model(self) -> None:
        if self.model.is_file() and _rank() == 0 and not self.path.is_file():
            finished = time.strftime("%Y%m%d_%H%M%S", time.localtime(self.model.stat().st_mtime))
            kept = self.model.rename(self.model.with_stem(f"{self.model.stem}_{finished}"))
            for beside in (origin_file, operating_file):
                if beside(self.model).is_file():
                    beside(self.model).rename(beside(kept))
            logger.info("the model of an earlier training is kept as %s", kept)

    def save(self, engine: Engine) -> None:
        """Write the state whole; of several processes the first does."""
        if _rank() > 0:
            return
        state = {
            "settings": self.settings,
            "run_name": self.run_name,
            "parts": {name: part.state_dict() for name, part in self._parts(engine).items()},
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "best_metric": float(getattr(self.evaluator.state, "best_metric", -1)),
            "best_metric_epoch": int(getattr(self.evaluator.state, "best_metric_epoch", -1)),
        }
        with whole_file(self.path) as beside:
            torch.save(state, beside)

    def finish(self, engine: Engine) -> None:
        """Remove the state and log which epoch was the best, and whether it was the last."""
        if _rank() > 0:
            return
        self.path.unlink(missing_ok=True)
        epochs, best = engine.state.epoch, getattr(self.evaluator.state, "best_metric_epoch", -1)
        if best > 0:
            logger.info("trained for %d epochs; the best is epoch %d: %s", epochs, best, self.model)
        if best == epochs:
            logger.warning("the best epoch is the last: the training had not converged; give more --max_epochs")


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


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
