# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The page of a report shows the numbers of its JSON, needs nothing else, and stands for the smallest cohorts too."""

import html
import json
import re
import shutil
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ignite.engine import Engine

from scripts.core.errors import InputError
from scripts.core.record import BagResult
from scripts.metrics.figures import bootstrap
from scripts.outputs.page import WriteReport, write_report
from scripts.outputs.report import CohortReport
from scripts.studies.crossval import pool
from tests.outputs.cohorts import NASTY, TINY, binary, classed, write_tables
from tests.outputs.results import TRAINING, strict_json, told
from tests.shared_data import ROOT
from tests.studies.cohort import evaluated_folds

BUNDLE = ROOT / "bundle" / "hemorrhage_ct_smooth_mil"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report as an evaluation leaves it."""
    folder = tmp_path_factory.mktemp("report")
    write_tables(folder, binary())
    (folder / "model.pt").write_bytes(b"weights")
    epochs = [{"epoch": number, "train_loss": 1 / number, "alpha": 0.5} for number in (1, 2, 3)]
    (folder / "model.run.json").write_text(json.dumps({**TRAINING, "epochs": epochs, "kept": {"epoch": 2}}))
    engine = Engine(lambda engine, batch: None)
    WriteReport(str(folder), str(BUNDLE), str(folder / "model.pt")).attach(engine)
    engine.run([0])
    return folder


def cells(page: str) -> list[list[str]]:
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", page, re.DOTALL)
    return [[html.unescape(cell) for cell in re.findall(r"<td>(.*?)</td>", row)] for row in rows]


def numbers(value: Any) -> set[float]:
    if isinstance(value, dict):
        return set().union(*map(numbers, value.values()))
    if isinstance(value, list):
        return set().union(*map(numbers, value))
    return {float(value)} if isinstance(value, (int, float)) else set()


def test_the_page_and_the_card_name_the_score_that_flags(folder: Path, tmp_path: Path) -> None:
    for where, cohort, name in (
        (folder, None, "attention logit"),
        (tmp_path, binary(12), "smoothed (α 0.5) own logit"),
    ):
        if cohort is not None:
            write_tables(where, [told(one, seed, score_smoothing=0.5) for seed, one in enumerate(cohort)])
            write_report(where)
        page = html.unescape((where / "report.html").read_text(encoding="utf-8"))
        assert ["Score that flags", name] in cells(page)
        for said in (
            f"ranked and flagged by their {name};",
            f"Score of instances: {name}.",
            f"within each bag of the {name};",
        ):
            assert said in page
        card = (where / "model_card.md").read_text(encoding="utf-8")
        assert f"ranked and flagged by their {name.split()[-2].replace('own', 'instance')} score" in card


def test_every_number_of_the_tables_is_in_the_json(folder: Path) -> None:
    page, content = (folder / "report.html").read_text(encoding="utf-8"), strict_json(folder / "report.json")
    known = numbers(content)
    thirds = {f"{number:.3f}" for number in known}
    shown = [cell for row in cells(page) for cell in row[1:] if re.fullmatch(r"[\d.,]+|[\d.]+ to [\d.]+", cell)]
    assert len(shown) > 100
    for number in (each for cell in shown for each in cell.replace(",", "").split(" to ")):
        assert number in thirds if "." in number else float(number) in known, number
    figures = {row[0]: row[1:] for row in cells(page) if len(row) == 3}
    value, low, high = (strict_json(folder / "metrics.json")["bag_auroc"][key] for key in ("value", "low", "high"))
    assert figures["AUROC"] == [f"{value:.3f}", f"{low:.3f} to {high:.3f}"]


def test_a_cross_validation_shows_its_own_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.metrics.summary.bootstrap", partial(bootstrap, resamples=20))
    pool(*evaluated_folds(tmp_path, binary(), repeats=2))
    page, metrics = (tmp_path / "report.html").read_text(encoding="utf-8"), strict_json(tmp_path / "metrics.json")
    figures = {row[0]: row[1:] for row in cells(page) if len(row) == 5}
    for name, shown in (("bag_auroc", figures["AUROC"]), ("instance_auroc_gated", figures["AUROC gated"])):
        of_folds = [f"{metrics['over_folds'][name][key]:.3f}" for key in ("mean", "sd")]
        assert shown[2:] == of_folds
        assert (shown[0] == "–") == name.startswith("instance")
    assert ["Cross-validation", "3 folds, repeats: 2"] in cells(page)
    assert "before scaling" in page


def test_the_page_needs_nothing_else_and_shows_names_as_they_are(folder: Path) -> None:
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|<script|<link|<img|@import|@font-face|url\((?!#)|\bsrc=|<[ab] ", page)
    assert {target[0] for target in re.findall(r'href="([^"]*)"', page)} == {"#"}
    assert any(row[0] == NASTY for row in cells(page) if row)
    for said in ("Hemorrhage CT smooth MIL", "Research use only", "youden on 20 bags", "60 done, 1 empty"):
        assert said in page
    assert page.count("<svg") == 9  # two curves, calibration, four of instances, loss and α
    assert str(folder) not in page


def test_the_same_tables_give_the_same_report_which_remembers_its_network(folder: Path) -> None:
    names = ("report.html", "report.json", "model_card.md")
    before = [(folder / name).read_bytes() for name in names]
    assert write_report(folder) == folder / "report.html"
    assert [(folder / name).read_bytes() for name in names] == before
    with pytest.raises(InputError, match=r"configs/metadata.json cannot be read \(No such file .*\): check the path$"):
        write_report(folder, folder)


def test_bags_that_failed_are_told_after_the_report_of_the_others(tmp_path: Path) -> None:
    engine = Engine(lambda engine, bags: [{"bag_result": bags[0]}, {"bag_id": "x", "failed": "x is damaged"}])
    for handler in (CohortReport(str(tmp_path)), WriteReport(str(tmp_path), str(BUNDLE), str(BUNDLE / "LICENSE"))):
        handler.attach(engine)
    with pytest.raises(InputError, match=r"^1 of 2 failed: x is damaged; "):
        engine.run([[TINY["no label"][0]]])
    assert "1 done, 1 failed" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_classes_are_called_by_their_names(tmp_path: Path) -> None:
    write_tables(tmp_path, classed())
    (tmp_path / "report.json").write_text("damaged")
    page = write_report(tmp_path).read_text(encoding="utf-8")
    confusion = strict_json(tmp_path / "report.json")["confusion"]
    for name, counts in zip(("N", "$a^", "<b>"), confusion["bags"], strict=True):
        assert [name, *map(str, counts)] in cells(page)
    assert ">$a^<" in page.replace(" ", "")  # in the legend: no formula


@pytest.mark.parametrize("cohort", TINY.values(), ids=TINY)
def test_a_tiny_cohort_has_a_page_that_says_what_is_left_out_and_why(tmp_path: Path, cohort: list[BagResult]) -> None:
    write_tables(tmp_path, cohort)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert page.count("<h2>") == 8
    sections = page.split("<section>")[1:]
    assert all(re.search(r"<svg|<table|Left out: |None\.</p>", part) for part in sections)
    assert not re.search(r"\bnan\b|\binf\b|>None", page)
    assert "no record of a training" in page


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="Chromium is not installed")
def test_a_browser_shows_the_page_without_a_word_about_it(folder: Path) -> None:
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    shown = subprocess.run([*command, (folder / "report.html").as_uri()], capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in shown.stderr
    assert shown.stdout.count("<figcaption>") == 9
