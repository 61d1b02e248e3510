# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Arrays of files are read in blocks; nothing of a file is run, and no file is read in place of another."""

import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from scripts.core.errors import InputError
from scripts.wsi.features.arrays import npz_arrays, safetensors_arrays, torch_arrays
from scripts.wsi.features.files import open_features
from tests.wsi.foreign_arrays import Harm, write_dict, write_npz, write_safetensors
from tests.wsi.foreign_features import grid, some_features, write_clam, write_h5

FEATURES = some_features(12)


@pytest.mark.parametrize(
    ("tensor", "what"),
    [
        (torch.zeros(12, 8, device="meta"), "torch.strided tensor of torch.float32 on meta"),
        (torch.zeros(12, 8).to(torch.float8_e4m3fn), "torch.strided tensor of torch.float8_e4m3fn on cpu"),
        (torch.zeros(12, 8, dtype=torch.complex64).conj(), "torch.strided tensor of torch.complex64 on cpu"),
        (torch.zeros(12, 8).to_sparse(), "torch.sparse_coo tensor of torch.float32 on cpu"),
    ],
)
def test_a_tensor_that_holds_no_numbers_of_numpy_is_refused(tmp_path: Path, tensor: torch.Tensor, what: str) -> None:
    path = write_clam(tmp_path, "s", grid(12), only_pt=True)
    torch.save(tensor, path)
    with pytest.raises(InputError, match=f"s.pt holds a {what}, not features; save a tensor of float32 numbers, or"):
        torch_arrays(path)
    torch.save({"features": torch.zeros(12, 8), "coords": torch.from_numpy(grid(12)), "other": tensor}, path)
    assert sorted(torch_arrays(path)[0]) == ["coords", "features"]


def test_nothing_in_a_file_is_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.save({"features": Harm()}, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"a.pt holds something else than tensors, or is damaged; give the h5 file"):
        torch_arrays(tmp_path / "a.pt")
    objects = np.array([Harm()], dtype=object)
    assert sorted(npz_arrays(write_npz(tmp_path, "a", grid(12), harm=objects))) == ["coords", "features"]
    assert "run as code" not in "".join(capfd.readouterr())


def test_an_hdf5_file_whose_arrays_lie_in_another_is_refused(tmp_path: Path) -> None:
    """As external storage, of which any file may be a part, a virtual dataset or a link; also within a group."""
    secret = tmp_path / "secret"
    secret.write_bytes(np.arange(24, dtype=np.int64).tobytes())
    other = write_h5(tmp_path / "other.h5", features=FEATURES, coords=grid(12))
    virtual = h5py.VirtualLayout((12, 2), np.int64)
    virtual[:] = h5py.VirtualSource(other, "coords", (12, 2))
    for way in ("external", "virtual", "link", "link in a group"):
        path = write_h5(tmp_path / f"{way}.h5", features=FEATURES)
        with h5py.File(path, "r+") as file:
            if way == "external":
                file.create_dataset("coords", (12, 2), np.int64, external=[(str(secret), 0, 192)])
            elif way == "virtual":
                file.create_virtual_dataset("coords", virtual)
            elif way == "link":
                file["coords"] = h5py.ExternalLink(str(other), "coords")
            else:
                del file["features"]
                file["coords"] = grid(12)
                file.create_group("features")["uni"] = h5py.ExternalLink(str(other), "features")
        message = rf"{path} lies in another file; give a file that holds its own arrays$"
        with pytest.raises(InputError, match=message), open_features(path):
            pass


def test_a_dict_of_tensors_is_read_in_blocks_whether_it_can_be_mapped_or_not(tmp_path: Path) -> None:
    path = write_dict(tmp_path, "s", grid(12), magnification=20, halves=torch.from_numpy(FEATURES)[None].bfloat16())
    for is_zip in (True, False):
        torch.save(torch.load(path), path, _use_new_zipfile_serialization=is_zip)
        arrays, stated = torch_arrays(path)
        assert stated == {"patch_size_level0": 512, "model_name": "uni", "magnification": 20}
        np.testing.assert_array_equal(arrays["feats"].rows(3, 9), FEATURES[3:9])
        assert arrays["halves"].shape == (12, 8)
        np.testing.assert_allclose(arrays["halves"].rows(3, 9), FEATURES[3:9], rtol=0.01)


def test_a_key_that_is_a_number_and_an_axis_of_one_slide(tmp_path: Path) -> None:
    torch.save({0: torch.from_numpy(FEATURES)}, tmp_path / "a.pt")
    np.testing.assert_array_equal(torch_arrays(tmp_path / "a.pt")[0]["0"].rows(3, 9), FEATURES[3:9])
    np.savez(tmp_path / "a", features=FEATURES[None])
    array = npz_arrays(tmp_path / "a.npz")["features"]
    assert array.shape == (12, 8)
    np.testing.assert_array_equal(array.rows(3, 9), FEATURES[3:9])


def test_safetensors_of_halves_and_of_a_header_that_lies(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path, "s", grid(12), halves=FEATURES.view(np.uint32))
    arrays, stated = safetensors_arrays(path)
    assert stated == {"format": "pt", "encoder": "uni"}
    np.testing.assert_array_equal(arrays["features"].rows(2, 5), FEATURES[2:5])
    np.testing.assert_allclose(arrays["halves"].rows(2, 5), FEATURES[2:5], rtol=0.01)
    content = path.read_bytes()
    for old, new in ((b'"shape": [12, 8]', b'"shape": [99, 8]'), (b"[0, 384]", b"[0, 999]")):
        path.write_bytes(content.replace(old, new))
        with pytest.raises(InputError, match=r"s.safetensors is damaged or cut short; copy it"), open_features(path):
            pass


def test_a_zip_that_claims_more_than_it_holds_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    path = write_npz(tmp_path, "s", grid(12), zeros=np.zeros((20_000, 1000), np.float32))
    assert "zeros" in npz_arrays(path)  # deflate made it 1030 times smaller, and no more
    claim = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 8), }".ljust(117) + b"\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("features.npy", np.lib.format.magic(1, 0) + len(claim).to_bytes(2, "little") + claim)
    with pytest.raises(InputError, match=r"s.npz claims \(1000000000, 8\) numbers and holds \d+ bytes; extract"):
        npz_arrays(path)
