# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m zoo.check dist`: what the CI and the reviewers of MONAI's model zoo ask of a bundle, without a network.

The zoo's own verify_bundle.py stays the judge; this finds before a submission what it would refuse, and what a person
would ask for. It ends with status 1 if something is missing.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonschema import Draft202012Validator
from monai.bundle import ckpt_export, verify_net_in_out

ROOT = Path(__file__).parents[1]
SCHEMA = "monai/meta_schema_20240725.json"  # in the folder of shared data
UNIT_TESTS = Path(__file__).with_name("unit_tests")
NECESSARY = ("configs/metadata.json", "LICENSE")  # without which its CI ends
PREFERRED = (
    "models/model.pt",
    "configs/inference.json",
    "configs/train.json",
    "docs/README.md",
    "docs/data_license.txt",
)
HEADINGS = ("Authors", "Tags", "Data", "Performance", "System Configuration", "Limitations", "Citation", "References")
LARGEST = 25 * 1024**2  # bytes of a file that is committed
# how its CI is configured
FLAKE8 = ("--select=B,C,E,F,N,P,T4,W,B9", "--max-line-length=120", "--ignore=E203,E501,E741,W503,W504,C408,N812,B023")
FORMS = (
    ("isort", "--check-only", "--quiet", "--profile=black", "--line-length=120", "--project=models"),
    ("black", "--check", "--quiet", "--line-length=120", "--target-version=py37", "-tpy38", "-tpy39"),
    ("flake8", *FLAKE8, "--per-file-ignores=__init__.py:F401,__main__.py:F401"),
)

Findings = Iterator[str]


def files(bundle: Path) -> Findings:
    """Necessary and preferred files, their names and sizes."""
    listed = large_files(bundle)
    for name in (*NECESSARY, *PREFERRED):
        if not (bundle / name).exists() and name not in listed:
            yield f"{name} is missing"
    if not re.fullmatch(r"[a-z0-9_]+", bundle.name):
        yield f"the name {bundle.name} is not in small letters and underscores"
    for path in sorted(bundle.rglob("*")):
        name = str(path.relative_to(bundle))
        if path.is_symlink() or " " in name or not name.isascii():
            yield f"{name} is a link, or has a blank or a letter beyond ASCII in its name"
        if path.is_file() and path.stat().st_size > LARGEST and name not in listed:
            yield f"{name} has more than 25 MB and is not in large_files.yml: build the release with --url"


def large_files(bundle: Path) -> dict[str, str]:
    """Path → sha256 of the files that large_files.yml says are elsewhere."""
    path = bundle / "large_files.yml"
    content = yaml.safe_load(path.read_text())["large_files"] if path.is_file() else []
    return {each["path"]: each.get("hash_val", "") for each in content}


def forms(bundle: Path) -> Findings:
    """JSON in ASCII with an indent of four, as its pre-commit wants it; licence headers in code."""
    for path in sorted(bundle.rglob("*.json")):
        text = path.read_text(encoding="utf-8")
        if not text.isascii() or text != json.dumps(json.loads(text), indent=4) + "\n":
            yield f"{path.relative_to(bundle)} is not ASCII with an indent of four"
    for path in sorted(bundle.rglob("*.py")):
        if "Apache-2.0" not in path.read_text(encoding="utf-8")[:400]:
            yield f"{path.relative_to(bundle)} has no licence header"


def shared_schema() -> Path | None:
    """The schema of metadata in the folder of shared data, `../shared/data` or SMOOTH_MIL_DATA, if it is there."""
    path = Path(os.environ.get("SMOOTH_MIL_DATA", ROOT / ".." / "shared" / "data")) / SCHEMA
    return path.resolve() if path.is_file() else None


def metadata(bundle: Path, schema: Path | None) -> Findings:
    """The version and its line in the changelog, the schema, and that nothing a reader looks for is empty."""
    content = json.loads((bundle / "configs" / "metadata.json").read_text())
    if content.get("version") not in content.get("changelog", {}):
        yield f"the version {content.get('version')} has no line in the changelog"
    if schema is not None:
        for error in Draft202012Validator(json.loads(schema.read_text())).iter_errors(content):
            yield f"metadata.json: {error.message}"
    for key in (
        "name",
        "task",
        "description",
        "authors",
        "copyright",
        "intended_use",
        "data_type",
        "network_data_format",
    ):
        if not content.get(key):
            yield f"metadata.json has no {key}"


