# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The page of the demonstration says what the commands wrote, and refers to nothing else."""

from __future__ import annotations

import csv
import html
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from matplotlib.colors import same_color
from matplotlib.figure import Figure
from mlflow import MlflowClient
from PIL import Image

from demo.page import CURVES, TASKS, write_page

Row = tuple[str, float, int, int]  # bag_id, probability, called positive, label

ROWS: dict[str, list[Row]] = {
    "ct": [
        ("found_faint", 0.55, 1, 1),
        ("missed_a_little", 0.45, 0, 1),
        ("found_between", 0.7, 1, 1),
        ("missed_badly", 0.05, 0, 1),
        ("alarm_faint", 0.6, 1, 0),
        ("found_clear", 0.97, 1, 1),
        ("cleared_best", 0.01, 0, 0),
        ("cleared", 0.3, 0, 0),
        ("alarm_loud", 0.9, 1, 0),
    ],
    "wsi": [("a & b <c>", 0.9, 1, 1), ("plain #1", 0.1, 0, 0)],  # no mistakes, and names that HTML and URLs must escape
}
FIGURES: dict[str, dict[str, tuple[float | None, float | None, float | None]]] = {
    "attention": {
        "bag_auroc": (0.8125, 0.6254, 0.9876),
        "bag_accuracy": (0.7083, 0.5417, 0.8750),
        "instance_auroc_gated": (0.71, 0.6, 0.8),
        "instance_auroc_ungated": (0.5, None, None),
    },
    "smooth": {
        "bag_auroc": (0.9375, 0.75, 1.0),
        "bag_accuracy": (0.9167, 0.7917, 1.0),
        "instance_auroc_gated": (0.9, 0.85, 0.95),
        "instance_auroc_ungated": (None, None, None),
    },
}


def history(arm: str, metric: str) -> list[float]:
    """Other values for each arm and metric."""
    first = len(arm) + 10 * len(metric)
    return [first + epoch / 4 for epoch in range(3)]


