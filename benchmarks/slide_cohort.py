# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Slides end to end: synthetic TIFFs to evaluated networks, SmAP beside ABMIL from the same seeds.

python -m benchmarks.slide_cohort FOLDER: 40 slides are made there, their features by features.json, both networks are
trained and evaluated by the bundle's own commands for each seed. What is there is not made again.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.report import Table
from demo.cohorts import Counts, write_demo_data
from scripts.core.files import write_whole

ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "bundle" / "pathology_wsi_smooth_mil"
RESULTS = Path(__file__).parent / "results" / "slide_cohort.json"
SLIDES: Counts = (18, 6, 16)  # to train on, to choose the epoch by, to test
SEEDS = (0, 1, 2)
NETWORKS = {"ABMIL": ("abmil.json",), "SmAP": ()}
SETTINGS = {"in_features": 128, "learning_rate": 0.0003, "max_epochs": 40}
TILE_SIZE = 128
FIGURES = {
    "bag_auroc": "slide AUROC",
    "instance_auroc_gated": "patch AUROC, gated",
    "instance_auroc_ungated": "patch AUROC, ungated",
    "lesion_froc_gated": "FROC, gated",
    "lesion_froc_ungated": "FROC, ungated",
}


def compare(folder: Path, slides: Counts = SLIDES, seeds: Sequence[int] = SEEDS, **settings: Any) -> dict[str, Any]:
    """Every figure of every network and seed, with its interval over the test slides."""
    settings = {**SETTINGS, **settings}
    write_demo_data(folder, 0, wsi_cases=slides, ct=False)
    data = folder / "wsi"
    # of the tissue what the committed figures were measured on
    _bundle("features.json", dataset_dir=data, tile_size=TILE_SIZE, tissue_threshold=0.5, overhang=False)
    runs = [(name, seed) for seed in seeds for name in NETWORKS]
    with ThreadPoolExecutor(2) as pool:
        got = list(pool.map(lambda run: train_and_evaluate(run[0], run[1], data, folder, settings), runs))
    figures: dict[str, dict[str, Any]] = {name: {} for name in NETWORKS}
    for (name, seed), metrics in zip(runs, got, strict=True):
        figures[name][str(seed)] = {figure: metrics[figure] for figure in FIGURES}
    return {"slides": list(slides), "tile_size": TILE_SIZE, "settings": settings, "figures": figures}


def train_and_evaluate(name: str, seed: int, data: Path, folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    home = folder / f"{name}_{seed}"
    metrics = home / "metrics.json"
    if not metrics.exists():
        keys = {**settings, "seed": seed, "dataset_dir": data, "ckpt_dir": home, "output_dir": home, "num_workers": 0}
        _bundle("train.json", *NETWORKS[name], **keys)
        _bundle("train.json", *NETWORKS[name], "evaluate.json", **keys)
        print(f"{name}, seed {seed}: done", flush=True)
    found: dict[str, Any] = json.loads(metrics.read_text())
    return found


def _bundle(*files: str, **keys: Any) -> None:
    given = [each for key, value in keys.items() for each in (f"--{key}", str(value))]
    configs = "[" + ",".join(f"'configs/{file}'" for file in files) + "]"
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", configs, *given]
    one_core = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # two networks are trained side by side
    done = subprocess.run(command, cwd=BUNDLE, env={**os.environ, **one_core}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-3000:]}")


def table(found: Mapping[str, Any]) -> str:
    rows = []
    for name, by_seed in found["figures"].items():
        for seed, figures in by_seed.items():
            ends = ["" if f["low"] is None else f" [{f['low']:.3f}, {f['high']:.3f}]" for f in figures.values()]
            cells = [f"{f['value']:.3f}{interval}" for f, interval in zip(figures.values(), ends, strict=True)]
            rows.append([name, seed, *cells])
    return Table(["network", "seed", *(f"{title} [95 % interval]" for title in FIGURES.values())], rows).markdown()


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmarks.slide_cohort FOLDER")
    found = compare(Path(sys.argv[1]).resolve())
    write_whole(RESULTS, json.dumps(found, indent=4, ensure_ascii=False) + "\n")
    print(f"\n{table(found)}\n\n{RESULTS.name} is written")


if __name__ == "__main__":
    main()
