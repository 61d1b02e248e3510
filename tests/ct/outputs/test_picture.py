# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The pictures as matplotlib holds them: what is drawn where, not its pixels."""

import dataclasses
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import same_color
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from scripts.core.errors import InputError
from scripts.core.record import BagResult, Classes
from scripts.ct.outputs.picture import DrawScand, draw_scan
from scripts.outputs.drawing import AGAINST, FLAGGED, FOR, TRUTH, png
from tests.outputs.results import told

ATTENTION = (0.02, 0.3, 0.03, 0.25, 0.05, 0.35)  # three of six slices are above the average


def result(attention: Sequence[float] = ATTENTION, probability: float = 0.8, **more: Any) -> BagResult:
    scores, instances = np.arange(len(attention), dtype=np.float32), [{"id": i} for i in range(len(attention))]
    return BagResult("bag_7", "scans/bag_7", probability, 0.5, scores, np.array(attention), instances, **more)


def volume(slices: int = len(ATTENTION)) -> np.ndarray:
    """Not square, and no two slices alike."""
    return np.random.default_rng(0).normal(40, 20, (5, 4, slices))


def slices_of(figure: Figure) -> list[tuple[int, Axes]]:
    """The slices drawn, from left to right, by the number in their title."""
    drawn = [axes for axes in figure.axes if axes.images]
    return [(int(axes.get_title().split()[1]), axes) for axes in drawn]


def framed(axes: Axes) -> bool:
    shown = axes.axison and all(side.get_visible() for side in axes.spines.values())
    return shown and all(same_color(side.get_edgecolor(), FLAGGED) for side in axes.spines.values())


def test_the_flagged_slices_are_shown_in_scan_order_with_their_attention() -> None:
    drawn = [(number, axes.get_title().splitlines()[1]) for number, axes in slices_of(draw_scan(result(), volume()))]
    assert drawn == [(2, "1.80 × average"), (4, "1.50 × average"), (6, "2.10 × average")]
    of_slots = draw_scan(dataclasses.replace(result(), slots=12), volume(), shown=2)
    assert [number for number, _ in slices_of(of_slots)] == [2, 6]  # of too many the highest
    assert slices_of(of_slots)[0][1].get_title().endswith("3.60 × 1/12")
    assert [number for number, _ in slices_of(draw_scan(result([1.0]), volume(1)))] == [1]


@pytest.mark.parametrize("probability", [0.8, 0.3])
def test_each_slice_is_the_right_one_the_right_way_up_and_framed_where_flagged(probability: float) -> None:
    """In LPS axes x runs to the patient's left and y to the back: x goes right, y goes down."""
    scan, is_positive = volume(), probability > 0.5
    drawn = slices_of(draw_scan(result(probability=probability), scan))
    assert [number for number, _ in drawn] == ([2, 4, 6] if is_positive else [1, 2, 3, 4, 5, 6])
    for number, axes in drawn:
        (image,) = axes.images
        np.testing.assert_array_equal(np.asarray(image.get_array()), scan[:, :, number - 1].T)
        assert (image.get_clim(), image.origin, axes.yaxis_inverted()) == ((0, 80), "upper", True)
        assert framed(axes) == is_positive


