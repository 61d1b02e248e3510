# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The model card has the zoo's sections, every item of CLAIM, and says of data only what a file states."""

import json
import re
from pathlib import Path

from scripts.outputs.card import TO_FILL_IN, model_card
from scripts.outputs.report_json import report_content
from tests.outputs.cohorts import binary, write_tables
from tests.shared_data import ROOT


def test_a_card_has_all_sections_and_leaves_open_what_nobody_stated(tmp_path: Path) -> None:
    write_tables(tmp_path, binary(12))
    metadata = json.loads((ROOT / "configs" / "ct" / "metadata.json").read_text())
    training = {"run_name": "first", "curves": {"train_loss": [[1, 0.5], [2, 0.4]]}, "kept": 2}
    tables = report_content(tmp_path)
    unknown = model_card({"bundle": None, "weights_sha256": None, "training": None, **tables})
    card = model_card({"bundle": metadata, "weights_sha256": "abc", "training": training, **tables})
    zoo = re.findall(
        r"^#{1,3} (?!MONAI Bundle|Where|Execute|Override).*$", (ROOT / "docs/ct/README.md").read_text(), re.M
    )
    sections = set(re.findall(r"^#{1,3} .*$", card, re.M))
    assert sections >= set(zoo) - {"### Preprocessing"}
    items = {
        text: [row.split(" | ") for row in re.findall(r"^\| (\d+ .*) \|$", text, re.M)] for text in (card, unknown)
    }
    for of_card in items.values():
        assert [int(item.split()[0]) for item, _ in of_card] == list(range(1, 45))
    answers = {int(item.split()[0]): where for item, where in items[card]}
    assert answers[7] == answers[16] == answers[44] == TO_FILL_IN
    assert answers[25] == "2 epochs, run first"
    assert answers[26] == "epoch 2"
    assert "abc" in answers[43]
    figure = tables["figures"]["bag_auroc"]
    assert f"| bag_auroc | {figure['value']:.3f} | {figure['low']:.3f} | {figure['high']:.3f} |" in card
    assert "Hemorrhage CT smooth MIL" in card
    assert unknown.count(TO_FILL_IN) > card.count(TO_FILL_IN) > 20
    assert "None" not in card + unknown
