# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The same slices are read from every format, and what cannot be read is named in one line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from scripts.core.errors import InputError
from scripts.ct.datalist.slice_tables import Roles, SliceTable, grouped, joined_by_slice, read_slice_tables
from scripts.ct.features import SliceFeatures, write_slice_features

FEATURES = np.random.default_rng(0).normal(size=(5, 12)).astype(np.float32)
COLUMNS: dict[str, list[Any]] = {
    "Scan": ["a", "b", "a", "b", "b"],
    "order": [1, 2, 0, 0, 1],
    "slice": ["a1", "b2", "a0", "b0", "b1"],
    "label": [1, 0, 1, 0, 0],
}


def read(path: Path, roles: Roles | None = None, prefix: str = "feature") -> SliceTable:
    (table,) = read_slice_tables(path, roles or Roles(), prefix)
    return table


def write_csv(path: Path, features: Any = FEATURES, **columns: list[Any]) -> Path:
    order = np.random.default_rng(1).permutation(features.shape[1])  # of the columns, which their numbers decide
    given = columns or COLUMNS
    lines = [[*(f"Feature_{k}" for k in order), *given]]
    lines += [[*(features[row, order]), *(values[row] for values in given.values())] for row in range(len(features))]
    path.write_text("\n".join(";".join(map(str, line)) for line in lines))
    return path


def write_parquet(path: Path) -> Path:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    pandas.DataFrame({**{f"feature_{k}": FEATURES[:, k] for k in range(12)}, **COLUMNS}).to_parquet(path)
    return path


def write_npz(path: Path) -> Path:
    arrays: dict[str, Any] = {name: np.array(values) for name, values in COLUMNS.items()}
    np.savez(path, features=FEATURES, **arrays)
    return path


def write_h5(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        file["features"] = FEATURES
        for name, values in COLUMNS.items():
            file[name] = values
    return path


@pytest.mark.parametrize(
    ("name", "write"), [("t.csv", write_csv), ("t.parquet", write_parquet), ("t.npz", write_npz), ("t.h5", write_h5)]
)
def test_every_format_says_the_same(tmp_path: Path, name: str, write: Callable[[Path], Path]) -> None:
    table = read(write(tmp_path / name))
    np.testing.assert_array_equal(table.features, FEATURES)
    assert table.columns == {
        "scan": COLUMNS["Scan"],
        "order": ["1", "2", "0", "0", "1"],
        "slice_id": COLUMNS["slice"],
        "label": ["1", "0", "1", "0", "0"],
    }
    scans = grouped([table])
    np.testing.assert_array_equal(scans["b"].features, FEATURES[[1, 3, 4]])
    assert scans["a"].where(1) == f"{tmp_path / name}, {'line 4' if name == 't.csv' else 'row 2'}"


def test_a_folder_of_arrays_has_a_scan_in_each_file(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", FEATURES)
    np.savez(tmp_path / "two.npz", features=FEATURES[:2], position_mm=[2.5, 0.0])
    (tmp_path / "labels.csv").write_text("scan,label\none,1\n")
    one, two = read_slice_tables(tmp_path, Roles(), "feature")
    assert (one.columns, two.columns) == ({"scan": ["one"] * 5}, {"scan": ["two"] * 2, "position": ["2.5", "0"]})
    with pytest.raises(InputError, match=r"one.npy and .*one.npy both hold the scan one: keep one"):
        grouped([one, one])


def test_a_second_table_is_joined_by_the_slice(tmp_path: Path) -> None:
    table = read(write_csv(tmp_path / "t.csv", FEATURES, scan=["s"] * 5, slice=list("abcde")))
    (tmp_path / "more.csv").write_text("slice,order,slice_label\ne,0,1\nd,1,0\nc,2,0\na,4,1\nz,9,1\n")
    found, without, alone = joined_by_slice(table, tmp_path / "more.csv", Roles())
    assert (without, alone) == (["b"], ["z"])
    np.testing.assert_array_equal(found.features, FEATURES[[0, 2, 3, 4]])
    assert found.columns["order"] == ["4", "2", "1", "0"]
    assert found.columns["slice_label"] == ["1", "0", "0", "1"]
    with pytest.raises(InputError, match=r"more.csv has no column id, .*: name it, --slice_id"):
        joined_by_slice(table, tmp_path / "more.csv", Roles(slice_id="id"))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["a,3,1", "b,1,0", "a,3,0"], r"more.csv, line 4: another row says something else of the same slice: keep one"),
        (["b,1,1", "a,0,1"], r"t.csv, line 2: the order is '3', in .*more.csv '0': leave the column out of one"),
        (["a,3,1", "a,3,1", "b,1,0"], None),  # twice the same, and the same in both tables
    ],
)
def test_two_tables_that_disagree_are_not_joined(tmp_path: Path, rows: list[str], message: str | None) -> None:
    table = read(write_csv(tmp_path / "t.csv", FEATURES[:2], scan=["s"] * 2, slice=["a", "b"], order=[3, 1]))
    (tmp_path / "more.csv").write_text("\n".join(["slice,order,slice_label", *rows]))
    if message is None:
        found, _, _ = joined_by_slice(table, tmp_path / "more.csv", Roles())
        assert (found.columns["order"], found.columns["slice_label"]) == (["3", "1"], ["1", "0"])
        return
    with pytest.raises(InputError, match=message):
        joined_by_slice(table, tmp_path / "more.csv", Roles())