@pytest.mark.parametrize("truth", [[0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
def test_the_curve_is_the_attention_in_averages_with_what_is_flagged_and_what_bleeds(truth: list[int]) -> None:
    (axes,) = [axes for axes in draw_scan(result(truth=np.array(truth)), volume()).axes if axes.get_xlabel()]
    lines = {str(line.get_label()).split(":")[0]: line for line in axes.lines}
    attention = [[number, 6 * share] for number, share in enumerate(ATTENTION, start=1)]
    np.testing.assert_array_equal(lines["attention"].get_xydata(), attention)
    np.testing.assert_array_equal(lines["flagged"].get_xydata(), attention[1::2])
    np.testing.assert_allclose(np.asarray(lines["average"].get_ydata(), dtype=float), 1)
    shades = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    covered = [[shade.get_x() < n < shade.get_x() + shade.get_width() for n in range(1, 7)] for shade in shades]
    assert np.array(covered, int).reshape(-1, 6).sum(axis=0).tolist() == truth
    assert sum(shade.get_width() for shade in shades) == sum(truth)
    assert all(same_color(shade.get_facecolor()[:3], TRUTH) for shade in shades)
    assert ("bleeding, as annotated" in axes.get_legend_handles_labels()[1]) == any(truth)
    assert 2.1 < axes.get_ylim()[1] < 2.5  # the shade does not squeeze the curve


EVIDENCE = np.array([-0.2, 0.6, 0.05, -0.9, 0.1, 0.4], dtype=np.float32)


def curves(figure: Figure) -> dict[str, Axes]:
    """The axes that are no slices, by what they are of."""
    return {
        axes.get_title().split(" of each slice")[0]: axes for axes in figure.axes if axes.get_title()[:5] != "slice"
    }


@pytest.mark.parametrize(("name", "title", "middle"), [("evidence", "evidence", 0), ("instance", "own logit", 0.08)])
def test_what_speaks_for_and_against_is_drawn_above_the_attention(name: str, title: str, middle: float) -> None:
    found = told(result(), scores=EVIDENCE, evidence=EVIDENCE, score_name=name, flag_above=0.08)
    figure = draw_scan(found, volume())
    above, below = curves(figure)[title], curves(figure)["attention"]
    assert above.get_position().y0 > below.get_position().y1 or above.get_subplotspec() != below.get_subplotspec()
    assert above.get_xlim() == below.get_xlim() == (0.5, 6.5)
    bars = {round(bar.get_x() + bar.get_width() / 2): bar for bar in above.patches if isinstance(bar, Rectangle)}
    for number, value in enumerate(EVIDENCE.tolist(), start=1):
        ends = sorted((bars[number].get_y(), bars[number].get_y() + bars[number].get_height()))
        assert ends == pytest.approx(sorted((middle, value)))
        assert same_color(bars[number].get_facecolor(), FOR if value > middle else AGAINST)
    lines = {str(line.get_label()).split(":")[0]: line for line in above.lines}
    assert np.asarray(lines["flagged"].get_xdata()).tolist() == [2, 5, 6]
    np.testing.assert_allclose(np.asarray(lines["0.08"].get_ydata(), dtype=float), 0.08)
    assert not any(str(line.get_label()).startswith("flagged") for line in below.lines)
    titles = [axes.get_title().splitlines() for _, axes in slices_of(figure)]
    assert [words[1] for words in titles] == [f"{title} {EVIDENCE[k]:+.3g}" for k in (1, 4, 5)]


@pytest.mark.parametrize(("sign", "said"), [(1, "for the finding"), (-1, "against it")])
def test_where_all_slices_speak_one_way_the_legend_names_that_alone(sign: int, said: str) -> None:
    found = told(result(), scores=sign * np.arange(1.0, 7), score_name="evidence", flag_above=0.08)
    legend = curves(draw_scan(found, None))["evidence"].get_legend()
    assert legend is not None
    told_of = [text.get_text() for text in legend.get_texts()]
    assert [text for text in told_of if text in ("for the finding", "against it")] == [said]


def test_the_curve_of_another_score_is_drawn_by_its_name_and_under_attention_that_of_the_evidence() -> None:
    found = told(result(), score_name="attention", scores=np.arange(6.0), flag_above=None)
    assert list(curves(draw_scan(found, None))) == ["attention", "evidence"]
    assert list(curves(draw_scan(found, None, score="instance"))) == ["attention", "own logit"]
    assert list(curves(draw_scan(found, None, score="attention"))) == ["attention"]
    assert list(curves(draw_scan(result(), None, score="evidence"))) == ["attention"]  # which is all that is known
    smoothed = told(result(), score_smoothing=0.5)
    assert "smoothed (α 0.5) own logit" in curves(draw_scan(smoothed, None))
    with pytest.raises(InputError, match="the score 'heat' is not known: give --picture_score"):
        DrawScand("out", score="heat")


def test_nearly_even_attention_is_called_so() -> None:
    for attention, slots, said in (
        (ATTENTION, None, ""),
        ((0.3, 0.35, 0.35), None, " (nearly even: at most 1.05 × the average)"),
        ((0.1, 0.1, 0.1), 12, " (nearly even: at most 1.20 × 1/12)"),
    ):
        (axes,) = draw_scan(dataclasses.replace(result(attention), slots=slots), None).axes
        assert axes.get_title() == f"attention of each slice{said}"


def test_the_headline_says_what_was_found_and_what_it_is_not_for() -> None:
    for probability, label, wanted in (
        (0.81, None, "bag_7: positive, probability 0.81 · 3 of 6 slices flagged"),
        (0.12, 1, "bag_7: negative, probability 0.12 (label: positive) · 0 of 6 slices flagged"),
    ):
        text = draw_scan(result(probability=probability, label=label), volume()).get_suptitle()
        assert text == f"{wanted}\nresearch use only, not for diagnosis"
    classes = Classes(("normal", "DCIS", "IDC"), np.array([0.1, 0.65, 0.25]), negative="normal")
    of_three = dataclasses.replace(result(label=2), bag_id="$a_{$", classes=classes)  # a $ is no formula
    figure = draw_scan(of_three, volume())
    assert png(figure).startswith(b"\x89PNG")
    assert figure.get_suptitle().startswith("$a_{$: DCIS, probability 0.65 (label: IDC) · 3 of 6 ")


def test_warnings_stand_above_the_picture_without_names_of_files_and_so_does_a_threshold_chosen_on_nothing() -> None:
    damaged = "smith_9.dcm is damaged and is left out"
    about = {"warnings": ["hardly a head CT: " + "no air, " * 30 + "no brain", damaged, "a gap", "another", "one more"]}
    given = result(about=about, threshold_origin="the default, chosen on no data")
    plain, figure = draw_scan(result(), volume()), draw_scan(given, volume())
    _, note, *told = figure.get_suptitle().splitlines()
    assert note == "research use only, not for diagnosis"
    assert max(map(len, told)) <= 130
    assert " ".join(told) == (
        f"warning: {about['warnings'][0]} warning: a gap warning: another warning: and 2 more, see summary.csv "
        "warning: the threshold is the default, chosen on no data"
    )
    assert figure.get_figheight() > plain.get_figheight()


@pytest.mark.parametrize("more", [{"volume": volume()[None]}, {}], ids=["scan", "features alone"])
def test_the_scan_becomes_a_png(tmp_path: Path, more: dict[Hashable, Any]) -> None:
    data: dict[Hashable, Any] = {"bag_result": result(), **more}
    assert DrawScand(str(tmp_path))(data) == data
    assert matplotlib.image.imread(tmp_path / "bag_7" / "slices.png").size
