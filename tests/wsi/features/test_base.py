# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Every format of feature file is recognised by its content, and gives the grid that its patches were cut on."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
import torch

from scripts.core.errors import InputError
from scripts.wsi.features.base import impossible
from scripts.wsi.features.files import feature_paths, files_of, find_features, open_features, read_header
from tests.wsi.foreign_arrays import (
    write_atlaspatch,
    write_dict,
    write_hest,
    write_npz,
    write_owkin,
    write_safetensors,
    write_slideflow,
    write_spatialdata,
    write_tiatoolbox,
    write_tiatoolbox_zarr,
)
from tests.wsi.foreign_features import (
    CELLS,
    DIMENSION,
    blocks_of,
    edges_of,
    graph_edges,
    load,
    own,
    some_features,
    tissue,
    write_cells,
    write_clam,
    write_h5,
    write_stamp,
    write_torchmil,
    write_trident,
    write_uni2h,
)

PATCHES = 24_000  # of a large bag
CORNER = np.array([1301, 4099])  # where the tissue begins


def on_grid(cells: np.ndarray, pitch: float) -> np.ndarray:
    return np.rint(CORNER + cells * pitch).astype(np.int64)


class Case(NamedTuple):
    name: str
    write: Callable[[Path, np.ndarray], Path]
    format: str
    pitch: float
    pitch_from: str
    tile: float
    encoder: str = ""
    unit: str = "level-0 pixels"


def cut(write: Callable[..., Path], pitch: float, /, **given: Any) -> Callable[[Path, np.ndarray], Path]:
    """A writer of a slide whose patches lie so far apart."""
    return lambda folder, cells: write(folder, "s", on_grid(cells, pitch), **given)


def stamp(stride: float, **given: Any) -> Callable[[Path, np.ndarray], Path]:
    return lambda folder, cells: write_stamp(folder, "s", cells * stride + [0.25, 17.5], **given)


def write_own(folder: Path, name: str, coords: np.ndarray, **given: Any) -> Path:
    return own(folder / f"{name}.h5", coords=coords, features=some_features(len(coords)), **given)


