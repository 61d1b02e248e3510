# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
import hashlib
from pathlib import Path

import pytest

from scripts.core.errors import InputError
from scripts.ct.reader import load_scan
from scripts.ct.scans import find_scans
from tests.ct.series import couch, phantom, ramp, study, write_enhanced, write_series, write_slice, zipped


def hashed(study: str) -> str:
    return hashlib.blake2b(study.encode(), digest_size=4).hexdigest()


def found(root: Path) -> dict[str, object]:
    return {scan["bag_id"]: scan["image"] for scan in find_scans(root)}


def test_folders_and_files_are_named_by_their_place(tmp_path: Path) -> None:
    write_series(tmp_path / "p1" / "thin", ramp(2), names=["a", "b"])
    write_series(tmp_path / "p1" / "thick", ramp(2))
    zipped(write_series(tmp_path / "p1" / "thin", ramp(2), names=["a", "b"]), tmp_path / "p3.zip")
    (tmp_path / "p2").mkdir()
    for name in ("v.MHD", "v.raw", "w.mha", "x.nii", "y.nii.gz", "z.NRRD", "notes.txt", "._z.nii", "report.docx"):
        (tmp_path / "p2" / name).touch()
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    assert find_scans(tmp_path) == [
        {"image": str(tmp_path / "p1" / "thick"), "bag_id": "p1_thick"},
        {"image": str(tmp_path / "p1" / "thin"), "bag_id": "p1_thin"},
        {"image": str(tmp_path / "p2" / "v.MHD"), "bag_id": "p2_v"},
        {"image": str(tmp_path / "p2" / "w.mha"), "bag_id": "p2_w"},
        {"image": str(tmp_path / "p2" / "x.nii"), "bag_id": "p2_x"},
        {"image": str(tmp_path / "p2" / "y.nii.gz"), "bag_id": "p2_y"},
        {"image": str(tmp_path / "p2" / "z.NRRD"), "bag_id": "p2_z"},
        {"image": str(tmp_path / "p3.zip"), "bag_id": "p3"},
    ]


