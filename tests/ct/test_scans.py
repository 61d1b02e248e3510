# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from scripts.core.errors import InputError
from scripts.ct.reader import load_scan
from scripts.ct.scans import find_scans
from tests.ct.series import couch, phantom, ramp, write_enhanced, write_head, write_series, write_slice, zipped


def hashed(study: str) -> str:
    return hashlib.blake2b(study.encode(), digest_size=4).hexdigest()


def found(root: Path) -> dict[str, Any]:
    return {scan["bag_id"]: scan["image"] for scan in find_scans(root)}


def test_folders_and_files_are_named_by_their_place(tmp_path: Path) -> None:
    write_series(tmp_path / "p1" / "thin", ramp(2), names=["a", "b"])
    write_series(tmp_path / "p1" / "thick", ramp(2))
    zipped(write_series(tmp_path / "p1" / "thin", ramp(2), names=["a", "b"]), tmp_path / "p3.zip")
    (tmp_path / "p2").mkdir()
    for name in ("v.MHD", "v.raw", "w.mha", "x.nii", "y.nii.gz", "z.NRRD", "notes.txt", "._z.nii", "report.docx"):
        (tmp_path / "p2" / name).touch()
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    places = ("p1/thick", "p1/thin", "p2/v.MHD", "p2/w.mha", "p2/x.nii", "p2/y.nii.gz", "p2/z.NRRD", "p3.zip")
    names = ("p1_thick", "p1_thin", "p2_v", "p2_w", "p2_x", "p2_y", "p2_z", "p3")
    assert find_scans(tmp_path) == [
        {"image": str(tmp_path / place), "bag_id": name} for place, name in zip(places, names, strict=True)
    ]


def test_a_study_in_several_folders_is_one_scan_and_a_copy_of_it_another_but_key_images_are_none(
    tmp_path: Path,
) -> None:
    for number, name in enumerate(("a", "b/c")):
        for place, study in (("x", "1.3"), ("copy", "1.3"), ("y/z", "1.4")):
            write_head(tmp_path / place / name, f"{study}.{number}", study=study)
    names = ("copy", "x", "y_z")
    assert found(tmp_path) == {name: str(tmp_path / name.replace("_", "/")) for name in names}
    write_head(tmp_path / "copy" / "key images", "1.3.0", count=2, study="1.3")
    assert tuple(found(tmp_path)) == names
    for uid in ("1.1", "1.2"):  # without UIDs nothing is a copy
        write_head(tmp_path / "copy" / "deep" / uid, uid, SOPInstanceUID=None)
    assert list(found(tmp_path / "copy" / "deep")) == ["deep"]


def test_the_studies_of_one_folder_are_told_apart(tmp_path: Path) -> None:
    uids = ["ID_1", "../../evil", "1.2.3"]
    for number, uid in enumerate(uids):
        names = [f"{k}-{number}" for k in range(3)]
        write_series(tmp_path / "flat", ramp(3), names=names, StudyInstanceUID=uid, SeriesInstanceUID=f"{uid}.1")
    scans = found(tmp_path)
    assert scans == {
        f"flat_{hashed(uid)}": [str(tmp_path / "flat" / f"{k}-{number}") for k in range(3)]
        for number, uid in enumerate(uids)
    }
    for files in scans.values():
        assert load_scan(*map(Path, files)).array.shape[2] == 3


def test_a_zip_or_a_folder_beside_slices_is_a_scan_of_its_own(tmp_path: Path) -> None:
    zipped(write_series(tmp_path / "other", ramp(2), StudyInstanceUID="1.2.4"), tmp_path / "a" / "b.zip")
    write_series(tmp_path / "c" / "d", ramp(2), StudyInstanceUID="1.2.4")
    write_series(tmp_path / "e" / "f", ramp(2))
    for folder, name, place in (("a", "b", "b.zip"), ("c", "d", "d"), ("e", "f", "f")):
        study = None if folder == "e" else "1.2.3"  # strays that name no study hide nothing either
        write_series(tmp_path / folder, ramp(2), StudyInstanceUID=study)
        beside = f"{folder}_{hashed(study or str(tmp_path / folder))}"
        files = [str(tmp_path / folder / file) for file in ("000.dcm", "001.dcm")]
        assert found(tmp_path / folder) == {beside: files, name: str(tmp_path / folder / place)}


