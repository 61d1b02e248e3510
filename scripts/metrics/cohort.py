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
"""How well a cohort was read: of the bags, and of the instances in them, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from scripts.data.annotations import Lesions
from scripts.data.results import BagResult
from scripts.metrics.classes import class_metrics
from scripts.metrics.figures import Cases, Interval, bootstrap
from scripts.metrics.lesions import froc


def cohort_metrics(results: Sequence[BagResult]) -> dict[str, Interval]:
    """Every figure of an evaluation, by a name that says what it is."""
    labelled = [r for r in results if r.label is not None]
    return {
        **_bag_metrics(labelled),
        **class_metrics(labelled),
        **_instance_metrics(_with_truth(labelled)),
        **froc(_with_lesions(labelled)),
    }


def _with_truth(results: Sequence[BagResult]) -> list[BagResult]:
    """Where the truth is known of some, it is known of every negative bag too: nothing in it is positive."""
    if all(r.truth is None for r in results):
        return []
    known = [replace(r, truth=np.zeros(len(r.scores), dtype=int)) if _needs_none(r, r.truth) else r for r in results]
    return [r for r in known if r.truth is not None]


def _with_lesions(results: Sequence[BagResult]) -> list[BagResult]:
    if all(r.lesions is None for r in results):
        return []
    none = [Lesions(np.zeros(len(r.scores), dtype=int), 0) for r in results]
    known = [replace(r, lesions=no) if _needs_none(r, r.lesions) else r for r, no in zip(results, none, strict=True)]
    return [r for r in known if r.lesions is not None]


def _needs_none(result: BagResult, known: object) -> bool:
    return known is None and not result.label_positive


def _bag_metrics(results: Sequence[BagResult]) -> dict[str, Interval]:
    """Of one question with two answers; of several classes, whether there is a finding at all."""
    if not results or (results[0].classes is not None and results[0].classes.negative is None):
        return {}
    bags = Cases([np.array([r.label_positive]) for r in results])
    probability = np.array([r.probability for r in results])
    called = np.array([r.positive for r in results])
    figures = {"auroc": bags.auroc(probability), **bags.agreement(called), **bags.calibration(probability)}
    return bootstrap(len(results), {f"bag_{name}": figure for name, figure in figures.items()})


def _instance_metrics(results: Sequence[BagResult]) -> dict[str, Interval]:
    """Of the instances of all bags, pooled."""
    if not results:
        return {}
    instances = Cases([r.truth for r in results if r.truth is not None])
    scores = np.concatenate([r.scores for r in results])
    gate = np.array([r.positive for r in results])[instances.bag]
    weighted = np.concatenate([r.attention * r.probability for r in results])
    figures = {
        "auroc_gated": instances.auroc(np.where(gate, scores, scores.min())),  # a floor in bags called negative
        "auroc_ungated": instances.auroc(scores),
        "auroc_weighted": instances.auroc(weighted),  # attention × probability of the bag
        **instances.agreement(np.concatenate([r.flagged for r in results])),
    }
    return bootstrap(len(results), {f"instance_{name}": figure for name, figure in figures.items()})
