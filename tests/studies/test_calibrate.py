# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""A site's labelled results choose the operating point of weights; what does not fit is one line, no change."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scripts.core.errors import InputError
from scripts.core.files import sha256_of
from scripts.core.record import BagResult, BagResultd, Model
from scripts.engine.operating_point import OperatingPoint, choose_operating_point, operating_file, read_operating_point
from scripts.metrics.figures import bootstrap
from scripts.metrics.summary import cohort_metrics
from scripts.outputs.page import write_report
from scripts.outputs.result_json import SaveResultd
from scripts.outputs.results import read_results
from scripts.studies.cli import calibrate
from tests.outputs.results import TRAINING, table
from tests.outputs.test_page import BUNDLE
from tests.outputs.test_report import report

NAMES = ("N", "FEA", "DCIS")
GENERATOR = np.random.default_rng(0)
LABELS = np.repeat([0, 1], [40, 30])
LOGITS = GENERATOR.normal(6 * LABELS - 1.0, 3.0)[:, None]  # sure of itself, and of another balance


def judged(logits: np.ndarray, labels: Sequence[int | None], **settings: Any) -> list[BagResult]:
    """What an evaluation gives of these logits."""
    found = []
    for place, (of_bag, label) in enumerate(zip(logits, labels, strict=True)):
        item: dict[Any, Any] = {"bag_id": f"bag_{place:03d}", "source": "", "logits": torch.tensor(of_bag).float()}
        item |= {"mask": torch.ones(1, 3), "scores": torch.zeros(1, 3), "attention": torch.full((1, 3), 1 / 3)}
        item |= {"instances": json.dumps([{"id": n} for n in range(3)])}
        item |= {} if label is None else {"label": [label]}
        found.append(BagResultd(**settings)(item)["bag_result"])
    return found


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.metrics.summary.bootstrap", partial(bootstrap, resamples=20))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    (tmp_path / "model.pt").write_bytes(b"weights")
    return tmp_path / "model.pt"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    report(tmp_path / "results", judged(LOGITS, LABELS.tolist()))
    return tmp_path / "results"


def test_the_point_is_that_of_the_bags_and_the_next_run_takes_it_up(
    results: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    operating_file(weights).write_text("of the training")
    calibrate(str(results), str(weights), target="specificity 0.9", coverage=0.8)
    point = read_operating_point(str(weights))
    wanted = choose_operating_point(LOGITS, LABELS, "specificity 0.9")
    assert (point.threshold, *point.scaling) == pytest.approx((wanted.threshold, *wanted.scaling))
    assert point.origin.startswith(
        "chosen on 70 labelled bags of the site by calibrate: specificity 0.9 on 30 positive and 40 negative labelled"
    )
    assert (results.parent / "model.operating_point.1.json").read_text() == "of the training"
    printed = capsys.readouterr().out
    assert "70 of 70 results do not name their weights" in printed
    assert "negative: in the conformal set of at least 0.8 of such bags, by 40 bags" in printed
    settings = {"threshold": point.threshold, "scaling": point.scaling, "threshold_origin": point.origin}
    after = judged(LOGITS, LABELS.tolist(), **settings, conformal=point.conformal)
    figures = [cohort_metrics(each) for each in (judged(LOGITS, LABELS.tolist()), after)]
    for title, name in (("sensitivity", "recall"), ("Brier score",) * 2, ("calibration error",) * 2):
        before, now = (each[f"bag_{name.replace(' ', '_').lower()}"].value for each in figures)
        assert f"{title}   {before:.3f}  {now:.3f}" in printed
        assert name == "recall" or now < before
    assert figures[1]["bag_set_coverage"].value >= 0.8
    assert 0 < figures[1]["bag_set_size"].value <= 2
    report(results, after)  # what the next run says
    rows = table(results / "summary.csv")
    assert {row["label_set"] for row in rows} <= {"", "negative", "positive", "negative|positive"}
    assert [one.label_set for one in read_results(results)] == [one.label_set for one in after]
    calibrate(str(results), str(weights))
    assert (results.parent / "model.operating_point.2.json").exists()


def test_labels_come_from_a_csv_and_bags_without_one_do_not_count(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report(tmp_path, judged(LOGITS, [*LABELS[:50].tolist(), *[None] * 20]))
    rows = "".join(f"bag_{place:03d};{LABELS[place]}\n" for place in range(40, 65))
    (tmp_path / "labels.csv").write_text("Bag_ID;label\n" + rows)
    calibrate(str(tmp_path), str(weights), labels=str(tmp_path / "labels.csv"), coverage=0.99)
    printed = capsys.readouterr().out
    assert "5 of 70 bags have no label and do not count" in printed
    assert "positive: 25 bags are too few for a coverage of 0.99: every set holds it" in printed
    point = read_operating_point(str(weights))
    assert point.scaling == pytest.approx(choose_operating_point(LOGITS[:65], LABELS[:65], "youden").scaling)
    assert point.conformal is not None
    assert point.conformal.cuts == {"negative": None, "positive": None}


def test_several_classes_have_a_temperature_and_sets_of_their_names(tmp_path: Path, weights: Path) -> None:
    labels = np.arange(60) % 3
    logits = 9 * (np.eye(3)[labels] + GENERATOR.normal(0, 0.7, (60, 3)))
    report(tmp_path, judged(logits, [None] * 60, class_names=NAMES))
    (tmp_path / "labels.csv").write_text(
        "bag_id,label\n" + "".join(f"bag_{k:03d},{NAMES[c]}\n" for k, c in enumerate(labels))
    )
    calibrate(str(tmp_path), str(weights), labels=str(tmp_path / "labels.csv"))
    point = read_operating_point(str(weights))
    assert (point.threshold, point.scaling[0] < 0.7) == (0.5, True)
    after = judged(logits, labels.tolist(), class_names=NAMES, scaling=point.scaling, conformal=point.conformal)
    assert cohort_metrics(after)["bag_set_coverage"].value >= 0.9
    (tmp_path / "labels.csv").write_text("bag_id,label\nbag_001,LCIS\n")
    with pytest.raises(
        InputError, match=r"line 2: the label 'LCIS' is not one of the classes: give one of N, FEA, DCIS"
    ):
        calibrate(str(tmp_path), str(weights), labels=str(tmp_path / "labels.csv"))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("bag,label\nbag_001,1\n", "labels.csv has no column bag_id: name it in the first line"),
        ("bag_id,label\nbag_700,1\n", "labels.csv, line 2 names 'bag_700', of which .* has no result: take it out"),
        ("bag_id,label\nbag_001,\n", "labels.csv, line 2: the label '' is not one of the classes: give 0 or 1"),
        (
            "bag_id,label\nbag_001,1\n",
            "labels.csv, line 2 labels 'bag_001' 1, its result does not: correct one of them",
        ),
        ("bag_id,label\nbag_001,0\nbag_001,0\n", "line 3 names 'bag_001' as line 2 does: keep one"),
    ],
)
def test_a_csv_that_does_not_fit_is_refused_and_nothing_is_written(
    results: Path, weights: Path, rows: str, message: str
) -> None:
    (results / "labels.csv").write_text(rows)
    with pytest.raises(InputError, match=message):
        calibrate(str(results), str(weights), labels=str(results / "labels.csv"))
    assert not operating_file(weights).exists()


