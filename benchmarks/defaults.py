# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Do the shipped defaults of slides train to a plateau? The trainer of train.json on synthetic cohorts in memory."""

import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.data import Dataset
from monai.utils import set_determinism
from sklearn.metrics import roc_auc_score

from benchmarks.bags import tissue
from benchmarks.report import Section, Table, Target, number
from benchmarks.runner import Runner
from scripts.core.scoring import probabilities
from scripts.engine.operating_point import choose_operating_point

CONFIGS = Path(__file__).parents[1] / "configs" / "wsi"
NETWORKS: dict[str, Sequence[str]] = {"SmAP": (), "ABMIL": ("abmil.json",), "SmTAP": ("smtap.json",)}
SHIPPED, LONGER, BEFORE, STRONGER = "shipped", "twice the epochs", "1e-4, 50 epochs", "α 0.9"
# slides of a cohort, two thirds to train on, and its seeds; a large cohort or network takes minutes for each
COHORTS: dict[int, Sequence[int]] = {30: (0, 1, 2), 100: (0, 1, 2), 300: (1,)}
COHORTS_OF_SMTAP: dict[int, Sequence[int]] = {30: (0,)}
SPREADS = (1.0, 0.3, 0.1)  # of the noise in the features, by seed: encoders differ in it, and networks feel it
STEERING = ("LrScheduleHandler", "ValidationHandler", "scripts.engine.training.ClipGradients")  # others write or print
FEATURES = 256
KINDS = 5  # of normal tissue
LESION = 6.0  # how far it lies from normal tissue, in standard deviations of the noise
SHARE = (0.02, 0.10)  # of the patches of a positive slide that are lesion
UNSEEN = 100  # slides that no choice rests on
ENOUGH = 0.02  # accuracy that twice the epochs may add on a plateau

Bag = dict[str, torch.Tensor]


def slides(count: int, seed: int, spread: float) -> list[Bag]:
    """Every other slide holds one contiguous lesion, in tissue of several kinds that look alike whatever the seed."""
    rng = np.random.default_rng([1, seed])
    directions = np.random.default_rng(0).normal(size=(KINDS + 1, FEATURES))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    kinds, lesion = 4 * directions[:KINDS], LESION * directions[KINDS]
    return [_slide(rng, kinds, lesion * (case % 2), spread) for case in range(count)]


def _slide(rng: np.random.Generator, kinds: np.ndarray, lesion: np.ndarray, spread: float) -> Bag:
    coords = tissue(int(rng.integers(60, 151))).T.numpy()  # [N, 2]
    distances = np.linalg.norm(coords[:, None] - coords[rng.integers(len(coords), size=7)], axis=2)
    kind = rng.integers(KINDS, size=6)[distances[:, :6].argmin(axis=1)]
    features = kinds[kind] + rng.normal(size=(len(coords), FEATURES))
    features[distances[:, 6].argsort()[: round(len(coords) * rng.uniform(*SHARE))]] += lesion
    return {
        "image": torch.from_numpy((spread * features).T.astype(np.float32)),
        "coords": torch.from_numpy(coords.T.astype(np.float32)),
        "mask": torch.ones(1, len(coords)),
        "label": torch.tensor([float(lesion.any())]),
    }


def train(
    files: Sequence[str], bags: Sequence[Bag], validation: Sequence[Bag], **keys: Any
) -> tuple[torch.nn.Module, list[dict[str, float]]]:
    """The best network of a training by train.json, `files` and keys, and the metrics of every validation."""
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / name) for name in ("train.json", *files)])
    with tempfile.TemporaryDirectory() as folder:
        parser.update({"ckpt_dir": folder, "device": torch.device("cpu"), "amp": False, "num_workers": 0, **keys})
        parser["in_features"] = bags[0]["image"].shape[0]
        parser["train"]["dataset"], parser["validate"]["dataset"] = Dataset(bags), Dataset(validation)
        parser["train"]["handlers"] = [each for each in parser["train"]["handlers"] if each["_target_"] in STEERING]
        parser["validate"]["handlers"] = ["@validate#saver", "@validate#early_stop"]
        del parser["validate"]["postprocessing"]["transforms"][1:]  # no record of a bag is read
        others = "${name: metric for name, metric in @validate#metrics.items() if name != @best_by}"
        parser["validate"]["additional_metrics"] = others
        set_determinism(parser["seed"])
        trainer, evaluator = (parser.get_parsed_content(name) for name in ("train#trainer", "validate#evaluator"))
        parser.get_parsed_content("validate#early_stop").set_trainer(trainer)
        course: list[dict[str, float]] = []

        def remember(engine: Engine) -> None:
            course.append(dict(engine.state.metrics))

        evaluator.add_event_handler(Events.EPOCH_COMPLETED, remember)
        for engine in (trainer, evaluator):
            engine.logger.setLevel(logging.WARNING)
        trainer.run()
        network: torch.nn.Module = parser.get_parsed_content("network")
        network.load_state_dict(torch.load(Path(folder) / "model.pt"))
    return network, course


