# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m scripts release`: a bundle with trained weights, as folder, archives and Hugging Face repository."""

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from scripts.core.errors import InputError
from scripts.core.files import is_running, sha256_of, writable_folder
from scripts.core.record import MANIFEST
from scripts.release.archive import json_text, large_files, manifest, require_clean, sbom, write_sha256, write_zip
from scripts.release.defaults import (
    Weights,
    example_image,
    fitting_network,
    read_weights,
    require_no_place,
    trained_configs,
    trained_metadata,
)
from scripts.release.exports import export_models
from scripts.release.form import in_zoo_form
from scripts.release.readme import STORED_ELSEWHERE, archive_readme, data_license, hugging_face_page
from scripts.release.tree import bundle_files, source_folder
from scripts.studies.runs import BUNDLES

STAGING = ".release-"  # of the folder where a release is made
DEMO = "demo/output"  # below which weights are those of the demonstration
SYNTHETIC = "synthetic data that the demonstration makes itself: the figures say nothing about patients"
NOT_STATED = "data that who made this release does not state"

logger = logging.getLogger(__name__)


def build_release(
    wing: str,
    weights_path: Path,
    metrics: Path | None = None,
    output_dir: Path = Path("dist"),
    trained_on: str | None = None,
    url: str | None = None,
) -> Path:
    """Build everything and put it into `output_dir`, or refuse and leave it as it was; return the archive.

    Args:
        wing: ct or wsi.
        weights_path: model.pt of a training, with what that wrote beside it.
        metrics: metrics.json of an evaluation of these weights.
        output_dir: of the results; an earlier release in it is replaced.
        trained_on: the data of the training in words, for metadata and README.
        url: below which files over 25 MB will be to be had by their paths in the bundle.
    """
    folder = source_folder(wing)
    name = BUNDLES[wing]
    weights = read_weights(weights_path)
    evaluation = read_evaluation(metrics, weights) if metrics else {}
    stated = trained_on or stated_before(weights) or (SYNTHETIC if is_of_demo(folder, weights_path) else NOT_STATED)
    require_no_place("--trained_on", stated)
    if url is not None and not url.startswith(("https://", "http://")):
        raise InputError(f"--url is {url!r}: it must begin with https:// or http://")
    _require_ours(output_dir, name, folder)
    _remove_leftovers(output_dir)
    try:
        with tempfile.TemporaryDirectory(prefix=f"{STAGING}{os.getpid()}-", dir=writable_folder(output_dir)) as staging:
            here = Path(staging) / "new"
            private = [Path(each).absolute() for each in (weights_path.parent, staging, Path.home(), folder.resolve())]
            private.append((folder / "scripts").resolve().parent)
            metadata = _write_bundle(wing, folder, here / name, weights, evaluation, stated, private)
            _write_rest(wing, here, metadata, weights, url)
            names = [made.name for made in sorted(here.iterdir()) if made.name != "hf"]
            _publish(here, output_dir, [*names, f"hf/{name}"], Path(staging) / "before")
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"cannot write to {output_dir} ({reason}): make room there, or give another") from error
    logger.info("%s: %s, trained on: %s", output_dir / f"{name}.zip", metadata["version"], stated)
    return output_dir / f"{name}.zip"


def stated_before(weights: Weights) -> str | None:
    """Return what an earlier release says that its weights, these, were trained on."""
    folder = weights.path.absolute().parents[1]
    try:
        listed = json.loads((folder / MANIFEST).read_text())
        said: str = json.loads((folder / "configs" / "metadata.json").read_text())["data_source"]
    except (OSError, ValueError, KeyError):
        return None
    return said if listed.get("models/model.pt") == weights.sha256 else None


def is_of_demo(folder: Path, weights: Path) -> bool:
    """Return whether weights lie where the demonstration puts its own."""
    return weights.resolve().is_relative_to((folder / "scripts").resolve().parent / DEMO)


