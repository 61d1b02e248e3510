# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Bad input in the place where a user meets it: the whole pipeline of a config, up to the message it ends with."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from matplotlib.figure import Figure
from monai.bundle import ConfigParser

from scripts.core.record import BagResult
from scripts.ct.outputs.picture import draw_scan
from tests.bundle.commands import bundle, contents, message_of, run_here, write_cohort
from tests.ct.series import phantom
from tests.ct.volumes import write_volume
from tests.outputs.results import table

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ct")]

SMALL: dict[str, Any] = {"image_size": 32, "channels": [8, 8], "num_workers": 0}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("bad"), "ct")


@pytest.fixture
def scan(cohort: Path, tmp_path: Path) -> Path:
    """A copy of one good scan, to be spoiled."""
    return Path(shutil.copytree(cohort / "scans" / "scan_000", tmp_path / "input" / "scan"))


@pytest.fixture
def keys(scan: Path, tmp_path: Path) -> dict[str, Any]:
    """Those of an inference on the folder of the scan, which writes to `out`."""
    weights = tmp_path / "model.pt"
    parser = ConfigParser({**json.loads((bundle("ct") / "configs" / "inference.json").read_text()), **SMALL})
    torch.save(parser.get_parsed_content("network_def").state_dict(), weights)
    places = {"dataset_dir": str(scan.parent), "ckpt_path": str(weights), "output_dir": str(tmp_path / "out")}
    return {**SMALL, **places}


def test_a_good_scan_is_read_and_one_truncated_file_is_left_out_with_its_name(
    keys: dict[str, Any], scan: Path, tmp_path: Path
) -> None:
    uids = {file: pydicom.dcmread(file, stop_before_pixels=True).SOPInstanceUID for file in scan.iterdir()}
    victim = sorted(scan.iterdir())[7]
    whole = victim.read_bytes()
    for content, lost in ((whole, set()), (whole[:100_000], {uids[victim]})):
        victim.write_bytes(content)
        out = tmp_path / f"out_{len(lost)}"
        run_here("ct", ["inference"], **{**keys, "output_dir": str(out)})
        of_scan = ["scan/flagged.nrrd", "scan/report.dcm", "scan/result.json", "scan/slices.png"]
        assert list(contents(out)) == ["instances.csv", *of_scan, "summary.csv"]
        result = json.loads((out / "scan" / "result.json").read_text())
        rows = result["instances"]
        assert {row["id"] for row in rows} == set(uids.values()) - lost
        assert [row["position_mm"] for row in rows] == sorted(row["position_mm"] for row in rows)
        assert any(victim.name in warning for warning in result["about"]["warnings"]) == bool(lost)
        assert (victim.name in (out / "summary.csv").read_text()) == bool(lost)


def test_a_spoiled_scan_among_good_ones_ends_nothing_and_a_second_run_does_what_is_left(
    keys: dict[str, Any], scan: Path, tmp_path: Path
) -> None:
    out, broken = tmp_path / "out", scan.with_name("broken")
    shutil.copytree(scan, broken)
    for file in sorted(broken.iterdir())[:5]:
        file.write_bytes(file.read_bytes()[:100_000])
    message = message_of("ct", ["inference"], **keys)
    assert message.startswith("1 of 2 failed: ")
    assert "copy the scan again" in message
    assert not (out / "broken").exists()
    assert [row["status"] for row in table(out / "summary.csv")] == ["done", "failed"]

    first = (out / "scan" / "result.json").stat().st_mtime_ns
    shutil.rmtree(broken)
    shutil.copytree(scan, broken)
    run_here("ct", ["inference"], **keys)
    assert (out / "scan" / "result.json").stat().st_mtime_ns == first
    assert [row["status"] for row in table(out / "summary.csv")] == ["done", "done"]
    assert {row["bag_id"] for row in table(out / "instances.csv")} == {"broken", "scan"}

    run_here("ct", ["inference"], **keys, threshold=0.01)  # another result: all anew
    assert (out / "scan" / "result.json").stat().st_mtime_ns > first


