# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Features of another program become feature files in the order of the slices, with labels and sections."""

import json
from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from scripts.core.bags import load_bags
from scripts.core.errors import InputError
from scripts.ct.datalist.from_features import FeatureRequest, write_cohort_of_features
from scripts.ct.datalist.slice_tables import Roles
from scripts.ct.features import SliceFeaturesd, read_slice_features
from tests.shared_data import shared_data

FIELDS = ("scan", "order", "slice_label", "label", "patient")
Row = tuple[Any, ...]


def rows(scans: int = 6, slices: int = 4) -> list[Row]:
    """Scans s0, s1, … of two per patient, every second one positive in its second slice; the highest slice first."""
    return [
        (f"s{n}", place, n % 2 * int(place == 1), n % 2, f"p{n // 2}")
        for n in range(scans)
        for place in reversed(range(slices))
    ]


def written(folder: Path, rows: list[Row], fields: tuple[str, ...] = FIELDS, **changes: Any) -> str:
    """Two features of each slice: its order and ten times the number of its row."""
    order = fields.index("order") if "order" in fields else None
    lines: list[Row] = [("f0", "f1", *fields)]
    lines += [(0 if order is None or row[order] == "low" else row[order], 10 * k, *row) for k, row in enumerate(rows)]
    (folder / "t.csv").write_text("\n".join(",".join(map(str, line)) for line in lines))
    (folder / "out").mkdir(exist_ok=True)
    request = FeatureRequest(source=folder / "t.csv", folder=folder / "out", prefix="f", shares=(0.4, 0.3, 0.3))
    return write_cohort_of_features(replace(request, **changes))


def sections(folder: Path) -> dict[str, list[dict[str, Any]]]:
    names = [name for name, bags in json.loads((folder / "out" / "datalist.json").read_text()).items() if bags]
    return {name: load_bags(str(folder / "out" / "datalist.json"), name, str(folder / "out")) for name in names}


def as_read(bag: dict[str, Any]) -> dict[Any, Any]:
    """The bag as training and evaluation read it."""
    return SliceFeaturesd("image")(cast(dict[Hashable, Any], bag))


def test_slices_are_put_in_order_with_their_labels_and_patients_stay_together(tmp_path: Path) -> None:
    told = written(tmp_path, rows(), encoder="a network")
    assert "no positions, so slices are taken to be 5 mm apart: 6" in told
    assert "written: 6 feature files of 2 features per slice" in told
    found = sections(tmp_path)
    assert {name: len(bags) for name, bags in found.items()} == {"training": 2, "validation": 2, "test": 2}
    assert all(len({bag["patient"] for bag in bags}) == 1 for bags in found.values())
    bags = {bag["bag_id"]: bag for own in found.values() for bag in own}
    assert {name: bag["label"] for name, bag in bags.items()} == {f"s{n}": n % 2 for n in range(6)}
    scan = read_slice_features(bags["s3"]["image"])
    assert scan.features.tolist() == [[0, 150], [1, 140], [2, 130], [3, 120]]
    assert (scan.positions_mm.tolist(), scan.encoder) == ([0, 5, 10, 15], "a network")
    assert as_read(bags["s3"])["instance_label"].tolist() == [[0, 1, 0, 0]]
    assert written(tmp_path, rows()) == told  # again: the same


def test_positions_go_before_the_order_and_names_of_slices_are_kept(tmp_path: Path) -> None:
    given = [(n, label, 10.5 - place, f"{n}.{place}", label) for n, label in (("a", 0), ("b", 1)) for place in range(3)]
    written(tmp_path, given, ("scan", "label", "position_mm", "slice", "slice_label"), shares=(1, 0, 0))
    scan = read_slice_features(tmp_path / "out" / "b.h5")
    assert scan.positions_mm.tolist() == [8.5, 9.5, 10.5]
    assert scan.sop_instance_uids == ["b.2", "b.1", "b.0"]
    assert scan.features[:, 1].tolist() == [50, 40, 30]


