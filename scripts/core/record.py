# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The record of what was found in one bag: metrics, files and pictures are made from it, and from nothing else."""

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.transforms import Transform

from scripts.core.conformal import ONE_LOGIT, Conformal, label_set
from scripts.core.errors import InputError
from scripts.core.files import in_bundle, sha256_of
from scripts.core.lesions import Lesions
from scripts.core.scoring import (
    ATTENTION,
    EVIDENCE,
    INSTANCE,
    Asked,
    in_words,
    needed_logit,
    probabilities,
    real_values,
    score_name,
    scored,
    smoothing_strength,
)

MANIFEST = "manifest.json"  # of a release: path → sha256 of every other file in it
RESEARCH_USE = "research use only, not for diagnosis"
NO_THRESHOLD = "none: the most probable class is called"
FIELDS = {  # what tables call a number of an instance → its field in the record
    "score": "scores",
    "attention": "attention",
    "attention_logit": "attention_logits",
    "evidence": "evidence",
    "instance_logit": "instance_logits",
    "leave_one_out": "leave_one_out",
}


class Model(NamedTuple):
    """The network that was asked."""

    name: str
    version: str
    sha256: str  # of the file of its weights
    trained_on: str = ""  # as their release says


class Classes(NamedTuple):
    """The answer of a network of more than two classes."""

    names: tuple[str, ...]
    probabilities: np.ndarray  # (C,) sums to 1
    groups: tuple[str, ...] = ()  # the coarse class of each, where there is a hierarchy
    negative: str | None = None  # the class without a finding, if one is

    @property
    def called(self) -> int:
        """The number of the most probable class."""
        return int(self.probabilities.argmax())

    @property
    def finding(self) -> int:
        """The most probable class with a finding: instances are scored for it, whatever the bag is called."""
        is_finding = np.array([name != self.negative for name in self.names])
        return int(np.where(is_finding, self.probabilities, -1).argmax())

    @property
    def against(self) -> int:
        """The number of the class that speaks against the finding: that without one, else the next probable class."""
        if self.negative is not None:
            return self.names.index(self.negative)
        others = np.arange(len(self.names)) != self.finding
        return int(np.where(others, self.probabilities, -1).argmax())

    @property
    def probability(self) -> float:
        """Of a finding at all; of the most probable class where every class is one."""
        if self.negative is None:
            return float(self.probabilities.max())
        return 1 - float(self.probabilities[self.names.index(self.negative)])

    @property
    def of_groups(self) -> dict[str, float]:
        """The probability of each coarse class, which is that of all its fine ones."""
        sums = dict.fromkeys(self.groups, 0.0)
        for group, probability in zip(self.groups, self.probabilities, strict=False):
            sums[group] += float(probability)
        return sums


class PatchCoordinates(Sequence[Mapping[str, Any]]):
    """The top-left x, y (N, 2) of each patch of a bag, in the unit of its slide's header, and the slide's number (N,).

    A row is made when it is asked for: a slide has 100,000.
    """

    def __init__(self, coords: np.ndarray, slide: np.ndarray) -> None:
        self.coords = coords.astype(np.int64) if (coords == np.rint(coords)).all() else coords
        self.slide = slide.astype(np.int64)
        self.several = bool(self.slide.any())

    def __len__(self) -> int:
        return len(self.coords)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        x, y = self.coords[index].tolist()
        return {"id": index, **({"slide": int(self.slide[index])} if self.several else {}), "x": x, "y": y}


