# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Charts of a report as SVG that stands within a page, drawn from the content of report.json.

The same content gives the same text. Colours are those of Okabe and Ito, told apart by the colour-blind too.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#6E6E6E"
OF_CURVES = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#000000")
OF_KIND = {"positive": ORANGE, "negative": BLUE, "unknown": GREY}
BANDS = 3  # curves with bands in one chart; of more they would hide each other
DOTS = 400  # in one chart
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text, in the fonts of the page
    "svg.hashsalt": "report",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def svg(draw: Callable[..., None], *content: Any, rows: Sequence[float] = (1,)) -> str:
    """Return the chart that `draw` draws of the content, on an axes for each of the rows."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 3.5), layout="constrained")
        axes = figure.subplots(len(rows), 1, sharex=True, squeeze=False, height_ratios=rows)[:, 0]
        draw(*axes, *content)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = file.getvalue()
    text = text[text.index("<svg") :]
    head, _, rest = text.partition(">")
    view = re.search(r'viewBox="[^"]*"', head)
    assert view
    return f'<svg {view[0]} aria-hidden="true">{rest}'


def roc(axes: Axes, curves: Mapping[str, Any], called_at: tuple[float, float] | None) -> None:
    """Sensitivity against false alarms; called_at: both rates of the calls that were made."""
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
    for (name, curve), colour in zip(curves.items(), cycle(OF_CURVES), strict=False):
        points = curve["roc"]
        axes.plot(points["false_positive_rate"], points["sensitivity"], color=colour, label=_label(name))
        _shade(axes, points["band"], colour, len(curves))
    if called_at:
        axes.plot(*called_at, "o", color="black", markersize=5, label="the calls")
    _unit_square(axes, "share of negative bags above the threshold", "sensitivity", called_at or len(curves) > 1)


def precision_recall(axes: Axes, curves: Mapping[str, Any]) -> None:
    """Precision against sensitivity; dotted, the share of positives, which chance would give."""
    for (name, curve), colour in zip(curves.items(), cycle(OF_CURVES), strict=False):
        points = curve["precision_recall"]
        recall, precision = ([points[key][0], *points[key]] for key in ("recall", "precision"))
        axes.plot([0, *recall[1:]], precision, color=colour, label=_label(name), drawstyle="steps-pre")
        _shade(axes, points["band"], colour, len(curves))
        chance = curve["positive"] / (curve["positive"] + curve["negative"])
        axes.axhline(chance, color=colour, linewidth=0.8, linestyle=":")
    _unit_square(axes, "sensitivity (recall)", "precision", len(curves) > 1)


def reliability(axes: Axes, counts: Axes, calibration: Mapping[str, Any]) -> None:
    """Share of positive bags against probability, before and after scaling; below, the bags in each bin."""
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
    for key, name, colour, marker, side in (
        ("before", "before scaling", ORANGE, "s", -0.022),
        ("after", "as given", BLUE, "o", 0.022),
    ):
        bins = calibration[key]["bins"] if calibration[key] else []
        filled = [each for each in bins if each["bags"]]
        x, y, low, high = (
            np.array([each[of] for each in filled]) for of in ("mean_probability", "share_positive", "low", "high")
        )
        axes.errorbar(x, y, [y - low, high - y], color=colour, marker=marker, markersize=4, elinewidth=0.7, label=name)
        places = np.arange(0.05, 1, 0.1)[: len(bins)] + side
        counts.bar(places, [each["bags"] for each in bins], 0.044, color=colour)
    axes.set(ylim=(-0.02, 1.02), ylabel="share of positive bags")
    axes.legend(fontsize=8)
    counts.set(xlim=(-0.02, 1.02), xlabel="probability", ylabel="bags")
    counts.yaxis.set_major_locator(MaxNLocator(2, integer=True))


def histogram(axes: Axes, content: Mapping[str, Any], title: str, in_decades: bool) -> None:
    """Share of the instances of each kind in each bar."""
    for kind, counts in content["counts"].items():
        share = 100 * np.array(counts) / max(1, sum(counts))
        axes.stairs(share, content["edges"], fill=True, color=OF_KIND[kind], alpha=0.25)
        axes.stairs(share, content["edges"], color=OF_KIND[kind], label=f"{kind} ({sum(counts):,})")
    if in_decades:
        axes.set_xscale("log" if content["edges"][-1] > 20 * content["edges"][0] else "linear")
        axes.axvline(1, color=GREY, linewidth=0.8, linestyle=":")
    axes.set(xlabel=title, ylabel="% of the instances of a kind")
    if content["counts"]:
        axes.legend(fontsize=8)


def shares(axes: Axes, bags: Sequence[Mapping[str, Any]]) -> None:
    """Share of attention on positive instances, sorted, and what even attention would give."""
    rank, thin = np.arange(1, len(bags) + 1), slice(None, None, max(1, len(bags) // DOTS))
    even = [bag["share_of_instances"] for bag in bags]
    axes.plot(rank, [bag["share_of_attention"] for bag in bags], color=BLUE, drawstyle="steps-mid", label="attention")
    axes.plot(rank[thin], even[thin], ".", color=ORANGE, markersize=4, label="even attention")
    _sorted_bags(axes, "share on positive instances")
    axes.legend(fontsize=8)


def aurocs(axes: Axes, bags: Sequence[Mapping[str, Any]]) -> None:
    """AUROC of the scores within each bag, sorted."""
    values = sorted((bag["auroc"] for bag in bags if bag["auroc"] is not None), reverse=True)
    axes.plot(np.arange(1, len(values) + 1), values, color=BLUE, drawstyle="steps-mid")
    axes.axhline(0.5, color=GREY, linewidth=0.8, linestyle=":")
    _sorted_bags(axes, "AUROC within the bag")


def epochs(axes: Axes, title: str, lines: Mapping[str, Sequence[Sequence[float]]], kept: int | None) -> None:
    """What changed from epoch to epoch of the training; kept: the epoch whose weights these are."""
    for (name, points), colour in zip(lines.items(), cycle(OF_CURVES), strict=False):
        axes.plot(*zip(*points, strict=True), color=colour, marker=".", label=_label(name.replace("_", " ")))
    if kept is not None:
        axes.axvline(kept, color=GREY, linewidth=0.8, linestyle=":", label="kept")
    axes.set(xlabel="epoch", ylabel=title)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.legend(fontsize=8)


def _label(name: str) -> str:
    return name.replace("$", r"\$")  # which would begin a formula


def _shade(axes: Axes, band: Mapping[str, Sequence[float]], colour: str, curves: int) -> None:
    if curves <= BANDS:
        axes.fill_between(band["at"], band["low"], band["high"], color=colour, alpha=0.15, linewidth=0)


def _unit_square(axes: Axes, x: str, y: str, legend: Any) -> None:
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=x, ylabel=y)
    if legend:
        axes.legend(loc="lower right" if x.startswith("share") else "lower left", fontsize=8)


def _sorted_bags(axes: Axes, y: str) -> None:
    axes.set(ylim=(-0.02, 1.02), xlabel="positive bags, sorted", ylabel=y)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
