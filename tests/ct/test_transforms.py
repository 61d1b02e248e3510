# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
import json
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.data.utils import pad_list_data_collate
from monai.transforms import Compose
from monai.utils import set_determinism

from scripts.core.errors import InputError
from scripts.ct.dicom.files import open_image
from scripts.ct.reader import load_series
from scripts.ct.transforms import RandSliceAffined, RandSliceDropd, ScanBagd, SliceWindowsd
from tests.ct.series import couch, phantom, ramp, sop_uid, tilted, write_enhanced, write_series, zipped
from tests.shared_data import ROOT, shared_data


def pipeline(size: int = 6) -> Compose:
    config = ConfigParser()
    config.read_config(ROOT / "configs" / "ct" / "inference.json")
    config["image_size"] = size
    return Compose(config.get_parsed_content("preprocessing").transforms)


def scan(count: int, **meta: Any) -> MetaTensor:
    """A scan as it comes out of Orientationd."""
    defaults = {
        "filename_or_obj": "scans/a",
        "sop_instance_uids": [sop_uid(k) for k in range(count)],
        "frames": [None] * count,
        "files": [f"{k}.dcm" for k in range(count)],
        "positions_mm": np.arange(count) * 2.5,
        "spacings": np.full(count - 1, 2.5),
        "tilt_degrees": 18.5,
        "warnings": ["a warning"],
        "skipped": [],
    }
    return MetaTensor(torch.zeros(1, 4, 3, count), meta={**defaults, **meta})


def test_windows_scale_hounsfield_units_to_unit_range() -> None:
    hounsfield = torch.tensor([-1024.0, -20.0, 15.0, 20.0, 30.0, 40.0, 80.0, 180.0, 2000.0])
    image = hounsfield.reshape(1, 1, 1, -1)
    out = SliceWindowsd(keys="image", size=1)({"image": image})["image"]
    expected = [
        [0, 0, 15 / 80, 0.25, 0.375, 0.5, 1, 1, 1],  # brain: 0 to 80
        [0, 0, 35 / 200, 0.2, 0.25, 0.3, 0.5, 1, 1],  # subdural: -20 to 180
        [0, 0, 0, 5 / 30, 0.5, 25 / 30, 1, 1, 1],  # soft: 15 to 45
    ]
    torch.testing.assert_close(out[:, 0, 0], torch.tensor(expected), atol=1e-6, rtol=0)


def test_windows_resize_each_slice_by_itself_with_antialias_and_put_rows_before_columns() -> None:
    image = torch.zeros(1, 16, 8, 3)
    image[0, ::4, :, 1] = 80.0  # lines as thin as a pixel, in the middle slice alone
    out = SliceWindowsd(keys="image", windows=[(40.0, 80.0)], size=4)({"image": image})["image"]
    assert out.shape == (1, 4, 4, 3)
    assert out[..., [0, 2]].abs().max() == 0
    # without antialias every line would fall between two sampled pixels; with it their mean remains
    torch.testing.assert_close(out[0, :, 1:3, 1], torch.full((4, 2), 0.25), atol=0.02, rtol=0)
    image = MetaTensor(torch.arange(4 * 4 * 2, dtype=torch.float32).reshape(1, 4, 4, 2))
    out = SliceWindowsd(keys="image", windows=[(16.0, 32.0)], size=4)({"image": image})["image"]
    assert (type(out), out.dtype) == (torch.Tensor, torch.float32)
    torch.testing.assert_close(out, image.as_tensor().transpose(1, 2) / 32, check_stride=False)


