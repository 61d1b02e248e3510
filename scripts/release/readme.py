# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The README of a bundle with weights, and its page on Hugging Face."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from scripts.release.defaults import Configs, Weights

TOLD_KEYS = ("image_size", "channels", "windows", "in_features", "class_names", "hierarchy", "score", "score_smoothing")
HEADER = """---
{license}
library_name: monai
pipeline_tag: image-classification
tags:
- monai
- medical
- multiple-instance-learning
{tags}
---

"""
TAGS = {"ct": ("computed-tomography", "head-ct"), "wsi": ("pathology", "whole-slide-imaging")}
STORED_ELSEWHERE = "".join(f"*.{kind} filter=lfs diff=lfs merge=lfs -text\n" for kind in ("pt", "ts", "onnx"))
OWN_LICENSE = "license: apache-2.0"
OTHER_LICENSE = (
    "license: other\nlicense_name: code-apache-2.0-weights-by-their-data\nlicense_link: docs/data_license.txt"
)


def archive_readme(
    text: str,
    bundle: str,
    configs: Configs,
    weights: Weights,
    metadata: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    exported: Sequence[str],
) -> str:
    """Return docs/README.md of a bundle with weights, made of that of the sources or of an earlier release.

    Args:
        text: the page that is shipped.
        bundle: its name.
        configs: with the defaults of the weights.
        weights: as read_weights read them.
        metadata: of the bundle with its weights.
        evaluation: the content of metrics.json, or nothing.
        exported: names of files whose `pred` is that of the network.
    """
    text = text.replace("No trained weights are shipped. ", "Trained weights are shipped, see Weights below. ")
    text = text.replace(f"cd bundle/{bundle}", f"cd {bundle}").replace(" --in_features 128", "")
    text = text.replace("This command of MONAI reads configs only: name the files of the training here too.\n\n", "")
    text = text.replace(
        "\n\nThis command of MONAI reads configs only: name the files and keys of the training here too.", ""
    )
    text = _with_section(text, "Weights", _weights_section(configs, weights, metadata, exported), before="Data")
    head, _, rest = text.partition("\n## Performance\n")
    later = re.search(r"^##", rest, flags=re.MULTILINE)
    after = rest[later.start() :] if later else ""
    return f"{head}\n## Performance\n\n{_figures_table(evaluation, metadata)}\n\n{after}"


def _with_section(text: str, title: str, body: str, before: str) -> str:
    text = re.sub(rf"^## {title}\n.*?(?=^## )", "", text, flags=re.MULTILINE | re.DOTALL)
    return text.replace(f"\n## {before}\n", f"\n## {title}\n\n{body}\n\n## {before}\n", 1)


def _weights_section(configs: Configs, weights: Weights, metadata: Mapping[str, Any], exported: Sequence[str]) -> str:
    config, point = configs["inference.json"], metadata["operating_point"]
    keys = [f"`{key}` {config[key]}" for key in TOLD_KEYS if config.get(key) is not None]
    lines = [
        f"`models/model.pt`, sha256 `{weights.sha256}`",
        f"Trained on: **{metadata['data_source']}**",
        f"Every command has these as its defaults: {', '.join(keys)}. They hold where this page names other ones",
        f"Operating point: threshold {point['threshold']:.3g} ({point['origin']})",
        f"Exported from them: {', '.join(f'`models/{name}`' for name in exported)}; `pred` differs by less than 1e-5",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _figures_table(evaluation: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
    if not metadata["eval_metrics"]:
        return "None stated for these weights."
    rows = ["| figure | value | 95 % from | to |", "| --- | --- | --- | --- |"]
    for name in metadata["eval_metrics"]:
        of = evaluation[name]
        cells = ("not defined" if of.get(key) is None else f"{of[key]:.3f}" for key in ("value", "low", "high"))
        rows.append(f"| {name} | {' | '.join(cells)} |")
    bags, positive = evaluation.get("bags"), evaluation.get("positive_bags")
    of_bags = f"{bags} bags, {positive} of them positive" if positive is not None else f"{bags} bags"
    return f"On {of_bags}. Trained on: {metadata['data_source']}.\n\n" + "\n".join(rows)


def hugging_face_page(wing: str, readme: str, synthetic: bool) -> str:
    """Return README.md of a Hugging Face repository: the header of its card, and the page of the bundle."""
    license = OWN_LICENSE if synthetic else OTHER_LICENSE
    return HEADER.format(license=license, tags="\n".join(f"- {tag}" for tag in TAGS[wing])) + readme


def data_license(text: str, stated: str) -> str:
    """Return docs/data_license.txt, whose first paragraph says what the sources hold, for a bundle with weights."""
    _, _, terms = text.partition("\n\n")
    return f"No data is shipped with this bundle. Its weights were trained on: {stated}.\n\n{terms}"
