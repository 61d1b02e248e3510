# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
import gzip
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from monai.data import MetaTensor
from monai.transforms import LoadImage, Orientation
from pydicom.encaps import encapsulate
from pydicom.uid import UID, JPEG2000Lossless, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless

from scripts.core.errors import InputError
from scripts.ct.reader import Series, SeriesReader, load_scan, load_series, load_volume, volume_shape
from tests.ct.series import (
    AXIAL,
    HEAD,
    STUDY_UID,
    compress,
    couch,
    phantom,
    ramp,
    sop_uid,
    tilted,
    write_enhanced,
    write_head,
    write_series,
    zipped,
)
from tests.ct.volumes import LPS_TO_RAS, write_mha, write_nifti, write_nrrd, write_volume
from tests.shared_data import shared_data


def refusal(path: Path) -> str:
    """The one line with which this path is refused."""
    with pytest.raises(InputError, match=r".") as caught:
        load_scan(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def truncate(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


FACE_DOWN = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0)
MIRRORED = (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0)  # its normal points to the feet


@pytest.mark.parametrize("orientation", [AXIAL, tilted(20), tilted(-20), FACE_DOWN, MIRRORED])
@pytest.mark.parametrize("step", [5.0, -5.0])
def test_slices_run_from_inferior_to_superior(tmp_path: Path, orientation: tuple[float, ...], step: float) -> None:
    """Named and numbered against their order."""
    stored, numbers = ramp(5), range(9, 4, -1)
    series = load_series(
        write_series(tmp_path, stored, couch(5, step), "daebc", numbers, ImageOrientationPatient=list(orientation))
    )
    expected = list(range(5)) if step > 0 else [4, 3, 2, 1, 0]
    assert series.sop_instance_uids == [sop_uid(k) for k in expected]
    np.testing.assert_array_equal(series.array, stored[expected].transpose(2, 1, 0))
    assert (np.diff(series.positions_mm) > 0).all()


@pytest.mark.parametrize("degrees", [0.0, 18.5, -25.0])
def test_affine_maps_first_and_last_voxel_to_their_patient_position(tmp_path: Path, degrees: float) -> None:
    orientation = tilted(degrees)
    series = load_series(write_series(tmp_path, ramp(4), ImageOrientationPatient=list(orientation)))
    lps = np.array(couch(4))
    # column 3, row 2 of the first slice: 3 * 0.25 mm along the row, 2 * 0.5 mm down the column
    inside = lps[0] + 0.75 * np.array(orientation[:3]) + 1.0 * np.array(orientation[3:])
    for voxel, place in (([0, 0, 0], lps[0]), ([0, 0, 3], lps[3]), ([3, 2, 0], inside)):
        np.testing.assert_allclose(series.affine @ [*voxel, 1], LPS_TO_RAS @ [*place, 1], atol=1e-6)
    assert series.tilt_degrees == pytest.approx(abs(degrees))
    np.testing.assert_allclose(series.spacings, 5.0)
    np.testing.assert_allclose(np.diff(series.positions_mm), 5.0 * np.cos(np.radians(degrees)))
    single = load_series(write_series(tmp_path / "one", ramp(1), SeriesInstanceUID="1.2"))
    assert (single.affine[2, 2], single.spacings.shape, single.warnings) == (5.0, (0,), [])  # its thickness


def test_real_tilted_scan() -> None:
    series = load_series(shared_data("ct_dicom/ge_head_tilt18"))
    assert series.array.shape == (512, 512, 28)
    assert series.tilt_degrees == pytest.approx(18.5, abs=0.01)
    np.testing.assert_allclose(series.affine[:3, 3], [125.0, 123.5404569, 5.8360586], atol=1e-6)
    np.testing.assert_allclose((series.affine @ [0, 0, 27, 1])[:3], [125.0, 123.5404569, 157.7760586], atol=1e-6)
    assert series.array.min() == -1024.0  # its padding is -1500
    # brain fills the middle of the head: between water and fresh blood
    assert 10 < np.median(series.array[226:286, 226:286, 14]) < 60


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])  # nothing, within the header, within the pixels
def test_one_lost_file_in_ten_is_left_out_and_named_and_two_are_refused(tmp_path: Path, share: float) -> None:
    folder = write_series(tmp_path / "SECRET", ramp(12))
    truncate(folder / "004.dcm", share)
    series = load_series(folder)
    left = [k for k in range(12) if k != 4]
    assert series.sop_instance_uids == [sop_uid(k) for k in left]
    np.testing.assert_array_equal(series.array, ramp(12)[left].transpose(2, 1, 0))
    assert series.warnings == [
        "004.dcm holds no complete image and is left out",
        "the slices are unevenly spaced, 5.00 to 10.00 mm",
        "10.00 mm between slices 4 and 5, where 5.00 mm is usual: 1 slice may be missing",
    ]
    assert series.files == [f"{k:03d}.dcm" for k in left]
    truncate(folder / "006.dcm", share)
    assert refusal(folder) == (
        f"{folder} has lost 2 or more of 12 images (004.dcm holds no complete image): "
        "copy the scan again, or store it uncompressed"
    )
    for path in folder.iterdir():
        truncate(path, share)
    assert "holds no image that can be read" in refusal(folder)