def test_a_bag_has_the_metadata_of_its_slices_and_of_the_scan() -> None:
    left_out = ["series 1 (2 slices): localizer"]
    given = scan(3, spacings=np.array([1.14004, 7.3800049]), skipped=left_out)
    bag: dict[Any, Any] = ScanBagd("image")({"image": given, "label": 1})
    torch.testing.assert_close(bag["coords"], torch.tensor([[0.0, 2.5, 5.0]]))
    torch.testing.assert_close(bag["mask"], torch.ones(1, 3))
    torch.testing.assert_close(bag["label"], torch.tensor([1.0]))
    assert bag["source"] == "scans/a"
    instances = [{"id": sop_uid(k), "position_mm": 2.5 * k, "file": f"{k}.dcm"} for k in range(3)]
    assert json.loads(bag["instances"]) == instances
    about = json.loads(bag["about"])
    assert about.pop("warnings")[1:] == ["3 slices, few for a head", "a warning"]
    assert about == {"tilt_degrees": 18.5, "spacing_mm": [1.14, 7.38], "set_aside": left_out}
    alone: dict[Any, Any] = ScanBagd("image")({"image": scan(1)})
    assert json.loads(alone["about"])["spacing_mm"] is None


def head(count: int = 10, **meta: Any) -> MetaTensor:
    """A scan like `scan`, which is a head."""
    array = torch.from_numpy(phantom(count).transpose(2, 1, 0).copy()).float()[None]
    meta = {**scan(count).meta, "positions_mm": np.arange(count) * 5.0, "warnings": [], **meta}
    return MetaTensor(array, affine=torch.diag(torch.tensor([8.0, 10.0, 5.0, 1.0])), meta=meta)


def test_what_is_hardly_a_head_ct_is_warned_of_where_it_is_read_and_refused_where_that_is_asked_for() -> None:
    def warnings(image: MetaTensor, **keys: Any) -> Any:
        bag: dict[Any, Any] = ScanBagd("image", **keys)({"image": image})
        return json.loads(bag["about"])["warnings"]

    assert warnings(head(), require_head_ct=True) == []
    of_viewer = head()  # which has read it by another reader
    del of_viewer.meta["positions_mm"]
    assert warnings(of_viewer, require_head_ct=True) == []
    assert warnings(head(7), require_head_ct=True) == ["7 slices, few for a head"]
    why = (
        "hardly a head CT in Hounsfield units: no value of the middle slice is below 0, where air is near -1000, "
        "and 0.0% of what is not air in the middle slice is between 0 and 80 HU, where brain is expected"
    )
    magnetic = head(warnings=["a gap"])
    magnetic.add_(1000)
    assert warnings(magnetic) == [why, "a gap"]
    with pytest.raises(InputError, match="is hardly a head CT") as refused:
        warnings(magnetic, require_head_ct=True)
    assert str(refused.value) == f"scans/a is {why}: give a head CT in HU, or leave out require_head_ct"


def test_frames_are_told_apart_and_slices_without_a_uid_go_by_their_number() -> None:
    meta: dict[str, Any] = {"frames": [3, 1], "sop_instance_uids": ["1.2", "1.2"], "files": ["all", "all"]}
    bag: dict[Any, Any] = ScanBagd("image")({"image": scan(2, **meta), "instance_label": {"1.2/1": 1, "1.2/3": 0}})
    assert json.loads(bag["instances"]) == [
        {"id": "1.2/3", "position_mm": 0.0, "file": "all", "frame": 3},
        {"id": "1.2/1", "position_mm": 2.5, "file": "all", "frame": 1},
    ]
    torch.testing.assert_close(bag["instance_label"], torch.tensor([[0.0, 1.0]]))
    half: dict[Any, Any] = ScanBagd("image")({"image": scan(2, sop_instance_uids=["", "1.2"])})
    assert [instance["id"] for instance in json.loads(half["instances"])] == [0, "1.2"]
    none: dict[Any, Any] = ScanBagd("image")({"image": scan(2, sop_instance_uids=[], frames=[], files=[])})
    assert json.loads(none["instances"]) == [{"id": 0, "position_mm": 0.0}, {"id": 1, "position_mm": 2.5}]
    assert not {"label", "instance_label"} & set(none)  # none is invented


