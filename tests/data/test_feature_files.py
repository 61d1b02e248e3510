# Copyright (c) 2026 the smooth MIL bundle authors
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from scripts.data.feature_files import encode, feature_files, opened_features, require_finite
from scripts.errors import InputError


class Times(nn.Module):
    """Two features of each image: its sum, and that times a number."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.number = number

    def forward(self, images: Tensor) -> Tensor:
        total = images.flatten(1).sum(dim=1, keepdim=True)
        return torch.cat([total, total * self.number], dim=1).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_features_are_those_of_the_encoder(dtype: torch.dtype) -> None:
    images = torch.arange(12.0).reshape(3, 1, 2, 2)
    features = encode(Times(2), "times", images, dtype)
    assert features.tolist() == [[6, 12], [22, 44], [38, 76]]
    assert str(features.dtype) == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize(("number", "dtype"), [(1e5, torch.float16), (float("nan"), torch.float32)])
def test_features_that_are_no_numbers_are_refused(number: float, dtype: torch.dtype) -> None:
    told = rf"encoder times gave NaN or values beyond {str(dtype)[6:]}; check its weights"
    with pytest.raises(InputError, match=told):
        encode(Times(number), "times", torch.ones(1, 1, 2, 2), dtype)
    with pytest.raises(InputError, match=r"features hold NaN or infinite values \(file a.h5\)"):
        require_finite("a.h5", np.array([[1.0, np.inf]]))


def test_an_encoder_that_keeps_the_image_is_refused() -> None:
    told = r"encoder same gave \(2, 1, 4, 4\) for 2 images; it must give \[B, D\]"
    with pytest.raises(InputError, match=told):
        encode(nn.Identity(), "same", torch.ones(2, 1, 4, 4), torch.float32)


def test_files_are_found_in_order(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no feature file \(\*.h5\) in .*; extract the features first"):
        feature_files(tmp_path)
    for name in ("b.h5", "a.h5", "datalist.json"):
        (tmp_path / name).touch()
    assert [path.name for path in feature_files(tmp_path)] == ["a.h5", "b.h5"]


def test_what_a_file_lacks_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["features"] = np.zeros((2, 3))
        file.attrs.update(format="some/1", encoder="e")
    with opened_features(path, "some/1", ["features"], ["encoder"]) as file:
        assert file["features"].shape == (2, 3)
    for form, datasets, attributes, told in (
        ("some/1", ["coords"], [], "holds no dataset `coords`"),
        ("other/1", ["features"], [], r"is not of the form other/1 \(root attribute `format`\)"),
        ("some/1", ["features"], ["encoder", "mpp"], "lacks the root attribute `mpp`"),
    ):
        with (
            pytest.raises(InputError, match=rf"a.h5 {told}; extract its features again"),
            opened_features(path, form, datasets, attributes),
        ):
            pass