@dataclass(frozen=True)
class BagResult:
    """What was found in one bag of N instances, and what is known of it."""

    bag_id: str
    source: str  # the user's own path
    probability: float  # of the bag being positive; of its class where every class is a finding
    threshold: float | None  # None: of several classes the most probable one is called
    scores: np.ndarray  # (N,) what ranks and flags each instance; of several classes for the likeliest finding
    attention: np.ndarray  # (N,) sums to 1
    instances: Sequence[Mapping[str, Any]]  # what each instance is: a slice's UID and position, a patch's coordinates
    label: int | None = None  # 0 or 1; or the number of the class
    truth: np.ndarray | None = None  # (N,) 0 or 1 where it is known
    lesions: Lesions | None = None  # where each lesion is known
    classes: Classes | None = None  # None: a network of one logit
    threshold_origin: str = ""  # who chose it, and on what
    logits: tuple[float, ...] = ()  # of the network, before any scaling
    label_set: tuple[str, ...] | None = None  # the labels it may have, as a site's own bags tell; None: they do not
    model: Model | None = None
    about: dict[str, Any] = field(default_factory=dict)  # of the bag: a scan's tilt, spacings, warnings
    slots: int | None = None  # instances the average attention is taken over; None = the real ones
    score_name: str = ATTENTION  # what the scores are, see scoring.py
    score_smoothing: float = 0.0  # α with which they were smoothed along neighbours
    flag_above: float | None = None  # an instance is flagged above this score; None: above the average attention
    # of each instance, (N,), where the network tells it; of several classes for the finding, less what is against it
    attention_logits: np.ndarray | None = None  # before the softmax
    evidence: np.ndarray | None = None  # sums to the logit less its bias
    instance_logits: np.ndarray | None = None
    leave_one_out: np.ndarray | None = None  # the logit less that without the instance

    @property
    def learned_from(self) -> list[str]:
        """A line that says what the network was trained on, where its release does."""
        return [f"the network was trained on {self.model.trained_on}"] if self.model and self.model.trained_on else []

    @property
    def positive(self) -> bool:
        """Whether the bag is called one with a finding."""
        if self.classes is not None:
            return self.verdict != self.classes.negative
        return self.threshold is not None and self.probability > self.threshold

    @property
    def label_positive(self) -> bool | None:
        """Whether the bag has a finding by its label; None without a label."""
        if self.label is None:
            return None
        return bool(self.label) if self.classes is None else self.true_verdict != self.classes.negative

    @property
    def verdict(self) -> str:
        """What the bag is called, in a word."""
        return self._name(self.positive if self.classes is None else self.classes.called)

    @property
    def true_verdict(self) -> str:
        """What the label calls the bag; empty without one."""
        return "" if self.label is None else self._name(self.label)

    def _name(self, number: int) -> str:
        return ONE_LOGIT[bool(number)] if self.classes is None else self.classes.names[number]

    @property
    def flagged(self) -> np.ndarray:
        """(N,) instances that stand out by their score in a positive bag; none in a negative one."""
        more_than_average = self.times_average > 1 + 1e-6  # equal attention is not above its average
        above = more_than_average if self.flag_above is None else self.scores > self.flag_above
        return self.positive & (above | (len(self.scores) == 1))

    @property
    def flag_rule(self) -> str:
        """Above what an instance is flagged, in words."""
        if self.flag_above is None:
            return f"attention 1/{self.slots or len(self.scores)}, in a positive bag"
        why = {
            INSTANCE: f"what a bag needs: {self._needed}",
            EVIDENCE: f"an equal share of what the bag needs: {self._needed}",
        }.get(self.score_name, f"that of attention 1/{self.slots or len(self.scores)}")
        score = in_words(self.score_name, self.score_smoothing)
        return f"{score} {self.flag_above:.6g} ({why}), in a positive bag"

    @property
    def _needed(self) -> str:
        if self.classes is None:
            return f"probability {self.threshold:.3g}"
        return f"{self.classes.names[self.classes.finding]} before {self.classes.names[self.classes.against]}"

    @property
    def of_instances(self) -> dict[str, np.ndarray]:
        """Every number that is known of each instance, (N,) each, by the name that tables give it."""
        named = {name: getattr(self, of_record) for name, of_record in FIELDS.items()}
        return {name: values for name, values in named.items() if values is not None}

    @property
    def times_average(self) -> np.ndarray:
        """(N,) attention as a multiple of its average."""
        return self.attention * (self.slots or len(self.attention))

    @property
    def attention_spread(self) -> float:
        """The standard deviation of attention × N: near 0, attention tells no instance from another."""
        return float(self.times_average.std()) if len(self.attention) > 0 else 0.0

    def rescaled(self, scaling: Sequence[float], threshold: float | None = None) -> "BagResult":
        """Return what another scaling of the logits, and another threshold if one is given, make of the bag."""
        found = probabilities(self.logits, scaling)
        if self.classes is None:
            threshold = self.threshold if threshold is None else threshold
            return replace(self, probability=float(found[0]), threshold=threshold)
        classes = self.classes._replace(probabilities=found)
        return replace(self, probability=classes.probability, classes=classes)


