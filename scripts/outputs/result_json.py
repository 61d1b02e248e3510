# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""result.json, the record of one bag: written when the bag is done, and read back by a run that resumes."""

import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.transforms import Transform

from scripts.core.files import cannot_write, write_whole
from scripts.core.record import FIELDS, RESEARCH_USE, BagResult, Classes, Model, PatchCoordinates
from scripts.core.scoring import ATTENTION

SCORES = "scores.h5"


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
        "score_name": result.score_name,
        "score_smoothing": result.score_smoothing,
        "flagged_above": result.flag_rule,
        "flagged_above_score": result.flag_above,
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
    findings = {**result.of_instances, "flagged": result.flagged}
    if result.truth is not None:
        findings["truth"] = result.truth.astype(int)
    columns = zip(*(values[:first].tolist() for values in findings.values()), strict=True)
    return [
        {**about, **dict(zip(findings, row, strict=True))}
        for about, row in zip(result.instances[:first], columns, strict=True)
    ]


def from_json(content: Mapping[str, Any], folder: Path) -> BagResult:
    """Return the result that `as_json` was given; its scores.h5, if it has one, lies in `folder`."""
    rows = content["instances"]
    of_instances = _from_scores(folder / SCORES) if rows == SCORES else _from_rows(rows)
    if "score_name" not in content:  # of a version that knew of attention alone
        of_instances["attention_logits"] = of_instances["scores"]
    return BagResult(
        **{key: content[key] for key in ("bag_id", "source", "probability", "threshold", "threshold_origin", "label")},
        **of_instances,
        logits=tuple(content["logits"]),
        label_set=None if content["label_set"] is None else tuple(content["label_set"]),
        classes=content["classes"] and _classes_from_json(**content["classes"]),
        model=content["model"] and Model(**content["model"]),
        about=content["about"],
        slots=content["slots"],
        score_name=content.get("score_name", ATTENTION),
        score_smoothing=content.get("score_smoothing", 0.0),
        flag_above=content.get("flagged_above_score"),
    )


def _from_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    told = {name: field for name, field in FIELDS.items() if rows and name in rows[0]}
    findings = {*told, "flagged", "truth"}  # the other keys identify an instance
    return {
        **{field: np.array([row[name] for row in rows], dtype=np.float32) for name, field in told.items()},
        "instances": [{key: value for key, value in row.items() if key not in findings} for row in rows],
        "truth": np.array([row["truth"] for row in rows]) if rows and "truth" in rows[0] else None,
    }


def _from_scores(path: Path) -> dict[str, Any]:
    from scripts.outputs.scores import read_scores  # h5py: of slides alone

    stored = read_scores(path)
    same = {name: getattr(stored, name) for name in (*FIELDS.values(), "truth", "lesions")}
    return {**same, "instances": PatchCoordinates(stored.coords, stored.slide)}


def _classes_from_json(probabilities: dict[str, float], groups: list[str], negative: str, **_: Any) -> Classes:
    return Classes(tuple(probabilities), np.array(list(probabilities.values())), tuple(groups), negative)


class SaveResultd(Transform):
    """Write `output_dir/<bag_id>/result.json`; the last transform of a bag, as the file marks it as finished.

    Args:
        output_dir: folder of the results.
        recipe: of the run, see `scripts.outputs.report.Recipe`.
    """

    def __init__(self, output_dir: str, recipe: object = "") -> None:
        self.output_dir = Path(output_dir)
        self.recipe = recipe

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result: BagResult = data["bag_result"]
        content = {**as_json(result), "input": data.get("input", ""), "recipe": str(self.recipe)}
        write_whole(self._path(result.bag_id), json.dumps(content, indent=1) + "\n")
        return dict(data)

    def withdraw(self, bag_id: str) -> None:
        """Remove the file that an earlier run has written, as the others of the bag are about to be replaced."""
        try:
            self._path(bag_id).unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(self._path(bag_id), error) from error

    def _path(self, bag_id: str) -> Path:
        return self.output_dir / bag_id / "result.json"
