# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Writers run one after the other, and MONAI Label and MONAI Deploy can tell them from what answers."""

from collections.abc import Hashable, Mapping
from typing import Any

import pytest
from monai.transforms import SaveImaged

from scripts.outputs.writers import SaveImageResultsd, Writer
from tests.shared_data import ROOT
from tests.test_configs import content


def adding(name: str, seen: list[Any]) -> Writer:
    def write(data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        seen.append((name, dict(data)))
        return {**data, name: True}

    return write


def test_each_writer_gets_what_the_one_before_returned() -> None:
    seen: list[Any] = []
    given: dict[Hashable, Any] = {"bag_id": "a"}
    got = SaveImageResultsd([adding("one", seen), adding("two", seen)])(given)
    assert seen == [("one", {"bag_id": "a"}), ("two", {"bag_id": "a", "one": True})]
    assert (got, given) == ({"bag_id": "a", "one": True, "two": True}, {"bag_id": "a"})


@pytest.mark.parametrize("wing", ["ct", "wsi"])
def test_whatever_a_run_writes_of_a_bag_is_in_the_one_transform_that_viewers_leave_out(wing: str) -> None:
    assert issubclass(SaveImageResultsd, SaveImaged)  # MONAI Label
    assert "SaveImage" in SaveImageResultsd.__name__  # MONAI Deploy
    steps = content(ROOT / "configs" / wing / "inference.json")["postprocessing"]["transforms"]
    last = steps.pop()
    assert last["_target_"] == "scripts.outputs.writers.SaveImageResultsd"
    assert all("output_dir" in each for each in last["writers"])
    assert not any("output_dir" in each for each in steps)
    assert last["writers"][-1]["_target_"].endswith("SaveResultd")  # which says that the bag is done
