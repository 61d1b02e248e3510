# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""scores.h5, the numbers of every patch of a bag: written, and read back without loss by a run that resumes.

Its datasets are those of ``Scores``: ``slide`` if the bag has several, what the network does not tell is left out,
``truth`` where it is known, and where lesions are, ``lesion`` with ``count`` and ``excluded``. Attributes: ``unit`` of
``coords``, ``normalisation`` of ``normalised``, ``name``, ``smoothing`` and ``flagged_above`` of ``scores``; of the
root ``format`` ("smooth-mil-scores/2"), ``bag_id``, ``slides`` (JSON text), ``note``, and of the model ``model_name``,
``model_version``, ``model_sha256`` and ``model_trained_on``. In "smooth-mil-scores/1" the scores are the attention
logits.
"""

import json
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from monai.transforms import Transform

from scripts.core.errors import InputError
from scripts.core.files import whole_file
from scripts.core.lesions import Lesions
from scripts.core.record import RESEARCH_USE, BagResult, PatchCoordinates
from scripts.core.scoring import ATTENTION

SCORES_FORMAT = "smooth-mil-scores/2"
OLD_FORMAT = "smooth-mil-scores/1"
SLIDE_METADATA = ("slide_id", "patches", "pitch", "tile", "unit", "mpp")


class Scores(NamedTuple):
    """The content of a scores.h5 with N patches."""

    coords: np.ndarray  # (N, 2) top-left x, y: level-0 pixels, or micrometres
    slide: np.ndarray  # (N,) its number in the bag, 0 where it has one
    scores: np.ndarray  # (N,) float32, what ranks and flags
    score_name: str
    attention: np.ndarray  # (N,) float32, sums to 1 over the bag
    normalised: np.ndarray  # (N,) float32, attention as a multiple of its average
    flagged: np.ndarray  # (N,) bool
    truth: np.ndarray | None
    lesions: Lesions | None
    # (N,) float32, where the network tells it
    attention_logits: np.ndarray | None  # before the softmax
    evidence: np.ndarray | None
    instance_logits: np.ndarray | None
    leave_one_out: np.ndarray | None


TOLD_OF_PATCHES = Scores._fields[-4:]


class SaveScoresd(Transform):
    """Write `output_dir/<bag_id>/scores.h5` of a bag of patches; the same result gives the same bytes.

    Args:
        output_dir: folder of the results.
    """

    def __init__(self, output_dir: str) -> None:
        self.output_dir = Path(output_dir)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result: BagResult = data["bag_result"]
        slides, patches = result.about["slides"], result.instances
        assert isinstance(patches, PatchCoordinates)
        path = self.output_dir / result.bag_id / "scores.h5"
        with whole_file(path) as beside, h5py.File(beside, "w") as file:
            file["coords"] = patches.coords
            file["coords"].attrs["unit"] = ", ".join(dict.fromkeys(slide["unit"] for slide in slides))
            if len(slides) > 1:
                file["slide"] = patches.slide
            file["scores"] = result.scores.astype(np.float32)
            file["scores"].attrs.update(name=result.score_name, smoothing=result.score_smoothing)
            file["scores"].attrs["flagged_above"] = result.flag_rule
            file["attention"] = result.attention.astype(np.float32)
            file["normalised"] = result.times_average.astype(np.float32)
            file["normalised"].attrs["normalisation"] = normalisation(result)
            file["flagged"] = result.flagged
            for name in TOLD_OF_PATCHES:
                if getattr(result, name) is not None:
                    file[name] = getattr(result, name).astype(np.float32)
            if result.truth is not None:
                file["truth"] = result.truth.astype(np.int8)
            if result.lesions is not None:
                file["lesion"] = result.lesions.of_instance
                file["lesion"].attrs.update(count=result.lesions.count, excluded=np.array(result.lesions.excluded, int))
            of_slides = [{name: slide[name] for name in SLIDE_METADATA} for slide in slides]
            of_model = result.model._asdict() if result.model else {}
            file.attrs.update(
                format=SCORES_FORMAT, bag_id=result.bag_id, note=RESEARCH_USE, slides=json.dumps(of_slides)
            )
            file.attrs.update({f"model_{key}": value for key, value in of_model.items()})
        return dict(data)


def read_scores(path: Path) -> Scores:
    """Read a file of `SaveScoresd`."""
    try:
        with h5py.File(path) as file:
            lesion, old = file.get("lesion"), file.attrs["format"] == OLD_FORMAT
            told = {name: file[name][()] if name in file else None for name in TOLD_OF_PATCHES}
            return Scores(
                **{name: file[name][()] for name in ("coords", "scores", "attention", "normalised", "flagged")},
                **({**told, "attention_logits": file["scores"][()]} if old else told),
                score_name=ATTENTION if old else file["scores"].attrs["name"],
                slide=file["slide"][()] if "slide" in file else np.zeros(len(file["coords"]), dtype=int),
                truth=file["truth"][()].astype(int) if "truth" in file else None,
                lesions=lesion
                and Lesions(lesion[()], int(lesion.attrs["count"]), tuple(map(int, lesion.attrs["excluded"]))),
            )
    except (OSError, KeyError) as error:
        raise InputError(f"{path} holds no scores that can be read: run inference again") from error


def normalisation(result: BagResult) -> str:
    """Return in words what 1 is in `times_average`."""
    slides = len(result.about["slides"])
    of = "the slide" if slides == 1 else f"all {slides} slides of the bag"
    if result.slots is not None:
        return f"attention × {result.slots} slots: 1 = the average of {result.slots} slots"
    return f"attention × number of patches: 1 = the average of {of}"
