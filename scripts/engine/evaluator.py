# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Evaluators and inferers of bags: a cohort is read to its end, and a network is asked for more than its logits."""

import ctypes
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any

from ignite.engine import Events
from monai.data import Dataset
from monai.engines import PrepareBatch, SupervisedEvaluator
from monai.inferers import Inferer
from monai.transforms import MapTransform
from monai.utils import convert_to_tensor
from torch import Tensor

from scripts.core.errors import InputError, input_error_message, is_empty_bag
from scripts.core.scoring import ATTENTION, INSTANCE, SOURCES, TOLD, score_name, smoothing_strength
from scripts.networks.mil import BagPrediction
from scripts.networks.smooth import LARGEST_ALPHA, SmoothOperator
from scripts.networks.streaming import predict_in_blocks

# The keys under which a bag carries why there is no result of it.
FAILED = "failed"
OF_INSTANCES = ("scores", "attention", *TOLD)  # what may be told of each
EMPTY = "empty"  # as of a slide without tissue: no fault
OF_NETWORK = {"coords", "mask"}  # what it takes besides the image
LARGE_BAG = 2**18  # instances: of more, speed matters less than memory

Answer = dict[str, Tensor]
Told = tuple[dict[str, Answer]]


class ReadableBags(Dataset):
    """A dataset in which a bag that cannot be read is {"bag_id", "failed"}, and an empty one is {"bag_id", "empty"}.

    Give its loader batches of one.
    """

    def _transform(self, index: int) -> Any:
        try:
            return super()._transform(index)
        except Exception as error:
            return {"bag_id": self.data[index]["bag_id"], **_reason(error)}


class BagEvaluator(SupervisedEvaluator):
    """An evaluator that passes on a failed or an empty bag as it is, and accepts an empty cohort."""

    def run(self) -> None:  # type: ignore[override]
        if len(self.data_loader) > 0:  # type: ignore[arg-type]
            super().run()
        else:
            for event in (Events.EPOCH_STARTED, Events.EPOCH_COMPLETED):
                self.fire_event(event)  # all is already there: report it

    def _iteration(self, engine: Any, batchdata: dict[str, Any]) -> Any:
        for key in (FAILED, EMPTY):
            if key in batchdata:
                return [{"bag_id": batchdata["bag_id"][0], key: batchdata[key][0]}]
        try:
            return super()._iteration(engine, batchdata)
        except Exception as error:
            return [{"bag_id": batchdata["bag_id"][0], **_reason(error)}]


def _reason(error: Exception) -> dict[str, str]:
    """Why there is no result of bad input; any other error is a fault of the program and is raised again."""
    message = input_error_message(error)
    if message is None:
        raise error
    return {EMPTY if is_empty_bag(error) else FAILED: message}


class BagInferer(Inferer):
    """An inferer that gives what a network says as ({"pred": answer},), for `AnswerOfBagd`.

    MONAI Deploy takes the first of what an inferer gives, and a dictionary for all that there is. The answer's keys are
    `logits`, of the instances `scores` and `attention`, `evidence`, `instance_logits` and `leave_one_out` where the
    network tells them, `bias` with the evidence, and where the score that ranks and flags is smoothed, `score_values`,
    of which it is made.

    Args:
        score: one of scripts.core.scoring; attention where the network does not tell it.
        score_smoothing: α with which the values of the score are smoothed along the neighbours of the bag; 0 = none. A
            network without neighbours leaves them as they are.
    """

    def __init__(self, score: str = INSTANCE, score_smoothing: float = 0.0) -> None:
        super().__init__()
        self.score = score_name(score)
        alpha = smoothing_strength(score_smoothing)
        self.smooth = SmoothOperator(min(alpha, LARGEST_ALPHA), mode="exact") if alpha else None

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Told:
        inner: Any = getattr(network, "module", network)  # DDP wraps the network, and evaluation needs no DDP
        named = {name: kwargs[name] for name in OF_NETWORK & kwargs.keys()}  # MONAI Deploy gives every tensor of a bag
        image = convert_to_tensor(inputs, track_meta=False)  # TorchScript returns no named tuple of a MetaTensor
        return ({"pred": self.as_dictionary(inner.predict(image, *args, **named), inputs.shape[-1])},)

    def as_dictionary(self, prediction: BagPrediction, instances: int) -> Answer:
        """Return what is known of the bags and of their first instances: slots say something of the empty ones too."""
        of_instances = {name: getattr(prediction, name) for name in OF_INSTANCES}
        known: dict[str, Tensor] = {name: values for name, values in of_instances.items() if values is not None}
        values = known.get(SOURCES[self.score], known[SOURCES[ATTENTION]])  # [B, 1 or C, N]
        if self.smooth is not None and prediction.graph.neighbours.shape[1] > 0:
            known["score_values"] = self.smooth.to(values.device).evenly(values, prediction.graph)
        told = {"logits": prediction.logits, **{name: of[..., :instances] for name, of in known.items()}}
        if "evidence" in known:
            told["bias"] = prediction.logits - known["evidence"].sum(dim=2)  # [B, C]
        return told


