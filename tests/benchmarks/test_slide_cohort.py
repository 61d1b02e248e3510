# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import slide_cohort
from benchmarks.slide_cohort import FIGURES, NETWORKS, RESULTS, SEEDS, SETTINGS, SLIDES, TILE_SIZE, compare, table


def test_both_networks_get_the_same_but_for_their_file_and_what_is_there_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[tuple[tuple[str, ...], dict[str, Any]]] = []  # files and keys of each

    def bundle(*files: str, **keys: Any) -> None:
        commands.append((files, keys))
        if "evaluate.json" in files:
            figures = {name: {"value": 0.5, "low": 0.25, "high": 0.75} for name in FIGURES}
            keys["output_dir"].mkdir(parents=True)
            (keys["output_dir"] / "metrics.json").write_text(json.dumps(figures))

    monkeypatch.setattr(slide_cohort, "_bundle", bundle)
    monkeypatch.setattr(slide_cohort, "write_demo_data", lambda *args, **keys: None)
    first = compare(tmp_path, seeds=[3])
    trainings = {files: keys for files, keys in commands if files[0] == "train.json" and "evaluate.json" not in files}
    assert set(trainings) == {("train.json",), ("train.json", "abmil.json")}
    plain, abmil = trainings["train.json",], trainings["train.json", "abmil.json"]
    assert {key for key in plain if plain[key] != abmil[key]} == {"ckpt_dir", "output_dir"}
    assert plain["seed"] == 3
    commands.clear()
    assert compare(tmp_path, seeds=[3]) == first
    assert [files for files, _ in commands] == [("features.json",)]  # which skips what is done by itself
    assert "| SmAP | 3 | 0.500 [0.250, 0.750] |" in table(first)


def test_the_figures_kept_belong_to_the_experiment_as_it_is() -> None:
    kept = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert (kept["slides"], kept["tile_size"], kept["settings"]) == (list(SLIDES), TILE_SIZE, SETTINGS)
    assert set(kept["figures"]) == set(NETWORKS)
    for by_seed in kept["figures"].values():
        assert set(by_seed) == set(map(str, SEEDS))
        for figures in by_seed.values():
            assert set(figures) == set(FIGURES)
            assert all(figure["low"] <= figure["value"] <= figure["high"] for figure in figures.values())
