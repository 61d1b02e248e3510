# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Handlers that keep the record of a training or an evaluation, and have it delivered to MLflow meanwhile."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from ignite.engine import Engine, Events
from torch import nn

from scripts.core.errors import InputError
from scripts.core.files import sha256_of
from scripts.engine.collapse import warn_of_collapse
from scripts.engine.delivery import Courier
from scripts.engine.run_record import (
    ENDING,
    Record,
    finite_metrics,
    now,
    read_record,
    remember_evaluation,
    run_file,
    set_aside,
    write_record,
)  # fmt: skip
from scripts.networks.smooth import SmoothOperator

logger = logging.getLogger(__name__)


class _Tracker:
    """A record, the file it is kept in and the courier that delivers it; whatever fails here, the run goes on."""

    def __init__(self, path: Path, record: Record, folders: Sequence[str | Path]) -> None:
        self.path = path
        self.record = record
        self.folders = folders
        self.courier: Courier | None = None

    def attach(self, engine: Engine) -> None:
        """Register the handler; before others that look at exceptions, as ignite asks the first one alone."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.begin)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.note)
        engine.add_event_handler(Events.COMPLETED, self.complete)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self.fail)

    def begin(self, engine: Engine) -> None:
        """Write the record for the first time; what another run has left there is kept under another name."""
        if self.courier is None:
            if not self._goes_on(engine):
                with suppress(OSError):
                    set_aside(self.path)
            self._keep()
            self.courier = Courier(self.path, self.record, self.folders)
            self.courier.tell()

    def _goes_on(self, engine: Engine) -> bool:
        """Whether the record in the file is of this run, which takes it over."""
        return False

    def note(self, engine: Engine) -> None:
        """Enter an epoch into the record."""
        raise NotImplementedError

    def complete(self, engine: Engine) -> None:
        self._end("FINISHED")

    def fail(self, engine: Engine, error: BaseException) -> NoReturn:
        """End the record, and raise the error again, which ignite would swallow."""
        try:
            self._end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        finally:
            raise error

    def _end(self, status: str) -> None:
        if self.courier is not None and self.record["ended"] is None:
            self.record |= {"status": status, "ended": now()}
            self._keep()
            self.courier.finish()

    def _keep(self) -> None:
        try:
            write_record(self.path, self.record)
        except (OSError, InputError) as error:
            logger.warning("the record of this run is not kept: %s", error)


class TrackTraining(_Tracker):
    """An ignite handler of the trainer that records each epoch; behind the validation, before the state is saved.

    Args:
        record: of the training, from new_record.
        ckpt_path: file of the best network; the record lies beside it.
        output_dir: where records of evaluations may be left undelivered.
        evaluator: the validation.
    """

    def __init__(self, record: Record, ckpt_path: str, output_dir: str, evaluator: Engine) -> None:
        super().__init__(run_file(ckpt_path), record, [Path(ckpt_path).parent, output_dir])
        self.ckpt_path = Path(ckpt_path)
        self.evaluator = evaluator
        self.learning_rate = 0.0

    def attach(self, engine: Engine) -> None:
        super().attach(engine)
        engine.add_event_handler(Events.ITERATION_STARTED, self.see_input)

    def begin(self, engine: Engine) -> None:
        self.learning_rate = engine.optimizer.param_groups[0]["lr"]  # type: ignore[attr-defined]
        super().begin(engine)

    def _goes_on(self, engine: Engine) -> bool:
        self.record["params"]["epoch_length"] = str(engine.state.epoch_length)
        earlier = read_record(self.path)
        if earlier is None or earlier["run_name"] != self.record["run_name"]:
            return False
        before = [epoch for epoch in earlier["epochs"] if epoch["epoch"] < engine.state.epoch]
        if engine.state.epoch == 1 and (earlier["epochs"] or earlier["params"] != self.record["params"]):
            return False  # begun anew under the same name
        self.record |= {key: earlier[key] for key in ("id", "started", "kept", "input")}
        self.record |= {"epochs": before, "tags": {**earlier["tags"], **self.record["tags"]}}
        return True

    def see_input(self, engine: Engine) -> None:
        """Remember what shape a bag has, for the signature of the model."""
        if not self.record["input"]:
            batch: Mapping[str, Any] = engine.state.batch  # type: ignore[assignment]
            self.record["input"] = {key: list(batch[key].shape[1:]) for key in ("image", "coords") if key in batch}

    def note(self, engine: Engine) -> None:
        epoch, validation = engine.state.epoch, self.evaluator.state
        metrics = dict(engine.state.metrics)
        if validation.epoch == epoch:
            metrics |= validation.metrics
        metrics |= {"learning_rate": self.learning_rate, **alphas(engine.network)}  # type: ignore[attr-defined]
        earlier = [each for each in self.record["epochs"] if each["epoch"] < epoch]
        self.record["epochs"] = [*earlier, {"epoch": epoch, "time": now(), **finite_metrics(metrics)}]
        best = getattr(validation, "best_metric_epoch", -1)
        for each in self.record["epochs"]:
            if each["epoch"] == best:
                self.record["kept"] = {key: value for key, value in each.items() if key != "time"}
        if best == epoch and self.ckpt_path.is_file():
            self.record["tags"]["weights_sha256"] = sha256_of(self.ckpt_path)
        self._keep()
        if self.courier is not None:
            self.courier.tell()

    def complete(self, engine: Engine) -> None:
        super().complete(engine)
        warn_of_collapse(self.record["kept"], engine.network)  # type: ignore[attr-defined]


def alphas(network: nn.Module) -> dict[str, float]:
    """Return the strength of each smooth operator of a network: "alpha", of several "alpha.<module>"."""
    inner = getattr(network, "module", network)  # DDP wraps the network
    found = {name: module for name, module in inner.named_modules() if isinstance(module, SmoothOperator)}
    return {"alpha" if len(found) == 1 else f"alpha.{name}": float(each.alpha.detach()) for name, each in found.items()}


class TrackEvaluation(_Tracker):
    """An ignite handler of the evaluator, behind the report of the cohort, that records its metrics.

    Args:
        record: of the evaluation, from new_record.
        ckpt_path: file of the weights that are judged; the evaluation is listed beside them.
        output_dir: folder of the results, where the record lies.
        section: of the datalist.
    """

    def __init__(self, record: Record, ckpt_path: str, output_dir: str, section: str) -> None:
        name = re.sub(r"[/\0]", "_", record["run_name"]) + ENDING
        super().__init__(Path(output_dir) / name, record, [Path(ckpt_path).parent, output_dir])
        self.ckpt_path = ckpt_path
        self.section = section

    def begin(self, engine: Engine) -> None:
        if self.courier is None:
            self.record["tags"]["evaluated_weights_sha256"] = sha256_of(self.ckpt_path)
        super().begin(engine)

    def note(self, engine: Engine) -> None:
        """Enter the metrics with the ends of their intervals, and how often these bags were evaluated before."""
        metrics = finite_metrics(engine.state.metrics)
        report = self.path.with_name("metrics.json")
        if report.is_file():
            self.record["artifacts"] = [report.name]
            figures = {name: each for name, each in json.loads(report.read_text()).items() if isinstance(each, dict)}
            ends = {f"{name}_{end}": each.get(end) for name, each in figures.items() for end in ("low", "high")}
            metrics |= finite_metrics(ends)
        self.record["metrics"] = metrics
        known = self.record["data"][self.section]
        before = remember_evaluation(self.ckpt_path, self.section, known["sha256"], self.record["run_name"])
        self.record["params"]["evaluated_before"] = str(before)
        if before and self.section == "test":
            logger.warning(
                "the test bags were evaluated %s before with weights of this folder: figures of a network that "
                "was chosen by them are too good",
                {1: "once", 2: "twice"}.get(before, f"{before} times"),
            )
