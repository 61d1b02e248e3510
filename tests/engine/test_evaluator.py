# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""A cohort is read to its end, whatever one of its bags is like; a bag's answer is that of the network."""

from collections.abc import Callable, Hashable, Iterable
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, decollate_batch
from monai.transforms import Compose, Lambdad
from torch import Tensor

from scripts.core.errors import EmptyBagError, InputError
from scripts.engine.evaluator import (
    Answer,
    AnswerOfBagd,
    BagEvaluator,
    BagInferer,
    PrepareBagInBlocks,
    ReadableBags,
    StreamingInferer,
    Told,
)  # fmt: skip
from scripts.networks import MILNetwork
from tests.networks.compositions import COMPOSITIONS, FEATURES, OF_INSTANCES, dense, network

REFUSED = {2: InputError("two is broken: copy it again"), 6: EmptyBagError("six has no tissue"), 4: ZeroDivisionError()}


def load(value: int) -> torch.Tensor:
    if value in REFUSED:
        raise REFUSED[value]
    return torch.full((1, 3), float(value))


def judge(data: dict[str, Any]) -> dict[str, Any]:
    if data["image"].max() == 3:
        raise InputError("three cannot be written: make room")
    return data


def outputs(*values: int, workers: int = 0) -> list[Any]:
    """What an evaluator of a network that changes nothing gives of bags of these values."""
    data = [{"bag_id": f"bag_{value}", "image": value, "label": 0} for value in values]
    loader = DataLoader(ReadableBags(data, Lambdad("image", load)), batch_size=1, num_workers=workers)
    engine = BagEvaluator(torch.device("cpu"), loader, torch.nn.Identity(), postprocessing=Compose([judge]))
    seen: list[Any] = []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: seen.extend(e.state.output))
    engine.run()
    return seen


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_bag_that_is_empty_or_cannot_be_read_or_judged_is_reported_and_the_others_are_read(workers: int) -> None:
    seen = outputs(0, 2, 1, 3, 6, 5, workers=workers)
    assert [float(bag["pred"].max()) if "pred" in bag else bag for bag in seen] == [
        0,
        {"bag_id": "bag_2", "failed": "two is broken: copy it again"},
        1,
        {"bag_id": "bag_3", "failed": "three cannot be written: make room"},
        {"bag_id": "bag_6", "empty": "six has no tissue"},
        5,
    ]


def test_a_fault_of_the_program_is_not_hidden() -> None:
    with pytest.raises(RuntimeError) as raised:
        outputs(0, 4)
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


def answer(given: Told) -> Answer:
    """As MONAI Deploy finds it: the first, and in it `pred`."""
    assert len(given) == 1
    assert list(given[0]) == ["pred"]
    return given[0]["pred"]


def a_batch(net: MILNetwork) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, FEATURES, 4, generator=generator)
    coords = torch.arange(4.0).expand(2, max(net.spatial_dims, 1), 4)
    mask = torch.tensor([[[1.0, 1, 1, 1]], [[1.0, 1, 1, 0]]])
    return image, coords, mask


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_the_answer_is_the_networks_prediction(name: str) -> None:
    net = network(name)
    image, coords, mask = a_batch(net)
    got = answer(BagInferer()(image, net, coords=coords, mask=mask, volume=image))  # Deploy gives all tensors
    wanted = net.predict(image, coords, mask)
    told = {name for name in OF_INSTANCES if getattr(wanted, name) is not None}
    assert got.keys() == {"logits", *told, *(["bias"] if "evidence" in told else [])}
    torch.testing.assert_close(got["logits"], wanted.logits, atol=0, rtol=0)
    for key in told:  # of the bag alone, where the network fills it up
        torch.testing.assert_close(got[key], getattr(wanted, key)[..., :4], atol=0, rtol=0)


