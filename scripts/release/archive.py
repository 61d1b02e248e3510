# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Archives of a release and what lies beside them: zip files of the same bytes each time, checksums, an SBOM."""

import json
import logging
import zipfile
from collections.abc import Iterable, Mapping
from importlib import metadata as installed
from pathlib import Path
from typing import Any

from scripts.core.errors import InputError
from scripts.core.files import sha256_of
from scripts.core.record import MANIFEST
from scripts.release.exports import START

LARGE = 25 * 10**6  # bytes that the model zoo takes in a file
LONGEST_NAME = 60  # of a licence; what is longer is its text

logger = logging.getLogger(__name__)


def json_text(content: Any) -> str:
    """Return JSON as the model zoo wants it: ASCII, indented by 4."""
    return json.dumps(content, indent=4) + "\n"


def write_zip(folder: Path, path: Path) -> None:
    """Write a folder as a zip file: in the order of names, with one time and one set of rights for all."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(each for each in folder.rglob("*") if each.is_file()):
            entry = zipfile.ZipInfo(f"{folder.name}/{file.relative_to(folder).as_posix()}", START)
            entry.external_attr = 0o100644 << 16
            entry.create_system = 3  # Unix, wherever it is built
            archive.writestr(entry, file.read_bytes(), zipfile.ZIP_STORED)  # builds of zlib compress differently


def write_sha256(path: Path) -> None:
    """Write the checksum of a file beside it, as sha256sum reads it."""
    path.with_name(f"{path.name}.sha256").write_text(f"{sha256_of(path)}  {path.name}\n")


def large_files(folder: Path, url: str | None) -> str | None:
    """Return large_files.yml of the files that the model zoo does not take, or None; without an address it warns.

    Args:
        folder: of the bundle.
        url: below which the files are to be had by their paths in the bundle.
    """
    large = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size > LARGE]
    if not large:
        return None
    if url is None:
        logger.warning("files over 25 MB, and no large_files.yml: the model zoo wants it, give --url for it")
        return None
    lines = ["large_files:"]
    for path in large:
        name = path.relative_to(folder).as_posix()
        lines += [f'- path: "{name}"', f'  url: "{url.rstrip("/")}/{name}"']
        lines += [f'  hash_val: "{sha256_of(path)}"', '  hash_type: "sha256"']
    return "\n".join(lines) + "\n"


def sbom(bundle: str, metadata: Mapping[str, Any], weights_sha256: str) -> dict[str, Any]:
    """Return what a bundle is made of as CycloneDX 1.5: its weights and the packages that its metadata declare.

    It has no time and no serial number, so that the same bundle has the same. Licences are those that the packages
    installed here state of themselves, where they are of the declared version.
    """
    own = {"monai": metadata["monai_version"], "torch": metadata["pytorch_version"], "numpy": metadata["numpy_version"]}
    packages = {**own, **metadata["required_packages_version"]}
    license = [{"license": {"id": "Apache-2.0"}}]
    root = {"type": "application", "bom-ref": bundle, "name": bundle, "version": metadata["version"]}
    weights = {
        "type": "machine-learning-model",
        "bom-ref": "models/model.pt",
        "name": "models/model.pt",
        "hashes": [{"alg": "SHA-256", "content": weights_sha256}],
    }
    libraries = [_library(name, version) for name, version in sorted(packages.items())]
    references = [each["bom-ref"] for each in [weights, *libraries]]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {**root, "licenses": license}},
        "components": [weights, *libraries],
        "dependencies": [{"ref": bundle, "dependsOn": references}],
    }


def _library(name: str, version: str) -> dict[str, Any]:
    purl = f"pkg:pypi/{name.lower().replace('_', '-')}@{version}"
    licenses = _licenses(name, version)
    component = {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
    return {**component, **({"licenses": licenses} if licenses else {})}


def _licenses(name: str, version: str) -> list[dict[str, Any]]:
    """What an installed package says of its licence."""
    try:
        found = installed.metadata(name)
    except installed.PackageNotFoundError:
        return []
    if found["Version"].partition("+")[0] != version:  # "2.13.0+cpu" is a build of it
        return []
    if "License-Expression" in found:
        return [{"expression": found["License-Expression"]}]
    stated = found["License"].strip() if "License" in found else ""
    if stated and "\n" not in stated and len(stated) <= LONGEST_NAME:
        return [{"license": {"name": stated}}]
    classifiers = [each.rpartition(" :: ")[2] for each in found.get_all("Classifier", []) if "License ::" in each]
    return [{"license": {"name": each}} for each in classifiers]


def manifest(folder: Path) -> dict[str, str]:
    """Return path → sha256 of every file in a folder but the manifest itself."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST]
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}


def require_clean(folder: Path, made: Iterable[str], private: Iterable[Path]) -> None:
    """Refuse a link in a folder, or the path of a private folder in a file that was made for the release."""
    if link := next((path for path in sorted(folder.rglob("*")) if path.is_symlink()), None):
        raise InputError(f"{link.relative_to(folder)} of the release is a link: report this")
    needles = sorted({f"{path}/".encode() for path in private if len(path.parts) > 2})  # "/models" is in any config
    for name in made:
        content = (folder / name).read_bytes()
        if found := next((needle for needle in needles if needle in content), None):
            raise InputError(f"{name} of the release holds the path {found.decode()}: take it out")