class BagResultd(Transform):
    """Add the key `bag_result`: what the network found in a bag, without its padding.

    Args:
        threshold: a bag is called positive above this probability.
        slots: instances over which the average attention is taken, for a network of slots.
        class_names: of a network with a logit for each class; the highest is what the bag is called.
        hierarchy: coarse class → its fine classes, which are those of class_names in their order.
        negative_class: the class without a finding, its number or name; "none" where every class is one.
        scaling: slope and intercept of the logits on their way to probabilities; of several classes the slope alone.
        threshold_origin: who chose the threshold, and on what.
        conformal: what decides which labels a bag may have; None leaves that open.
        score: what ranks and flags instances, see scoring.py; attention where the network does not tell it.
        score_smoothing: as of the inferer, which smooths the scores.
    """

    def __init__(
        self,
        threshold: float = 0.5,
        slots: int | None = None,
        class_names: Sequence[str] | None = None,
        hierarchy: Mapping[str, Sequence[str]] | None = None,
        negative_class: int | str | None = 0,
        scaling: Sequence[float] = (1.0, 0.0),
        threshold_origin: str = "",
        conformal: Conformal | None = None,
        score: str = INSTANCE,
        score_smoothing: float = 0.0,
    ) -> None:
        self.threshold = threshold
        self.score = score_name(score)
        self.smoothing = smoothing_strength(score_smoothing)
        self.threshold_origin = threshold_origin
        self.conformal = conformal
        self.scaling = scaling
        self.slots = slots
        self.names = tuple(map(str, class_names or ()))
        if not 0 <= threshold <= 1:
            raise InputError(f"the threshold {threshold} is no probability: give one from 0 to 1 with --threshold")
        if not scaling[0] > 0:
            raise InputError(f"the scaling's slope is {scaling[0]}: give one above 0 with --scaling")
        coarse = {fine: coarse for coarse, own in (hierarchy or {}).items() for fine in own}
        if hierarchy and self.names != tuple(coarse):
            raise InputError(
                f"class_names are {', '.join(self.names) or 'not given'}, the hierarchy has {', '.join(coarse)}: "
                "give the classes of the hierarchy, in their order"
            )
        self.groups = tuple(coarse.values())
        self.negative = _negative_name(negative_class, self.names) if self.names else None

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        real = data["mask"][0] > 0.5  # [N]
        label, truth = data.get("label"), data.get("instance_label")
        about = json.loads(data.get("about", "{}"))
        logits = data["logits"].float().cpu().numpy()  # [classes]
        if not np.isfinite(logits).all():
            raise InputError(
                f"the network gives no finite logits for {data['bag_id']}: check its weights and the bag's values"
            )
        if len(logits) > 1 and self.threshold != 0.5:
            raise InputError(f"of several classes the likeliest is called, at no threshold: leave out {self.threshold}")
        classes = None if len(logits) == 1 else self._classes(logits)
        probability = float(probabilities(logits, self.scaling)[0]) if classes is None else classes.probability
        asked = Asked(self.score, self.smoothing, probability, self.slots)
        if classes is None:
            asked = asked._replace(needed=needed_logit(self.threshold, *self.scaling))
        else:
            asked = asked._replace(finding=classes.finding, against=classes.against)
        lesions = None
        if "lesion" in data:
            count, excluded = about["lesions"]["count"], tuple(about["lesions"]["excluded"])
            lesions = Lesions(real_values(data["lesion"], real).astype(int), count, excluded)
        result = BagResult(
            bag_id=data["bag_id"],
            source=data["source"],
            probability=probability,
            threshold=self.threshold if classes is None else None,
            threshold_origin=self.threshold_origin if classes is None else NO_THRESHOLD,
            logits=tuple(logits.tolist()),
            label_set=self.conformal and label_set(logits.tolist(), self.names or ONE_LOGIT, self.conformal),
            **scored(data, real, asked),
            instances=_instances_of(data, real),
            label=None if label is None else int(label[0]),
            truth=None if truth is None else real_values(truth, real).astype(int),
            lesions=lesions,
            classes=classes,
            about=about,
            slots=self.slots,
        )
        return {**data, "bag_result": result}

    def _classes(self, logits: np.ndarray) -> Classes:
        if len(self.names) != len(logits):
            raise InputError(
                f"the network has {len(logits)} classes, class_names has {len(self.names)}: give a name to each"
            )
        return Classes(self.names, probabilities(logits, self.scaling), self.groups, self.negative)


