# Copyright (c) 2026 the smooth MIL bundle authors
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""`python -m scripts`: what a person types that is not a command of monai.bundle."""

from __future__ import annotations

import fire

from scripts.errors import InputError
from scripts.running import one_line_errors


def demo_data(directory: str, seed: int = 0, ct: bool = True, wsi: bool = True) -> None:
    """Make synthetic head CT series and whole slides with labels and truth, in DIRECTORY/ct and DIRECTORY/wsi.

    Args:
        directory: where the data goes; what is already there for the same seed is kept.
        seed: the same seed makes the same data.
        ct: make the head CT cohort (--noct leaves it out).
        wsi: make the slides (--nowsi leaves them out).
    """
    from pathlib import Path

    from scripts.demo.cohorts import write_demo_data

    if not isinstance(seed, int):
        raise InputError(f"--seed {seed!r} is no whole number: give one")
    write_demo_data(Path(str(directory)), seed, ct=ct, wsi=wsi)


def demo(directory: str = "demo", seed: int = 0) -> None:
    """Make data, train, evaluate and infer with both bundles, and write DIRECTORY/index.html.

    Args:
        directory: where everything goes; what is already there is not made again.
        seed: of the data and of the training.
    """
    from scripts.demo.pipeline import run_demo

    run_demo(str(directory), seed)


if __name__ == "__main__":
    one_line_errors()
    fire.Fire({"demo-data": demo_data, "demo": demo}, name="python -m scripts")
