# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The picture of docs/results.md: how well each network tells scans apart, against how well each score tells where."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

MARKS = {"attention": "o", "evidence": "^", "instance": "s", "instance, Sm 0.7": "*"}


def draw(measured: Mapping[str, Any], path: Path) -> None:
    """Draw rows with a scan AUC, one colour each, one mark for each score, with deviations over models."""
    rows = {name: own for name, own in measured.items() if own["models"] and "scan AUC" in own}
    with mpl.rc_context({"svg.hashsalt": "results", "svg.fonttype": "none"}):  # the same figures, the same file
        figure = Figure(figsize=(9, 5.4), layout="constrained")
        axes = figure.subplots()
        colours = mpl.colormaps["tab20"].colors  # type: ignore[attr-defined]
        for (name, own), colour in zip(rows.items(), colours, strict=False):
            for score, mark in MARKS.items():
                if score in own["scores"]:
                    where, scan = own["scores"][score]["single"]["slice AUC"], own["scan AUC"]
                    label = name if score == next(iter(own["scores"])) else None
                    bars = {"xerr": scan["sd"], "yerr": where["sd"], "elinewidth": 0.5, "markersize": 7}
                    axes.errorbar(scan["mean"], where["mean"], fmt=mark, color=colour, label=label, **bars)
        height = measured["height alone"]["scores"]["height"]["single"]["slice AUC"]["mean"]
        axes.axhline(height, color="grey", linestyle="--", linewidth=1)
        axes.annotate("height of a slice alone", (axes.get_xlim()[0], height), color="grey", va="bottom", fontsize=8)
        for score, mark in MARKS.items():
            axes.plot([], [], mark, color="black", label=f"by {score}")
        axes.set(xlabel="scan AUC", ylabel="slice AUC", title="RSNA: whether, and where")
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
        figure.savefig(path, metadata={"Date": None, "Creator": None})