def test_a_name_in_latin_1_and_a_scan_that_cannot_be_drawn_end_nothing_either(
    keys: dict[str, Any], scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (b"caf\xe9", b"undrawn", b"\x1b[31mred"):
        shutil.copytree(scan, scan.with_name(os.fsdecode(name)))
    (scan.parent / "broken.nii.gz").write_bytes(b"nothing")

    def draw(result: BagResult, *rest: Any) -> Figure:
        if result.bag_id == "undrawn":
            raise UnicodeEncodeError("utf-8", "Smith", 0, 1, "not drawn")
        return draw_scan(result, *rest)

    monkeypatch.setattr("scripts.ct.outputs.picture.draw_scan", draw)
    message = message_of("ct", ["inference"], **keys)
    assert message.startswith("3 of 5 failed: ")
    assert "(and 2 more, see summary.csv); correct and run again" in message
    rows = {row["bag_id"]: row for row in table(tmp_path / "out" / "summary.csv")}
    assert {name: row["status"] for name, row in rows.items()} == {
        "%1B[31mred": "done", "scan": "done", "broken": "failed", "caf%E9": "failed", "undrawn": "failed",
    }  # fmt: skip
    folder = scan.parent
    assert rows["broken"]["error"] == f"{folder}/broken.nii.gz cannot be read as NIfTI: copy or convert it again"
    assert rows["caf%E9"]["error"] == f"{folder}/caf%E9 has a name that is not in UTF-8: rename it"
    why = "undrawn cannot be drawn or written (UnicodeEncodeError in DrawScand, test_bad_input.py line "
    assert rows["undrawn"]["error"].startswith(why)
    assert rows["undrawn"]["error"].endswith("a fault of the program, please report this line")
    assert sorted(path.parent.name for path in (tmp_path / "out").glob("*/result.json")) == ["%1B[31mred", "scan"]


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_what_is_no_head_ct_is_warned_of_or_refused(keys: dict[str, Any], scan: Path, suffix: str) -> None:
    out, head = Path(keys["output_dir"]), phantom(12, 32).transpose(2, 1, 0).astype(np.float32)
    shutil.rmtree(scan)
    spacing, small = np.diag([6.0, 6.0, 5.0, 1.0]), np.diag([2.0, 2.0, 5.0, 1.0])
    scans: dict[str, tuple[np.ndarray, np.ndarray]] = {
        "head": (head, spacing),
        "magnetic": (np.maximum(head + 1000, 0) / 2, spacing),
        "animal": (head, small),
        "scaled": (head + 1024, spacing),
        "mask": ((head > 0).astype(np.float32), spacing),
        "part": (head[..., :6], spacing),
    }
    for name, (array, affine) in scans.items():
        write_volume(scan.parent / f"{name}{suffix}", array, affine)
    run_here("ct", ["inference"], **keys)
    rows = {row["bag_id"]: row["warnings"] for row in table(out / "summary.csv")}
    untrained = "the threshold is the default, chosen on no data"
    assert rows.pop("head") == untrained
    assert rows.pop("part") == f"6 slices, few for a head; {untrained}"
    assert all(each.startswith("hardly a head CT in Hounsfield units: ") for each in rows.values()), rows
    size, rest = rows["animal"].split("; ")
    assert (size[-34:], rest) == ("a body, where a head has 40 to 400", untrained)
    message = message_of("ct", ["inference"], **keys, require_head_ct=True)
    assert message.startswith("4 of 6 failed: ")
    assert f"{scan.parent}/animal{suffix} is {size}: give a head CT in HU, or leave out require_head_ct" in message
    message = message_of("ct", ["inference"], **{**keys, "network_def#slots": 10, "score_smoothing": 0})
    assert f"{scan.parent}/animal{suffix} has 12 slices, and the network of these weights 10 slots: give" in message


def test_weights_of_another_network_and_results_that_cannot_be_written_are_refused(
    keys: dict[str, Any], tmp_path: Path
) -> None:
    other = message_of("ct", ["inference"], **{**keys, "channels": [4, 4]})
    assert "give the override files they were trained with" in other
    (tmp_path / "file").write_text("")
    unwritable = {**keys, "output_dir": str(tmp_path / "file" / "out")}
    assert "cannot write to" in message_of("ct", ["inference"], **unwritable)


def test_a_wrong_label_stops_training_with_one_line_and_no_file(cohort: Path, tmp_path: Path) -> None:
    content = json.loads((cohort / "datalist.json").read_text())
    content["training"][1]["label"] = 3
    (tmp_path / "datalist.json").write_text(json.dumps(content))
    places = {"ckpt_dir": str(tmp_path / "models"), "output_dir": str(tmp_path / "out")}
    datalist = str(tmp_path / "datalist.json")
    message = message_of("ct", ["train", "small"], dataset_dir=str(cohort), datalist=datalist, **places, **SMALL)
    assert "has the label 3, which is not one of the classes" in message
    assert {**contents(tmp_path / "models"), **contents(tmp_path / "out")} == {}


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("score", "atention", "give --score instance, evidence, attention or 'attention x probability'"),
        ("picture_score", "heat", "give --picture_score instance, evidence, attention or 'attention x probability'"),
        ("score_smoothing", -1, "give --score_smoothing from 0 (none) to below 1"),
    ],
)
def test_a_score_that_is_not_known_is_told(keys: dict[str, Any], key: str, value: Any, said: str) -> None:
    message = message_of("ct", ["inference"], **{"score_smoothing": 0.5, **keys, key: value})
    assert said in message