LESS_OVERLAP, DOWNSAMPLED = "patch_size_level0 less overlap", "patch_size x downsample"
NEAREST, STAMP_1 = "commonest nearest distance", "tiles of 256 micrometres as STAMP 1 cuts them"
OTHERWISE = NEAREST + ", as the patches do not lie {} apart (" + DOWNSAMPLED + ")"
UM = ("", "micrometres")  # no encoder, and the unit
ASKED, STRIDE = ("", "pixels of the resolution asked for"), "stride_width x base_downsample"
ZARR_2: dict[str, Any] = {"version": 2, "codec": "zlib"}
CONCH: dict[str, Any] = {"magnifications": (None, None), "encoder": "conch_v15"}
STAMP_2: dict[str, Any] = {"tile_um": 128, "extractor": "h-optimus-0-0a1b2c3d"}
SIZE: dict[str, Any] = {"attributes": False, "tile_size": 224}
SIZE_UM: dict[str, Any] = {**SIZE, "unit": "um"}
OWN: dict[str, Any] = {"pitch": 513.026, "tile": 1026.052}
CASES = [
    Case("TRIDENT 40x to 20x", cut(write_trident, 512), "TRIDENT", 512, LESS_OVERLAP, 512, "uni_v1"),
    Case("TRIDENT half overlapping", cut(write_trident, 256, overlap=128), "TRIDENT", 256, LESS_OVERLAP, 512, "uni_v1"),
    Case("TRIDENT, overlap None", cut(write_trident, 512, overlap=None), "TRIDENT", 512, LESS_OVERLAP, 512, "uni_v1"),
    Case("TRIDENT, no magnification", cut(write_trident, 512, **CONCH), "TRIDENT", 512, LESS_OVERLAP, 512, "conch_v15"),
    Case("TRIDENT .pt", cut(write_trident, 256, overlap=128, as_pt=True), "TRIDENT", 256, LESS_OVERLAP, 512, "uni_v1"),
    Case("CLAM", cut(write_clam, 1024, downsample=(4.00012, 4.0002)), "CLAM", 1024.03, DOWNSAMPLED, 1024.03),
    Case("CLAM, one downsample", cut(write_clam, 512, downsample=2.0, level=1), "CLAM", 512, DOWNSAMPLED, 512),
    Case("CLAM without patches", cut(write_clam, 448, patch_size=None), "CLAM", 448, NEAREST, 448),
    Case("CLAM .pt", cut(write_clam, 512, downsample=2.0, only_pt=True), "CLAM", 512, DOWNSAMPLED, 512),
    Case("CLAM of old", cut(write_clam, 448, older=True), "CLAM", 448, NEAREST, 448),
    Case("CLAM .pt of old", cut(write_clam, 448, older=True, only_pt=True), "CLAM", 448, NEAREST, 448),
    Case("CLAM, half a step", cut(write_clam, 128), "CLAM", 128, OTHERWISE.format(256), 256),
    Case("CLAM, rounded", cut(write_clam, 768, downsample=3.9998), "CLAM", 768, OTHERWISE.format("1023.95"), 1023.9488),
    Case("UNI2-h", cut(write_uni2h, 512), "UNI2-h", 512, NEAREST, 512),
    Case("STAMP", stamp(256), "STAMP", 256, "tile_size_um", 256, "uni2", "micrometres"),
    Case("STAMP, early 2", stamp(128, **STAMP_2), "STAMP", 128, "tile_size_um", 128, "h-optimus-0", "micrometres"),
    Case("STAMP 1", stamp(224, attributes=False), "STAMP", 256, STAMP_1, 256, *UM),
    Case("STAMP 1 with a size", stamp(224, **SIZE), "STAMP", 256, STAMP_1, 256, *UM),
    Case("STAMP without a unit", stamp(256, attributes=False), "STAMP", 256, NEAREST, 256, *UM),
    Case("STAMP with a unit and a size", stamp(224, **SIZE_UM), "STAMP", 224, "tile_size", 224, *UM),
    Case("torchmil", cut(write_torchmil, 512), "torchmil", 512, NEAREST, 512, "resnet50"),
    Case("torchmil, .h5", cut(write_torchmil, 512, suffix=".h5"), "torchmil", 512, NEAREST, 512, "resnet50"),
    Case("AtlasPatch", cut(write_atlaspatch, 512), "AtlasPatch", 512, LESS_OVERLAP, 512, "uni_v1"),
    Case(
        "AtlasPatch, overlap", cut(write_atlaspatch, 256, overlap=128), "AtlasPatch", 256, LESS_OVERLAP, 512, "uni_v1"
    ),
    Case("slideflow", cut(write_slideflow, 512), "slideflow", 512, NEAREST, 512, "UNIFeatures"),
    Case("slideflow, no config", cut(write_slideflow, 512, config=False), "slideflow", 512, NEAREST, 512),
    Case("Owkin", cut(write_owkin, 1), "Owkin", 1, "counted", 1, "", "tiles"),
    Case("TIAToolbox", cut(write_tiatoolbox, 224), "TIAToolbox", 224, NEAREST, 224, *ASKED),
    Case("TIAToolbox zarr", cut(write_tiatoolbox_zarr, 224), "TIAToolbox", 224, NEAREST, 224, *ASKED),
    Case("LazySlide", cut(write_spatialdata, 512), "SpatialData", 512, STRIDE, 512, "uni"),
    Case("LazySlide, zarr 2", cut(write_spatialdata, 512, **ZARR_2), "SpatialData", 512, STRIDE, 512, "uni"),
    Case("SpatialData", cut(write_spatialdata, 384, spec=False), "SpatialData", 384, NEAREST, 512, "uni"),
    Case("HEST", cut(write_hest, 224), "named arrays", 224, NEAREST, 224),
    Case("npz", cut(write_npz, 512), "named arrays", 512, NEAREST, 512, "uni"),
    Case("safetensors", cut(write_safetensors, 512), "named arrays", 512, NEAREST, 512, "uni"),
    Case("a dict of tensors", cut(write_dict, 512), "named arrays", 512, LESS_OVERLAP, 512, "uni"),
    Case("our own", cut(write_own, 513.026, **OWN), "smooth-mil", 513.026, "pitch_level0", 1026.052, "tiny"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_pitch_adjacency_features_and_coords_are_those_that_were_stored(tmp_path: Path, case: Case) -> None:
    cells = tissue()
    path = case.write(tmp_path, cells)
    header = read_header(path)
    assert (header.format, header.patches, header.dimension) == (case.format, len(cells), DIMENSION)
    assert header.pitch == pytest.approx(case.pitch, rel=1e-4)
    assert header.pitch_from == case.pitch_from
    assert header.tile == pytest.approx(case.tile, rel=1e-4)
    assert (header.encoder, header.unit) == (case.encoder, case.unit)
    bag = load(image=str(path))
    assert graph_edges(bag) == edges_of(cells)
    for size in (1, 37, len(cells), 1000):
        blocks = blocks_of(str(path), size)  # kept: what was read earlier stays what it was
        assert max(block.shape[2] for block in blocks) == min(size, len(cells))
        assert torch.equal(torch.cat(blocks, dim=2)[0], bag["image"])
    with open_features(path) as file:
        whole = some_features(len(cells), dtype=np.float16 if case.format == "STAMP" else np.float32)
        assert file.read(0, len(cells)).dtype == whole.dtype
        np.testing.assert_array_equal(np.concatenate([file.read(0, 7), file.read(7, 8), file.read(8, 10**9)]), whole)
        assert file.read(3, 3).shape == (0, DIMENSION)
        steps = (file.coords - file.coords.min(axis=0)) / case.pitch
        np.testing.assert_allclose(steps, cells - cells.min(axis=0), atol=0.05)


def test_coords_of_stamp_1_are_given_in_micrometres(tmp_path: Path) -> None:
    """Also of one patch, where the size of a tile is stated; of one patch alone nothing shows the version."""
    three = np.array([[0, 224], [224, 224], [448, 0]])
    for coords, given, expected, pitch_from in (
        (three, {}, [[0, 256], [256, 256], [512, 0]], STAMP_1),
        (three[2:], {"tile_size": 224}, [[512, 0]], STAMP_1),
        (three[2:], {}, [[448, 0]], "a guess: no two patches and nothing stated"),
    ):
        with open_features(write_stamp(tmp_path, "s", coords, attributes=False, **given)) as file:
            np.testing.assert_allclose(file.coords, expected)
            assert (float(file.header.tile), file.header.pitch_from) == (256, pitch_from)


def test_what_the_files_say_of_the_slide(tmp_path: Path) -> None:
    coords = on_grid(tissue(), 512)
    found = read_header(write_trident(tmp_path, "TCGA.1", coords))
    assert (found.slide_id, found.slide_size, found.mpp, found.origin) == ("TCGA.1", (60_000, 50_000), None, None)
    found = read_header(own(tmp_path / "a slide.h5", origin=(300, 200)))
    assert (found.slide_id, found.slide_size, found.mpp, found.origin) == ("a slide", (4096, 4096), 0.25, (300, 200))
    assert read_header(write_uni2h(tmp_path, "s", coords)).slide_size is None


@pytest.mark.parametrize("pitch", [224, 341.333])
def test_coords_that_are_rounded_and_off_by_pixels(tmp_path: Path, pitch: float) -> None:
    """400 columns, so that a pitch that is off by a third of a pixel would lose its way."""
    cells = tissue(400, 5)
    off = np.random.default_rng(1).integers(-3, 4, cells.shape)
    path = write_clam(tmp_path, "s", on_grid(cells, pitch) + off, patch_size=None)
    assert read_header(path).pitch == pytest.approx(pitch, rel=1e-3)
    assert graph_edges(load(image=str(path))) == edges_of(cells)


def test_each_contour_of_clam_has_a_lattice_of_its_own(tmp_path: Path) -> None:
    """They start anywhere: also half a pitch off, and over one another."""
    first, second = tissue(seed=1), tissue(seed=2)
    for shift in ([30.5, 0.5], [21.5, 3.3], [9.4, 6.6]):
        at = [on_grid(first, 256), np.rint(on_grid(second, 256) + 256 * np.array(shift)).astype(int)]
        path = write_clam(tmp_path, "s", np.concatenate(at))
        edges, n = graph_edges(load(image=str(path))), len(first)
        assert {(i, j) for i, j in edges if j < n} == edges_of(first)
        assert {(i - n, j - n) for i, j in edges if i >= n} == edges_of(second)


def test_patches_far_apart_keep_the_pitch_that_is_stated(tmp_path: Path) -> None:
    coords = np.array([[0, 0], [512 * 20, 0], [0, 512 * 31], [512 * 3, 512 * 50]])
    header = read_header(write_trident(tmp_path, "s", coords))
    assert (float(header.pitch), header.pitch_from) == (512, LESS_OVERLAP)
    two = read_header(write_clam(tmp_path, "two", coords[:2], patch_size=None))
    assert (float(two.pitch), two.pitch_from) == (10_240, NEAREST)


@pytest.mark.parametrize("shape", [(0, DIMENSION), (0,)])
def test_a_slide_without_tissue(tmp_path: Path, shape: tuple[int, ...]) -> None:
    nothing, coords = np.zeros(shape, np.float32), np.zeros((0, 2) if len(shape) == 2 else (0,))
    header = read_header(write_trident(tmp_path, "s", coords, features=nothing))
    assert (header.format, header.patches, header.dimension) == ("TRIDENT", 0, DIMENSION if len(shape) == 2 else 0)
    assert (float(header.pitch), float(header.tile)) == (512, 512)
    for write in (write_clam, write_stamp, write_torchmil, write_own, write_uni2h):
        assert read_header(write(tmp_path, "s", np.zeros((0, 2), int))).patches == 0


class TestWhereFilesAre:
    def test_of_any_program_and_of_none(self, tmp_path: Path) -> None:
        wanted = [
            *("A.H5", "a/b/c/3.h5", "features_x/2.NPY", "features_x/4.h5", "h5_files/1.h5", "pt_files/5.pt"),
            *("patches_512/features/features_UNI/6.npy", "b.h5"),
        ]
        others = [
            *("._A.h5", ".hidden/1.h5", "pt_files/1.pt", "features_x/4.npy", "a/b/c/d/7.h5", "a/1.npy", "model.pt"),
            *("out/1/scores.h5", "patches/1.h5", "coords/1.npy", "slide_features_x/1.h5", "notes.txt"),
        ]
        for name in (*wanted, *others):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        assert feature_paths(tmp_path) == sorted(tmp_path / name for name in wanted)

    def test_of_one_slide_those_that_say_where_its_patches_lie(self, tmp_path: Path) -> None:
        coords = on_grid(tissue(), 512)
        clam = write_clam(tmp_path / "clam", "a", coords).parents[1]
        names = ("pt_files/a.pt", "h5_files/a.h5", "patches/a.h5")
        assert files_of(clam / names[0]) == [clam / name for name in names]
        npy = write_torchmil(tmp_path / "torchmil", "a", coords)
        assert files_of(str(npy)) == [npy, tmp_path / "torchmil" / "coords" / "a.npy"]
        assert files_of(tmp_path / "gone.h5") == []


def rewritten(path: Path, **arrays: Any) -> Path:
    with h5py.File(path, "r+") as file:
        for name, array in arrays.items():
            if name in file:
                del file[name]
            if array is not None:
                file[name] = array
    return path


def text(path: Path, content: bytes = b"hello") -> Path:
    path.write_bytes(content)
    return path


def uni2h(folder: Path, **arrays: Any) -> Path:
    return rewritten(write_uni2h(folder, "s", on_grid(tissue(), 9)), **arrays)


def pt(folder: Path, content: object) -> Path:
    path = write_clam(folder, "s", on_grid(tissue(), 256), only_pt=True)
    torch.save(content, path)
    return path


def stamp_without(folder: Path, **more: Any) -> Path:
    """As of a slide, a patient or a multiplex image."""
    return rewritten(write_stamp(folder, "s", tissue() * 256.0, **more), coords=None)


def with_array(folder: Path, array: np.ndarray, where: str = "features_resnet50") -> Path:
    path = write_torchmil(folder, "s", on_grid(tissue(), 256))
    np.save(folder / where / "s.npy", array, allow_pickle=True)
    return path


N = len(tissue())
MESSAGES: list[tuple[Callable[[Path], Path], str]] = [
    (lambda f: f / "gone.h5", "no feature file .*gone.h5; correct the path or extract the features first"),
    (lambda f: f, "is a folder; give one of the feature files in it"),
    (lambda f: text(f / "a.h5"), "a.h5 is not an HDF5, npy, npz, pt or safetensors file, or is damaged"),
    (lambda f: text(f / "a.h5", b"\x89HDF\r\n\x1a\n"), "a.h5 is damaged or cut short"),
    (lambda f: text(f / "a.pt", b"PK\x03\x04 no zip"), "a.pt is damaged or cut short"),
    (lambda f: text(f / "a.npy", b"\x93NUMPY\x01\x00"), "a.npy is damaged or cut short"),
    (
        lambda f: pt(f, {"a": torch.zeros(2)}),
        r"s.pt holds no `features`, but a \(2,\); .* python -m scripts adopt FOLDER --features_key NAME",
    ),
    (lambda f: pt(f, np.zeros((3, 4))), "s.pt holds something else than tensors, or is damaged; give the h5"),
    (lambda f: stamp_without(f, feat_type="slide"), "of a whole slide, not of its patches; give those of tiles"),
    (
        lambda f: rewritten(stamp_without(f, unit="px"), coord_x=[1], coord_y=[1]),
        "is of a multiplex image, by STAMP: .* a level that is not known; give a file with `coords`",
    ),
    (lambda f: stamp_without(f, feat_type="tile"), "s.h5 holds no dataset `coords`"),
    (
        lambda f: write_stamp(f, "s", tissue() * 112, attributes=False),
        "names no unit and its tiles are 112 apart, not 224 or 256 as of STAMP 1 or 2; "
        "give it the root attributes unit and tile_size_um, or extract its features again",
    ),
    *(
        (
            lambda f, given=given: write_clam(f, "s", on_grid(tissue(), 256), older=True, **given),
            "the coords of .*s.(h5|pt) are not at level 0, as .*patches/s.h5 is of CLAM's older way; cut the patches",
        )
        for given in ({"level": 1, "downsample": 4.0}, {"level": 1, "only_pt": True}, {"custom_downsample": 2})
    ),
    (lambda f: pt(f, torch.zeros(3, 4)), rf"features \(3, 4\) and .*s.h5 the coords of {N} patches"),
    (lambda f: uni2h(f, features=None), "s.h5 holds no dataset `features`"),
    (lambda f: uni2h(f, coords=np.zeros((5, 2))), rf"features \({N}, 8\) and coords \(5, 2\) should be"),
    (lambda f: uni2h(f, coords=np.full((N, 2), np.nan)), "coords hold NaN, infinite or impossible values"),
    (lambda f: uni2h(f, features=["a"] * N), "features of .*s.h5 are object, not numbers"),
    (lambda f: uni2h(f, coords=np.int64(3)), "coords of .*s.h5 are a single one, not numbers; extract its features"),
    (lambda f: uni2h(f, features=np.zeros((N, 3), int)), "features int64 and coords int64 should be floats and numb"),
    (lambda f: with_array(f, np.array([{}])), "s.npy is damaged or cut short"),
    (lambda f: with_array(f, np.zeros((N, 1)), "coords"), rf"and coords \({N}, 1\) should be"),
]


@pytest.mark.parametrize(("make", "message"), MESSAGES)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    path = make(tmp_path)
    with pytest.raises(InputError, match=message) as caught, open_features(path):
        pass
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_fault_of_who_uses_a_file_is_no_damage_of_it(tmp_path: Path) -> None:
    path = write_uni2h(tmp_path, "s", on_grid(tissue(), 9))
    with pytest.raises(ValueError, match="of the caller"), open_features(path):
        raise ValueError("of the caller")


def test_features_are_found_of_slides_without_tissue_too_and_of_none_twice(tmp_path: Path) -> None:
    for name, n in [("b", 3), ("a.1", 2), ("empty", 0)]:
        write_cells(tmp_path, name, CELLS[:n])
    folder = tmp_path / "features_uni_v1"
    wanted = [{"image": str(folder / f"{name}.h5"), "bag_id": name} for name in ("a.1", "b", "empty")]
    assert find_features(tmp_path) == wanted
    write_cells(tmp_path, "b", encoder="gpfm")
    with pytest.raises(InputError, match="features of b in features_gpfm and features_uni_v1; give the folder of one"):
        find_features(tmp_path)
    (tmp_path / "coords").mkdir()
    with pytest.raises(InputError, match=r"^no feature file .*, or make them with configs/features.json$"):
        find_features(tmp_path / "coords")
    with pytest.raises(InputError, match=r"gone does not exist: correct the path$"):
        find_features(tmp_path / "gone")


def test_features_alone_say_where_coords_were_looked_for(tmp_path: Path) -> None:
    path = write_clam(tmp_path / "features", "s", on_grid(tissue(), 256), patch_size=None, only_pt=True)
    with pytest.raises(InputError, match="there is none of") as caught:
        read_header(path)
    for place in ("features/h5_files/s.h5", "features/patches/s.h5", "patches/s.h5"):
        assert str(tmp_path / place) in str(caught.value)
    write_clam(tmp_path, "s", on_grid(tissue(), 256))
    assert read_header(path).pitch_from == DOWNSAMPLED


@pytest.mark.parametrize("suffix", [".npy", ".h5"])
def test_a_bag_of_torchmil_says_where_coords_were_looked_for(tmp_path: Path, suffix: str) -> None:
    coords = on_grid(tissue(), 256)
    bag = write_torchmil(tmp_path / "set", "s", coords, suffix=suffix)
    (tmp_path / "set" / "coords" / f"s{suffix}").unlink()
    with pytest.raises(InputError, match=r"no `coords`, and .*; put the coords of its patches there") as caught:
        read_header(bag)
    for place in (tmp_path / folder / f"s{kind}" for folder in ("set/coords", "coords") for kind in (".npy", ".h5")):
        assert str(place) in str(caught.value)
        place.parent.mkdir(exist_ok=True)
        if place.suffix == ".npy":
            np.save(place, coords)
        else:
            write_h5(place, places=coords)
        with open_features(bag) as found:
            np.testing.assert_array_equal(found.coords, coords)
        if place.suffix == ".h5":  # among other datasets they must go by their name
            with h5py.File(place, "r+") as file:
                file["annots"] = np.zeros(N)
            with pytest.raises(InputError, match=r"coords/s.h5 holds no dataset `coords`"):
                read_header(bag)
        place.unlink()


def test_a_pt_of_old_and_of_half_numbers(tmp_path: Path) -> None:
    features = torch.from_numpy(some_features(N)).bfloat16()
    path = pt(tmp_path, features)
    for is_zip in (True, False):
        torch.save(features, path, _use_new_zipfile_serialization=is_zip)
        with open_features(path) as file:
            np.testing.assert_array_equal(file.read(2, 9), features[2:9].float().numpy())


@pytest.mark.parametrize(("dtype", "order"), [("<f4", "F"), (">f4", "C"), ("<f2", "C"), ("<f8", "F")])
def test_arrays_in_any_order_of_bytes_and_axes(tmp_path: Path, dtype: str, order: Any) -> None:
    features = some_features(N).astype(np.float16)
    path = with_array(tmp_path, np.asarray(features.astype(dtype), order=order))
    with open_features(path) as file:
        assert file.read(3, 11).dtype == (np.float16 if dtype == "<f2" else np.float32)
        np.testing.assert_array_equal(file.read(3, 11), features[3:11].astype(np.float32))


def test_a_claim_beyond_what_is_stored_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("features", (10**9, 1024), np.float32, chunks=(64, 1024))
        file.create_dataset("coords", (10**9, 2), np.int64, chunks=(64, 2))
    with pytest.raises(InputError, match=r"claims \(1000000000, 1024\) numbers and holds 0 bytes"):
        read_header(tmp_path / "a.h5")


LOAD_EACH = """
import gc, json, re, sys
from pathlib import Path
from tests.wsi.foreign_features import load

def memory(which):  # bytes
    return 1024 * int(re.search(rf"{which}:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])

def times_of_array(path, copied=False):
    gc.collect()
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    array = load(image=path)["image"]
    held = array.clone() if copied else None
    return (memory("VmHWM") - before) / array.nbytes, list(array.shape), array.t().is_contiguous()

for path in sys.argv[1:]:
    load(image=path)  # what a first time needs for ever
print(json.dumps([times_of_array(sys.argv[1], True), *map(times_of_array, sys.argv[1:])]))
"""


@pytest.mark.slow
def test_a_bag_is_in_memory_once(tmp_path: Path) -> None:
    """In a new process, whose memory nobody else has used: peak in times of the array, shape, contiguous."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("this system does not state the peak of a process' memory")
    coords = np.stack(np.divmod(np.arange(PATCHES), 200), axis=1) * 512
    for name in ("coords", "features_x"):
        (tmp_path / name).mkdir()
    paths = []
    for dtype in ("float32", "float16"):
        features = some_features(PATCHES, 512, dtype=dtype)
        np.save(tmp_path / "coords" / f"{dtype}.npy", coords)
        paths += [tmp_path / "features_x" / f"{dtype}.npy", tmp_path / "features_x" / f"{dtype}.pt"]
        np.save(paths[-2], features)
        torch.save(torch.from_numpy(features), paths[-1])
        paths += [
            write_h5(tmp_path / place / f"{dtype}.h5", rows=rows, features=features, coords=coords)
            for place, rows in (("h5_files", None), ("features_x", 1000))
        ]
    ended = subprocess.run(
        [sys.executable, "-c", LOAD_EACH, *paths],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)},  # a freed array goes back at once
        stdout=subprocess.PIPE,
        timeout=300,
        check=True,
    )
    held_twice, *peaks = json.loads(ended.stdout.splitlines()[-1])
    assert held_twice[0] > 1.6
    for path, (times, shape, is_contiguous) in zip(paths, peaks, strict=True):
        assert (shape, is_contiguous) == ([512, PATCHES], True), path
        assert 0.5 < times < 1.6, path


@pytest.mark.filterwarnings("error")
def test_numbers_that_no_network_takes_are_found_without_a_warning() -> None:
    numbers = np.array([[0, -65504, 65504, np.inf, -np.inf, np.nan]], np.float16)
    assert impossible(numbers).tolist() == [[False, False, False, True, True, True]]
    large = np.array([[1e17, -1e17, 2e18, -2e18, np.inf, np.nan]], np.float32)
    assert impossible(large).tolist() == [[False, False, True, True, True, True]]
