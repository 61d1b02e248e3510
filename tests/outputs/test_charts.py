# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Charts are text: small, always the same, labelled in words, and safe to stand within a page."""

import re
import xml.etree.ElementTree as ET

from scripts.outputs import charts


def test_a_chart_is_the_same_each_time_and_names_its_axes_and_curves() -> None:
    lines = {"train_loss": [(1, 0.5), (2, 0.25)], "<a> & $b^$": [(1, 0.1), (2, 0.2)]}
    first, again = (charts.svg(charts.epochs, "loss", lines, 2) for _ in range(2))
    assert first == again
    assert not re.search(r"https?:|<\?xml|<metadata|<script", first)
    texts = [text.text for text in ET.fromstring(first.replace("xlink:href", "href")).iter("text")]
    assert {"epoch", "loss", "train loss", "<a> & $b^$", "kept"} <= set(texts)


def test_many_bags_make_a_small_chart_without_a_picture_of_pixels() -> None:
    bags = [{"share_of_attention": 1 - k / 5000, "share_of_instances": 0.1, "auroc": 0.5} for k in range(5000)]
    drawn = charts.svg(charts.shares, bags)
    assert "<image" not in drawn
    assert len(drawn) < 250_000
    assert drawn.count("<use") <= 2 * charts.DOTS + 50
