# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Folds are disjoint by patient and alike in labels; what is pooled is what every bag got out of fold."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.core.bags import load_bags
from scripts.core.errors import InputError
from scripts.core.record import BagResult
from scripts.engine.operating_point import read_operating_point
from scripts.metrics.figures import Interval, bootstrap
from scripts.metrics.summary import cohort_metrics
from scripts.outputs.results import known_values, read_results
from scripts.studies.cli import crossval
from scripts.studies.crossval import LabelledBag, deal, fold_sections, pool, read_bags
from tests.bundle.commands import bundle, environment, run_here
from tests.bundle.commands import run as run_command
from tests.outputs.cohorts import binary
from tests.outputs.results import strict_json, table
from tests.shared_data import ROOT
from tests.studies.cohort import FEATURES, KEYS, evaluated_folds, run_in_this_process, write_features

CONFIG = "on_features.json,smap.json"


def bags_of(patients: list[tuple[str, int]]) -> list[LabelledBag]:
    """Each patient by a label and a number of bags."""
    return [
        LabelledBag(f"{k}.{n}", label, f"p{k}", {}) for k, (label, count) in enumerate(patients) for n in range(count)
    ]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from("NAB"), st.integers(1, 4)), min_size=1, max_size=60), st.integers(2, 6))
def test_a_patient_is_dealt_to_one_part_and_every_label_alike_to_all(
    patients: list[tuple[str, int]], parts: int
) -> None:
    bags = bags_of(patients)
    dealt = deal(bags, parts, "0")
    assert sorted(bag.bag_id for part in dealt for bag in part) == sorted(bag.bag_id for bag in bags)
    where = {(bag.patient, number) for number, part in enumerate(dealt) for bag in part}
    assert len(where) == len(patients)
    for label in "NAB":
        counts = [sum(bag.label == label for bag in part) for part in dealt]
        largest = max((count for kind, count in patients if kind == label), default=0)
        assert max(counts) - min(counts) <= largest  # as far as whole patients allow


@pytest.mark.parametrize("folds", [2, 5])
def test_the_sections_of_every_fold_share_no_patient_and_hold_out_each_bag_once(folds: int) -> None:
    bags = bags_of([("0", 1 + k % 3) for k in range(23)] + [("1", 1 + k % 2) for k in range(11)])
    sections = fold_sections(bags, folds, "7 0")
    assert Counter(bag.bag_id for own in sections for bag in own["test"]) == Counter(bag.bag_id for bag in bags)
    for own in sections:
        patients = [{bag.patient for bag in listed} for listed in own.values()]
        assert len(set.union(*patients)) == sum(map(len, patients)) == 34
        assert sum(map(len, own.values())) == len(bags)
        assert all({bag.label for bag in listed} == {"0", "1"} for listed in own.values())
    assert fold_sections(bags, folds, "7 0") == sections != fold_sections(bags, folds, "7 1")


def test_fewer_patients_of_a_label_than_folds_are_refused() -> None:
    with pytest.raises(InputError, match=r"^the label 1 has 2 patients, fewer than 3 folds: give fewer --folds$"):
        fold_sections(bags_of([("0", 2)] * 9 + [("1", 2)] * 2), 3, "0")


def test_names_of_classes_are_labels_and_mistakes_of_the_datalist_are_told(tmp_path: Path) -> None:
    entries: list[dict[str, Any]] = [{"image": f"{name}.h5", "label": name} for name in ("DCIS", "IC", "N")]
    for name in ("DCIS", "IC", "N"):
        (tmp_path / f"{name}.h5").touch()

    def read(**sections: Any) -> list[LabelledBag]:
        (tmp_path / "datalist.json").write_text(json.dumps(sections))
        return read_bags(tmp_path / "datalist.json", tmp_path)

    named = read(training=entries)
    assert [(bag.label, bag.patient) for bag in named] == [(name, name) for name in ("DCIS", "IC", "N")]
    with pytest.raises(InputError, match=r"has two bags IC: give each"):
        read(training=entries[:2], validation=entries[1:])
    with pytest.raises(InputError, match=r'"training" names no "patient" of N: give every bag one, or none'):
        read(training=[*({**entry, "patient": 1} for entry in entries[:2]), entries[2]])
    with pytest.raises(InputError, match=r'has no bags under "training"'):
        read(test=entries)