def test_instance_labels_follow_the_slices_or_are_refused_with_the_name_of_the_scan() -> None:
    by_uid: dict[str, int] = {sop_uid(2): 1, sop_uid(0): 0, sop_uid(1): 1, "a slice that was left out": 0}
    for labels in ([0, 1, 1], by_uid):
        bag = ScanBagd("image")({"image": scan(3), "instance_label": labels})
        torch.testing.assert_close(bag["instance_label"], torch.tensor([[0.0, 1.0, 1.0]]))
    del by_uid[sop_uid(1)]
    lacks: dict[str, Any] = {"scan7 lacks 1 of its 3 slices: label every SOPInstanceUID or none": by_uid}
    for says, unfit in {**lacks, "scan7 has 2 entries for 3 slices": [0, 1]}.items():
        with pytest.raises(InputError, match=says):
            ScanBagd("image")({"image": scan(3), "instance_label": unfit, "bag_id": "scan7"})
    with pytest.raises(InputError, match="put ScanBagd right after Orientationd"):
        ScanBagd("image")({"image": torch.zeros(1, 4, 3, 2)})


def test_nifti_and_dicom_of_one_tilted_scan_give_one_bag(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "dicom", ramp(4, 6, 6) - 20, ImageOrientationPatient=list(tilted(15)))
    series = load_series(folder)
    # stored the other way round along every axis, as some converters do
    flip = np.diag([-1.0, -1.0, -1.0, 1.0])
    flip[:3, 3] = np.array(series.array.shape) - 1
    file = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(series.array[::-1, ::-1, ::-1], series.affine @ flip), file)
    dicom, nifti = (pipeline()({"image": path, "label": 0}) for path in (folder, file))
    for key in ("image", "coords", "mask", "label"):
        torch.testing.assert_close(nifti[key], dicom[key], atol=0, rtol=0)
    positions = [[entry["position_mm"] for entry in json.loads(bag["instances"])] for bag in (nifti, dicom)]
    np.testing.assert_allclose(positions[0], positions[1], atol=1e-4)  # NIfTI keeps its affine in float32


def test_real_scan_becomes_a_bag() -> None:
    bag = pipeline(size=64)({"image": shared_data("ct_dicom/ge_head_tilt18")})
    about = json.loads(bag["about"])
    assert (about["tilt_degrees"], about["spacing_mm"]) == (18.5, [1.14, 7.38])
    assert bag["image"].shape == (3, 64, 64, 28)
    assert 0 <= bag["image"].min() < bag["image"].max() <= 1
    brain = bag["image"][0]
    assert brain[0].max() == 0  # air above the nose of a patient on the back
    assert brain[24:40, 24:40, 14].mean() > 0.2


def test_unequal_bags_collate_and_decollate(tmp_path: Path) -> None:
    items = [
        {"image": write_series(tmp_path / f"{count}", ramp(count, 6, 6)), "label": count % 2, "bag_id": f"scan{count}"}
        for count in (2, 5)
    ]
    alone = [pipeline()(item) for item in items]
    loader = DataLoader(Dataset(items, pipeline()), batch_size=2, collate_fn=pad_list_data_collate)
    batch = next(iter(loader))
    assert batch["image"].shape == (2, 3, 6, 6, 5)
    assert batch["label"].shape == (2, 1)
    assert batch["mask"].sum(dim=(1, 2)).tolist() == [2, 5]
    for index, bag in enumerate(alone):
        real = batch["mask"][index, 0] > 0
        torch.testing.assert_close(torch.as_tensor(batch["image"][index][..., real]), bag["image"], check_stride=False)
        assert batch["image"][index][..., ~real].abs().sum() == 0
        torch.testing.assert_close(torch.as_tensor(batch["coords"][index][:, real]), bag["coords"])
    for apart, bag in zip(decollate_batch(batch), alone, strict=True):
        for key in ("instances", "about", "source", "bag_id"):
            assert apart[key] == bag[key]