class SignResultd(Transform):
    """Enter into the `bag_result` which network it is from.

    Args:
        model: the network.
    """

    def __init__(self, model: "ModelCard") -> None:
        self.model = model

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return {**data, "bag_result": replace(data["bag_result"], model=self.model.read())}


class ModelCard:
    """The network that a bundle runs, read from its metadata and its weights when first asked for.

    Args:
        bundle_root: folder of the bundle.
        ckpt_path: file of the weights.
    """

    def __init__(self, bundle_root: str, ckpt_path: str) -> None:
        self.metadata = in_bundle(Path(bundle_root) / "configs" / "metadata.json")
        self.weights = in_bundle(ckpt_path)
        self._model: Model | None = None

    def read(self) -> Model:
        """Return it; its sha256 is empty while there are no weights, as configs are looked at before training."""
        if self._model is None or not self._model.sha256:
            try:
                metadata = json.loads(self.metadata.read_text())
            except OSError as error:
                raise InputError(
                    f"{self.metadata} cannot be read ({error.strerror}): give the bundle's folder as --bundle_root"
                ) from error
            sha256 = sha256_of(self.weights) if self.weights.is_file() else ""
            self._model = Model(metadata["name"], metadata["version"], sha256, self._trained_on(metadata, sha256))
        return self._model

    def _trained_on(self, metadata: Mapping[str, Any], sha256: str) -> str:
        """Return what a release says of its own weights; of others it says nothing."""
        manifest = self.metadata.parents[1] / MANIFEST
        listed = json.loads(manifest.read_text()) if manifest.is_file() else {}
        return str(metadata["data_source"]) if listed.get("models/model.pt") == sha256 else ""


def _negative_name(given: int | str | None, names: tuple[str, ...]) -> str | None:
    """The name of the class without a finding. The command line cannot give null, so "none" says it too."""
    if given is None or (str(given).lower() == "none" and str(given) not in names):
        return None
    if str(given) in names:
        return str(given)
    if isinstance(given, int) and given in range(len(names)):
        return names[given]
    raise InputError(
        f"negative_class is {given!r}: give one of {', '.join(names)}, its number from 0, or none if every class is a "
        "finding"
    )


def _instances_of(data: Mapping[Hashable, Any], real: torch.Tensor) -> Sequence[Mapping[str, Any]]:
    if "stored_coords" not in data:
        instances: list[dict[str, Any]] = json.loads(data["instances"])
        return instances
    slide, x, y = data["stored_coords"][:, real.cpu()].numpy()
    return PatchCoordinates(np.stack([x, y], axis=1), slide)
