# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""docs/reproduce.md on made-up folders of the shape that each data set is downloaded in: what makes its datalists."""

import json
import re
import runpy
import shlex
from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path

import fire
import pytest

from scripts.__main__ import VERBS
from scripts.datalist.split import Label
from tests.ct.datalist.test_cq500 import case, write_reads
from tests.ct.rsna_cohort import write_rsna_cohort
from tests.shared_data import ROOT
from tests.test_docs import commands
from tests.wsi.foreign_features import own, write

PAGE = ROOT / "docs" / "reproduce.md"
Labels = Counter[Label]  # of all bags


def rsna(folder: Path) -> Labels:
    return Counter(int(scan.positive) for scan in write_rsna_cohort(folder, series=8, slices=10, image_size=16))


def cq500(folder: Path) -> Labels:
    votes = {number: (1, number % 2, 0) for number in range(4)}
    for number in votes:
        case(folder, number)
    write_reads(folder, votes)
    return Counter(sum(three) // 2 for three in votes.values())


def camelyon16(folder: Path) -> Labels:
    names = [f"{kind}_{number:03d}" for kind, number in product(("normal", "tumor", "test"), range(1, 11))]
    for name in names:
        write(folder / "images" / f"{name}.tif")
        own(folder / "features" / f"{name}.h5")
    write(folder / "annotations" / "tumor_001.xml")
    told = ["test_001,Tumor,IDC,Macro", "test_002.tif,micro,Tumor,1"]  # as older and newer copies have it
    told += [f"{name},Normal,None,None" for name in names[22:26]] + [f"{name}.tif,negative,x,0" for name in names[26:]]
    write(folder / "evaluation" / "reference.csv", "image,class,type,center", *told)
    return Counter({0: 10 + 8, 1: 10 + 2})


def panda(folder: Path) -> Labels:
    rows = [f"{number:032x},{('karolinska', 'radboud')[number % 2]},{number % 6},0+0" for number in range(60)]
    for row in rows:
        own(folder / "features" / f"{row[:32]}.h5")
    write(folder / "train.csv", "image_id,data_provider,isup_grade,gleason_score", *rows)
    write(folder / "sample_submission.csv", "image_id,isup_grade", "x,0")
    return Counter(dict.fromkeys(range(6), 10))


def bracs(folder: Path) -> Labels:
    groups = {"BT": ("N", "PB", "UDH"), "AT": ("FEA", "ADH"), "MT": ("DCIS", "IC")}
    kinds = [(group, kind) for group, own_kinds in groups.items() for kind in own_kinds]
    for section, (group, kind) in product(("train", "val", "test"), kinds):
        name = f"BRACS_{kind}_{section}"
        write(folder / "BRACS_WSI" / section / f"Group_{group}" / f"Type_{kind}" / f"{name}.svs")
        own(folder / "features" / f"{name}.h5")
    return Counter({kind: 3 for _, kind in kinds})


@pytest.mark.parametrize("made", [rsna, cq500, camelyon16, panda, bracs])
def test_the_datalists_of_the_page_are_made(tmp_path: Path, made: Callable[[Path], Labels]) -> None:
    labels, here = made(tmp_path / made.__name__), f"/data/{made.__name__}"
    for number, snippet in enumerate(re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)):
        if f'"{here}"' in snippet:
            runpy.run_path(str(write(tmp_path / f"{number}.py", snippet.replace("/data", str(tmp_path)))))
    typed = [line for line in commands(PAGE, "scripts datalist") if f"{here} " in f"{line} "]
    assert typed
    for line in typed:
        fire.Fire(VERBS, shlex.split(line.replace("/data", str(tmp_path)))[3:])
        output = re.search(r"--output (\S+)", line)
        name = output[1].rpartition("/")[2] if output else "datalist.json"
        content = json.loads((tmp_path / made.__name__ / name).read_text())
        assert Counter(bag["label"] for bags in content.values() for bag in bags) == labels
        named = [
            (section, bag["bag_id"]) for section, bags in content.items() for bag in bags if "test" in bag["bag_id"]
        ]
        assert {section for section, _ in named} <= {"test"}