@pytest.mark.parametrize("kind", ["zip in a folder", "list", "enhanced"])
def test_a_slice_is_found_again_from_the_bag(tmp_path: Path, kind: str) -> None:
    image: Any = write_enhanced(tmp_path / "all", ramp(4, 6, 6), couch(4), SOPInstanceUID=sop_uid(9))
    if kind != "enhanced":
        folder = write_series(tmp_path / "scan", ramp(4, 6, 6))
        image = [str(path) for path in sorted(folder.iterdir())]
        image = image if kind == "list" else zipped(folder, tmp_path / "deep" / "scan.zip").parent
    bag = pipeline()({"image": image})
    for k, instance in enumerate(json.loads(bag["instances"])):
        assert not Path(instance["file"]).is_absolute()
        with open_image(bag["source"], instance["file"]) as stream:
            uid = pydicom.dcmread(stream).SOPInstanceUID
        assert instance["id"] == (f"{uid}/{k + 1}" if kind == "enhanced" else uid)


SIDE = 33
CENTRE = SIDE // 2


def bag_of(count: int) -> dict[Hashable, Any]:
    """Everything that belongs to slice k holds the number k."""
    numbers = torch.arange(float(count))
    return {
        "image": numbers.expand(3, 2, 2, count),
        "coords": 5 * numbers[None],
        "mask": torch.ones(1, count),
        "instances": json.dumps([{"id": f"uid.{k}", "position_mm": 5.0 * k} for k in range(count)]),
        "instance_label": numbers[None],
        "label": torch.ones(1),
        "source": "scan",
    }


def kept(bag: dict[Hashable, Any]) -> list[int]:
    return [int(number) for number in bag["image"].reshape(-1, bag["image"].shape[-1])[0]]


def moving(seed: int = 0, **settings: Any) -> RandSliceAffined:
    still = {"degrees": 0, "shift": 0, "zoom": 0, "prob": 1.0}
    transform = RandSliceAffined("image", **{**still, **settings})
    transform.set_random_state(seed)
    return transform


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 60), share=st.floats(0, 0.5), at_least=st.integers(1, 20), seed=st.integers(0, 99))
def test_slices_stay_in_step_and_in_order(count: int, share: float, at_least: int, seed: int) -> None:
    drop = RandSliceDropd(share, at_least)
    drop.set_random_state(seed)
    given = bag_of(count)
    if seed % 2:
        given["image"] = given["image"][:, 0]  # features of slices
    bag = drop(given)
    assert given["instance_label"][0].tolist() == list(range(count))  # the bag given is not changed
    left = kept(bag)
    assert left == sorted(set(left))
    assert len(left) >= max(min(at_least, count), count - int(share * count))
    gone = set(range(count)) - set(left)
    assert not any(k + 1 in gone for k in gone)
    assert bag.keys() == given.keys()
    numbers = torch.tensor(left)
    assert (bag["image"] == numbers.expand(*given["image"].shape[:-1], -1)).all()
    for key in ("coords", "mask", "instance_label"):
        assert torch.equal(bag[key], given[key][:, numbers]), key
    assert json.loads(bag["instances"]) == [{"id": f"uid.{k}", "position_mm": 5.0 * k} for k in left]


def test_every_number_of_slices_and_every_slice_goes_sometimes() -> None:
    drop = RandSliceDropd(0.2, at_least=3)
    drop.set_random_state(0)
    left = [kept(drop(bag_of(10))) for _ in range(400)]
    share = [sum(len(slices) == count for slices in left) / 400 for count in (8, 9, 10)]
    assert share == pytest.approx([1 / 3] * 3, abs=0.08)
    with pytest.raises(InputError, match=r"slice_drop is 0\.6: give a share from 0 to 0\.5"):
        RandSliceDropd(0.6)  # which would take neighbours
    gone = np.array([sum(k not in slices for slices in left) for k in range(10)]) / 400
    assert gone == pytest.approx(np.full(10, 0.1), abs=0.05)


