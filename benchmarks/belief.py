# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The parts of the run that say how far intervals and probabilities can be believed."""

import tempfile
from collections.abc import Mapping
from statistics import mean
from typing import Any

from benchmarks.coverage import cases, share_of
from benchmarks.report import Section, Table, Target
from benchmarks.runner import Runner

COHORTS = {"SLIDES": "demonstration's slides", "HEADS": "head CT, slice features"}  # of calibration.py
GATED = ("instance_auroc_gated", "instance_auroc_ungated")


def coverage(runner: Runner) -> Section:
    draws = 20 if runner.small else 2000
    found = {name: share_of(covers, draws) for name, covers in cases().items()}
    return runner.section(
        "coverage",
        "What 95 % intervals cover",
        f"Of {draws:,} cohorts drawn from a known population: the share whose interval holds the truth. Scores of bags "
        "are normal, with the AUROC that is named; AUROCs have DeLong's interval on the logit scale, proportions "
        "Wilson's, differences that of DeLong's paired test.",
        [
            target
            for name, share in found.items()
            for target in (
                Target(f"{name}: covered", share, 0.93, at_least=True),
                Target(f"{name}: covered", share, 0.97),
            )
        ],
        [Table(["95 % interval of", "covered"], [[name, f"{100 * share:.1f} %"] for name, share in found.items()])],
        found,
    )


def calibration(runner: Runner) -> Section:
    cohorts, small = list(COHORTS), dict[str, Any]()
    if runner.small:
        cohorts.remove("HEADS")
        small = {"counts": (4, 2, 4), "keys": {"in_features": 128, "max_epochs": 1}, "fitted_on": (2,)}
    found = {}
    for cohort in cohorts:
        with tempfile.TemporaryDirectory() as folder:
            options = {"cohort": cohort, "folder": folder, "seeds": 1 if runner.small else 5, **small}
            found[cohort] = runner.figures("measure", module="calibration", **options)
    return told_of(found, runner.small, runner.where())


def told_of(found: Mapping[str, Any], quick: bool, where: Mapping[str, str]) -> Section:
    """What figures of calibration say, also such as were measured before."""
    targets, errors, gates = [], [], []
    for cohort, figures in found.items():
        what, seeds = COHORTS[cohort], figures["seeds"]
        for fitted, by_error in figures["differences"].items():
            for error, difference in by_error.items():
                before, after = (mean(each["errors"][at][error] for each in seeds) for at in ("no scaling", fitted))
                change = f"{difference['mean']:+.3f} [{difference['low']:+.3f}, {difference['high']:+.3f}]"
                errors.append([what, fitted, error, f"{before:.3f}", f"{after:.3f}", change])
            most = by_error["bag_calibration_error"]["high"]
            targets.append(Target(f"{what}: calibration error after scaling less before, {fitted}, upper end", most, 0))
        aurocs = [[each[name] for name in ("bag_auroc", *GATED)] for each in seeds]
        gates += [[what, str(seed), *(f"{value:.3f}" for value in of_seed)] for seed, of_seed in enumerate(aurocs)]
        apart = [abs(gated - ungated) for auroc, gated, ungated in aurocs if auroc == 1]
        if apart:
            targets.append(Target(f"{what}: gated and ungated AUROC apart, bag AUROC 1", max(apart), 0.03))
    return Section(
        "calibration",
        "Calibration, before and after the fitted scaling",
        "Test bags of synthetic cohorts; five trainings on each, five seeds of the network. The scaling is fitted on "
        "the first validation bags, half of them positive. Before and after are means over the seeds; the change has "
        "its 95 % interval over them (Student's t), whose upper end is judged: a gain is shown where it is below 0. "
        "Slides as `python -m demo data` makes them have 8 validation and 20 test bags. The second cohort shows what "
        "more bags change: 80 validation and 100 test scans of the same generator, and heads (SmAP) that err, on the "
        "features of a slice network that was trained briefly. Gated and ungated differ at a bag AUROC of 1 too: "
        "instances of bags called negative are then below all others, which is right of each.",
        quick,
        where,
        targets,
        [
            Table(["cohort", "fitted on", "error", "before", "after", "change"], errors),
            Table(["cohort", "seed", "bag AUROC", "instances, gated", "instances, ungated"], gates, "Gate:"),
        ],
        found,
    )