@pytest.mark.parametrize("given", [("N", "UDH", "DCIS", "IC"), (0, 1, 2, 3), ("10", "9", "2", "0"), (1, 0)])
def test_a_fold_is_trained_with_the_labels_of_the_datalist_whatever_the_order_of_the_classes(
    tmp_path: Path, given: tuple[Any, ...]
) -> None:
    """A config names its classes in any order; and a number may stand for a name."""
    entries = [{"image": f"{label}_{k}.h5", "label": label} for label in given for k in range(4)]
    for entry in entries:
        (tmp_path / entry["image"]).touch()
    (tmp_path / "datalist.json").write_text(json.dumps({"training": entries[::2], "validation": entries[1::2]}))
    names = ["Z", "B", "C", "A"] if given == (0, 1, 2, 3) else list(map(str, given))
    for own in fold_sections(read_bags(tmp_path / "datalist.json", tmp_path), 2, "0"):
        lists = {section: [bag.entry for bag in bags] for section, bags in own.items()}
        (tmp_path / "fold.json").write_text(json.dumps(lists))
        for section in own:
            trained_with = load_bags(str(tmp_path / "fold.json"), section, str(tmp_path), class_names=names)
            labels = {bag["bag_id"].partition("_")[0]: bag["label"] for bag in trained_with}
            assert labels.items() <= {str(label): number for number, label in enumerate(given)}.items()


def without_intervals(patch: pytest.MonkeyPatch) -> None:
    """They have tests of their own, and take seconds."""
    patch.setattr("scripts.metrics.summary.bootstrap", partial(bootstrap, resamples=20))


def test_no_figure_of_all_bags_depends_on_the_scale_of_the_scores_of_one_fold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_intervals(monkeypatch)
    cohort = binary(30)
    moved = [replace(one, scores=3 * one.scores + 100 if 10 <= k < 20 else one.scores) for k, one in enumerate(cohort)]
    found = []
    for name, results in (("a", cohort), ("b", moved)):
        told = pool(*evaluated_folds(tmp_path / name, results))
        found.append(strict_json(tmp_path / name / "metrics.json"))
        assert re.search(r"instance_auroc_gated +– +– +0\.\d{3} +0\.\d{3}\n", told)
    pooled, spread = known_values(found[0]), found[0]["over_folds"]
    assert {name: pytest.approx(value, abs=1e-4) for name, value in known_values(found[1]).items()} == pooled
    assert pooled.keys() >= {"instance_auroc_within_bags", "instance_accuracy", "bag_auroc"}
    assert {name for name in spread if name in found[0] and name not in pooled} == {
        *(f"instance_{name}" for name in ("auroc_gated", "auroc_ungated", "auroc_weighted", "separation")),
        *(f"instance_auroc_{name}" for name in ("within_positive_bags", "height_adjusted", "lesions_of_1_to_3")),
    }
    own = [cohort_metrics(cohort[10 * k : 10 * k + 10])["instance_auroc_ungated"].value for k in range(3)]
    assert spread["instance_auroc_ungated"]["mean"] == pytest.approx(np.mean(own), abs=1e-5)