def read_evaluation(path: Path, weights: Weights) -> dict[str, Any]:
    """Read metrics.json of an evaluation; that of other weights, as the report.json beside it says, is refused."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        figures = {name: of["value"] for name, of in content.items() if isinstance(of, dict) and "value" in of}
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path} cannot be read: give the metrics.json of an evaluation") from error
    if not figures:
        raise InputError(f"{path} holds no figure: give the metrics.json of an evaluation")
    try:
        of = json.loads(path.with_name("report.json").read_text()).get("weights_sha256")
    except (OSError, ValueError, AttributeError):
        of = None
    if of is None:
        logger.warning("no report.json beside %s names its weights: nothing tells that it is of these", path)
    elif of != weights.sha256:
        raise InputError(f"{path} is of other weights than {weights.path}: evaluate these, and give that")
    return content


def _figures(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """Name → value of the figures that have one, to six digits."""
    values = {name: of.get("value") for name, of in evaluation.items() if isinstance(of, dict)}
    return {name: float(f"{value:.6g}") for name, value in values.items() if value is not None}


def _require_ours(output_dir: Path, name: str, source: Path) -> None:
    """Refuse to replace what is no earlier release, or one that holds more than it was released with."""
    there = output_dir / name
    if there.exists() and there.resolve() == source.resolve():
        raise InputError(f"{there} is the bundle that the command runs from: give another --output_dir")
    if there.exists():
        listed = json.loads((there / MANIFEST).read_text()) if (there / MANIFEST).is_file() else None
        if listed != manifest(there):
            problem = "is there and no release" if listed is None else "was changed, or used, since it was released"
            raise InputError(f"{there} {problem}: move it away, or give another --output_dir")
    if (output_dir / "hf" / name / ".git").exists():
        raise InputError(f"{output_dir / 'hf' / name} is a repository with a history: give another --output_dir")


def _write_bundle(
    wing: str,
    folder: Path,
    target: Path,
    weights: Weights,
    evaluation: Mapping[str, Any],
    stated: str,
    private: Sequence[Path],
) -> dict[str, Any]:
    """Write the folder of the bundle; return its metadata. What is made for it may name no private folder."""
    files = bundle_files(folder)
    shipped = {
        path.removeprefix("configs/"): json.loads(source.read_text())
        for path, source in files.items()
        if path.startswith("configs/") and path.endswith(".json")
    }
    metadata = shipped.pop("metadata.json")
    configs = trained_configs(shipped, folder, weights)
    network = fitting_network(configs, weights)
    with torch.no_grad():
        classes = network(example_image(configs, 1)).shape[1]
    metadata = trained_metadata(metadata, configs, weights, classes, _figures(evaluation))
    metadata["data_source"] = stated
    models = target / "models"
    models.mkdir(parents=True)
    extra = {"metadata.json": metadata, "inference.json": configs["inference.json"]}
    differences = export_models(network, example_image(configs, 4), models, extra)
    for name, value in differences.items():
        logger.info("%s gives the logits `pred` of model.pt, to %.0e", name, value)
    texts = {f"configs/{name}": json_text(content) for name, content in [*configs.items(), ("metadata.json", metadata)]}
    texts |= {f"models/{name}": json_text(content) for name, content in weights.beside.items()}
    page = files["docs/README.md"].read_text(encoding="utf-8")
    readme = archive_readme(page, BUNDLES[wing], configs, weights, metadata, evaluation, list(differences))
    licence = data_license(files["docs/data_license.txt"].read_text(encoding="utf-8"), stated)
    texts |= {"docs/README.md": readme, "docs/data_license.txt": licence}
    code = {path: source.read_text(encoding="utf-8") for path, source in files.items() if source.suffix == ".py"}
    texts |= in_zoo_form(code)
    contents = {path: source.read_bytes() for path, source in files.items()}
    contents |= {path: text.encode() for path, text in texts.items()}
    for path, content in contents.items():
        _write_file(target / path, content)
    require_clean(target, [*texts, *(f"models/{name}" for name in differences)], private)
    _write_file(models / "model.pt", weights.path.read_bytes())
    if sha256_of(models / "model.pt") != weights.sha256:
        raise InputError(f"{weights.path} changed meanwhile: wait until its training has ended")
    return metadata


def _write_rest(wing: str, here: Path, metadata: Mapping[str, Any], weights: Weights, url: str | None) -> None:
    """Write what is made of the folder of the bundle, beside it."""
    name = BUNDLES[wing]
    bundle = here / name
    if listed := large_files(bundle, url):
        _write_file(bundle / "large_files.yml", listed.encode())
    shutil.copytree(bundle, here / "hf" / name, ignore=shutil.ignore_patterns("large_files.yml"))
    readme = (bundle / "docs" / "README.md").read_text(encoding="utf-8")
    card = hugging_face_page(wing, readme, synthetic=metadata["data_source"] == SYNTHETIC)
    _write_file(here / "hf" / name / "README.md", card.encode())
    _write_file(here / "hf" / name / ".gitattributes", STORED_ELSEWHERE.encode())
    for whole in (bundle, here / "hf" / name):
        _write_file(whole / MANIFEST, json_text(manifest(whole)).encode())
    write_zip(bundle, here / f"{name}.zip")
    shutil.copyfile(here / f"{name}.zip", here / f"{name}_v{metadata['version']}.zip")
    _write_file(here / f"{name}.cdx.json", json_text(sbom(name, metadata, weights.sha256)).encode())
    for path in [*here.glob("*.zip"), here / f"{name}.cdx.json"]:
        write_sha256(path)


def _write_file(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o644)


def _publish(made: Path, target: Path, names: Sequence[str], before: Path) -> None:
    """Move what was made to where it is wanted; whatever stops that, what was there comes back."""
    try:
        for name in names:
            for each in (target / name, before / name):
                each.parent.mkdir(parents=True, exist_ok=True)
            if (target / name).exists():
                os.replace(target / name, before / name)
            os.replace(made / name, target / name)
    except BaseException:
        for name in names:
            if (target / name).exists() and not (made / name).exists():
                os.replace(target / name, made / name)
            if (before / name).exists():
                os.replace(before / name, target / name)
        raise


def _remove_leftovers(output_dir: Path) -> None:
    """Remove what releases left behind that were killed."""
    for leftover in output_dir.glob(f"{STAGING}*"):
        if not is_running(leftover.name.removeprefix(STAGING).partition("-")[0]):
            shutil.rmtree(leftover)
