# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Active learning: the scan or slide whose label would tell the network most, that it is least certain of."""

import logging
import math
from typing import Any

from monailabel.interfaces.tasks.strategy import Strategy

READ_AT_A_TIME = 20  # of those that nobody has read yet, so that an answer comes within a minute
NAME = "smooth_mil"  # of what is remembered of an image

logger = logging.getLogger(__name__)


def certainty(told: dict[str, Any]) -> float:
    """Return how far an answer is from its call being another: in logits from the threshold, or of the likeliest class.

    Args:
        told: of one scan or slide, as the bundle answers a viewer.
    """
    if told.get("threshold") is None:
        first, second, *_ = sorted(told["classes"]["probabilities"].values(), reverse=True)
        return _logit(first) - _logit(second)
    return abs(_logit(told["probability"]) - _logit(told["threshold"]))


def _logit(probability: float) -> float:
    within = min(max(probability, 1e-9), 1 - 1e-9)
    return math.log(within / (1 - within))


def remember(datastore: Any, image: Any, model: str, told: dict[str, Any]) -> None:
    """Keep the certainty of an answer with its image, if it is one of the datastore's."""
    if isinstance(image, str) and image in datastore.list_images():
        weights = (told.get("model") or {}).get("sha256", "")
        about = {"model": model, "weights": weights, "certainty": certainty(told), "probability": told["probability"]}
        datastore.update_image_info(image, {NAME: about})


class LeastCertain(Strategy):
    """The unlabelled image that the network is least certain of; those not read yet are read first, some at a time.

    Args:
        app: which reads them.
    """

    def __init__(self, app: Any) -> None:
        super().__init__("the scan or slide that the network is least certain of")
        self.app = app

    def __call__(self, request: dict[str, Any], datastore: Any) -> dict[str, Any] | None:
        model = request.get("model") or self.app.bundles[0].name
        bundle = next(each for each in self.app.bundles if each.name == model)
        weights = bundle.sha256()
        known, unknown = {}, []
        for image in sorted(datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels"))):
            if not bundle.reads(datastore.get_image_uri(image)):
                continue
            about = datastore.get_image_info(image).get(NAME, {})
            if (about.get("model"), about.get("weights")) == (model, weights):
                known[image] = about["certainty"]
            else:
                unknown.append(image)
        for number, image in enumerate(unknown[:READ_AT_A_TIME], 1):
            logger.info("reading %d of %d that nobody has read yet", number, min(len(unknown), READ_AT_A_TIME))
            try:
                told = self.app.infer({"model": model, "image": image, "result_write_to_file": False})["params"]
                known[image] = certainty(told)
            except Exception as error:  # one that cannot be read is no reason to propose none
                logger.warning("%s cannot be read: %s", image, error)
        if not known:
            return None
        image = min(known, key=lambda each: known[each])
        return {"id": image, "certainty": known[image], "read": len(known), "not_read_yet": len(unknown)}
