# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
import os
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, EncapsulatedPDFStorage

from scripts.core.errors import InputError
from scripts.ct.dicom import headers as headers_module
from scripts.ct.dicom.files import ImageFile, open_image
from scripts.ct.dicom.headers import Header, Rejected, read_headers
from tests.ct.series import AXIAL, SERIES_UID, couch, ramp, sop_uid, write_enhanced, write_series, write_slice, zipped


def value_of(field: str, folder: Path, **tags: Any) -> Any:
    write_slice(folder / "a", ramp(1)[0], **tags)
    (header,), rejected = read_headers(folder / "a")
    assert rejected == []
    return getattr(header, field)


def sops(headers: list[Header]) -> list[str]:
    return [header.sop for header in headers]


def test_files_are_found_by_content_at_any_depth_under_any_name(tmp_path: Path) -> None:
    names = ["IM1", "b/c/d/17.jpg", "b/CT 4cc sans IV/x.y.z", "ü/ι.dcm"]
    for k, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_slice(tmp_path / name, ramp(1)[0], SOPInstanceUID=sop_uid(k))
    headers, rejected = read_headers(tmp_path)
    expected = {sop_uid(k): ImageFile(tmp_path / name) for k, name in enumerate(names)}
    assert ({header.sop: header.file for header in headers}, rejected) == (expected, [])
    listed = [tmp_path / names[k] for k in (2, 0, 2)]
    assert sops(read_headers(listed)[0]) == [sop_uid(2), sop_uid(0)]
    with pytest.raises(InputError, match=r"nowhere does not exist: check the path"):
        read_headers(tmp_path / "nowhere")


def test_what_is_no_image_is_passed_over_and_links_in_a_circle_end(tmp_path: Path) -> None:
    write_series(tmp_path / "scan", ramp(1))
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    (tmp_path / "scan" / "loop").symlink_to(tmp_path)
    (tmp_path / "elsewhere").symlink_to(tmp_path / "scan")
    write_slice(tmp_path / ".hidden", ramp(1)[0])
    for hidden in (".git", "__MACOSX"):
        (tmp_path / hidden).mkdir()
        write_slice(tmp_path / hidden / "object", ramp(1)[0])
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "notes.txt").write_text("not DICOM")
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")  # reading it would never end
    for modality in ("SR", "PR", "KO"):
        write_slice(tmp_path / modality, ramp(1)[0], Modality=modality, PixelData=None, Rows=None)
    write_slice(tmp_path / "pdf", ramp(1)[0], SOPClassUID=EncapsulatedPDFStorage, PixelData=None, Rows=None)
    headers, rejected = read_headers(tmp_path)
    assert [header.file.name for header in headers] == ["000.dcm"]
    assert [file.name for file, _ in rejected] == ["lost"]


@pytest.mark.parametrize("packed", [False, True], ids=["file", "zip"])
@pytest.mark.parametrize("left", [0, 0.2, -1])  # a share, or all but the last byte
def test_dicom_that_is_cut_off_is_rejected(tmp_path: Path, left: float, packed: bool) -> None:
    folder = write_series(tmp_path / "scan", ramp(3))
    content = (folder / "001.dcm").read_bytes()
    (folder / "001.dcm").write_bytes(content[:-1] if left < 0 else content[: int(left * (len(content) - 96))])
    headers, rejected = read_headers(zipped(folder, tmp_path / "scan.zip") if packed else folder)
    assert sops(headers) == [sop_uid(0), sop_uid(2)]
    assert [(item.file.name, item.reason) for item in rejected] == [("001.dcm", "holds no complete image")]


def test_absurd_images_are_rejected(tmp_path: Path) -> None:
    for tags, reason in (
        ({"Rows": 65535, "Columns": 65535}, "claims an image of 65535 x 65535"),
        ({"Rows": 0}, "claims an image of 0 x 8"),
        ({"Rows": None}, "holds no complete image"),
        ({"RescaleSlope": 0}, "has no usable RescaleSlope"),
        ({"RescaleIntercept": "nan"}, "has no usable RescaleIntercept"),
    ):
        write_slice(tmp_path / "odd", ramp(1)[0], **tags)
        assert read_headers(tmp_path) == ([], [Rejected(ImageFile(tmp_path / "odd"), reason)])


