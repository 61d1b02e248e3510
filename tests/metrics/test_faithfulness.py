# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Parts of a bag get the answer of the network on them alone, and the measures are those written out by hand."""

from collections.abc import Hashable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from scripts.core.errors import InputError
from scripts.core.record import BagResult, Classes
from scripts.core.scoring import Asked, scored
from scripts.metrics.faithfulness import (
    MeasureFaithfulness,
    encoded_once,
    faithfulness_columns,
    faithfulness_in,
    logits_of_parts,
)
from scripts.metrics.summary import cohort_metrics
from scripts.networks import Ensemble, Features, MeanPool, MILNetwork
from tests.networks.compositions import NETWORKS, dims_of, network
from tests.outputs.results import result


@pytest.mark.parametrize("name", [*NETWORKS, "ensemble"])
def test_a_part_is_answered_as_a_bag_of_its_own_and_instances_are_encoded_once(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    net: Any = network("smooth mid, chain" if name == "ensemble" else name)
    if name == "ensemble":
        net = Ensemble(lambda: net, 2).eval()
        nn.init.normal_(net.members[1].head.weight)
    image = torch.randn(1, 6, 12)
    coords = torch.stack([torch.arange(12.0) % 4, torch.arange(12) // 4])[None, : dims_of(net)]
    if dims_of(net) == 1:
        coords = torch.arange(12.0).square()[None, None]
    kept = [np.array([0, 1, 3, 7, 8]), np.arange(12), np.array([4]), np.array([0, 10])]  # the last two do not touch
    parts = [member for member in net.modules() if isinstance(member, MILNetwork) and member.slots is None]
    before, called = [part.encoder for part in parts], []
    hooks = [encoder.register_forward_hook(lambda *_: called.append(1)) for encoder in before]
    with torch.no_grad(), encoded_once(net, image, torch.ones(1, 1, 12)) as instances:
        got = logits_of_parts(net, instances, coords, kept)
        monkeypatch.setattr("scripts.metrics.faithfulness.AT_ONCE", 6)
        few_at_once = logits_of_parts(net, instances, coords, kept)
    assert len(called) == len(before) == len(hooks)
    assert [part.encoder for part in parts] == before
    assert not any(part.edgeless for part in parts)
    with torch.no_grad():
        for part in net.modules():
            part.edgeless = True
        wanted = torch.cat([net.predict(image[..., which], coords[..., which]).logits for which in kept])
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(few_at_once, wanted, atol=1e-5, rtol=1e-4)


def mean_network() -> MILNetwork:
    """The logit is the mean of the one feature of the instances."""
    head = nn.Linear(1, 1, bias=False)
    nn.init.ones_(head.weight)
    return MILNetwork(Features(1), MeanPool(), head).eval()


def measured(
    values: list[float], judged: BagResult, net: nn.Module | None = None, **scores: Any
) -> dict[str, dict[str, float]]:
    given = {"image": torch.tensor([values]), "coords": torch.arange(float(len(values)))[None]}
    given["mask"] = torch.ones(1, len(values))
    bag: dict[str, Any] = {"bag_result": replace(judged, **scores)}
    state = SimpleNamespace(batch=[given], output=[bag])
    engine: Any = SimpleNamespace(network=net or mean_network(), state=state)
    MeasureFaithfulness((2.0, 0.5)).measure(engine)
    found: dict[str, dict[str, float]] = bag["bag_result"].about.get("faithfulness", {})
    return found


def test_the_measures_are_those_of_the_curves_written_out() -> None:
    values = [3.0, -1.0, 0.5, -2.0]  # of 4 instances, k/20 rounded up keeps 1, 2, 3 and 4 five times each
    judged = replace(result("a", 0.8, values, None), threshold=0.75)
    upwards = np.array(values)
    found = measured(values, judged, attention=np.full(4, 0.25), evidence=upwards, leave_one_out=-upwards)
    highest = [np.mean(sorted(values)[-k:]) for k in (1, 2, 3, 4)]
    lowest = [np.mean(sorted(values)[:k]) for k in (1, 2, 3, 4)]
    up, down = (float(np.mean(1 / (1 + np.exp(-(2.0 * np.array(each) + 0.5))))) for each in (highest, lowest))
    assert found["evidence"] == pytest.approx({"deletion": down, "insertion": up, "sufficient": 1 / 4}, abs=1e-6)
    assert found["leave_one_out"] == pytest.approx({"deletion": up, "insertion": down, "sufficient": 1}, abs=1e-6)
    assert found["attention"] == found["random"]  # all alike: in no order either
    assert down < found["random"]["deletion"] < up


def test_of_several_classes_it_is_the_one_that_is_called_in_the_order_that_is_reported() -> None:
    head = nn.Linear(1, 3, bias=False)
    head.weight.data[:] = torch.tensor([[0.0], [1.0], [-1.0]])
    net = MILNetwork(Features(1), MeanPool(), head).eval()
    classes = Classes(("n", "up", "down"), np.array([0.2, 0.7, 0.1]), negative="n")
    judged = replace(result("a", 0.8, [0.0] * 2, None), threshold=None, classes=classes)
    up = np.array([1.0, 0.5], dtype=np.float32)  # highest where "n", against which it is told, is higher still
    of_classes = torch.tensor(np.array([[3.0, -1.0], up, [0.0, 0.0]], dtype=np.float32))
    given: dict[Hashable, Any] = {"scores": of_classes, "attention": torch.full((3, 2), 0.5)}
    given |= {"evidence": of_classes, "bias": torch.zeros(3)}
    asked = Asked("evidence", 0.0, 0.8, None, finding=1, against=0)
    told = scored(given, torch.ones(2, dtype=torch.bool), asked)
    found = measured([2.0, -1.0], replace(judged, **told), net)
    p = [float(torch.softmax(2.0 * torch.tensor([0.0, x, -x]), 0)[1]) for x in (2.0, 0.5, -1.0)]
    wanted = {"insertion": (p[2] + p[1]) / 2, "deletion": (p[0] + p[1]) / 2, "sufficient": 1.0}
    assert found["evidence"] == found["score"] == pytest.approx(wanted)


def test_a_negative_bag_claims_no_place_and_a_bag_in_blocks_is_refused() -> None:
    negative = result("a", 0.2, [0.0] * 2, 1)
    assert measured([1.0, 2.0], negative, evidence=np.zeros(2)) == {}
    state = SimpleNamespace(batch=[{"image": "a.h5"}], output=[{"bag_result": result("a", 0.9, [0.0], 1)}])
    engine: Any = SimpleNamespace(network=mean_network(), state=state)
    with pytest.raises(InputError, match=r"wants the whole bag in memory: evaluate without streaming.json"):
        MeasureFaithfulness().measure(engine)


def test_figures_need_no_label_and_a_table_keeps_what_they_are_made_of() -> None:
    one = {"attention": {"deletion": 0.5, "insertion": 0.6, "sufficient": 0.2}}
    bags = []
    for number in range(4):
        evidence = {"deletion": 0.3 + number / 10, "insertion": 0.9, "sufficient": 0.1}
        bag = replace(result(f"b{number}", 0.9, [0.0] * 3, None), about={"faithfulness": {**one, "evidence": evidence}})
        row = {name: str(value) for name, value in faithfulness_columns(bag).items()}
        assert faithfulness_in({**row, "probability": "0.9", "deletion(other)": ""}) == bag.about
        bags.append(bag)
    found = cohort_metrics([*bags, result("c", 0.2, [0.0], None)])
    assert {name.split("_")[0] for name in found} == {"faithfulness"}
    assert found["faithfulness_deletion_evidence"].value == pytest.approx(0.45)
    assert found["faithfulness_deletion_evidence_less_attention"].value == pytest.approx(-0.05)
    assert found["faithfulness_deletion_evidence_less_attention"].low < -0.05
    assert found["faithfulness_insertion_attention"].value == pytest.approx(0.6)
    assert faithfulness_columns(result("c", 0.2, [0.0], None)) == faithfulness_in({"p": "1"}) == {}