def test_all_slices_and_windows_move_alike_and_are_never_mixed() -> None:
    settings = {"degrees": 20, "shift": 0.1, "zoom": 0.2}
    scan = torch.rand(3, SIDE, SIDE, 5, generator=torch.Generator().manual_seed(0))
    scan[..., 2] = 0
    moved = moving(1, **settings)({"image": scan})["image"]
    assert not torch.equal(moved, scan)
    assert (moved[..., 2] == 0).all()
    for window in range(3):
        for k in range(5):
            alone = moving(1, **settings)({"image": scan[window : window + 1, ..., k : k + 1]})["image"]
            torch.testing.assert_close(moved[window : window + 1, ..., k : k + 1], alone)


def test_values_stay_in_range_and_without_luck_or_ranges_a_scan_stays_as_it_is() -> None:
    moved = moving(3, shift=0.3)({"image": torch.ones(1, SIDE, SIDE, 2)})["image"]
    assert (moved.min(), moved.max()) == (0, pytest.approx(1))  # nothing comes in from outside
    scan = torch.rand(3, SIDE, SIDE, 4)
    torch.testing.assert_close(moving()({"image": scan})["image"], scan)
    assert moving(degrees=20, prob=0.0)({"image": scan})["image"] is scan


def moves(transform: RandSliceAffined, start: tuple[float, float]) -> np.ndarray:
    """Where a spot goes that was at `start` from the centre, (30, 2)."""
    grid = np.indices((SIDE, SIDE)) - CENTRE
    distances = ((grid - np.reshape(start, (2, 1, 1))) ** 2).sum(axis=0)
    image = torch.as_tensor(np.exp(-distances / 8.0), dtype=torch.float32)[None, :, :, None]
    moved = [transform({"image": image})["image"][0, :, :, 0].numpy() for _ in range(30)]
    return np.array([(spot * grid).sum(axis=(1, 2)) / spot.sum() for spot in moved])


def test_a_turn_keeps_the_distance_a_shift_is_a_share_of_the_side_and_a_zoom_the_same_for_both_axes() -> None:
    rows, columns = moves(moving(degrees=15), (0, 9)).T
    np.testing.assert_allclose(np.hypot(rows, columns), 9, atol=0.05)
    angles = np.degrees(np.arctan2(rows, columns))
    assert -15.5 <= angles.min() < -5
    assert 5 < angles.max() <= 15.5
    shifts = moves(moving(shift=0.2), (0, 0)) / SIDE
    assert np.abs(shifts).max() <= 0.2 + 0.002
    assert (shifts.min(axis=0) < -0.1).all()
    assert (shifts.max(axis=0) > 0.1).all()
    rows, columns = (moves(moving(zoom=0.25), (-5, 7)) / [-5, 7]).T
    np.testing.assert_allclose(rows, columns, atol=0.01)
    assert 0.74 <= rows.min() < 0.9
    assert 1.1 < rows.max() <= 1.26


def test_workers_and_epochs_draw_anew_and_a_seed_repeats_them() -> None:
    def epochs() -> list[torch.Tensor]:
        set_determinism(seed=7)
        augmented = Compose([RandSliceDropd(0.4, 1), RandSliceAffined("image", prob=1.0)])
        slices = torch.arange(float(SIDE)).expand(20, 1, SIDE, SIDE).permute(1, 2, 3, 0)
        scan = {**bag_of(20), "image": slices}
        loader = DataLoader(Dataset([scan] * 2, augmented), batch_size=1, num_workers=2)
        return [batch["image"] for _ in range(2) for batch in loader]

    first, again = epochs(), epochs()
    set_determinism(seed=None)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({(image.shape[-1], float(image[0, 0, 12, 14, 0])) for image in first}) == 4  # two scans in two epochs