def test_what_cannot_be_read_is_named_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoilt = FEATURES.copy()
    spoilt[3, 4] = np.nan
    write_csv(tmp_path / "nan.csv", spoilt)
    write_csv(tmp_path / "text.csv", np.full((1, 2), "x"), scan=["s"])
    write_csv(tmp_path / "nameless.csv", FEATURES, order=[1] * 5)
    (tmp_path / "none.csv").write_text("scan,order\na,1\n")
    (tmp_path / "t.xlsx").write_text("")
    (tmp_path / "damaged.h5").write_text("no")
    (tmp_path / "damaged.npz").write_text("no")
    np.save(tmp_path / "cube.npy", np.zeros((2, 3, 4)))
    np.save(tmp_path / "objects.npy", np.array([{}]))
    np.savez(tmp_path / "short.npz", features=FEATURES, order=[1, 2])
    np.savez(tmp_path / "other.npz", x=FEATURES)
    write_slice_features(tmp_path / "ours.h5", SliceFeatures(FEATURES, np.arange(5.0), [], {}, "e", "{}"))
    (tmp_path / "empty").mkdir()
    for name, message in {
        "nan.csv": r"nan.csv, line 5: features that are NaN or infinite: correct or leave out the slice",
        "text.csv": r"text.csv: a feature is no number \(.*\): correct or leave out",
        "nameless.csv": r"nameless.csv has no column scan: name the one that says of which scan a slice is, --scan",
        "none.csv": r"none.csv has no columns feature_0, feature_1, …: name what stands before the number, --feature",
        "t.xlsx": r"t.xlsx is no csv, parquet, npz, npy or h5: save",
        "damaged.h5": r"damaged.h5 is damaged, or no h5 file: save it again",
        "damaged.npz": r"damaged.npz (is damaged|holds objects)",
        "cube.npy": r"cube.npy holds features \(2, 3, 4\): a row per slice",
        "objects.npy": r"objects.npy holds objects: save arrays of numbers and texts alone",
        "short.npz": r"short.npz holds features of 5 slices, but order 2: give one of each per slice",
        "other.npz": r"other.npz holds no array `features`",
        "ours.h5": r"ours.h5 is a feature file already: train on its folder as it is",
        "gone.csv": r"gone.csv does not exist: check the path",
        "empty": r"empty holds no .npy, .*: give the folder of the features, or a csv",
    }.items():
        with pytest.raises(InputError, match=message):
            read(tmp_path / name)
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    (tmp_path / "t.parquet").write_text("")
    with pytest.raises(InputError, match=r"t.parquet needs pandas and pyarrow: pip install them, or save .* as csv"):
        read(tmp_path / "t.parquet")


def test_an_h5_file_whose_arrays_lie_in_another_is_refused(tmp_path: Path) -> None:
    path = write_h5(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        file["other"] = h5py.ExternalLink("b.h5", "other")
    with pytest.raises(InputError, match=r"^other of .*a.h5 lies in another file; give a file that holds its own"):
        read(path)
