# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""What a training needs beside its engine: it goes on where it was interrupted, and its loss knows how far it is."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from monai.handlers import CheckpointSaver
from torch import nn

from scripts.core.errors import InputError
from scripts.core.files import whole_file
from scripts.engine.provenance import network_settings, origin_file

logger = logging.getLogger(__name__)


class ResumeTraining:
    """An ignite handler of the trainer that keeps the state of an unfinished training and resumes it at the next start.

    It stands behind the validation, so that a state never lacks that of its epoch. Early stopping counts its patience
    anew. A training that finishes removes the file.

    Args:
        path: file of the state, written after every epoch.
        model: file of the best network; that of an earlier training is kept under another name.
        settings: what the training must have in common with the unfinished one, beside the network.
        network: that is trained.
        optimizer: of its parameters.
        evaluator: its best metric so far is remembered.
        saver: of the best network, which a worse one must not replace after the pause.
    """

    def __init__(
        self,
        path: str,
        model: str,
        settings: Mapping[str, Any],
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        evaluator: Engine,
        saver: CheckpointSaver,
    ) -> None:
        self.path = Path(path)
        self.model = Path(model)
        self.network = getattr(network, "module", network)  # DDP wraps the network
        self.settings = {name: str(value) for name, value in {**network_settings(network), **settings}.items()}
        self.optimizer = optimizer
        self.evaluator = evaluator
        self.saver = saver

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.resume)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def resume(self, engine: Engine) -> None:
        """Load the state of an unfinished training, or keep the model of an earlier, finished one."""
        if not self.path.is_file():
            self._keep_earlier_model()
            return
        state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        for name, now in self.settings.items():
            if (then := state["settings"].get(name)) != now:
                raise InputError(
                    f"{self.path} is an unfinished training with {name} {then}, not {now}: "
                    "give that again to go on with it, or delete the file to begin anew"
                )
        try:
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"{self.path} is an unfinished training of another network: delete it, or give another --ckpt_dir"
            ) from error
        if scaler := getattr(engine, "scaler", None):
            scaler.load_state_dict(state["scaler"])
        engine.state.epoch, engine.state.iteration = state["epoch"], state["iteration"]
        torch.set_rng_state(state["random"])
        if state["best_metric_epoch"] > 0:
            vars(self.evaluator.state).update({name: state[name] for name in ("best_metric", "best_metric_epoch")})
            self.saver.load_state_dict({"_saved": [(-state["best_metric"], self.path.name)]})  # the lowest is the best
        logger.info("training goes on after epoch %d (to begin anew, delete %s)", state["epoch"], self.path)

    def _keep_earlier_model(self) -> None:
        if self.model.is_file() and not _not_first():
            finished = time.strftime("%Y%m%d_%H%M%S", time.localtime(self.model.stat().st_mtime))
            kept = self.model.rename(self.model.with_stem(f"{self.model.stem}_{finished}"))
            if origin_file(self.model).is_file():
                origin_file(self.model).rename(origin_file(kept))
            logger.info("the model of an earlier training is kept as %s", kept)

    def save(self, engine: Engine) -> None:
        """Write the state whole; of several processes the first does."""
        if _not_first():
            return
        scaler = getattr(engine, "scaler", None)  # of mixed precision
        state = {
            "settings": self.settings,
            "scaler": scaler.state_dict() if scaler else {},
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "random": torch.get_rng_state(),
            "best_metric": float(getattr(self.evaluator.state, "best_metric", -1)),
            "best_metric_epoch": int(getattr(self.evaluator.state, "best_metric_epoch", -1)),
        }
        with whole_file(self.path) as beside:
            torch.save(state, beside)

    def finish(self, engine: Engine) -> None:
        """Remove the state and log which epoch was the best."""
        if not _not_first():
            self.path.unlink(missing_ok=True)
            best = getattr(self.evaluator.state, "best_metric_epoch", -1)
            if best > 0:
                logger.info("trained for %d epochs; the best is epoch %d: %s", engine.state.epoch, best, self.model)


def _not_first() -> bool:
    return dist.is_initialized() and dist.get_rank() > 0


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