def test_a_study_in_several_folders_is_one_scan(tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b/c")):
        study(tmp_path / "x" / name, number, StudyInstanceUID="1.2.3")
        study(tmp_path / "y" / "z" / name, number, StudyInstanceUID="1.2.4")
    assert found(tmp_path) == {"x": str(tmp_path / "x"), "y_z": str(tmp_path / "y" / "z")}


def test_the_studies_of_one_folder_are_told_apart(tmp_path: Path) -> None:
    uids = ["ID_1", "../../evil", "1.2.3"]
    for uid in uids:
        names = [f"{k}-{uids.index(uid)}" for k in range(3)]
        write_series(tmp_path / "flat", ramp(3), names=names, StudyInstanceUID=uid, SeriesInstanceUID=f"{uid}.1")
    scans = found(tmp_path)
    assert scans == {
        f"flat_{hashed(uid)}": [str(tmp_path / "flat" / f"{k}-{number}") for k in range(3)]
        for number, uid in enumerate(uids)
    }
    for bag_id, files in scans.items():
        assert "SECRET" not in bag_id
        assert isinstance(files, list)
        assert load_scan(*map(Path, files)).array.shape[2] == 3


def test_a_zip_or_a_folder_beside_slices_is_a_scan_of_its_own(tmp_path: Path) -> None:
    write_series(tmp_path / "a", ramp(2), StudyInstanceUID="1.2.3")
    zipped(write_series(tmp_path / "other", ramp(2), StudyInstanceUID="1.2.4"), tmp_path / "a" / "b.zip")
    assert found(tmp_path / "a") == {
        f"a_{hashed('1.2.3')}": [str(tmp_path / "a" / name) for name in ("000.dcm", "001.dcm")],
        "b": str(tmp_path / "a" / "b.zip"),
    }
    write_series(tmp_path / "c", ramp(2), StudyInstanceUID="1.2.3")
    write_series(tmp_path / "c" / "d", ramp(2), StudyInstanceUID="1.2.4")
    assert found(tmp_path / "c") == {
        f"c_{hashed('1.2.3')}": [str(tmp_path / "c" / name) for name in ("000.dcm", "001.dcm")],
        "d": str(tmp_path / "c" / "d"),
    }


def test_a_series_and_a_file_of_several_frames_are_scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        write_enhanced(tmp_path / name, phantom(3), couch(3), StudyInstanceUID=name)
    assert found(tmp_path) == {f"{tmp_path.name}_{hashed(name)}": str(tmp_path / name) for name in ("one", "two")}
    folder = write_series(tmp_path / "scan7", ramp(2), StudyInstanceUID="1.2.3")
    assert find_scans(str(folder)) == [{"image": str(folder), "bag_id": "scan7"}]
    monkeypatch.chdir(folder)
    assert find_scans(".") == [{"image": ".", "bag_id": "scan7"}]


def test_stray_slices_do_not_hide_the_cohort(tmp_path: Path) -> None:
    write_slice(tmp_path / "stray", ramp(1)[0])
    write_series(tmp_path / "deeper", ramp(2))
    stray = f"{tmp_path.name}_{hashed(str(tmp_path))}"
    assert found(tmp_path) == {"deeper": str(tmp_path / "deeper"), stray: str(tmp_path / "stray")}


def test_a_scan_that_cannot_be_read_is_found_too(tmp_path: Path) -> None:
    """Its reader says what is wrong with it; left out, nobody would miss it."""
    write_series(tmp_path / "good", ramp(2), StudyInstanceUID="1.2.3")
    for path in ("good/b.dcm", "bad/b.dcm", "good/deep/c.dcm"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    (tmp_path / "cut.zip").write_bytes(b"PK\3\4")
    assert set(found(tmp_path)) == {"good", "bad", "cut"}


def test_names_are_kept_apart(tmp_path: Path) -> None:
    write_series(tmp_path / "a" / "b", ramp(1))
    write_series(tmp_path / "a_b", ramp(1))
    with pytest.raises(InputError, match=r"a/b and .*a_b would both be named a_b: rename one"):
        find_scans(tmp_path)


def test_none_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"holds no scan .*: give the folder"):
        find_scans(tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        find_scans(tmp_path / "notes.txt")


def test_a_copy_of_a_study_is_a_scan_of_its_own_and_key_images_are_none(tmp_path: Path) -> None:
    for copy in ("one", "other"):
        for number, series in enumerate(("thin", "thick")):
            study(tmp_path / copy / series, number)
    assert list(found(tmp_path)) == ["one", "other"]
    study(tmp_path / "one" / "key images", 0, count=2)
    assert list(found(tmp_path)) == ["one", "other"]
    for number, name in enumerate(("thin", "thick")):  # without UIDs nothing is a copy
        study(tmp_path / "other" / "deep" / name, number, SOPInstanceUID=None, StudyInstanceUID="1.2.9")
    assert list(found(tmp_path / "other" / "deep")) == ["deep"]


def test_slices_that_name_no_study_join_the_one_in_their_folder(tmp_path: Path) -> None:
    write_series(tmp_path / "a", ramp(3), StudyInstanceUID="1.2.3")
    write_series(tmp_path / "b", ramp(3))
    write_slice(tmp_path / "a" / "x", ramp(1)[0], ImagePositionPatient=[-30, -40, 40])
    assert found(tmp_path) == {name: str(tmp_path / name) for name in ("a", "b")}
    assert load_scan(tmp_path / "a").array.shape[2] == 4


def test_a_long_name_is_shortened(tmp_path: Path) -> None:
    long = ["x" * 60 + "/" + end for end in ("y" * 39, "y" * 40, "y" * 39 + "z", "ü" * 60)]
    for name in long:
        write_series(tmp_path / name, ramp(1))
    names = {str(image): bag_id for bag_id, image in found(tmp_path).items()}
    whole, *shortened = (names[str(tmp_path / name)] for name in long)
    assert whole == "x" * 60 + "_" + "y" * 39
    for name, bag_id in zip(long[1:3], shortened, strict=False):
        assert bag_id == f"{name.replace('/', '_')[:91]}_{hashed(name.replace('/', '_'))}"
    assert shortened[2] == f"{'x' * 60}_{'ü' * 15}_{hashed('x' * 60 + '_' + 'ü' * 60)}"