def test_labels_come_from_a_csv_or_from_the_slices_and_a_scan_without_is_in_no_section(tmp_path: Path) -> None:
    of_slices = ("scan", "order", "slice_label")
    written(tmp_path, [row[:3] for row in rows()], of_slices)
    assert {bag["bag_id"]: bag["label"] for own in sections(tmp_path).values() for bag in own}["s5"] == 1
    labels = tmp_path / "labels.csv"
    labels.write_text("scan,label,section\ns0,1,training\ns1,0,training\ns2,1,test\nelsewhere,1,test\n")
    bare = [row[:2] for row in rows()]
    told = written(tmp_path, bare, ("scan", "order"), labels=labels)
    assert "row of the labels without features: 1, such as elsewhere" in told
    assert "no label, so in no section of the datalist: 3, such as s3" in told
    found = {name: [(bag["bag_id"], bag["label"]) for bag in own] for name, own in sections(tmp_path).items()}
    assert found == {"training": [("s0", 1), ("s1", 0)], "test": [("s2", 1)]}
    assert len(list((tmp_path / "out").glob("*.h5"))) == 6
    (tmp_path / "out" / "datalist.json").unlink()
    assert written(tmp_path, bare, ("scan", "order")).endswith("no datalist, as no scan has a label")


def test_rows_may_stand_in_order_and_a_source_is_never_written_over(tmp_path: Path) -> None:
    written(tmp_path, [(n, n) for n in (0, 1) for _ in range(3)], ("scan", "label"), roles=Roles(order="rows"))
    assert read_slice_features(tmp_path / "out" / "1.h5").features[:, 1].tolist() == [30, 40, 50]
    np.save(tmp_path / "out" / "a.npy", np.ones((3, 2)))
    request = FeatureRequest(source=tmp_path / "out", folder=tmp_path / "out", roles=Roles(order="rows"))
    (tmp_path / "out" / "0.h5").unlink()
    (tmp_path / "out" / "1.h5").unlink()
    with pytest.raises(InputError, match=r"out would be written over: give another folder for the feature files"):
        write_cohort_of_features(request)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: {"order": 2}, r"t.csv: two slices of s0 have one order, or one has none: give each its own"),
        (lambda row: {"order": "low"}, r"t.csv: the order of a slice of s0 is no number"),
        (lambda row: {"label": row["order"] % 2}, r"the slices of s0 have two of label, '0' and '1': keep one"),
        (lambda row: {"slice_label": "yes"}, r"t.csv, line 5: the slice_label 'yes' is not one of the classes"),
        (lambda row: {"slice_label": "" if row["order"] else 1}, r"some slices of s0 have no slice_label: label all"),
        (lambda row: {"scan": "s/0"}, r"t.csv, line 2: the scan 's/0' names no file: give a name without slashes"),
        (
            lambda row: {"slice_label": row["order"] % 2},
            r"t.csv: s0 is labelled 0, and has a slice labelled 1: correct",
        ),
        (lambda row: {"patient": row["order"]}, r"the slices of s0 have two of patient, '0' and '1': keep one"),
    ],
)
def test_contradictions_are_refused_before_anything_is_written(tmp_path: Path, change: Any, message: str) -> None:
    changed = [dict(zip(FIELDS, row, strict=True)) for row in rows()]
    changed = [{**row, **change(row)} if row["scan"] == "s0" else row for row in changed]
    with pytest.raises(InputError, match=message):
        written(tmp_path, [tuple(row.values()) for row in changed])
    assert list((tmp_path / "out").iterdir()) == []


def test_what_is_not_known_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"says nothing of the order of slices: .* or give --order rows where rows"):
        written(tmp_path, [("a", 1)], ("scan", "label"))
    with pytest.raises(InputError, match=r"t.csv has no column z: check --order"):
        written(tmp_path, [("a", 1)], ("scan", "label"), roles=Roles(order="z"))
    (tmp_path / "many").mkdir()
    for width in (2, 3):
        np.save(tmp_path / "many" / f"w{width}.npy", np.ones((4, width)))
    with pytest.raises(InputError, match=r"w2 has 2 features per slice and w3 3: take those of one network"):
        written(tmp_path, rows(), source=tmp_path / "many", roles=Roles(order="rows"))


def test_the_published_features_of_rsna_are_joined_with_their_order(tmp_path: Path) -> None:
    source = shared_data("ct_features/rsna_test/rsna_test_0.csv")
    order = shared_data("sa_mil/tables/testing_example.csv")
    names = {"scan": "bag_name", "label": "bag_label", "slice_label": "instance_label", "slice_id": "instance_name"}
    request = FeatureRequest(
        source=source, folder=tmp_path, roles=Roles(**names), join=order, shares=(0, 0, 1), labels=None
    )
    assert "test    150       150    5254              72" in write_cohort_of_features(request)
    bags = load_bags(str(tmp_path / "datalist.json"), "test", str(tmp_path))
    truth = [as_read(bag)["instance_label"][0].numpy() for bag in bags]
    assert sum(each.sum() for each in truth) == 806
    turns = [np.abs(np.diff(each)).sum() for each in truth if each.any()]
    assert np.median(turns) == 2  # in order, a bleed is one run of slices
