# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Archives of the same content have the same bytes, and nothing in them leads to the computer they are from."""

import hashlib
import os
import zipfile
from pathlib import Path

import pytest
import yaml
from monai.bundle.config_parser import ConfigParser

from scripts.core.errors import InputError
from scripts.core.files import sha256_of
from scripts.release import archive
from scripts.release.archive import json_text, large_files, manifest, require_clean, sbom, write_sha256, write_zip
from tests.shared_data import ROOT
from tests.test_configs import content, pins


def folder(path: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(f"content of {name}")
    return path


def test_a_zip_depends_on_names_and_contents_alone(tmp_path: Path) -> None:
    names = ("LICENSE", "configs/a.json", "scripts/b.py")
    one, other = folder(tmp_path / "x" / "bundle", names), folder(tmp_path / "y" / "bundle", names[::-1])
    os.utime(other / "LICENSE", (1, 1))
    (other / "configs" / "a.json").chmod(0o755)
    for each in (one, other):
        write_zip(each, each.with_suffix(".zip"))
    assert one.with_suffix(".zip").read_bytes() == other.with_suffix(".zip").read_bytes()
    with zipfile.ZipFile(one.with_suffix(".zip")) as written:
        assert written.namelist() == [f"bundle/{name}" for name in names]
        assert {entry.external_attr >> 16 for entry in written.infolist()} == {0o100644}
    write_sha256(one / "LICENSE")
    wanted = hashlib.sha256(b"content of LICENSE").hexdigest()
    assert (one / "LICENSE.sha256").read_text() == f"{wanted}  LICENSE\n"


def test_large_files_are_listed_as_monai_downloads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = folder(tmp_path, ("LICENSE", "models/model.pt"))
    assert large_files(bundle, "https://x.org") is None
    monkeypatch.setattr(archive, "LARGE", len("content of LICENSE"))
    assert large_files(bundle, None) is None
    text = large_files(bundle, "https://x.org/files/")
    assert text is not None
    wanted = hashlib.sha256(b"content of models/model.pt").hexdigest()
    [listed] = yaml.safe_load(text)["large_files"]
    url = "https://x.org/files/models/model.pt"
    assert listed == {"path": "models/model.pt", "url": url, "hash_val": wanted, "hash_type": "sha256"}
    (bundle / "large_files.yml").write_text(text)
    parser = ConfigParser()
    parser.read_config([bundle / "large_files.yml"])  # as MONAI's download_large_files reads it
    assert parser.get()["large_files"] == [listed]


@pytest.mark.parametrize("wing", ["ct", "wsi"])
def test_the_sbom_has_every_declared_package_and_nothing_of_today(wing: str) -> None:
    metadata = content(ROOT / "configs" / wing / "metadata.json")
    listed = sbom("bundle", metadata, "ab")
    assert (listed["bomFormat"], listed["specVersion"]) == ("CycloneDX", "1.5")
    assert not {"serialNumber", "timestamp"} & {*listed, *listed["metadata"]}
    libraries = {each["name"]: each for each in listed["components"] if each["type"] == "library"}
    assert {name: each["version"] for name, each in libraries.items()}.items() <= pins("requirements.txt").items()
    assert libraries.keys() == {"torch", "monai", "numpy", *metadata["required_packages_version"]}
    assert libraries["torch"]["purl"] == f"pkg:pypi/torch@{metadata['pytorch_version']}"
    assert all(each["licenses"] for each in libraries.values())  # all of them are installed here and state one
    assert listed == sbom("bundle", metadata, "ab")
    unknown = {**metadata, "required_packages_version": {"h5py": "0.0.1", "no-such-package": "1"}}
    components = {each["name"]: each for each in sbom("bundle", unknown, "ab")["components"]}
    assert not {"licenses"} & {*components["h5py"], *components["no-such-package"]}


def test_json_is_ascii_indented_by_four() -> None:
    assert json_text({"α": [1]}) == '{\n    "\\u03b1": [\n        1\n    ]\n}\n'


def test_a_link_and_a_path_of_this_computer_are_refused(tmp_path: Path) -> None:
    bundle = folder(tmp_path / "bundle", ("a.txt", "b.bin"))
    private = tmp_path / "private"
    require_clean(bundle, ["a.txt", "b.bin"], [private, Path("/"), Path("/models")])
    (bundle / "b.bin").write_bytes(b"\xff" + str(private / "scans").encode())
    require_clean(bundle, ["a.txt"], [private])  # the other is a copy of what everybody may read
    with pytest.raises(InputError, match=rf"^b.bin of the release holds the path {private}/: take it out"):
        require_clean(bundle, ["a.txt", "b.bin"], [private])
    (bundle / "a.txt").unlink()
    (bundle / "a.txt").symlink_to(tmp_path)
    with pytest.raises(InputError, match=r"^a.txt of the release is a link"):
        require_clean(bundle, [], [])


def test_a_manifest_lists_every_file_but_itself(tmp_path: Path) -> None:
    bundle = folder(tmp_path / "bundle", ("a.txt", "b/c.bin"))
    found = manifest(bundle)
    assert found == {name: sha256_of(bundle / name) for name in ("a.txt", "b/c.bin")}
    (bundle / "manifest.json").write_text("{}")
    assert manifest(bundle) == found
