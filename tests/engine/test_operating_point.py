# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The threshold keeps what it promises on the bags it was chosen on, and probabilities are honest on others."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ignite.engine import Engine
from scipy.optimize import minimize
from scipy.stats import mannwhitneyu, norm
from sklearn.metrics import roc_auc_score

from scripts.core.conformal import Conformal
from scripts.core.errors import InputError
from scripts.core.files import sha256_of
from scripts.core.record import NO_THRESHOLD
from scripts.core.scoring import probabilities
from scripts.engine.operating_point import (
    OperatingPoint,
    RememberOperatingPoint,
    caveat,
    choose_operating_point,
    choose_threshold,
    fit_scaling,
    operating_file,
    read_operating_point,
    write_operating_point,
)

COHORTS = st.lists(st.tuples(st.booleans(), st.integers(-9, 9)), min_size=8, max_size=60)
DEFAULT = OperatingPoint()


@settings(deadline=None)
@given(COHORTS, st.sampled_from([0.5, 0.8, 0.95, 1.0]))
def test_a_target_is_kept_at_the_least_cost_on_the_bags_it_was_chosen_on(
    bags: list[tuple[bool, int]], least: float
) -> None:
    positive, logits = (np.array(column) for column in zip(*bags, strict=True))
    point = choose_operating_point(logits[:, None] / 3.0, positive + 0.0, f"sensitivity {least}")
    if "the default" in point.origin:
        assert point == DEFAULT._replace(origin=f"the default: {point.refusal}", refusal=point.refusal)
        return
    called = probabilities(logits[:, None] / 3.0, point.scaling)[:, 0] > point.threshold
    sensitivity, specificity = called[positive].mean(), (~called[~positive]).mean()
    assert sensitivity >= least - 1e-9
    assert f"sensitivity {sensitivity:.3g}, specificity {specificity:.3g} there" in point.origin
    cuts = [logits > cut for cut in (-10, *logits)]
    others = [((~cut[~positive]).mean(), cut[positive].mean()) for cut in cuts if cut[positive].mean() >= least - 1e-9]
    assert (specificity, sensitivity) == pytest.approx(max(others))
    youden = choose_operating_point(logits[:, None] / 3.0, positive + 0.0, "youden")
    at_youden = probabilities(logits[:, None] / 3.0, youden.scaling)[:, 0] > youden.threshold
    assert at_youden[positive].mean() - at_youden[~positive].mean() >= sensitivity + specificity - 1 - 1e-9


@pytest.mark.parametrize(("bags", "shift", "is_near"), [(4, 0.5, True), (40, 0.2, True), (40, 1.5, False)])
def test_bags_that_chance_may_have_ranked_so_are_said_to_be(bags: int, shift: float, is_near: bool) -> None:
    generator = np.random.default_rng(3)
    positive = np.repeat([False, True], bags)
    logits = generator.normal(shift * positive, 1.0)
    logits[0] -= 1e-3 + max(0.0, logits[~positive].mean() - logits[positive].mean()) * bags  # or no scaling fits
    test = mannwhitneyu(
        logits[positive], logits[~positive], alternative="greater", use_continuity=False, method="asymptotic"
    )
    assert (test.pvalue > 0.05) == is_near
    origin = choose_operating_point(logits[:, None], positive + 0.0, "youden").origin
    told = f"may be ranked so by chance: AUROC {roc_auc_score(positive, logits):.2f} of {2 * bags} bags"
    assert origin.endswith(f"; {told}") == is_near
    assert caveat(origin) == [f"the bags that chose the threshold {told}"] * is_near


def test_a_threshold_chosen_on_nothing_means_little_and_one_that_somebody_gives_is_his() -> None:
    assert caveat(DEFAULT.origin) == ["the threshold is the default, chosen on no data"]
    few = choose_operating_point(np.zeros((5, 1)), np.array([0.0, 0, 0, 1, 1]), "youden")
    assert caveat(few.origin) == [
        "the threshold is the default: 5 validation bags with 2 of one kind are too few to choose on"
    ]
    for origin in ("", "given by the user", DEFAULT.origin_of(0.7, (1.0, 0.0)), NO_THRESHOLD):
        assert caveat(origin) == []