def test_what_the_tables_do_not_keep_is_told_of_the_folds_and_a_lone_fold_has_no_deviation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a FROC; and an AUROC that is defined in one fold alone."""
    without_intervals(monkeypatch)
    cohort = [replace(one, truth=one.truth if k < 10 else None) for k, one in enumerate(binary(30))]
    study, repeats = evaluated_folds(tmp_path, cohort)
    for run, froc in zip(repeats[0], (0.2, 0.4, 0.9), strict=True):
        metrics = strict_json(run.results / "metrics.json")
        (run.results / "metrics.json").write_text(json.dumps({**metrics, "lesion_froc_gated": {"value": froc}}))
    pool(study, repeats)
    metrics = strict_json(tmp_path / "metrics.json")
    assert metrics["lesion_froc_gated"] == {"value": None, "low": None, "high": None}
    assert metrics["over_folds"]["lesion_froc_gated"] == pytest.approx({"mean": 0.5, "sd": 0.360555}, abs=1e-5)
    lone = metrics["over_folds"]["instance_auroc_within_bags"]
    assert (lone["sd"], 0 < lone["mean"] < 1) == (None, True)


def test_the_tables_and_the_report_are_of_each_network_as_it_is_and_each_repeat_is_judged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_intervals(monkeypatch)
    cohort, judged = binary(30), list[int]()
    study, repeats = evaluated_folds(tmp_path, cohort, repeats=2)

    def judge(bags: list[BagResult]) -> dict[str, Interval]:
        judged.append(len(bags))
        return cohort_metrics(bags)

    monkeypatch.setattr("scripts.studies.crossval.cohort_metrics", judge)
    monkeypatch.setattr("scripts.outputs.report.cohort_metrics", None)
    pool(study, repeats)
    assert judged == [30, 30]
    by_name = {one.bag_id: one for one in cohort}
    for one in read_results(tmp_path):
        assert one.logits == by_name[one.bag_id].logits
        assert one.probability == pytest.approx(by_name[one.bag_id].probability)
    content = strict_json(tmp_path / "report.json")
    assert content["over_folds"] == {"folds": 3, "repeats": 2}
    bins = content["calibration"]["before"]["bins"]
    probabilities = 1 / (1 + np.exp(-np.array([one.logits[0] for one in cohort])))
    assert [of_bin["bags"] for of_bin in bins] == np.histogram(-probabilities, -np.linspace(0, 1, 11)[::-1])[0][
        ::-1
    ].tolist()
    assert content["bundle"]["name"] == "Hemorrhage CT smooth MIL"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-validation of 2 × 2 folds; its data lie in `data`."""
    folder = tmp_path_factory.mktemp("crossval")
    write_features(folder / "data", 32)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(bundle("ct"))
        ran = run_in_this_process(patch)
        arguments: Any = {"output_dir": str(folder / "out"), "folds": 2, "repeats": 2, "config": CONFIG, **KEYS}
        arguments["tracking_uri"] = f"sqlite:///{folder}/mlruns.db"  # one for all takes seconds less
        crossval("ct", str(folder / "data"), **arguments)
        assert len(ran) == 8
        os.remove(folder / "out" / "repeat_2" / "fold_1" / "finished.json")
        crossval("ct", str(folder / "data"), **arguments)
        assert ["evaluate.json" in words[5] for words in ran[8:]] == [True]  # the training had ended
        with pytest.raises(InputError, match=r"holds a study with folds 2, not 3: give that again"):
            crossval("ct", str(folder / "data"), **{**arguments, "folds": 3})
        with pytest.raises(InputError, match=r"holds a study with alpha left out, not 0: give that again"):
            crossval("ct", str(folder / "data"), **{**arguments, "alpha": 0})
    return folder


@pytest.mark.slow
def test_figures_are_of_calibrated_predictions_out_of_fold_and_intervals_of_one_repeat(study: Path) -> None:
    out = study / "out"
    of_repeats = []
    for repeat in (1, 2):
        folds = [out / f"repeat_{repeat}" / f"fold_{fold}" for fold in (1, 2)]
        results = [one for fold in folds for one in read_results(fold / "eval")]
        assert sorted(one.bag_id for one in results) == sorted(f"scan{n}" for n in range(32))
        of_repeats.append(cohort_metrics(sorted(results, key=lambda one: one.bag_id)))
    metrics = strict_json(out / "metrics.json")
    aurocs = [strict_json(path)["bag_auroc"]["value"] for path in out.glob("repeat_*/fold_*/eval/metrics.json")]
    for name in ("bag_auroc", "bag_accuracy", "bag_brier_score"):
        expected = np.mean([metrics_of_one[name] for metrics_of_one in of_repeats], axis=0)
        np.testing.assert_allclose(list(metrics[name].values()), expected, atol=1e-6)
    over_folds = metrics["over_folds"]
    assert (over_folds["folds"], over_folds["repeats"]) == (2, 2)
    np.testing.assert_allclose(over_folds["bag_auroc"]["mean"], np.mean(aurocs), atol=1e-6)
    np.testing.assert_allclose(over_folds["bag_auroc"]["sd"], np.std(aurocs, ddof=1), atol=1e-6)
    pooled = read_results(out)
    assert len(pooled) == 32
    points = [read_operating_point(str(path)) for path in out.glob("repeat_1/fold_*/models/model.pt")]
    for one in pooled:
        calibrated = [1 / (1 + np.exp(-(slope * one.logits[0] + intercept))) for _, (slope, intercept), *_ in points]
        assert min(abs(p - one.probability) for p in calibrated) < 1e-6
        assert one.threshold_origin.startswith("that of each fold's own network")