class AnswerOfBagd(MapTransform):
    """Put what the inferer told of a bag beside the bag's other entries: `logits` [C], `attention` [1, N] and so on.

    An evaluator takes batches apart, and then a bag has a list of what an inferer gave. MONAI Label and MONAI Deploy,
    which read one bag at a time, leave it a batch of one; the second has the answer itself under the key.

    Args:
        keys: the answer.
        allow_missing_keys: whether a bag may lack it.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            given = item.pop(key)
            of_batch = isinstance(given, Mapping)
            answer = given if of_batch else given[0]
            answer = answer.get(key, answer)
            item.update({name: values[0] if of_batch else values for name, values in answer.items()})
        return item


def give_back_blocks(least: int) -> None:
    """Have glibc return so many bytes or more as soon as they are free; else they stay taken while less lies behind."""
    with suppress(OSError, AttributeError, TypeError):  # where there is another C library
        glibc = ctypes.CDLL(None)
        glibc.mallopt(-3, least)  # M_MMAP_THRESHOLD
        glibc.malloc_trim(0)


class PrepareBagInBlocks(PrepareBatch):
    """A batch of one bag whose `image` is a path: its coords and mask go to the device, its features stay on disk."""

    def __call__(
        self, batchdata: Mapping[str, Any], device: Any = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[Sequence[str], Any, tuple[()], dict[str, Tensor]]:
        named = {key: batchdata[key].to(device=device, non_blocking=non_blocking) for key in ("coords", "mask")}
        return batchdata["image"], batchdata.get("label"), (), named


class StreamingInferer(BagInferer):
    """An inferer that answers as ``BagInferer`` does for a bag too large for memory, whose features it reads in blocks.

    It has the process give memory back sooner, for as long as that lasts.

    Args:
        read: (path, size) → opened while it answers, of which each call yields the blocks [1, D, n] of a bag.
        block_size: instances in memory at a time.
        score, score_smoothing: as of `BagInferer`.
    """

    def __init__(
        self,
        read: Callable[[str, int], AbstractContextManager[Callable[[], Iterable[Tensor]]]],
        block_size: int = 2048,
        score: str = INSTANCE,
        score_smoothing: float = 0.0,
    ) -> None:
        super().__init__(score, score_smoothing)
        if block_size < 1:
            raise InputError(f"block_size is {block_size}: give 1 or more")
        self.read = read
        self.block_size = block_size
        give_back_blocks(2**20)

    def __call__(  # type: ignore[override]
        self, inputs: Sequence[str], network: Any, *, coords: Tensor, mask: Tensor
    ) -> Told:
        (path,) = inputs
        inner: Any = getattr(network, "module", network)
        give_back_blocks(2**20 if mask.shape[2] > LARGE_BAG else 2**25)  # the second is the most glibc keeps by itself
        with self.read(path, self.block_size) as blocks:
            prediction = predict_in_blocks(inner, lambda: (block.to(mask.device) for block in blocks()), mask, coords)
        return ({"pred": self.as_dictionary(prediction, mask.shape[2])},)
