# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Candidates are the combinations of a grid, compared by the criterion of the epoch that each kept."""

import json
import math
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from scripts.core.errors import InputError
from scripts.engine.run_record import run_file
from scripts.studies import search as module
from scripts.studies.cli import search
from scripts.studies.runs import Run, Study
from scripts.studies.search import choose_candidates, read_grid
from tests.outputs.results import TRAINING, table
from tests.studies.cohort import KEYS, run_in_this_process, write_features

GRID = {"learning_rate": [0.1, 0.01], "network_def#aggregator#alpha": [0.2, 0.5, 0.8]}


def test_a_grid_is_every_combination_and_a_draw_is_some_of_them() -> None:
    every = choose_candidates(GRID, None, 0)
    assert sorted(every) == [1, 2, 3, 4, 5, 6]
    assert {tuple(own.values()) for own in every.values()} == set(product(*GRID.values()))
    drawn = choose_candidates(GRID, 4, 0)
    assert len(drawn) == 4
    assert drawn.items() <= every.items()
    assert drawn == choose_candidates(GRID, 4, 0)
    assert choose_candidates(GRID, 100, 0) == every
    huge = {f"key{n}": list(range(10)) for n in range(15)}
    assert len(choose_candidates(huge, 3, 0)) == 3
    with pytest.raises(InputError, match=r"has 1000000000000000 combinations: leave some values out, or draw some"):
        choose_candidates(huge, None, 0)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"learning_rate": 0.1}', '{"learning_rate": []}'])
def test_what_lists_no_values_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "grid.json").write_text(text)
    with pytest.raises(InputError, match=r"grid\.json (is no JSON file that can be read|does not list values to try)"):
        read_grid(tmp_path / "grid.json")


def fake_runs(monkeypatch: pytest.MonkeyPatch, of_alpha: dict[float, float | None]) -> None:
    """Trainings whose AUROC depends on alpha; None: the run failed."""

    def perform(study: Study, runs: Sequence[Run], figures: Callable[[Run], str]) -> dict[str, str]:
        failures = {}
        for run in runs:
            assert (run.section, run.datalist) == ("validation", study.datalist)
            auroc = of_alpha[run.keys["network_def#aggregator#alpha"]]
            run.results.mkdir(parents=True)
            (run.results / "metrics.json").write_text(json.dumps({"bag_accuracy": {"value": 0.5}}))
            run.model.parent.mkdir()
            run_file(run.model).write_text(json.dumps({**TRAINING, "kept": {"epoch": 3, "val_bag_auroc": auroc}}))
            if auroc is None:
                failures[run.name] = "no memory"
        return failures

    monkeypatch.setattr(module, "perform", perform)


def test_candidates_are_sorted_and_those_that_failed_come_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "grid.json").write_text(json.dumps({"network_def#aggregator#alpha": [0.2, 0.5, 0.8]}))
    (tmp_path / "datalist.json").touch()
    fake_runs(monkeypatch, {0.2: 0.6, 0.5: None, 0.8: 0.9})
    keys: Any = {"config": "on_features.json,smap.json", "best_by": "val_bag_auroc"}
    with pytest.raises(InputError, match=r"^1 of 3 runs failed, such as candidate_2: no memory"):
        search("ct", str(tmp_path), str(tmp_path / "grid.json"), str(tmp_path / "out"), **keys)
    rows = table(tmp_path / "out" / "search.csv")
    assert [row["candidate"] for row in rows] == ["candidate_3", "candidate_1", "candidate_2"]
    assert [row["val_bag_auroc"] for row in rows] == ["0.9", "0.6", ""]
    printed = capsys.readouterr().out
    assert [line.split() for line in printed.splitlines()[:2]] == [list(rows[0]), list(rows[0].values())]
    assert len(set(map(len, printed.splitlines()[:4]))) == 1
    run = Run("lost", tmp_path / "lost", tmp_path, "validation", {})
    with pytest.raises(InputError, match=r"best_by is val_loss, which the training does not record: give val_loss or"):
        module.figures_of(run, "val_loss")
    (command,) = [line for line in printed.splitlines() if line.startswith("python -m monai.bundle run")]
    assert "'--network_def#aggregator#alpha' 0.8" in command
    assert f"best by val_bag_auroc on the validation bags: {tmp_path}/out/candidate_3/models/model.pt" in printed
    assert "The test section was not opened." in printed


def test_keys_that_cannot_be_searched_are_refused(tmp_path: Path) -> None:
    (tmp_path / "datalist.json").touch()
    for grid, message in (
        ({"best_by": ["val_loss"]}, "seed, best_by and what is a flag of this command cannot be searched"),
        ({"learning_rate": [1]}, "cannot be searched: take it out"),
        ({"learning_rat": [1]}, "--learning_rat is no key of train.json, perhaps learning_rate"),
    ):
        (tmp_path / "grid.json").write_text(json.dumps(grid))
        with pytest.raises(InputError, match=message):
            search("ct", str(tmp_path), str(tmp_path / "grid.json"), str(tmp_path / "out"), learning_rate=0.1)


@pytest.mark.slow
def test_the_loss_of_the_kept_epoch_is_what_training_saw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_features(tmp_path / "data", 16)
    (tmp_path / "grid.json").write_text('{"network_def#aggregator#alpha": [0.5]}')
    run_in_this_process(monkeypatch)
    seen: list[float] = []
    monkeypatch.setattr("scripts.engine.training.StopIfNotFinite.check_criterion", lambda _, engine: seen.append(
        engine.state.metrics["val_loss"]
    ))  # fmt: skip
    monkeypatch.chdir(Path(module.__file__).parents[2] / "bundle" / "hemorrhage_ct_smooth_mil")
    keys: Any = {"config": "on_features.json,smap.json", **KEYS, "max_epochs": 4, "learning_rate": 0.3}
    search("ct", str(data), str(tmp_path / "grid.json"), str(tmp_path / "out"), **keys)
    (row,) = table(tmp_path / "out" / "search.csv")
    assert len(seen) == 4
    assert math.isclose(float(row["val_loss"]), min(seen), rel_tol=1e-5)