@pytest.mark.slow
def test_each_fold_is_trained_apart_from_its_test_bags_and_from_the_test_section(study: Path) -> None:
    datalists = [strict_json(path) for path in sorted(study.glob("out/repeat_*/fold_*/datalist.json"))]
    assert len(datalists) == 4
    for sections in datalists:
        patients = [{bag["patient"] for bag in bags} for bags in sections.values()]
        assert sum(map(len, patients)) == len(set.union(*patients)) == 16
        assert "closed" not in json.dumps(sections)


@pytest.mark.slow
def test_the_ensemble_is_the_mean_of_its_members_in_inference_by_its_path_alone(study: Path, tmp_path: Path) -> None:
    ensemble = study / "out" / "models" / "model.pt"
    bags = str(study / "out" / "repeat_1" / "fold_1" / "datalist.json")
    keys = {"dataset_dir": str(study / "data"), "datalist": bags, "section": "validation", "num_workers": 0}
    logits: dict[str, list[float]] = {}
    run_here("ct", ["inference"], **keys, ckpt_path=str(ensemble), output_dir=str(tmp_path / "ensemble"))
    for number, member in enumerate(sorted(study.glob("out/repeat_*/fold_*/models/model.pt"))):
        run_here("ct", ["inference"], **keys, ckpt_path=str(member), output_dir=str(tmp_path / str(number)))
        for row in table(tmp_path / str(number) / "summary.csv"):
            p = float(row["probability"])
            logits.setdefault(row["bag_id"], []).append(np.log(p / (1 - p)))
    rows = table(tmp_path / "ensemble" / "summary.csv")
    assert len(rows) == len(strict_json(Path(bags))["validation"]) > 2
    for row in rows:
        assert len(logits[row["bag_id"]]) == 4
        np.testing.assert_allclose(float(row["logit"]), np.mean(logits[row["bag_id"]]), atol=1e-4)
    point = strict_json(ensemble.with_name("model.operating_point.json"))
    assert point["scaling"] == [1.0, 0.0]
    assert re.match(r"sensitivity 0\.95 on 32 bags, each by the networks that did not see its patient", point["origin"])
    assert {float(row["threshold"]) for row in rows} == {point["threshold"]}


@pytest.mark.soak
def test_a_study_whose_processes_are_all_killed_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    write_features(tmp_path / "data", 32)

    def command(name: str) -> list[str]:
        flags = f"--folds 2 --repeats 1 --jobs 2 --config {CONFIG} --in_features {FEATURES} --max_epochs 6"
        folders = [str(tmp_path / "data"), "--output_dir", str(tmp_path / name)]
        return [sys.executable, "-m", "scripts", "crossval", "ct", *folders, *flags.split()]

    whole = run_command(*command("whole"), cwd=ROOT).stdout.splitlines()
    broken = subprocess.Popen(command("broken"), cwd=ROOT, env=environment(), start_new_session=True)
    while not list(tmp_path.glob("broken/*/*/models/model.pt")):
        time.sleep(0.05)
    os.killpg(broken.pid, signal.SIGKILL)
    broken.wait()
    assert not list(tmp_path.glob("broken/*/*/finished.json"))
    again = run_command(*command("broken"), cwd=ROOT).stdout.splitlines()
    figures = [line for line in whole if line.strip().startswith("bag_")]
    assert len(figures) > 10
    assert [line for line in again if line.strip().startswith("bag_")] == figures
    assert (tmp_path / "broken" / "metrics.json").read_bytes() == (tmp_path / "whole" / "metrics.json").read_bytes()