def test_a_deflated_file_is_rejected_before_it_is_inflated(tmp_path: Path) -> None:
    write_slice(tmp_path / "slice", ramp(1)[0])
    dataset = pydicom.dcmread(tmp_path / "slice")
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.file_meta.PrivateInformationCreatorUID = UID("1.2")
    dataset.file_meta.PrivateInformation = b"x" * 5000  # so that a look at the first bytes is not enough
    dataset.PixelData = bytes(2**26)
    dataset.save_as(tmp_path / "slice")
    zipped(tmp_path, tmp_path.parent / "deflated.zip")
    for path in (tmp_path, tmp_path.parent / "deflated.zip"):
        tracemalloc.start()
        headers, rejected = read_headers(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (headers, [reason for _, reason in rejected]) == ([], ["is deflated: store it uncompressed"])
        assert peak < 2**24


def test_a_header_has_the_values_of_its_tags_also_from_the_index(tmp_path: Path) -> None:
    position = [f"{value:.9g}" for value in np.random.default_rng(0).normal(size=3) * 100]
    numbers: dict[str, Any] = {"SeriesNumber": 0, "AcquisitionNumber": 2, "InstanceNumber": 7}
    texts: dict[str, Any] = {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "ConvolutionKernel": ["Hr40f", "3"]}
    own: dict[str, Any] = {"StudyInstanceUID": "1.2.3", "SOPInstanceUID": "1.2.3.4", "PatientID": None}
    file = tmp_path / "a.dcm"
    write_slice(file, ramp(1)[0], ImagePositionPatient=position, RescaleIntercept=-1024, **own, **texts, **numbers)
    values: list[Any] = [
        *(ImageFile(file), None, "", "1.2.3", SERIES_UID, "1.2.3.4", "CT", ("ORIGINAL", "PRIMARY", "AXIAL")),
        *("Hr40f\\3", "0", False, "", 1, 6, 8, AXIAL, tuple(map(float, position)), (0.5, 0.25)),  # to the last bit
        *(5.0, 1.0, -1024.0, 2, 7),
    ]
    for _ in range(2):
        assert read_headers(file, tmp_path / "index.jsonl") == ([Header(*values)], [])


def test_no_patient_is_named_and_a_poor_header_is_no_trouble(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    tags: dict[str, Any] = {"SeriesDescription": "Secret Name bone", "SliceThickness": None, "RescaleSlope": None}
    for k, id_ in enumerate(("SECRET-ID", "SECRET-ID ", "SECRET-ID2")):
        write_slice(tmp_path / f"{k}.dcm", ramp(1)[0], PatientID=id_, SOPInstanceUID=f"ID_{k}", **tags)
    recwarn.clear()
    headers, rejected = read_headers(tmp_path, tmp_path / "index.jsonl")
    assert (sops(headers), rejected, list(recwarn)) == (["ID_0", "ID_1", "ID_2"], [], [])
    patients = [header.patient for header in headers]
    assert patients[0] == patients[1] != patients[2]
    assert "secret" not in (repr(headers) + (tmp_path / "index.jsonl").read_text()).lower()
    poor = headers[0]
    assert (poor.study, poor.series_number, poor.image_type) == ("", "", ())
    assert (poor.thickness, poor.instance, poor.acquisition, poor.slope) == (None, None, None, 1.0)


def test_geometry_that_makes_no_sense_is_none(tmp_path: Path) -> None:
    for field, tags in (
        ("position", {"ImagePositionPatient": ["nan", "0", "0"]}),
        ("position", {"ImagePositionPatient": ["1e300", "0", "0"]}),
        ("position", {"ImagePositionPatient": [1, 2]}),
        ("position", {"NumberOfFrames": 2**31 - 1}),
        ("orientation", {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}),
        ("orientation", {"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]}),
        ("pixel_spacing", {"PixelSpacing": [-1, 0.5]}),
        ("thickness", {"SliceThickness": 0}),
    ):
        assert value_of(field, tmp_path, **tags) is None, tags


PLAIN_AGENTS = ("", "NONE", "NO CONTRAST", "Without contrast", "NONE GIVEN", "NON", "W/O", "N/A")
AGENTS = ("OMNIPAQUE 300", "NON-IONIC 300", "NOVARTIS X", "CONTRAST")
PLAIN_SERIES = (
    *("CT 4cc sans IV contrast", "Non-contrast head", "POST FOSSA 2.5", "CT Thin Plain", "CT HEAD WO CONTRAST"),
    *("CT HEAD WO IV CONTRAST", "HEAD W/OUT CONTRAST", "HEAD NO IV CONTRAST", "HEAD NO I.V. CONTRAST"),
)
ENHANCED_SERIES = ("CT POST CONTRAST THIN", "Head C+ 5mm", "CTA Head", "HEAD W IV CONTRAST")
PARTS: tuple[tuple[str | None, str | None, str], ...] = (  # tag, description, what is known
    ("HEAD", "Chest", "HEAD"),
    ("abdomen", "Head", "ABDOMEN"),
    ("", "CT CHEST 5mm", "CHEST"),
    (None, "Thorax_ABDOMEN", "THORAX"),
    (None, "C-spine thin", "C-SPINE"),
    *((None, text, "") for text in (None, "Head and neck", "Brain lung", "Mr Chesterton, Miss Armstrong")),
)
KERNELS = ((None, "Thin bone, Mr X", "BONE"), ("H30s", "Thin bone", "H30s"), (None, "Mr Boneham", ""))


def test_contrast_agent_part_of_the_body_and_kernel_are_known_by_their_tag_or_a_description(tmp_path: Path) -> None:
    for expected, agents, series in ((False, PLAIN_AGENTS, PLAIN_SERIES), (True, AGENTS, ENHANCED_SERIES)):
        for agent in agents:
            assert value_of("contrast", tmp_path, ContrastBolusAgent=agent) is expected, agent
        for name in series:
            assert value_of("contrast", tmp_path, SeriesDescription=name) is expected, name
    both = {"SeriesDescription": "Head without contrast", "ContrastBolusAgent": "OMNIPAQUE"}
    assert not value_of("contrast", tmp_path, **both)
    for field, tag, cases in (("body_part", "BodyPartExamined", PARTS), ("kernel", "ConvolutionKernel", KERNELS)):
        for given, description, known in cases:
            value = value_of(field, tmp_path, **{tag: given, "SeriesDescription": description})
            assert value == known, description


def test_each_frame_of_an_enhanced_file_has_a_header(tmp_path: Path) -> None:
    path = write_enhanced(tmp_path / "all", ramp(4), couch(4), SOPInstanceUID=sop_uid(0), SeriesNumber=5)
    headers, rejected = read_headers(path)
    assert rejected == []
    assert [header.position for header in headers] == couch(4)
    for k, header in enumerate(headers):
        assert (header.frame, header.instance, header.intercept) == (k + 1, k + 1, -1000.0 - k)
        assert (header.sop, header.series_number, header.kernel) == (sop_uid(0), "5", "H30s")
        assert (header.orientation, header.pixel_spacing, header.thickness) == (AXIAL, (0.5, 0.25), 5.0)
        assert header.image_type == ("ORIGINAL", "PRIMARY", "VOLUME", "NONE")
        assert header.acquisition == 1
    path = write_enhanced(tmp_path / "other", ramp(4), couch(4), NumberOfFrames=9)
    assert read_headers(path)[1] == [Rejected(ImageFile(path), "claims 9 frames and describes 4")]


def test_zips_that_are_damaged_or_encrypted_or_claim_gigabytes(tmp_path: Path) -> None:
    archive = zipped(write_series(tmp_path / "scan", ramp(1)), tmp_path / "scan.zip")
    content = archive.read_bytes()
    locked, (local, central) = bytearray(content), map(content.index, (b"PK\3\4", b"PK\1\2"))
    locked[local + 6] |= 1
    locked[central + 8] |= 1
    claims = content[: central + 24] + (2**32 - 2).to_bytes(4, "little") + content[central + 28 :]
    for damaged, reason in (
        (content[: len(content) // 2], "is a damaged zip"),
        (content[: central + 6] + b"\xff" + content[central + 7 :], "is a damaged zip"),  # of zip's version 25.5
        (locked, "cannot be unpacked"),
        (claims, "claims to unpack to more than 4 GB"),
    ):
        archive.write_bytes(damaged)
        if damaged is claims:
            with zipfile.ZipFile(archive, "a") as more:
                more.writestr("b", b"x" * 100)
        assert [rejected.reason for rejected in read_headers(archive)[1]] == [reason]


def test_a_zip_is_read_where_it_lies_and_a_slice_found_again_inside_or_an_error(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "scan", ramp(2), names=["b", "a/1"])
    (folder / "notes.txt").write_text("not DICOM")
    archive = zipped(folder, tmp_path / "scan.zip")
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr("x/../../evil\n", (folder / "b").read_bytes())
    headers, rejected = read_headers(archive)
    assert [(header.file.member, header.file.name) for header in headers[:2]] == [("a/1", "1"), ("b", "b")]
    assert (sops(headers), rejected) == ([sop_uid(1), sop_uid(0), sop_uid(0)], [])
    assert headers[2].file.name == "evil%0A"
    for header in headers[1:]:
        with open_image(str(archive), header.file.relative_to(archive)) as stream:
            assert stream.read() == (folder / "b").read_bytes()
    assert sorted(tmp_path.iterdir()) == [folder, archive]
    assert len(read_headers(tmp_path)[0]) == 2 + 3  # found in a folder too
    for source in (folder, archive, folder / "b"):
        with pytest.raises(InputError, match=r"cannot open gone/x of .*: leave the scan where it was read"):
            open_image(str(source), "gone/x")


@pytest.fixture
def indexed(tmp_path: Path) -> tuple[Path, Path]:
    folder = write_series(tmp_path / "scan", ramp(3))
    zipped(write_series(tmp_path / "other", ramp(2)), folder / "two.zip")
    write_enhanced(folder / "enhanced", ramp(4), couch(4))
    (folder / "cut.dcm").write_bytes(b"")
    return folder, tmp_path / "index.jsonl"


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of the files that are read; at one that is called "stop" the user interrupts."""
    names: list[str] = []
    read = headers_module._read_path

    def noted(path: Path) -> list[Header | Rejected]:
        if path.name == "stop":
            raise KeyboardInterrupt
        names.append(path.name)
        return read(path)

    monkeypatch.setattr(headers_module, "_read_path", noted)
    return names


def test_a_second_walk_reads_only_what_is_new_or_replaced(indexed: tuple[Path, Path], names: list[str]) -> None:
    folder, index = indexed
    first = read_headers(folder, index)
    assert (len(first[0]), len(first[1])) == (3 + 2 + 4, 1)
    names.clear()
    assert read_headers(folder, index) == first
    assert names == []
    write_slice(folder / "new", ramp(1)[0])
    assert len(read_headers(folder, index)[0]) == 10
    assert names == ["new"]
    path = folder / "001.dcm"
    status = path.stat()
    path.write_bytes(path.read_bytes().replace(sop_uid(1).encode(), sop_uid(7).encode()))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as copies that keep their times do
    assert sop_uid(7) in sops(read_headers(folder, index)[0])
    for path in folder.iterdir():
        path.unlink()
    read_headers(folder, index)
    assert len(index.read_text().splitlines()) == 1  # nothing is kept of what is gone


@pytest.mark.parametrize(
    "damage",
    [lambda c: b"", lambda c: b"\xff\0" + c, lambda c: c.replace(b"-20.0", b"-21.0", 1), lambda c: b"[]\n" + c],
)
def test_a_damaged_index_is_built_again(indexed: tuple[Path, Path], damage: Any) -> None:
    folder, index = indexed
    first = read_headers(folder, index)
    content = index.read_bytes()
    index.write_bytes(damage(content))
    assert read_headers(folder, index) == first
    assert index.read_bytes() == content


def test_an_interruption_loses_little(tmp_path: Path, names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, index = write_series(tmp_path / "scan", ramp(25)), tmp_path / "index.jsonl"
    monkeypatch.setattr("scripts.ct.dicom.files.SAVED_EVERY", 10)
    (folder / "stop").touch()
    with pytest.raises(KeyboardInterrupt):
        read_headers(folder, index)
    (folder / "stop").unlink()
    names.clear()
    assert len(read_headers(folder, index)[0]) == 25
    assert names == [f"{k:03d}.dcm" for k in range(20, 25)]
    with pytest.raises(InputError, match=r"cannot write .*index \(File exists\): .* give another folder"):
        read_headers(folder, folder / "000.dcm" / "index")