def test_a_scan_that_another_reader_read_has_the_places_of_its_affine(tmp_path: Path) -> None:
    """As MONAI Deploy does it: no positions, no path, and the axes turned by Orientationd."""
    folder = write_series(tmp_path / "a", ramp(4), couch(4), ImageOrientationPatient=list(tilted(18)))
    by_ours = pipeline()({"image": str(folder), "bag_id": "a"})
    own = load_series(folder)
    steps = pipeline().transforms[1:]
    meta = {"affine": torch.from_numpy(own.affine), "original_affine": own.affine, "original_channel_dim": "no_channel"}
    data: dict[Hashable, Any] = {"image": MetaTensor(torch.from_numpy(own.array), meta=meta)}
    for step in steps:
        data = step(data)
    torch.testing.assert_close(data["coords"], by_ours["coords"])
    torch.testing.assert_close(data["image"], by_ours["image"])
    assert (data["bag_id"], data["source"]) == ("scan", "scan")
    about, wanted = (json.loads(each["about"]) for each in (data, by_ours))
    assert about["tilt_degrees"] == pytest.approx(wanted["tilt_degrees"], abs=0.01)
    assert about["spacing_mm"] == pytest.approx(wanted["spacing_mm"], abs=1e-3)


def test_a_bag_is_named_after_its_path_where_nobody_named_it() -> None:
    bag: dict[Any, Any] = ScanBagd("image")({"image": scan(2, filename_or_obj="scans/a.nii.gz")})
    assert bag["bag_id"] == "a"


@pytest.mark.parametrize(("painted", "label"), [([1, 2], 1.0), ([], 0.0)])
def test_a_painted_mask_is_a_label_of_the_scan_and_of_its_slices(
    tmp_path: Path, painted: list[int], label: float
) -> None:
    marks = np.zeros((4, 3, 4), dtype=np.uint8)
    marks[1, 1, painted] = 1
    image: Any = nib.Nifti1Image(marks[:, :, ::-1], np.diag([1.0, 1.0, -5.0, 1.0]))  # stored from the top down
    image.to_filename(tmp_path / "mask.nii.gz")
    bag: dict[Any, Any] = ScanBagd("image")({"image": scan(4), "label": str(tmp_path / "mask.nii.gz")})
    assert bag["label"].tolist() == [label]
    assert np.flatnonzero(bag["instance_label"][0]).tolist() == painted


def test_windows_may_keep_where_the_voxels_lay() -> None:
    """A voxel's place in the patient is that of the voxel it was made of, whatever the size."""
    affine = np.array([[-0.5, 0, 0, 10], [0, -0.25, 0, 20], [0, 0, 5, -30], [0, 0, 0, 1.0]])
    volume = MetaTensor(torch.rand(1, 8, 4, 3), affine=torch.from_numpy(affine), meta={"spatial_shape": [8, 4, 3]})
    image: Any = SliceWindowsd("image", size=16, keep_meta=True)({"image": volume})["image"]
    assert (image.meta["spatial_shape"], tuple(image.shape)) == ([8, 4, 3], (3, 16, 16, 3))
    rows_columns = np.array([3.5, 7.5, 2, 1])  # the middle of row and column pixels of the small ones
    before = affine @ np.array([(7.5 + 0.5) / 2 - 0.5, (3.5 + 0.5) / 4 - 0.5, 2, 1])
    np.testing.assert_allclose(image.affine.numpy() @ rows_columns, before, atol=1e-6)
    assert not isinstance(SliceWindowsd("image", size=16)({"image": volume})["image"], MetaTensor)
    with pytest.raises(InputError, match="lost its metadata before SliceWindowsd: put it right after ScanBagd"):
        SliceWindowsd("image", keep_meta=True)({"image": volume.as_tensor()})