def page(bundle: Path) -> Findings:
    """The sections of the zoo's template in docs/README.md."""
    found = {heading.strip("# *") for heading in re.findall(r"^#+ .*$", (bundle / "docs/README.md").read_text(), re.M)}
    for heading in HEADINGS:
        if heading not in found:
            yield f"docs/README.md has no section {heading}"


def network(bundle: Path) -> Findings:
    """`network_def` takes what the metadata say, holds model.pt, and can be scripted; model.ts can be loaded."""
    configs = bundle / "configs"
    named = {"meta_file": "metadata.json", "config_file": "inference.json"}
    of_bundle: dict[str, Any] = {key: str(configs / name) for key, name in named.items()}
    with tempfile.TemporaryDirectory() as folder:
        again = str(Path(folder, "again.ts"))
        steps: list[tuple[str, Callable[[], Any]]] = [
            ("verify_net_in_out", lambda: verify_net_in_out("network_def", **of_bundle, bundle_root=str(bundle))),
            (
                "ckpt_export",
                lambda: ckpt_export(
                    "network_def", again, str(bundle / "models" / "model.pt"), **of_bundle, bundle_root=str(bundle)
                ),
            ),
        ]
        shipped = bundle / "models" / "model.ts"
        if shipped.is_file():
            steps.append(("models/model.ts cannot be loaded", lambda: torch.jit.load(str(shipped))))
        for name, step in steps:
            try:
                step()
            except Exception as error:
                yield f"{name}: {(str(error) or repr(error)).splitlines()[-1].strip()}"


def code(bundle: Path) -> Findings:
    """Isort, black and flake8 as the zoo runs them, from a folder that is not the bundle."""
    for name, *options in FORMS:
        command = [sys.executable, "-m", name, *options, f"{bundle.name}/scripts"]
        done = subprocess.run(command, cwd=bundle.parent, capture_output=True, text=True)
        if done.returncode:
            told = (done.stdout + done.stderr).strip().splitlines()
            yield f"{name}: {len(told)} complaints, such as {told[0] if told else 'its status'}"


def unit_tests(bundle: Path) -> Findings:
    """The tests that are submitted beside the bundle, in a checkout laid out as the zoo's."""
    names = sorted(UNIT_TESTS.glob(f"test_{bundle.name}*.py"))
    if not names:
        yield f"there is no test_{bundle.name}.py"
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(bundle, Path(folder, "models", bundle.name))
        shutil.copytree(UNIT_TESTS, Path(folder, "ci", "unit_tests"))
        for test in names:
            two = ("torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m")
            run = (*(two if test.stem.endswith("_dist") else ()), "unittest", "discover", "ci/unit_tests", test.name)
            command = [sys.executable, "-m", *run]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            if done.returncode:
                yield f"{test.name}: {done.stderr.strip().splitlines()[-1]}"


def main() -> None:
    """Check every bundle of a folder of releases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], prog="python -m zoo.check")
    parser.add_argument("dist", type=Path, help="folder that `make dist` wrote")
    parser.add_argument("--schema", type=Path, help=f"the schema of metadata; else {SCHEMA} of the shared data")
    parser.add_argument("--quick", action="store_true", help="without the unit tests, which train")
    given = parser.parse_args()
    schema = given.schema or shared_schema()
    bundles = sorted(path.parents[1] for path in given.dist.glob("*/configs/metadata.json"))
    if not bundles:
        parser.error(f"{given.dist} holds no bundle: make dist first")
    missing = 0
    for bundle in bundles:
        sys.path.insert(0, str(bundle))  # as the zoo does, so that custom code is found
        checks: dict[str, Findings] = {
            "files": files(bundle),
            "forms": forms(bundle),
            "metadata": metadata(bundle, schema),
            "page": page(bundle),
            "network": network(bundle),
            "code": code(bundle),
        }
        if not given.quick:
            checks["unit tests"] = unit_tests(bundle)
        for name, found in checks.items():
            findings = list(found)
            missing += len(findings)
            print(f"{bundle.name}: {name}: {'ok' if not findings else ''}", flush=True)
            for finding in findings:
                print(f"    {finding}", flush=True)
        sys.path.remove(str(bundle))
        for module in [module for module in sys.modules if module.split(".")[0] == "scripts"]:
            del sys.modules[module]
    if schema is None:
        print("metadata were not held against the schema: give --schema FILE")
    sys.exit(bool(missing))


if __name__ == "__main__":
    main()