def write_summary(folder: Path, rows: Sequence[Row]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "summary.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["bag_id", "probability", "positive", "label", "instances", "flagged"])
        writer.writerows([*row, 10, 3] for row in rows)


def write_results(work: Path, picture: str, rows: Sequence[Row]) -> None:
    for arm, figures in FIGURES.items():
        (work / arm).mkdir(parents=True)
        named = {name: dict(zip(("value", "low", "high"), values, strict=True)) for name, values in figures.items()}
        (work / arm / "metrics.json").write_text(json.dumps({"bags": 24, "positive_bags": 11, **named}))
    write_summary(work / "inference", rows)
    for bag_id, *_ in rows:
        (work / "inference" / bag_id).mkdir()
        Image.new("RGB", (2, 2)).save(work / "inference" / bag_id / picture)


def write_runs(database: Path) -> None:
    """A run of the training and one of the evaluation per arm, as the commands leave them."""
    client = MlflowClient(tracking_uri=f"sqlite:///{database}")
    experiment = client.create_experiment("a bundle", artifact_location=str(database.parent / "artifacts"))
    for arm in FIGURES:
        training = client.create_run(experiment, run_name=arm).info.run_id
        evaluation = client.create_run(experiment, run_name=f"evaluate_{arm}").info.run_id
        for metric, _ in CURVES:
            for epoch, value in reversed(list(enumerate(history(arm, metric), start=1))):
                client.log_metric(training, metric, value, step=epoch)
            client.log_metric(evaluation, metric, -1.0, step=1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands of a demonstration leave."""
    home = tmp_path_factory.mktemp("demo")
    for task in TASKS:
        write_results(home / task.folder, task.picture, ROWS[task.folder])
    write_runs(home / "mlruns.db")
    for task in TASKS:
        for arm in task.arms:
            shutil.copy(home / "mlruns.db", home / task.folder / arm.folder / "mlruns.db")
    return home


@pytest.fixture(scope="module")
def drawn() -> list[Figure]:
    return []


@pytest.fixture(scope="module")
def page(finished: Path, drawn: list[Figure]) -> str:
    class Kept(Figure):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            drawn.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("demo.page.Figure", Kept)
        path = write_page(finished)
    assert path == finished / "index.html"
    return path.read_text(encoding="utf-8")


class Pictures(HTMLParser):
    """Every picture of a page, as a browser reads it: path and caption."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[Mapping[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.found.append(dict(attrs))


def section(page: str, task: str) -> str:
    start = page.index(f"<h2>{next(t.title for t in TASKS if t.folder == task)}")
    return page[start:].split("<h2>")[1]


def cases(page: str, task: str) -> dict[str, str]:
    """Caption → the bag it shows, in the order of the page."""
    pictures = [picture for picture in Pictures(section(page, task)).found if "inference" in str(picture["src"])]
    return {str(picture["alt"]): unquote(str(picture["src"])).split("/")[2] for picture in pictures}


def test_every_value_stands_beside_its_arm_with_its_interval(page: str) -> None:
    for task in TASKS:
        rows = [
            re.findall(r"<td>(.*?)</td>", row)
            for row in re.findall(r"<tr>(.*?)</tr>", section(page, task.folder), re.DOTALL)
        ]
        attention, smooth = (arm.name for arm in task.arms)
        assert [[html.unescape(cell) for cell in row] for row in rows if row] == [
            [
                attention,
                "<b>0.812</b> [0.625, 0.988]",
                "<b>0.708</b> [0.542, 0.875]",
                "<b>0.710</b> [0.600, 0.800]",
                "<b>0.500</b>",
            ],
            [
                smooth,
                "<b>0.938</b> [0.750, 1.000]",
                "<b>0.917</b> [0.792, 1.000]",
                "<b>0.900</b> [0.850, 0.950]",
                "not defined",
            ],
        ]


def test_the_columns_are_named_in_the_words_of_the_task(page: str) -> None:
    headings = {task.folder: re.findall(r"<th>([^<]+)</th>", section(page, task.folder)) for task in TASKS}
    assert headings == {
        "ct": [
            "AUROC of the scans",
            "accuracy of the scans",
            "AUROC of the slices, gated",
            "AUROC of the slices, ungated",
        ],
        "wsi": [
            "AUROC of the slides",
            "accuracy of the slides",
            "AUROC of the patches, gated",
            "AUROC of the patches, ungated",
        ],
    }


def test_the_size_of_the_test_set_is_told(page: str) -> None:
    assert "24 test scans, 11 positive" in section(page, "ct")
    assert "24 test slides, 11 positive" in section(page, "wsi")


def test_the_cases_are_the_extremes_and_the_worst_mistakes(page: str) -> None:
    assert cases(page, "ct") == {
        "positive, found: the clearest": "found_clear",
        "positive, found: the faintest": "found_faint",
        "negative, called negative": "cleared_best",
        "a mistake: positive, missed": "missed_badly",
        "a mistake: negative, called positive": "alarm_loud",
    }


def test_without_mistakes_none_is_shown_and_one_case_is_not_shown_twice(page: str) -> None:
    assert cases(page, "wsi") == {
        "positive, found: the clearest": "a & b <c>",
        "negative, called negative": "plain #1",
    }


def test_every_picture_exists_and_is_referred_to_from_where_the_page_lies(page: str, finished: Path) -> None:
    found = [unquote(str(picture["src"])) for picture in Pictures(page).found]
    assert len(found) == 5 + 2 + 2  # cases of both tasks, and two figures of curves
    for source in found:
        assert not source.startswith("/")
        assert ":" not in source
        with Image.open(finished / source) as image:
            image.verify()


def test_nothing_is_loaded_from_elsewhere(page: str, finished: Path) -> None:
    assert not re.search(r"https?://|<script|<link|@import|url\(", page)
    assert str(finished) not in page


def test_names_are_escaped(page: str) -> None:
    assert "<c>" not in page
    assert "a & b" not in page


def test_the_page_says_that_it_is_synthetic_and_for_research(page: str) -> None:
    assert "Synthetic images" in page
    assert "research use only, not for diagnosis" in page


@pytest.mark.usefixtures("page")
def test_the_curves_are_the_histories_of_the_two_trainings(drawn: list[Figure]) -> None:
    assert len(drawn) == len(TASKS)
    for figure, task in zip(drawn, TASKS, strict=True):
        assert [axes.get_title() for axes in figure.axes] == [title for _, title in CURVES]
        for axes, (metric, _) in zip(figure.axes, CURVES, strict=True):
            for line, arm in zip(axes.lines, task.arms, strict=True):
                assert line.get_label() == arm.name
                assert same_color(line.get_color(), arm.color)
                assert list(map(tuple, line.get_xydata())) == list(enumerate(history(arm.folder, metric), start=1))  # type: ignore[arg-type]


def test_bags_without_a_label_are_no_cases(finished: Path, page: str, tmp_path: Path) -> None:
    """Written after `page`, so that the page under test is not this one."""
    home = Path(shutil.copytree(finished, tmp_path / "demo"))
    for path in home.glob("*/inference/summary.csv"):
        path.write_text("bag_id,probability,positive,label,instances,flagged\nx,0.9,1,,10,3\n")
    unlabelled = write_page(home).read_text(encoding="utf-8")
    assert [str(picture["src"]) for picture in Pictures(unlabelled).found] == ["ct/curves.png", "wsi/curves.png"]
    assert (finished / "index.html").read_text(encoding="utf-8") == page
