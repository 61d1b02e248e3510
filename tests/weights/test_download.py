# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""A checkpoint of a URL is the one that is meant, or is refused; nothing of it stays."""

from pathlib import Path

import pytest

from scripts.core.errors import InputError
from scripts.core.files import sha256_of
from scripts.weights.download import at_hand
from scripts.weights.sa_dmil import data_path, read_tensors
from tests.weights.tf_checkpoint import full_names, sa_dmil_tensors, write_checkpoint


def test_an_index_comes_with_its_numbers_and_goes_when_they_are_read(tmp_path: Path) -> None:
    index = write_checkpoint(tmp_path / "there", full_names(sa_dmil_tensors()), "att.ckpt")
    with at_hand(index.as_uri(), sha256_of(data_path(index)).upper()) as path:
        assert path != index
        assert read_tensors(path).keys() == read_tensors(index).keys()
    assert not path.parent.exists()


def test_other_weights_are_refused_and_a_url_must_say_which(tmp_path: Path) -> None:
    file = tmp_path / "smabmil.pt"
    file.write_bytes(b"weights")
    for given in (file.as_uri(), str(file)):
        with pytest.raises(InputError, match=r"smabmil\.pt has the sha256 \w{64}, not ab: these are other weights"):
            at_hand(given, "ab").__enter__()
    with pytest.raises(InputError, match="say with --sha256 which weights are meant"):
        at_hand(file.as_uri(), None).__enter__()
    with at_hand(str(file), None) as path:
        assert path == file


@pytest.mark.parametrize("url", ["file:///nowhere/a.pt", "no-such-scheme://host/a.pt"])
def test_what_cannot_be_downloaded_is_told(url: str) -> None:
    with pytest.raises(
        InputError, match=f"{url} cannot be downloaded .*: download it in another way, and give the file"
    ):
        at_hand(url, "ab").__enter__()
