# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""result.json, the record of one bag: written when the bag is done, and read back by a run that resumes."""

import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.transforms import Transform

from scripts.core.files import write_whole
from scripts.core.record import RESEARCH_USE, BagResult, Classes, Model, PatchCoordinates

SCORES = "scores.h5"
_FINDINGS = ("score", "attention", "flagged", "truth")  # keys of an instance; its other keys identify it


def as_json(result: BagResult) -> dict[str, Any]:
    """Return the content of result.json; in place of patches stands the name of the file that holds them."""
    return {
        "bag_id": result.bag_id,
        "source": result.source,
        "called": result.verdict,
        "probability": result.probability,
        "logits": list(result.logits),
        "threshold": result.threshold,
        "threshold_origin": result.threshold_origin,
        "positive": result.positive,
        "label_set": result.label_set,
        "classes": result.classes and _classes_as_json(result.classes),
        "label": result.label,
        "label_name": result.true_verdict,
        "note": RESEARCH_USE,
        "model": result.model and result.model._asdict(),
        "flagged_above": f"attention 1/{result.slots or len(result.scores)}, in a positive bag",
        "flagged": int(result.flagged.sum()),
        "slots": result.slots,
        "about": result.about,
        "instances": SCORES if isinstance(result.instances, PatchCoordinates) else instance_rows(result),
    }


def _classes_as_json(classes: Classes) -> dict[str, Any]:
    return {
        "probabilities": dict(zip(classes.names, map(float, classes.probabilities), strict=True)),
        "groups": classes.groups,
        "probabilities_of_groups": classes.of_groups,
        "negative": classes.negative,
    }


def instance_rows(result: BagResult, first: int | None = None) -> list[dict[str, Any]]:
    """Return a row for each instance, or for the `first` ones alone."""
    findings = {"score": result.scores, "attention": result.attention, "flagged": result.flagged}
    if result.truth is not None:
        findings["truth"] = result.truth.astype(int)
    columns = zip(*(values[:first].tolist() for values in findings.values()), strict=True)
    return [
        {**about, **dict(zip(findings, row, strict=True))}
        for about, row in zip(result.instances[:first], columns, strict=True)
    ]


def from_json(content: Mapping[str, Any], folder: Path) -> BagResult:
    """Return the result that `as_json` was given; its scores.h5, if it has one, lies in `folder`."""
    return BagResult(
        **{key: content[key] for key in ("bag_id", "source", "probability", "threshold", "threshold_origin", "label")},
        **(_from_scores(folder / SCORES) if content["instances"] == SCORES else _from_rows(content["instances"])),
        logits=tuple(content["logits"]),
        label_set=None if content["label_set"] is None else tuple(content["label_set"]),
        classes=content["classes"] and _classes_from_json(**content["classes"]),
        model=content["model"] and Model(**content["model"]),
        about=content["about"],
        slots=content["slots"],
    )


def _from_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "scores": np.array([row["score"] for row in rows], dtype=np.float32),
        "attention": np.array([row["attention"] for row in rows], dtype=np.float32),
        "instances": [{key: value for key, value in row.items() if key not in _FINDINGS} for row in rows],
        "truth": np.array([row["truth"] for row in rows]) if rows and "truth" in rows[0] else None,
    }


def _from_scores(path: Path) -> dict[str, Any]:
    from scripts.outputs.scores import read_scores  # h5py: of slides alone

    stored = read_scores(path)
    same = {name: getattr(stored, name) for name in ("scores", "attention", "truth", "lesions")}
    return {**same, "instances": PatchCoordinates(stored.coords, stored.slide)}


def _classes_from_json(probabilities: dict[str, float], groups: list[str], negative: str, **_: Any) -> Classes:
    return Classes(tuple(probabilities), np.array(list(probabilities.values())), tuple(groups), negative)


class SaveResultd(Transform):
    """Write `output_dir/<bag_id>/result.json`; the last transform of a bag, as the file marks it as finished.

    Args:
        output_dir: folder of the results.
        recipe: what `scripts.outputs.report.recipe` returns for this run.
    """

    def __init__(self, output_dir: str, recipe: str = "") -> None:
        self.output_dir = Path(output_dir)
        self.recipe = recipe

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result: BagResult = data["result"]
        content = {**as_json(result), "input": data.get("input", ""), "recipe": self.recipe}
        write_whole(self.output_dir / result.bag_id / "result.json", json.dumps(content, indent=1) + "\n")
        return dict(data)
