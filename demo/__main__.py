# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m demo`: the demonstration, or its synthetic data alone. `make demo` types it."""

import argparse
from pathlib import Path

from demo.cohorts import write_demo_data
from demo.pipeline import run_demo
from scripts.core.cli import one_line_errors


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="make data, train, evaluate and infer with both bundles, and write a page")
    run.add_argument("folder", nargs="?", default="demo/output", help="where everything goes; what is there is kept")
    data = verbs.add_parser("data", help="synthetic head CT series and slides with labels and truth")
    data.add_argument("folder", help="the data goes to FOLDER/ct and FOLDER/wsi; the same seed makes the same data")
    data.add_argument("--only", choices=("ct", "wsi"), help="one of the two cohorts")
    for verb in (run, data):
        verb.add_argument("--seed", type=int, default=0, help="of the data and of the training")
    asked = parser.parse_args()
    if asked.verb == "run":
        run_demo(asked.folder, asked.seed)
    else:
        write_demo_data(Path(asked.folder), asked.seed, ct=asked.only != "wsi", wsi=asked.only != "ct")


if __name__ == "__main__":
    one_line_errors()
    main()