def test_the_scaling_is_the_likeliest_under_its_prior() -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat([0.0, 1.0], [40, 25])
    logits = generator.normal(2 * labels + 3, 1.0)

    def unlikelihood(parameters: np.ndarray) -> float:
        scaled = np.exp(parameters[0]) * logits + parameters[1]
        prior = norm.logpdf(parameters, 0, [0.5, 1.0]).sum()
        return float(np.logaddexp(0, np.where(labels > 0, -scaled, scaled)).sum() - prior)

    log_slope, intercept = minimize(unlikelihood, np.zeros(2), method="Nelder-Mead", tol=1e-10).x
    assert fit_scaling(logits[:, None], labels) == pytest.approx((np.exp(log_slope), intercept), rel=1e-4)


def test_many_bags_make_probabilities_right_and_few_change_little() -> None:
    generator = np.random.default_rng(0)
    honest = generator.normal(0, 2, 20_000)
    labels = (generator.random(20_000) < 1 / (1 + np.exp(-honest))) + 0.0
    assert fit_scaling((3 * honest - 2)[:, None], labels) == pytest.approx((1 / 3, 2 / 3), rel=0.05)
    sure = np.repeat([-3.3, 3.3], 4)
    slope, intercept = fit_scaling(sure[:, None], (sure > 0) + 0.0)  # no bag is mistaken
    assert 1 < slope < 1.5
    assert intercept == pytest.approx(0, abs=1e-6)
    slope, intercept = fit_scaling(1e4 * sure[:, None], (sure > 0) + 0.0)
    assert (slope, intercept) == pytest.approx((1, 0), abs=1e-6)


def test_the_temperature_of_several_classes_is_that_of_their_noise() -> None:
    generator = np.random.default_rng(0)
    honest = generator.normal(0, 2, (4000, 3))
    p = np.exp(honest) / np.exp(honest).sum(axis=1, keepdims=True)
    labels = np.array([generator.choice(3, p=each) for each in p])
    point = choose_operating_point(4.0 * honest, labels, "youden")
    assert point.scaling == pytest.approx((1 / 4, 0), rel=0.1)
    assert point.threshold == 0.5


@pytest.mark.parametrize(
    ("logits", "labels", "reason"),
    [
        ([0, 1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 1, 1, 1], "7 validation bags with 3 of one kind are too few"),
        ([8, 7, 6, 5, 4, 3, 2, 1], [0, 0, 0, 0, 1, 1, 1, 1], "logits of positive ones are not higher"),
        ([0.3] * 12, [0, 1, 1] * 4, "logits of positive ones are not higher"),
    ],
)
def test_where_nothing_can_be_chosen_it_says_so_and_keeps_the_default(
    logits: list[float], labels: list[float], reason: str
) -> None:
    point = choose_operating_point(np.array(logits, float)[:, None], np.array(labels, float), "youden")
    assert point == DEFAULT._replace(origin=f"the default: {point.refusal}", refusal=point.refusal)
    assert reason in point.refusal
    assert (
        reason.replace("validation", "local")
        in choose_operating_point(
            np.array(logits, float)[:, None], np.array(labels, float), "youden", "local bags"
        ).origin
    )


def test_a_point_that_bags_chose_is_chosen_though_it_equals_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.engine.operating_point.fit_scaling", lambda *_: (1.0, 0.0))
    labels = np.repeat([0.0, 1.0], 4)
    point = choose_operating_point(6 * labels[:, None] - 3, labels, "youden")
    assert (point[:2], point.refusal) == (DEFAULT[:2], "")
    assert point.origin.startswith("youden on 4 positive and 4 negative validation bags")


def test_the_origin_is_the_point_s_until_the_user_sets_either() -> None:
    point = OperatingPoint(0.3, (2.0, -1.0), "youden on 20 bags")
    assert point.origin_of(0.3, [2.0, -1.0]) == "youden on 20 bags"
    assert point.origin_of(0.4, [2.0, -1.0]) == point.origin_of(0.3, [1.0, 0.0]) == "given by the user"


