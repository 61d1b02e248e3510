# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Writers run one after the other, and MONAI Label and MONAI Deploy can tell them from what answers."""

import dataclasses
import errno
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import pytest
from monai.transforms import SaveImaged

from scripts.core.errors import InputError
from scripts.outputs.report import ResultsFolder, input_of
from scripts.outputs.result_json import SaveResultd
from scripts.outputs.writers import SaveImageResultsd, Writer, with_warnings
from tests.outputs.results import result
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


def test_a_fault_of_a_writer_is_one_bags_failure_told_without_what_it_quotes_and_bad_input_keeps_its_words() -> None:
    def refuse(data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        raise error

    given: dict[Hashable, Any] = {"bag_id": "scan 7"}
    error: Exception = KeyError("Smith^John")
    where = r"KeyError in function, test_writers.py line \d+"
    told = rf"^scan 7 cannot be drawn or written \({where}\): a fault of the program, please report this line$"
    with pytest.raises(InputError, match=told):
        SaveImageResultsd([adding("one", []), refuse])(given)
    error = InputError("cannot write a.png: make room")
    with pytest.raises(InputError, match=r"^cannot write a.png: make room$"):
        SaveImageResultsd([refuse])(given)


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (PermissionError(errno.EACCES, "Smith^John"), r"\(Permission denied\): see that .* give another --output_dir"),
        (OSError(errno.EDQUOT, "Smith^John"), r"\(Disk quota exceeded\): see that .* give another --output_dir"),
        (OSError(errno.EROFS, "Smith^John"), r"\(Read-only file system\): see that .* give another --output_dir"),
        (MemoryError(), r"\(out of memory\): end other programs, or read it elsewhere"),
        (OSError("Smith^John"), r"\(OSError in .*\): a fault of the program, please report this line"),
    ],
)
def test_what_the_system_refuses_is_no_fault_of_the_program(error: Exception, why: str) -> None:
    def refuse(data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        raise error

    with pytest.raises(InputError, match=f"^scan 7 cannot be drawn or written {why}$"):
        SaveImageResultsd([refuse])({"bag_id": "scan 7"})


def test_a_bag_whose_files_another_run_began_to_replace_is_done_again(tmp_path: Path) -> None:
    bag = {"bag_id": "a", "image": "scans/a"}
    data: dict[Hashable, Any] = {"bag_id": "a", "bag_result": result("a", 0.1, [1.0], 0), "input": input_of(bag)}

    def draw(data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        assert not (tmp_path / "a" / "result.json").exists()
        return dict(data)

    def refuse(data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        raise KeyError("report")

    def left(recipe: str) -> int:
        return len(ResultsFolder(str(tmp_path), [bag], recipe).unfinished())

    SaveImageResultsd([draw, SaveResultd(str(tmp_path), "A")])(data)
    assert (left("A"), left("B")) == (0, 1)
    with pytest.raises(InputError, match="KeyError"):
        SaveImageResultsd([draw, refuse, SaveResultd(str(tmp_path), "B")])(data)
    assert (left("A"), left("B")) == (1, 1)


def test_a_warning_is_added_once_and_the_result_that_was_given_stays_as_it_was() -> None:
    warned = dataclasses.replace(result("a", 0.1, [1.0], 0), about={"tilt": 1, "warnings": ["a"]})
    data: dict[Hashable, Any] = {"bag_result": warned, "other": 1}
    assert with_warnings(data, ["a"]) == data
    added = with_warnings(data, ["b", "a", "b"])
    assert (added["bag_result"].about, added["other"]) == ({"tilt": 1, "warnings": ["a", "b"]}, 1)
    assert warned.about["warnings"] == ["a"]


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
