# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The README of a release says what its weights are, and nothing any more of weights that are missing."""

from pathlib import Path

import pytest
import yaml

from scripts.release.defaults import read_weights, trained_configs, trained_metadata
from scripts.release.readme import archive_readme, data_license, hugging_face_page
from scripts.release.tree import source_folder
from scripts.studies.runs import BUNDLES
from tests.release.trained import shipped, write_weights
from tests.shared_data import ROOT
from tests.test_configs import content

EVALUATION = {"bags": 9, "positive_bags": 4, "bag_auroc": {"value": 0.75, "low": 0.5, "high": None}}


@pytest.mark.parametrize("wing", BUNDLES)
def test_a_readme_tells_of_the_weights_and_can_be_made_again_from_itself(wing: str, tmp_path: Path) -> None:
    weights = read_weights(write_weights(tmp_path, wing))
    configs = trained_configs(shipped(wing), source_folder(wing), weights)
    metadata = trained_metadata(content(ROOT / "configs" / wing / "metadata.json"), configs, weights, 1, {})
    shown = {**metadata, "data_source": "synthetic data", "eval_metrics": {"bag_auroc": 0.75}}
    text = (ROOT / "docs" / wing / "README.md").read_text()
    made = archive_readme(text, BUNDLES[wing], configs, weights, shown, EVALUATION, ["model.ts"])
    assert not [words for words in ("No trained weights", "None published", "bundle/", "features 128") if words in made]
    assert not [words for words in ("name the files",) if words in made]
    assert made.count("synthetic data\n") + made.count("synthetic data**") == 1
    size = {"ct": "`image_size` 16", "wsi": "`in_features` 8"}[wing]
    for words in (
        weights.sha256,
        size,
        "threshold 0.25 (chosen by a test)",
        "Exported from them: `models/model.ts`; `pred` differs by less than 1e-5",
    ):
        assert words in made
    assert "On 9 bags, 4 of them positive. Trained on: synthetic data." in made
    assert "| bag_auroc | 0.750 | 0.500 | not defined |" in made
    assert "### Where this differs from the paper" in made
    without = archive_readme(text, BUNDLES[wing], configs, weights, metadata, {}, ["model.ts"])
    assert "None stated for these weights." in without
    assert archive_readme(made, BUNDLES[wing], configs, weights, metadata, {}, ["model.ts"]) == without


def test_the_header_of_a_hugging_face_card_is_yaml() -> None:
    _, header, page = hugging_face_page("ct", "# Model\n", synthetic=True).split("---\n", 2)
    card = yaml.safe_load(header)
    other = yaml.safe_load(hugging_face_page("ct", "", synthetic=False).split("---\n")[1])
    assert (other["license"], other["license_link"]) == ("other", "docs/data_license.txt")
    assert (card["license"], card["library_name"], card["pipeline_tag"]) == (
        *("apache-2.0", "monai", "image-classification"),
    )
    assert {"monai", "medical", "head-ct"} <= set(card["tags"])
    assert page == "\n# Model\n"


def test_the_terms_of_data_say_what_the_weights_were_trained_on() -> None:
    text = (ROOT / "docs" / "ct" / "data_license.txt").read_text()
    made = data_license(text, "RSNA 2019")
    assert made.startswith("No data is shipped with this bundle. Its weights were trained on: RSNA 2019.\n\n")
    assert "no weights trained on data" not in made
    assert made.partition("\n\n")[2] == text.partition("\n\n")[2]
    assert data_license(made, "CQ500").partition("\n\n")[2] == text.partition("\n\n")[2]
