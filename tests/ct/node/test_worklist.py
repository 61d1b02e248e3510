# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The likeliest is at the top, what failed below, and nothing in it is markup."""

import csv
import json
from pathlib import Path

from scripts.ct.node.worklist import Worklist


def add(home: Path, study: str, probability: float) -> None:
    told = {
        "bag_id": study,
        "probability": probability,
        "called": "positive" if probability > 0.5 else "negative",
        "flagged": 2,
        "instances": [{}] * 5,
        "about": {"warnings": ["<b>uneven</b>"]},
    }
    (home / "results" / study).mkdir(parents=True)
    (home / "results" / study / "result.json").write_text(json.dumps(told))


def test_studies_are_listed_by_their_probability(tmp_path: Path) -> None:
    for study, probability in (("a", 0.2), ("b", 0.9), ("c", 0.9)):
        add(tmp_path, study, probability)
    (tmp_path / "failed" / "d").mkdir(parents=True)
    (tmp_path / "failed" / "d" / "reason.txt").write_text("it is <no> head\n")
    Worklist(tmp_path).write()
    with (tmp_path / "worklist.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["study"] for row in rows] == ["b", "c", "a", "d"]
    assert [row["called"] for row in rows] == ["positive", "positive", "negative", "failed"]
    assert (rows[0]["slices"], rows[0]["flagged"], rows[3]["warnings"]) == ("5", "2", "it is <no> head")
    page = (tmp_path / "worklist.html").read_text()
    assert page.index("results/b/") < page.index("results/c/") < page.index("results/a/") < page.index("it is")
    assert "&lt;no&gt;" in page
    assert "<no>" not in page
    assert "<b>" not in page
    assert "not for diagnosis" in page


def test_an_empty_worklist_is_one(tmp_path: Path) -> None:
    Worklist(tmp_path).write()
    assert (tmp_path / "worklist.csv").read_text().startswith("study,probability,called")
    assert "0 studies" in (tmp_path / "worklist.html").read_text()


def test_a_result_is_read_once_anew_when_it_changed_and_a_damaged_one_is_left_out(tmp_path: Path) -> None:
    add(tmp_path, "a", 0.2)
    worklist = Worklist(tmp_path)
    first = worklist.rows()
    assert worklist.rows()[0] is first[0]
    path = tmp_path / "results" / "a" / "result.json"
    told = {**json.loads(path.read_text()), "probability": 0.7}
    path.write_text(json.dumps(told))
    assert [row["probability"] for row in worklist.rows()] == [0.7]
    path.write_text("{")
    assert Worklist(tmp_path).rows() == []
