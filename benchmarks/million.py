# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Peak memory of inference in blocks on a slide of a million patches: the bundle's command, beside one of 100 patches.

`python -m benchmarks.million [--patches 1000000] [--columns 1536] [--threads 2] [--without NAMES of outputs ...]`
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import torch
from monai.bundle import ConfigParser

from benchmarks.bags import tissue
from benchmarks.measure import bytes_in
from benchmarks.wsi import BUNDLE, CONFIGS, MPP, SEED, TILE
from scripts.wsi.features.smooth_mil import OWN_FORMAT

WRITERS = {"geojson": 0, "map": 1, "page": 2, "scores": 3}  # their places in inference.json
FEW = 100  # patches of the run that shows what libraries take
ROWS = 10_000  # written at a time


def write_slide(path: Path, patches: int, columns: int) -> None:
    """A blob of tissue in the project's own format, float16, a part at a time, as it need not fit into memory."""
    rng = np.random.default_rng(SEED)
    coords = tissue(patches).T.numpy() * TILE
    path.parent.mkdir(parents=True)
    with h5py.File(path, "w") as file:
        file["coords"] = coords
        features = file.create_dataset("features", (patches, columns), dtype=np.float16)
        for start in range(0, patches, ROWS):
            rows = min(ROWS, patches - start)
            features[start : start + rows] = rng.standard_normal((rows, columns), dtype=np.float32)
        width, height = (coords.max(axis=0) + TILE).tolist()
        file.attrs.update(format=OWN_FORMAT, slide_id=path.stem, encoder="noise", pitch_level0=TILE, tile_level0=TILE)
        file.attrs.update(mpp=MPP, slide_width=width, slide_height=height, thumbnail_downsample=np.nan)


def write_network(path: Path, columns: int) -> None:
    """The network of the configs with random weights."""
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / "inference.json"))
    parser["in_features"] = columns
    torch.manual_seed(SEED)
    torch.save(parser.get_parsed_content("network_def").state_dict(), path)


def peak(command: list[str], threads: int) -> tuple[float, int]:
    """Seconds of a command, and the most memory that its process had resident."""
    start, most = time.perf_counter(), 0
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(command, cwd=BUNDLE, env=environment) as process:
        while process.poll() is None:
            most = max(most, bytes_in(f"/proc/{process.pid}/status", "VmHWM") or 0)  # a process that ends has none
            time.sleep(0.1)
    if process.returncode:
        raise SystemExit(process.returncode)
    return time.perf_counter() - start, most


def inference(home: Path, slide: Path, columns: int, without: list[str]) -> list[str]:
    # called positive, so that there are patches to flag
    keys = {"dataset_dir": str(slide.parent), "output_dir": str(home / f"results_{slide.stem}")}
    keys |= {"ckpt_path": str(home / "model.pt"), "in_features": str(columns), "threshold": "0.0"}
    keys |= {f"postprocessing#transforms#3#writers#{WRITERS[name]}#_disabled_": "True" for name in without}
    files = "['configs/inference.json','configs/streaming.json']"
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", files]
    return command + [word for key, value in keys.items() for word in (f"--{key}", str(value))]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.million")
    parser.add_argument("--patches", type=int, default=1_000_000)
    parser.add_argument("--columns", type=int, default=1536)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--without", nargs="*", choices=WRITERS, default=[], help="outputs that are not written")
    parser.add_argument("--folder", help="where the slide lies meanwhile, 3 GB; that of temporary files")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        home = Path(folder)
        write_network(home / "model.pt", given.columns)
        small = 0
        for patches in (FEW, given.patches):
            slide = home / str(patches) / f"{patches}_patches.h5"
            write_slide(slide, patches, given.columns)
            seconds, most = peak(inference(home, slide, given.columns, given.without), given.threads)
            small = small or most
            above = f", {(most - small) / 1e6:.0f} MB above that of {FEW}" if most > small else ""
            print(f"{patches} × {given.columns}: {seconds:.0f} s, peak {most / 1e6:.0f} MB{above}", flush=True)


if __name__ == "__main__":
    main()