def test_the_head_series_of_a_study_or_the_one_that_was_asked_for_is_read(tmp_path: Path) -> None:
    write_head(tmp_path / "1", "1.1", 2, SeriesNumber=1, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    uids = write_head(tmp_path / "2", "1.2", SeriesNumber=2, ConvolutionKernel="H30s")
    write_head(tmp_path / "2", "1.3", SeriesNumber=3, ConvolutionKernel="H60s", pixels=HEAD + np.int16(1))
    series = load_series(tmp_path)
    np.testing.assert_array_equal(series.array, np.stack([HEAD.T] * 10, axis=-1))
    assert (series.sop_instance_uids, series.warnings) == (uids, [])
    assert series.files == [f"2/1.2_{k:03d}.dcm" for k in range(10)]
    assert sorted(series.skipped) == ["series 1 (2 slices): localizer", "series 3 (10 slices): bone kernel H60s"]
    for asked in (3, "3", "1.3"):
        reader = SeriesReader(series=asked)
        array, meta = reader.get_data(reader.read(tmp_path))
        np.testing.assert_array_equal(array, series.array + 1)
        assert "series 2 (10 slices): another series was asked for" in meta["skipped"]
    with pytest.raises(InputError, match=r"holds no series 7: name one of series 1 \(2 slices\), series 2"):
        load_series(tmp_path, series="7")
    write_series(tmp_path, ramp(3), StudyInstanceUID="1.2.4")
    assert refusal(tmp_path) == f"{tmp_path} holds 2 studies: give each a folder"


def test_more_slices_than_the_network_has_slots_are_refused_before_pixels_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_head(tmp_path / "a", "1.1")
    volumes = [write_volume(tmp_path / f"b{suffix}", voxels((10, 3, 12)), UPRIGHT) for suffix in EVERY_SUFFIX]
    for path in (tmp_path / "a", *volumes):
        assert load_scan(path, most_slices=10).array.shape[2] == 10
    monkeypatch.delattr("scripts.ct.reader.read_slices")
    monkeypatch.delattr("scripts.ct.reader._read_with_itk")
    monkeypatch.setattr("nibabel.Nifti1Image.get_fdata", None)
    for path in (tmp_path / "a", *volumes):
        reader = SeriesReader(most_slices=9)
        with pytest.raises(InputError, match="slots") as refused:
            reader.get_data(reader.read(path))
        assert str(refused.value) == (
            f"{path} has 10 slices, and the network of these weights 9 slots: "
            "give a series or an export of thicker slices, or weights without slots"
        )


def same(one: Series, other: Series) -> None:
    for name in ("array", "affine", "positions_mm", "sop_instance_uids", "warnings", "skipped"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_a_folder_a_zip_and_a_list_of_files_are_one_scan(tmp_path: Path) -> None:
    write_series(tmp_path / "more" / "other", ramp(2), SeriesInstanceUID="1.2.3")
    write_series(tmp_path / "more" / "scan", ramp(9))
    expected = load_series(tmp_path / "more")
    same(load_series(zipped(tmp_path / "more", tmp_path / "scan.zip")), expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["more", "scan.zip"]  # nothing was unpacked
    files = [path for path in (tmp_path / "more").rglob("*") if path.is_file()]
    listed = load_series(*sorted(files, reverse=True))
    same(listed, expected)
    assert listed.files == [f"{k:03d}.dcm" for k in range(9)]  # beside the first in the list
    one_by_one = LoadImage(reader=SeriesReader(), image_only=True)([str(path) for path in files])
    np.testing.assert_array_equal(np.asarray(one_by_one), expected.array)


def test_one_file_of_several_frames_in_any_order(tmp_path: Path) -> None:
    shown, order = phantom(10), [7, 3, 9, 0, 5, 1, 8, 2, 6, 4]
    stored = np.stack([shown[k] + 1000 + place for place, k in enumerate(order)]).astype(np.int16)  # see write_enhanced
    path = write_enhanced(tmp_path / "all", stored, [couch(10)[k] for k in order], SOPInstanceUID=sop_uid(0))
    for is_compressed in (False, True):
        if is_compressed:
            dataset = pydicom.dcmread(path)
            dataset.compress(RLELossless)
            dataset.SOPInstanceUID = sop_uid(0)  # pydicom gives a new one
            dataset.save_as(path)
        series = load_series(path)
        np.testing.assert_array_equal(series.array, shown.transpose(2, 1, 0))
        assert series.frames == [order.index(k) + 1 for k in range(10)]
        assert series.sop_instance_uids == [sop_uid(0)] * 10
        assert series.files == ["all"] * 10
        np.testing.assert_allclose(series.affine[:3, 3], [30, 40, -20])


@pytest.mark.parametrize("syntax", [JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless, RLELossless])
def test_compressed_pixels_are_the_same_and_a_damaged_slice_is_left_out(tmp_path: Path, syntax: UID) -> None:
    folder = write_series(tmp_path, phantom(10), StudyInstanceUID=STUDY_UID)
    plain = load_series(folder)
    for path in folder.iterdir():
        compress(path, syntax)
        assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == syntax
    same(load_series(folder), plain)
    dataset = pydicom.dcmread(folder / "004.dcm")
    dataset.PixelData = encapsulate([b"nonsense"])
    dataset.save_as(folder / "004.dcm")
    series = load_series(folder)
    assert series.sop_instance_uids == [sop_uid(k) for k in range(10) if k != 4]
    assert series.warnings[0] == "004.dcm holds no complete image and is left out"


def test_what_holds_no_scan_is_refused_through_load_image(tmp_path: Path) -> None:
    for name in ("notes.txt", "scan.zip"):
        (tmp_path / name).write_text("neither DICOM nor a zip")
    for name, words in (
        ("nowhere.nii.gz", "does not exist"),
        ("", "holds no DICOM images: give a scan"),
        ("notes.txt", "holds no DICOM, NIfTI, NRRD or MetaImage"),
        ("scan.zip", "holds no DICOM, NIfTI, NRRD or MetaImage"),
    ):
        with pytest.raises(InputError, match=rf"{tmp_path / name}.*{words}"):
            LoadImage(reader=SeriesReader())(tmp_path / name)


@pytest.mark.parametrize(
    ("orientation", "step", "axes"), [(tilted(15), 5.0, (1, 1, 1)), (FACE_DOWN, -5.0, (-1, -1, -1))]
)
def test_reader_feeds_load_image_and_orientation_never_reverses_the_slices(
    tmp_path: Path, orientation: tuple[float, ...], step: float, axes: tuple[int, ...]
) -> None:
    """DICOM of a supine patient is LPS already."""
    stored = ramp(4)
    write_series(tmp_path, stored, couch(4, step), ImageOrientationPatient=list(orientation))
    image = LoadImage(reader=SeriesReader(), image_only=True, ensure_channel_first=True)(tmp_path)
    assert isinstance(image, MetaTensor)
    assert image.meta["sop_instance_uids"] == [sop_uid(k) for k in range(4)][:: axes[2]]
    assert image.meta["tilt_degrees"] == pytest.approx(15 * (orientation is not FACE_DOWN))
    assert "secret" not in repr({**image.meta, "filename_or_obj": ""}).lower()  # no name, no number of the patient
    turned = Orientation(axcodes="LPS", labels=None)(image)
    wanted = stored[:: axes[0], :: axes[1], :: axes[2]].transpose(2, 1, 0)
    np.testing.assert_array_equal(turned[0].numpy(), wanted)
    with pytest.raises(InputError, match=r"a.nii and 1 more paths given as one image: give one volume"):
        LoadImage(reader=SeriesReader())([tmp_path / "a.nii", tmp_path / "b.nii"])


AXIS_SWAP = np.array([[0, 0.5, 0, -3], [-0.5, 0, 0, 8], [0, 0, -5, 60], [0, 0, 0, 1.0]])  # in RAS, the head turned
UPRIGHT = AXIS_SWAP[:, [2, 0, 1, 3]]  # slices are the first axis
SPACES = {
    "right-anterior-superior": (1, 1, 1),
    "left-posterior-superior": (-1, -1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "LPS": (-1, -1, 1),
}


def turned_about_x(degrees: float) -> np.ndarray:
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[1, 0, 0, 0], [0, cos, -sin, 0], [0, sin, cos, 0], [0, 0, 0, 1]])


def voxels(shape: tuple[int, ...] = (5, 4, 3), dtype: Any = np.float32) -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


EVERY_SUFFIX = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")


@pytest.mark.parametrize("suffix", EVERY_SUFFIX)
def test_slices_of_a_volume_run_upwards_however_they_were_stored(tmp_path: Path, suffix: str) -> None:
    downwards = np.diag([1.0, 1.0, -3.0, 1.0])
    downwards[2, 3] = 7.0
    array = voxels()
    array[0, 0] = [-3024, np.nan, -1000]  # as padding may be
    path = write_volume(tmp_path / f"scan{suffix}", array, downwards)
    series = load_scan(path)
    array[0, 0, :2] = -1024
    np.testing.assert_array_equal(series.array, array[:, :, ::-1])
    assert series.array.dtype == np.float32
    np.testing.assert_allclose(series.positions_mm, [1.0, 4.0, 7.0])
    np.testing.assert_allclose(series.spacings, [3.0, 3.0])
    assert series.sop_instance_uids == series.files == series.warnings == []
    np.testing.assert_array_equal(series.stored_affine, downwards)  # for those who write beside the file
    assert series.stored_shape == volume_shape(path) == (5, 4, 3)


@pytest.mark.parametrize("kind", [*SPACES, "gzip", "mha", "mha zipped", "UPPER.MHA"])
def test_a_turned_scan_is_one_in_each_format(tmp_path: Path, kind: str) -> None:
    affine, array = turned_about_x(15) @ AXIS_SWAP, voxels(dtype=np.int16) - np.int16(20)
    expected = load_volume(write_nifti(tmp_path / "scan.nii", array, affine))
    if "mha" in kind.lower():
        path = write_mha(tmp_path / kind.replace("mha zipped", "z.mha"), array, LPS_TO_RAS @ affine, "zipped" in kind)
        path = path if path.suffix else path.rename(tmp_path / "scan.mha")
    else:
        space, encoding = (kind, "raw") if kind in SPACES else ("LPS", kind)
        path = write_nrrd(tmp_path / "a.nrrd", array, np.diag([*SPACES[space], 1.0]) @ affine, space, encoding)
    series = load_volume(path)
    np.testing.assert_array_equal(series.array, expected.array)
    np.testing.assert_allclose(series.affine, expected.affine, atol=1e-5)  # NIfTI keeps its affine in float32
    np.testing.assert_allclose(series.positions_mm, expected.positions_mm, atol=1e-4)
    np.testing.assert_allclose(series.spacings, expected.spacings, atol=1e-5)
    assert series.tilt_degrees == pytest.approx(15, abs=1e-4) == expected.tilt_degrees


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_a_tilted_scan_keeps_its_shear_and_the_order_of_its_slices(tmp_path: Path, suffix: str) -> None:
    dicom = load_series(shared_data("ct_dicom/ge_head_tilt18"))
    series = load_volume(write_volume(tmp_path / f"scan{suffix}", dicom.array, dicom.affine))
    np.testing.assert_array_equal(series.array, dicom.array[::-1, ::-1])  # volumes run to the right and to the front
    columns, rows, slices = dicom.array.shape
    for k in range(slices):
        corner = dicom.affine @ [0, 0, k, 1]
        np.testing.assert_allclose(series.affine @ [columns - 1, rows - 1, k, 1], corner, atol=5e-4)
    assert series.tilt_degrees == pytest.approx(dicom.tilt_degrees, abs=1e-3)


@pytest.mark.parametrize(
    "lines",
    [
        {"space": None, "space directions": None, "space origin": None},
        {"space": None, "space directions": None, "space origin": None, "spacings": "1 1 5"},
        {"space": "scanner-xyz"},
        {"space directions": None},
        {"space directions": "(nan,nan,nan) (nan,nan,nan) (nan,nan,nan)"},
        {"space directions": "(0,0,0) (0,1,0) (0,0,1)"},
        {"space origin": None},
        {"TransformMatrix": None},
        {"TransformMatrix": "0 0 0 0 1 0 0 0 1"},
        {"Offset": None},
        {"ElementSpacing": None},
        {"sform": None},
    ],
)
def test_a_volume_without_its_orientation_is_refused(tmp_path: Path, lines: dict[str, str | None]) -> None:
    if "sform" in lines:
        path = write_nifti(tmp_path / "scan.nii", voxels(), np.eye(4))
        path.write_bytes(path.read_bytes()[:280] + b"\0" * 48 + path.read_bytes()[328:])
    else:
        write, name = (write_nrrd, "scan.nrrd") if "space" in "".join(lines) else (write_mha, "scan.mha")
        path = write(tmp_path / name, voxels(), np.eye(4), lines=lines)
    assert "convert it again" in refusal(path)


def test_a_volume_of_four_axes_or_in_colour_is_refused(tmp_path: Path) -> None:
    array = voxels((3, 2, 2, 2))
    vectors = {"space directions": "none (1,0,0) (0,1,0) (0,0,1)", "kinds": "vector domain domain domain"}
    colours = {"ElementNumberOfChannels": "3", "NDims": "3", "DimSize": "2 2 2"}
    flat = {"NDims": "2", "DimSize": "2 2", "TransformMatrix": "1 0 0 1", "Offset": "0 0", "ElementSpacing": "1 1"}
    for path, shape in {
        write_nifti(tmp_path / "a.nii", array, np.eye(4)): (3, 2, 2, 2),
        write_nrrd(tmp_path / "a.nrrd", array, np.eye(4), lines=vectors): (3, 2, 2, 2),
        write_mha(tmp_path / "a.mha", array, np.eye(4), lines=colours): (3, 2, 2, 2),
        write_mha(tmp_path / "b.mha", array[..., 0], np.eye(4), lines={**colours, **flat}): (3, 2, 2, 1),
    }.items():
        assert f"{shape}: give one volume with three axes" in refusal(path)
        assert volume_shape(path) == shape


@pytest.mark.parametrize("suffix", EVERY_SUFFIX)
def test_a_damaged_or_huge_volume_is_refused_in_one_line_and_nothing_is_printed(
    tmp_path: Path, suffix: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_volume(tmp_path / f"scan{suffix}", voxels((9, 9, 9)), np.eye(4))
    whole, raw = path.read_bytes(), path.with_suffix(".raw")
    huge = gzip.decompress(whole) if suffix == ".nii.gz" else whole
    if suffix.startswith(".nii"):
        huge = huge[:40] + struct.pack("<8h", 3, 32767, 32767, 32767, 1, 1, 1, 1) + huge[56:]
    huge = huge.replace(b"9 9 9", b"32767 32767 32767")
    path.write_bytes(gzip.compress(huge) if suffix == ".nii.gz" else huge)
    assert refusal(path)
    path.write_bytes(whole)
    truncate(raw if raw.exists() else path, 0.6)
    assert "cannot be read as" in refusal(path)
    path.write_bytes(whole[: len(whole) // 3] if raw.exists() else whole[:60])
    for content in (path.read_bytes(), b"not a volume", b""):
        path.write_bytes(content)
        assert "copy or convert it again" in refusal(path)
        with pytest.raises(InputError, match="cannot be read as"):
            volume_shape(path)
    assert capfd.readouterr() == ("", "")


def test_without_itk_only_its_formats_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nifti, mha = (write_volume(tmp_path / name, voxels(), np.eye(4)) for name in ("a.nii", "b.mha"))
    monkeypatch.setitem(sys.modules, "itk", None)
    load_volume(nifti)
    assert "pip install itk-io" in refusal(mha)