@pytest.mark.parametrize("name", ["gated, chain", "smooth early, lattice", "instance mean"])
def test_the_answer_in_blocks_is_the_answer(name: str) -> None:
    net = network(name)
    image, coords, mask = (one[:1] for one in a_batch(net))

    def read(path: str, size: int) -> AbstractContextManager[Callable[[], Iterable[Tensor]]]:
        assert path == "a.h5"
        return nullcontext(lambda: image.split(size, dim=2))

    with pytest.raises(InputError, match="block_size is 0: give 1 or more"):
        StreamingInferer(read, block_size=0)
    batch = {"image": ["a.h5"], "coords": coords, "mask": mask, "label": None}
    inputs, _, args, kwargs = PrepareBagInBlocks()(batch)
    got = answer(StreamingInferer(read, block_size=3)(inputs, net, *args, **kwargs))
    wanted = answer(BagInferer()(image, net, coords, mask))
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-5)


def test_neither_ddp_nor_training_mode_changes_the_answer() -> None:
    """DDP keeps the network as its `module`; `forward` gives a network in training another type."""
    net = network("gated, chain")
    image, coords, mask = a_batch(net)
    wanted = answer(BagInferer()(image, net, coords, mask))
    for given in (SimpleNamespace(module=net), net.train()):
        got = answer(BagInferer()(image, given, coords, mask))  # type: ignore[arg-type]
        torch.testing.assert_close(got, {name: wanted[name] for name in got})


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_the_bias_is_what_no_instance_gives(name: str) -> None:
    net = network(name)
    image, coords, mask = a_batch(net)
    got = answer(BagInferer()(image, net, coords=coords, mask=mask))
    if "evidence" in got:  # of slots too, which are no instances
        whole = net.predict(image, coords, mask).evidence
        torch.testing.assert_close(got["bias"] + whole.sum(dim=2), got["logits"])
        nothing = net.head(torch.zeros(1, 8)).expand_as(got["bias"])
        torch.testing.assert_close(got["bias"], nothing, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["smooth mid, chain", "smooth early, exact lattice", "gated, chain"])
def test_smoothed_values_solve_the_equation_of_sm_for_a_random_walk(name: str) -> None:
    """(1 - α)(I - α D^-1 A)^-1 u, by a dense solution: what is equal everywhere stays as it is."""
    net = network(name)
    image, coords, mask = (one[:1] for one in a_batch(net))
    smoothed = answer(BagInferer("evidence", 0.7)(image, net, coords, mask))
    adjacency = dense(net.predict(image, coords, mask).graph).double()
    degree = adjacency.sum(dim=1)
    system = torch.eye(4, dtype=torch.double) - 0.7 * adjacency / degree.clamp(min=1e-12)[:, None]
    plain = smoothed["evidence"][0].double()
    wanted = torch.where(degree > 0, 0.3 * torch.linalg.solve(system, plain.T).T, plain)
    torch.testing.assert_close(smoothed["score_values"][0].double(), wanted, atol=1e-5, rtol=1e-4)


def test_what_cannot_be_scored_or_smoothed_is_told_in_one_line() -> None:
    with pytest.raises(InputError, match="give --score instance, evidence, attention or 'attention x probability'"):
        BagInferer("atention")
    for alpha in (1, -0.1, True, "much"):
        with pytest.raises(InputError, match=r"give --score_smoothing from 0 \(none\) to below 1"):
            BagInferer(score_smoothing=alpha)  # type: ignore[arg-type]
    net = network("gated")
    assert "score_values" not in answer(BagInferer(score_smoothing=0.5)(a_batch(net)[0], net))  # without neighbours


def test_an_answer_is_put_beside_the_bag_whether_or_not_its_batch_was_taken_apart() -> None:
    answer = {"logits": torch.tensor([[1.0, 2.0]]), "attention": torch.full((1, 1, 3), 1 / 3)}
    bag: dict[Hashable, Any] = {"bag_id": "a"}
    (apart,) = decollate_batch({"bag_id": ["a"], "pred": ({"pred": answer},)})
    by_label, by_deploy = {**bag, "pred": {"pred": answer}}, {**bag, "pred": answer}
    for given in (apart, by_label, by_deploy):
        got = AnswerOfBagd("pred")(given)
        assert got.keys() == {"bag_id", "logits", "attention"}
        assert (got["bag_id"], got["logits"].tolist(), got["attention"].shape) == ("a", [1.0, 2.0], (1, 3))