@pytest.mark.parametrize("target", ["sensitivity 1", "specificity 1", "youden"])
@pytest.mark.parametrize("logits", [[-800.0, -5.0, 3.0, 8.0], [-3.0, 2.0, 40.0, 50.0], [700.0, 800.0, 900.0, 900.0]])
def test_bags_surer_than_numbers_go_get_the_threshold_that_comes_closest(logits: list[float], target: str) -> None:
    """A probability may be exactly 0 or 1, on whichever side: what is told of the threshold is what a run then sees."""
    for positive in (np.array([True, False, True, True]), np.array([False, True, False, True])):
        threshold, told = choose_threshold(np.array(logits)[:, None], positive, target)
        called = probabilities(np.array(logits)[:, None])[:, 0] > threshold
        sensitivity, specificity = called[positive].mean(), (~called)[~positive].mean()
        assert told == f"sensitivity {sensitivity:.3g}, specificity {specificity:.3g} there"
        if logits[0] > -800 or not positive[0]:  # else a bag is at exactly 0, above which nothing is
            kept = {"sensitivity 1": sensitivity, "specificity 1": specificity}.get(target, 1)
            assert kept == 1


@pytest.mark.parametrize("target", ["sensitivity", "sensitivity 95", "f1", "specificity 1.1"])
def test_another_target_is_refused_before_training(target: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"the target is {target!r}: 'youden', 'sensitivity 0.95'")):
        RememberOperatingPoint("model.pt", target)


def validated(handler: RememberOperatingPoint, logits: list[float], epoch: int, best: int) -> None:
    engine = Engine(lambda engine, batch: None)
    handler.attach(engine)
    state = SimpleNamespace(epoch=epoch, best_metric_epoch=best)
    for k, logit in enumerate(logits):
        state.batch = [{"bag_id": f"bag {k}"}]
        state.output = [{"logits": torch.tensor([logit]), "label": torch.tensor([float(k % 2)])}]
        handler.remember(SimpleNamespace(state=state))  # type: ignore[arg-type]
    handler.write(SimpleNamespace(state=state))  # type: ignore[arg-type]


def test_the_point_of_the_best_epoch_stays_beside_its_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = tmp_path / "model.pt"
    weights.write_bytes(b"the best")
    assert read_operating_point(str(weights)) == DEFAULT
    handler = RememberOperatingPoint(str(weights), "sensitivity 0.95")
    validated(handler, [0.0, 1.0] * 5, epoch=1, best=1)
    point = read_operating_point(str(weights))
    assert "sensitivity 0.95 on 5 positive and 5 negative validation bags" in point.origin
    validated(handler, [0.0, 5.0] * 5, epoch=2, best=1)
    assert read_operating_point(str(weights)) == point
    weights.write_bytes(b"of somebody else")
    assert read_operating_point(str(weights)) == DEFAULT
    assert "was chosen for other weights" in caplog.text
    sets = {"coverage": 0.9, "cuts": {"negative": "none"}, "bags": {"negative": 3}}
    points = ({"threshold": 7}, {"scaling": [-1, 0]}, {"scaling": [1, 10**400]}, {"scaling": 1})
    for spoiled in (*points, {"conformal": sets}, {"conformal": [3]}):
        stored = {"threshold": 0.4, "scaling": [1, 0], "origin": "", "weights_sha256": sha256_of(weights), **spoiled}
        operating_file(weights).write_text(json.dumps(stored))
        require_refused(weights)


def test_what_is_written_is_read_back_and_what_was_there_is_kept_if_wanted(tmp_path: Path) -> None:
    weights = tmp_path / "model.pt"
    weights.write_bytes(b"the best")
    sets = Conformal(0.9, {"negative": -0.1, "positive": None}, {"negative": 20, "positive": 3})
    points = [OperatingPoint(0.1 * k, (0.3, -1.7), f"the {k}th", sets if k > 1 else None) for k in range(1, 5)]
    kept = [write_operating_point(weights, point, keep=point is not points[-1]) for point in points]
    assert kept == [None, *(tmp_path / f"model.operating_point.{k}.json" for k in (1, 2)), None]
    assert read_operating_point(str(weights)) == points[-1]
    for earlier, point in zip(kept[1:3], points, strict=False):
        assert earlier is not None
        assert json.loads(earlier.read_text())["origin"] == point.origin


def require_refused(weights: Path) -> None:
    with pytest.raises(InputError, match=r"model\.operating_point\.json holds no operating point: train again"):
        read_operating_point(str(weights))