def test_a_series_and_a_file_of_several_frames_are_scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        write_enhanced(tmp_path / name, phantom(3), couch(3), StudyInstanceUID=name)
    assert found(tmp_path) == {f"{tmp_path.name}_{hashed(name)}": str(tmp_path / name) for name in ("one", "two")}
    folder = write_series(tmp_path / "scan7", ramp(2), StudyInstanceUID="1.2.3")
    assert find_scans(str(folder)) == [{"image": str(folder), "bag_id": "scan7"}]
    monkeypatch.chdir(folder)
    assert find_scans(".") == [{"image": ".", "bag_id": "scan7"}]


def test_a_scan_that_cannot_be_read_is_found_too(tmp_path: Path) -> None:
    """Its reader says what is wrong with it; left out, nobody would miss it."""
    write_series(tmp_path / "good", ramp(2), StudyInstanceUID="1.2.3")
    for path in ("good/b.dcm", "bad/b.dcm", "good/deep/c.dcm"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    (tmp_path / "cut.zip").write_bytes(b"PK\3\4")
    assert set(found(tmp_path)) == {"good", "bad", "cut"}


def test_names_that_meet_and_folders_without_scans_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"holds no scan .*: give the folder"):
        find_scans(tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        find_scans(tmp_path / "notes.txt")
    write_series(tmp_path / "a" / "b", ramp(1))
    write_series(tmp_path / "a_b", ramp(1))
    with pytest.raises(InputError, match=r"a/b and .*a_b would both be named a_b: rename one"):
        find_scans(tmp_path)


def test_slices_that_name_no_study_join_the_one_in_their_folder(tmp_path: Path) -> None:
    write_series(tmp_path / "a", ramp(3), StudyInstanceUID="1.2.3")
    write_series(tmp_path / "b", ramp(3))
    write_slice(tmp_path / "a" / "x", ramp(1)[0], ImagePositionPatient=[-30, -40, 40])
    assert found(tmp_path) == {name: str(tmp_path / name) for name in ("a", "b")}
    assert load_scan(tmp_path / "a").array.shape[2] == 4


def test_a_name_that_no_terminal_prints_is_escaped_and_one_that_is_not_utf8_cannot_be_read(tmp_path: Path) -> None:
    for uid, folder in (("1.1", b"caf\xe9"), ("1.2", b"\x1b[31mred")):
        write_head(tmp_path / os.fsdecode(folder), uid, study=uid)
    nifti = tmp_path / os.fsdecode(b"\xfc.nii")
    nifti.touch()
    scans = found(tmp_path)
    assert set(scans) == {"caf%E9", "%1B[31mred", "%FC"}
    assert load_scan(Path(scans["%1B[31mred"])).array.shape[2] == 10
    for name, path in (("caf%E9", "caf%E9"), ("%FC", "%FC.nii")):
        with pytest.raises(InputError, match=f"^{tmp_path}/{path} has a name that is not in UTF-8: rename it$"):
            load_scan(Path(scans[name]))


def test_names_of_people_stay_and_two_that_would_be_one_are_refused(tmp_path: Path) -> None:
    names = ("a\u00a0b", "a%C2%A0b", "\u0645\u06cc\u200c\u062e", "\u5c71\u3000\u7530", "50%")
    for name in names:
        (tmp_path / f"{name}.nii").touch()
    (tmp_path / "50%\n.nii").touch()
    assert set(found(tmp_path)) == {*names, "50%25%0A"}
    (tmp_path / "50%25%0A.nii").touch()
    with pytest.raises(InputError, match=r"would both be named 50%25%0A: rename one$"):
        found(tmp_path)


def test_a_long_name_is_shortened(tmp_path: Path) -> None:
    ends = ("y" * 39, "y" * 40, "y" * 39 + "z", "ü" * 60)
    for end in ends:
        write_series(tmp_path / ("x" * 60) / end, ramp(1))
    names = {Path(image).name: bag_id for bag_id, image in found(tmp_path).items()}
    whole = [f"{'x' * 60}_{end}" for end in ends]
    assert [names[end] for end in ends] == [
        whole[0],
        *(f"{name[:91]}_{hashed(name)}" for name in whole[1:3]),
        f"{whole[3][:76]}_{hashed(whole[3])}",
    ]