@torch.no_grad()
def logits(network: torch.nn.Module, bags: Sequence[Bag]) -> np.ndarray:
    network.eval()
    each = [network(bag["image"][None], bag["coords"][None], bag["mask"][None]) for bag in bags]
    return torch.cat(each).numpy()


def labels(bags: Sequence[Bag]) -> np.ndarray:
    return torch.cat([bag["label"] for bag in bags]).numpy()


def figures(name: str, count: int, seed: int, keys: Mapping[str, Any], unseen: int) -> dict[str, float]:
    """Of one training; the threshold is fitted on its validation slides, as a training does.

    Args:
        name: of the network.
        count: slides of the cohort.
        seed: of the cohort and of the training.
        keys: as typed on the command line.
        unseen: slides to test on.
    """
    cohort, tested = (slides(n, 2 * seed + which, SPREADS[seed]) for which, n in enumerate((count, unseen)))
    validation, bags = cohort[: count // 3], cohort[count // 3 :]
    started = time.monotonic()
    network, course = train(NETWORKS[name], bags, validation, seed=seed, **keys)
    seconds = time.monotonic() - started
    losses = [metrics["val_loss"] for metrics in course]
    best = int(np.argmin(losses))
    point = choose_operating_point(logits(network, validation), labels(validation), "youden")
    answers, truth = logits(network, tested), labels(tested)
    called = probabilities(answers, point.scaling)[:, 0] > point.threshold
    return {
        "epochs": len(course),
        "best epoch": best + 1,
        "best validation loss": losses[best],
        "last validation loss": losses[-1],
        "validation AUROC": course[best]["val_bag_auroc"],
        "unseen AUROC": float(roc_auc_score(truth, answers[:, 0])),
        "unseen accuracy": float((called == (truth == 1)).mean()),
        "seconds": seconds,
    }


def trainings(cases: Sequence[Sequence[Any]], processes: int) -> list[dict[str, float]]:
    """The figures of several trainings, each on one thread: so small a network gains nothing from two."""
    torch.set_num_threads(1)
    if processes == 1:
        return [figures(*case) for case in cases]
    with ProcessPoolExecutor(processes, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        return list(pool.map(figures, *zip(*cases, strict=True)))


def settings_of(name: str) -> dict[str, dict[str, Any]]:
    """The keys of each training that is compared."""
    shipped = ConfigParser.load_config_files([str(CONFIGS / file) for file in ("train.json", *NETWORKS[name])])
    return {
        SHIPPED: {},
        LONGER: {key: 2 * shipped[key] for key in ("max_epochs", "patience")},
        BEFORE: {"learning_rate": 1e-4, "max_epochs": 50, "patience": 50},
        **({STRONGER: {"network_def#aggregator#alpha": 0.9}} if name == "SmAP" else {}),
    }


def defaults(runner: Runner) -> Section:
    cohorts = {name: COHORTS_OF_SMTAP if name == "SmTAP" else COHORTS for name in NETWORKS}
    unseen, once = UNSEEN, {}
    if runner.small:
        cohorts, unseen, once = {"ABMIL": {6: (0,)}}, 4, {"max_epochs": 1}
    measured: dict[str, dict[str, list[dict[str, float]]]] = {}
    for name, counts in cohorts.items():
        for count, seeds in counts.items():
            settings = settings_of(name)
            cases = [(name, count, seed, {**keys, **once}, unseen) for keys in settings.values() for seed in seeds]
            runner.say(f"{name}, {count} slides: {len(cases)} trainings")
            got = iter(runner.figures("trainings", module="defaults", cases=cases, processes=runner.threads))
            measured[f"{name}, {count} slides"] = {each: [next(got) for _ in seeds] for each in settings}
    rows = [
        [cohort, settings, *(number(mean(run[figure] for run in runs)) for figure in runs[0])]
        for cohort, by_settings in measured.items()
        for settings, runs in by_settings.items()
    ]
    header = ["network and cohort", "settings", *next(iter(measured.values()))[SHIPPED][0]]
    return runner.section(
        "defaults",
        "The defaults of slides reach a plateau",
        "`configs/wsi/train.json` and its small files as they are, beside twice their epochs and beside a constant "
        "learning rate of 1e-4, SmAP also beside a fixed α of 0.9. Made-up slides of 60 to 150 patches; a positive one "
        f"has a lesion of 2 to 10 % of them. Two thirds of a cohort are trained on, the rest chooses epoch and "
        f"threshold; {unseen} more are unseen. Mean of the seeds, on the CPU, two trainings side by side.",
        [_plateau(cohort, by_settings) for cohort, by_settings in measured.items()],
        [Table(header, rows)],
        measured,
    )


def _plateau(cohort: str, by_settings: Mapping[str, Sequence[Mapping[str, float]]]) -> Target:
    accuracy = {settings: mean(run["unseen accuracy"] for run in runs) for settings, runs in by_settings.items()}
    return Target(f"{cohort}: accuracy that twice the epochs add", accuracy[LONGER] - accuracy[SHIPPED], ENOUGH)
