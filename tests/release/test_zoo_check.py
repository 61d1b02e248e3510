# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The check before a submission to the model zoo finds nothing in a whole bundle, and each fault by its name."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from zoo import check

HEADER = "# SPDX-License-Identifier: Apache-2.0\n"
NETWORK = {"_target_": "torch.nn.Conv1d", "in_channels": 2, "out_channels": 1, "kernel_size": 1}
Written = Callable[[Path], object]  # what breaks a bundle


def data_format(channels: int) -> dict[str, Any]:
    """What the metadata say of a network that takes two channels and gives so many."""
    usual = {"spatial_shape": [8], "dtype": "float32", "value_range": [0, 1], "is_patch_data": False}
    return {"inputs": {"image": {**usual, "num_channels": 2}}, "outputs": {"pred": {**usual, "num_channels": channels}}}


METADATA: dict[str, Any] = {
    "version": "0.2.0",
    "changelog": {"0.2.0": "second"},
    **dict.fromkeys(("name", "task", "description", "authors", "copyright", "intended_use", "data_type"), "told"),
    "network_data_format": data_format(1),
}


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=4) + "\n")


def change_metadata(bundle: Path, **keys: Any) -> None:
    write_json(bundle / "configs" / "metadata.json", {**METADATA, **keys})


def write_large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(check.LARGEST + 1)  # a hole, which takes no room


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A small bundle with all that is asked for."""
    made = tmp_path / "dist" / "small_bundle"
    change_metadata(made)
    write_json(made / "configs" / "inference.json", {"network_def": NETWORK})
    write_json(made / "configs" / "train.json", {})
    for name in ("docs", "models", "scripts"):
        (made / name).mkdir()
    (made / "docs" / "README.md").write_text("# Small\n" + "".join(f"\n## {each}\n" for each in check.HEADINGS))
    for name, text in (("LICENSE", "of it"), ("docs/data_license.txt", "of them"), ("scripts/__init__.py", HEADER)):
        (made / name).write_text(text)
    network = torch.nn.Conv1d(2, 1, 1)
    torch.save(network.state_dict(), made / "models" / "model.pt")
    torch.jit.save(torch.jit.script(network), made / "models" / "model.ts")
    return made


def found(bundle: Path) -> list[str]:
    """The findings of all checks but those that start other programs, and without a schema."""
    of_files = (*check.files(bundle), *check.forms(bundle), *check.metadata(bundle, None), *check.page(bundle))
    return [*of_files, *check.network(bundle)]


def test_a_whole_bundle_has_no_findings(bundle: Path) -> None:
    assert found(bundle) == []


@pytest.mark.parametrize(
    ("broken", "finding"),
    [
        (lambda at: (at / "LICENSE").unlink(), "LICENSE is missing"),
        (lambda at: (at / "configs/train.json").unlink(), "configs/train.json is missing"),
        (
            lambda at: (at / "docs/a b.txt").touch(),
            "docs/a b.txt is a link, or has a blank or a letter beyond ASCII in its name",
        ),
        (
            lambda at: (at / "link.txt").symlink_to("LICENSE"),
            "link.txt is a link, or has a blank or a letter beyond ASCII in its name",
        ),
        (
            lambda at: write_large(at / "models/large.bin"),
            "models/large.bin has more than 25 MB and is not in large_files.yml: build the release with --url",
        ),
        (
            lambda at: (at / "configs/train.json").write_text('{\n    "unit": "µm"\n}\n', encoding="utf-8"),
            "configs/train.json is not ASCII with an indent of four",
        ),
        (
            lambda at: (at / "configs/train.json").write_text('{\n  "unit": "mm"\n}\n'),
            "configs/train.json is not ASCII with an indent of four",
        ),
        (lambda at: (at / "scripts/__init__.py").write_text(""), "scripts/__init__.py has no licence header"),
        (lambda at: change_metadata(at, version="0.3.0"), "the version 0.3.0 has no line in the changelog"),
        (lambda at: change_metadata(at, intended_use=""), "metadata.json has no intended_use"),
        (
            lambda at: (at / "docs/README.md").write_text((at / "docs/README.md").read_text().replace("## Data", "")),
            "docs/README.md has no section Data",
        ),
    ],
)
def test_a_fault_is_the_one_finding(bundle: Path, broken: Written, finding: str) -> None:
    broken(bundle)
    assert found(bundle) == [finding]


@pytest.mark.parametrize(
    ("broken", "begin"),
    [
        (
            lambda at: (at / "models/model.ts").write_text("no archive"),
            "models/model.ts cannot be loaded: PytorchStreamReader failed reading zip archive: not a ZIP archive",
        ),
        (
            lambda at: torch.save({"weight": torch.zeros(1, 2, 1)}, at / "models/model.pt"),
            'ckpt_export: Missing key(s) in state_dict: "bias"',
        ),
        (
            lambda at: change_metadata(at, network_data_format=data_format(3)),
            "verify_net_in_out: output channel number `1` doesn't match: `3`",
        ),
    ],
)
def test_a_fault_of_the_network_is_the_one_finding_in_the_words_of_torch_or_monai(
    bundle: Path, broken: Written, begin: str
) -> None:
    broken(bundle)
    [told] = found(bundle)
    assert told.startswith(begin)
    assert "\n" not in told


def test_a_large_file_that_is_listed_may_be_elsewhere_or_here(bundle: Path) -> None:
    names = ("models/model.pt", "models/large.bin")
    (bundle / "large_files.yml").write_text(yaml.safe_dump({"large_files": [{"path": name} for name in names]}))
    write_large(bundle / "models" / "large.bin")
    (bundle / "models" / "model.pt").unlink()
    assert list(check.files(bundle)) == []


def test_a_bundle_without_a_model_ts_is_whole(bundle: Path) -> None:
    (bundle / "models" / "model.ts").unlink()
    assert found(bundle) == []


def test_a_name_in_capitals_is_found(bundle: Path) -> None:
    renamed = bundle.rename(bundle.with_name("Small-Bundle"))
    assert found(renamed) == ["the name Small-Bundle is not in small letters and underscores"]


def checked(bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What `python -m zoo.check` prints, but for the checks that start other programs; "1" first if one is missing."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "scripts"]:
        monkeypatch.setitem(sys.modules, name, sys.modules[name])  # put back afterwards: the check takes ours out
    monkeypatch.setattr(check, "FORMS", ())
    monkeypatch.setattr(sys, "argv", ["zoo.check", str(bundle.parent), "--quick", *words])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        check.main()
    return f"{int(ended.value.code or 0)}\n{capsys.readouterr().out}"


def test_without_schema_that_of_the_shared_data_is_taken_if_it_is_there(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shared, unchecked = tmp_path / "shared", "metadata were not held against the schema: give --schema FILE\n"
    monkeypatch.setenv("SMOOTH_MIL_DATA", str(shared))
    told = checked(bundle, monkeypatch, capsys)
    assert (told[:2], told.endswith(unchecked)) == ("0\n", True)
    write_json(shared / "monai" / "meta_schema_20240725.json", {"required": ["monai_version"]})
    told = checked(bundle, monkeypatch, capsys)
    assert told.startswith("1\nsmall_bundle: files: ok\n")
    assert "small_bundle: metadata: \n    metadata.json: 'monai_version' is a required property\n" in told
    assert unchecked not in told
    write_json(tmp_path / "given.json", {"required": ["version"]})
    told = checked(bundle, monkeypatch, capsys, "--schema", str(tmp_path / "given.json"))
    assert ("metadata: ok\n" in told, unchecked in told) == (True, False)
