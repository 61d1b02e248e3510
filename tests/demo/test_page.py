# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The page of the demonstration shows what the commands wrote, and refers to nothing else."""

import csv
import html
import json
import re
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from mlflow import MlflowClient
from PIL import Image

from demo.page import CURVES, TASKS, Task, _table, history, write_page

HEADER = ("bag_id", "probability", "positive", "label")
ROWS: dict[str, list[tuple[Any, ...]]] = {
    "ct": [
        *(("found_faint", 0.55, 1, 1), ("found_between", 0.7, 1, 1), ("found_clear", 0.97, 1, 1)),
        *(("missed_a_little", 0.45, 0, 1), ("missed_badly", 0.05, 0, 1)),
        *(("alarm_faint", 0.6, 1, 0), ("alarm_loud", 0.9, 1, 0)),
        *(("cleared_best", 0.01, 0, 0), ("cleared", 0.3, 0, 0)),
    ],
    # no mistakes, a bag without a label, and names that HTML and URLs must escape
    "wsi": [("a & b <c>", 0.9, 1, 1), ("plain #1", 0.1, 0, 0), ("unknown", 0.99, 1, "")],
}
CASES = {  # caption → the bag it shows
    "ct": {
        "positive, found: the clearest": "found_clear",
        "positive, found: the faintest": "found_faint",
        "negative, called negative": "cleared_best",
        "a mistake: positive, missed": "missed_badly",
        "a mistake: negative, called positive": "alarm_loud",
    },
    "wsi": {"positive, found: the clearest": "a & b <c>", "negative, called negative": "plain #1"},
}
FIGURES: dict[str, dict[str, tuple[float | None, ...]]] = {
    "attention": {"bag_auroc": (0.8125, 0.6254, 0.9876), "instance_auroc_ungated": (0.5, None, None)},
    "smooth": {"bag_auroc": (0.9375, 0.75, 1.0), "instance_auroc_ungated": (None, None, None)},
}
SCORE = {"score_name": "evidence", "score_smoothing": 0.0}
SHOWN = [["<b>0.812</b> [0.625, 0.988]", "<b>0.500</b>"], ["<b>0.938</b> [0.750, 1.000]", "not defined"]]


def values(arm: str, metric: str) -> list[float]:
    """Other values for each arm and metric, one an epoch."""
    first = len(arm) + 10 * len(metric)
    return [first + epoch / 4 for epoch in range(3)]


def write_results(work: Path, task: str, picture: str) -> None:
    for arm, figures in FIGURES.items():
        (work / arm).mkdir(parents=True)
        named = {name: dict(zip(("value", "low", "high"), given, strict=True)) for name, given in figures.items()}
        (work / arm / "metrics.json").write_text(json.dumps({"bags": 24, "positive_bags": 11, **SCORE, **named}))
    for bag_id, *_ in ROWS[task]:
        (work / "inference" / bag_id).mkdir(parents=True)
        Image.new("RGB", (2, 2)).save(work / "inference" / bag_id / picture)
    if task == "wsi":
        (work / "inference" / ROWS[task][0][0] / "map.html").touch()
    with (work / "inference" / "summary.csv").open("w", newline="") as file:
        csv.writer(file).writerows([HEADER, *ROWS[task]])


def write_runs(database: Path) -> None:
    """A run of the training and one of the evaluation per arm, as the commands leave them."""
    client = MlflowClient(tracking_uri=f"sqlite:///{database}")
    experiment = client.create_experiment("a bundle", artifact_location=str(database.parent / "artifacts"))
    for arm in FIGURES:
        training = client.create_run(experiment, run_name=arm).info.run_id
        evaluation = client.create_run(experiment, run_name=f"evaluate_{arm}").info.run_id
        for metric, _ in CURVES:
            for epoch, value in reversed(list(enumerate(values(arm, metric), start=1))):
                client.log_metric(training, metric, value, step=epoch)
            client.log_metric(evaluation, metric, -1.0, step=1)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands of a demonstration leave, and the page of it."""
    home = tmp_path_factory.mktemp("demo")
    write_runs(home / "mlruns.db")
    for task in TASKS:
        write_results(home / task.folder, task.folder, task.picture)
        for arm in FIGURES:
            shutil.copy(home / "mlruns.db", home / task.folder / arm)  # dearer to make than to copy
    assert write_page(home) == home / "index.html"
    return home


@pytest.fixture(scope="module")
def sections(home: Path) -> dict[str, str]:
    """Task → its part of the page."""
    _, *parts = (home / "index.html").read_text(encoding="utf-8").split("<h2>")
    return {task.folder: part for task, part in zip(TASKS, parts, strict=True)}


def pictures(text: str) -> dict[str, str]:
    """Caption → path, as a browser reads them."""
    found = re.findall(r'<img src="([^"]+)" alt="([^"]+)">', text)
    return {html.unescape(caption): unquote(html.unescape(path)) for path, caption in found}


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.folder)
def test_figures_stand_beside_their_arms_and_the_cases_are_the_extremes(sections: dict[str, str], task: Task) -> None:
    """Where there is no mistake none is shown, no case is shown twice, and none without a label."""
    text = sections[task.folder]
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL)]
    wanted = [[arm.name, *shown] for arm, shown in zip(task.arms, SHOWN, strict=True)]
    assert [[html.unescape(cell) for cell in row] for row in rows if row] == wanted
    bag, instance = ("scan", "slice") if task.folder == "ct" else ("slide", "patche")
    headings = re.findall(r"<th>([^<]+)</th>", text)
    assert headings == [f"AUROC of the {bag}s", f"AUROC of the {instance}s, ungated"]
    assert f"24 test {bag}s, 11 positive" in text
    assert f"The {task.instances} are ranked and flagged by their evidence; gated" in text
    cases = {caption: path.split("/")[2] for caption, path in pictures(text).items() if "/inference/" in path}
    assert cases == CASES[task.folder]


def test_the_page_shows_files_beside_it_and_loads_nothing_from_elsewhere(home: Path) -> None:
    page = (home / "index.html").read_text(encoding="utf-8")
    for arm in FIGURES:  # the curves are those of the training
        got = history(home / "ct" / arm / "mlruns.db", arm)
        assert got == {metric: list(enumerate(values(arm, metric), start=1)) for metric, _ in CURVES}
    for path in pictures(page).values():
        with Image.open(home / path) as image:
            image.verify()
    (link,) = re.findall(r'<a href="([^"]+)">', page)
    assert (home / unquote(link)).name == "map.html"
    assert (home / unquote(link)).exists()
    assert page.count("<img") == 5 + 2 + 2  # cases of both tasks, and two figures of curves
    assert not re.search(r"https?://|<script|<link|@import|url\(|<c>", page)
    assert str(home) not in page
    assert "Synthetic images" in page
    assert "research use only, not for diagnosis" in page


def test_arms_that_are_ranked_by_different_scores_are_told_apart(tmp_path: Path) -> None:
    task = TASKS[0]
    for arm, smoothing in zip(task.arms, (0.0, 0.7), strict=True):
        figures = {"bags": 2, "positive_bags": 1, "score_name": "instance", "score_smoothing": smoothing}
        (tmp_path / arm.folder).mkdir(parents=True)
        (tmp_path / arm.folder / "metrics.json").write_text(json.dumps(figures))
    plain, smooth = (html.escape(arm.name) for arm in task.arms)
    assert f"by their own logit ({plain}), smoothed (α 0.7) own logit ({smooth}); gated" in _table(tmp_path, task)
