# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Slides in DICOM are found by their series, named, opened by OpenSlide with all levels, and encoded like any other."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest

from scripts.core.errors import InputError
from scripts.wsi.slides.dicom import dicom_slides
from scripts.wsi.slides.slide import SlideFolder, find_slides, holds_slides, open_slide, read_facts
from tests.wsi.slide_files import extract, grid, tissue, write_slide
from tests.wsi.trade_slides import write_ct, write_dicom

IMAGE = tissue(300, 500)


def test_a_series_in_a_folder_is_one_slide_of_its_name_with_all_its_levels(tmp_path: Path) -> None:
    write_dicom(tmp_path / "batch 2/case 7", IMAGE, mpp=0.5, container="S-1")
    (tmp_path / "batch 2/case 7/._a.dcm").write_bytes(b"what a Mac leaves")
    write_slide(tmp_path / "z.tif", IMAGE, mpp=0.5)
    first = tmp_path / "batch 2/case 7/a.dcm"
    assert find_slides(tmp_path) == {"case 7": first, "z": tmp_path / "z.tif"}
    assert find_slides([tmp_path / "z.tif", tmp_path / "batch 2/case 7/b.dcm"]) == find_slides(tmp_path)
    with open_slide(first) as slide:
        assert slide.level_dimensions == ((500, 300), (250, 150))
        np.testing.assert_array_equal(np.asarray(slide.read_region((0, 0), 0, (500, 300)).convert("RGB")), IMAGE)
    facts = read_facts(first)
    assert (facts.size, facts.mpp, facts.origin) == ((500, 300), 0.5, (0, 0))
    found = SlideFolder(str(tmp_path)).find("case 7", "features/case 7.h5")
    assert found is not None
    assert found.path == first


def test_features_of_it_are_those_of_the_same_slide_as_tiff(tmp_path: Path) -> None:
    write_dicom(tmp_path / "slides/case 7", IMAGE, mpp=0.5)
    write_slide(tmp_path / "slides/same.tif", IMAGE, mpp=0.5, downsamples=(1, 2))
    for mpp, columns, rows in ((0.5, 8, 5), (1.0, 4, 3)):  # the second of level 1
        made = extract(tmp_path, mpp=mpp, output_dir=tmp_path / f"{mpp}")
        assert set(made) == {"case 7", "same"}
        assert made["case 7"].slide_id == "case 7"
        assert made["case 7"].coords.tolist() == grid(columns, rows, 64 * mpp / 0.5)
        np.testing.assert_allclose(made["case 7"].features, made["same"].features, atol=2e-3)


def test_of_several_series_in_a_folder_each_is_named_by_its_glass_or_else_by_its_number(tmp_path: Path) -> None:
    folder = tmp_path / "all"
    for number, container in enumerate(("S 12/34 ü", "twice", "twice", None, "../..")):
        names = [f"{number}b.dcm", f"{number}a.dcm"]
        write_dicom(folder, IMAGE, 0.5, names, series=f"1.2.{number}", container=container)
    names = ["1.2.1", "1.2.2", "1.2.3", "1.2.4", "S 12_34 ü"]
    assert find_slides(tmp_path) == {
        name: folder / f"{number}a.dcm" for name, number in zip(names, (1, 2, 3, 4, 0), strict=True)
    }
    assert all(re.fullmatch(r"[^/\\:*?\"<>|]+", name) for name in find_slides(tmp_path))
    with open_slide(folder / "3a.dcm") as slide:
        assert slide.level_count == 2  # of its own series alone


def unreadable(*_: object, **__: object) -> None:
    raise PermissionError("no")


def test_scans_labels_and_what_is_no_dicom_are_no_slides(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor do they make one slide to several: a label is often a series of its own."""
    write_ct(tmp_path / "ct/a.dcm")
    (tmp_path / "ct/b.dcm").write_bytes(b"not DICOM")
    (tmp_path / "ct/c.dcm").mkdir()
    assert dicom_slides(tmp_path / "ct") == {}
    assert not holds_slides(tmp_path)
    with pytest.raises(InputError, match=r"no slide in .*\(\.bif .*\.dcm .*\); put slides there"):
        find_slides(tmp_path)
    folder = write_dicom(tmp_path / "case 8", IMAGE, mpp=0.5)
    write_dicom(folder, IMAGE, 0.5, ["label.dcm"], ImageType=["ORIGINAL", "PRIMARY", "LABEL", "NONE"])
    write_ct(folder / "ct.dcm")
    assert list(find_slides(tmp_path)) == ["case 8"]
    assert not caplog.messages
    monkeypatch.setattr("scripts.wsi.slides.dicom.read_partial", unreadable)
    assert not holds_slides(tmp_path / "case 8")
    assert "case 8/a.dcm cannot be read (PermissionError) and is passed over: copy it again" in caplog.messages
    monkeypatch.undo()
    write_dicom(tmp_path / "again/case 8", IMAGE, mpp=0.5)
    with pytest.raises(InputError, match=r"again/case 8/a.dcm and .*case 8/a.dcm would both be written as case 8.h5"):
        find_slides(tmp_path)


def test_one_that_is_cut_short_is_told_with_its_folder(tmp_path: Path) -> None:
    for name in ("case 7", "case 8"):
        file = write_dicom(tmp_path / "slides" / name, IMAGE, mpp=0.5, names=["a.dcm"]) / "a.dcm"
        file.write_bytes(file.read_bytes()[:-400_000])
    with pytest.raises(
        InputError, match=r"2 of 2 slides failed \(case 7/a.dcm, case 8/a.dcm\): case 7/a.dcm is "
    ) as told:
        extract(tmp_path)
    assert str(tmp_path) not in str(told.value)
    rows = list(csv.reader((tmp_path / "features/failed.csv").read_text().splitlines()))
    assert [row[0] for row in rows] == ["slide", "case 7/a.dcm", "case 8/a.dcm"]