def test_too_few_bags_none_labelled_or_results_of_other_weights_are_refused(tmp_path: Path, weights: Path) -> None:
    with pytest.raises(
        InputError, match=r"other\.pt is missing: give the model\.pt of the results with --weights FILE"
    ):
        calibrate(str(tmp_path), str(tmp_path / "other.pt"))
    few = judged(LOGITS[37:43], LABELS[37:43].tolist())
    report(tmp_path, few)
    with pytest.raises(
        InputError, match=r"6 labelled bags of the site with 3 of one kind are too few .*nothing is written"
    ):
        calibrate(str(tmp_path), str(weights))
    report(tmp_path, judged(LOGITS, [None] * 70))
    with pytest.raises(InputError, match="has a label: give a csv of bag_id and label with --labels FILE"):
        calibrate(str(tmp_path), str(weights))
    many = judged(LOGITS, LABELS.tolist())
    report(tmp_path, many)
    for sha256 in (sha256_of(weights), "of another file"):
        signed = replace(many[3], model=Model("ours", "1", sha256), source="")
        SaveResultd(str(tmp_path))({"bag_result": signed})
        if sha256 == "of another file":
            with pytest.raises(InputError, match=r"bag_003/result\.json is of other weights than .*model\.pt"):
                calibrate(str(tmp_path), str(weights))
        else:
            calibrate(str(tmp_path), str(weights))
            operating_file(weights).unlink()
    assert read_operating_point(str(weights)) == OperatingPoint()


def test_an_evaluation_names_its_weights_in_its_report_and_in_its_last_record(
    results: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def record(name: str, started: int, tags: dict[str, str]) -> None:
        (results / f"{name}.run.json").write_text(json.dumps({**TRAINING, "started": started, "tags": tags}))

    other = weights.with_name("other.pt")
    other.write_bytes(b"others")
    record("b", 2, {"evaluated_weights_sha256": sha256_of(weights)})
    record("a", 1, {"evaluated_weights_sha256": sha256_of(other)})
    record("model", 3, {"weights_sha256": sha256_of(other)})  # of a training
    calibrate(str(results), str(weights))
    assert "is not checked" not in capsys.readouterr().out
    with pytest.raises(InputError, match=r"b\.run\.json is of other weights than .*other\.pt: give those, or read"):
        calibrate(str(results), str(other))
    (results / "b.run.json").unlink()
    write_report(results, BUNDLE, weights)
    with pytest.raises(InputError, match=r"report\.json is of other weights than .*other\.pt: give those, or read"):
        calibrate(str(results), str(other))
    assert not operating_file(other).exists()


def test_results_of_several_networks_are_refused(results: Path, weights: Path) -> None:
    metrics = json.loads((results / "metrics.json").read_text())
    (results / "metrics.json").write_text(json.dumps({**metrics, "over_folds": {"folds": 5, "repeats": 1}}))
    with pytest.raises(InputError, match=r"results is of the networks of several folds: evaluate or infer with .*pt"):
        calibrate(str(results), str(weights))
