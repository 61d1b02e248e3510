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
"""`python -m scripts` as a person types it."""

from __future__ import annotations

import logging
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from scripts.errors import InputError
from scripts.preparing.findings import Finding, Level
from scripts.weights.torchmil import Settings
from tests.preparing.feature_trees import own, write
from tests.preparing.rsna_cohort import write_rsna_cohort
from tests.shared_data import ROOT

Typed = Callable[..., None]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Typed]:
    """Runs the command line in this process; what it changes here is put back."""
    hook, handlers = sys.excepthook, {handler: list(handler.filters) for handler in logging.getLogger().handlers}

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["scripts", *arguments])
        monkeypatch.delitem(sys.modules, "scripts.__main__", raising=False)
        runpy.run_module("scripts", run_name="__main__")

    yield run
    sys.excepthook = hook
    for handler, filters in handlers.items():
        handler.filters = filters


@pytest.fixture
def cohorts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, int, bool, bool]]:
    """What write_demo_data was asked for: folder, seed, CT, slides."""
    asked: list[tuple[Path, int, bool, bool]] = []

    def record(directory: Path, seed: int, *, ct: bool, wsi: bool) -> None:
        asked.append((directory, seed, ct, wsi))

    monkeypatch.setattr("scripts.demo.cohorts.write_demo_data", record)
    return asked


def test_help_names_the_verbs(typed: Typed, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        typed("--help")
    printed = "".join(capsys.readouterr())
    assert end.value.code == 0
    assert "python -m scripts" in printed
    assert "demo-data" in printed
    assert "convert" in printed
    assert "datalist" in printed
    assert "doctor" in printed
    assert "DIRECTORY/index.html" in printed  # what `demo` writes


def test_help_of_a_verb_explains_its_arguments(typed: Typed, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        typed("demo-data", "--help")
    printed = "".join(capsys.readouterr())
    assert end.value.code == 0
    for words in ("DIRECTORY", "--seed", "where the data goes", "the same seed makes the same data"):
        assert words in printed


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["out"], (Path("out"), 0, True, True)),
        (["out", "--seed", "5"], (Path("out"), 5, True, True)),
        (["out", "--nowsi"], (Path("out"), 0, True, False)),
        (["out", "--noct", "--seed=2"], (Path("out"), 2, False, True)),
        (["2026"], (Path("2026"), 0, True, True)),  # a folder, though it looks like a number
    ],
)
def test_demo_data_asks_for_what_was_typed(
    typed: Typed, cohorts: list[Any], arguments: list[str], wanted: tuple[Path, int, bool, bool]
) -> None:
    typed("demo-data", *arguments)
    assert cohorts == [wanted]


@pytest.mark.parametrize("seed", ["x", "1.5", "None", "[1]"])
def test_a_seed_that_is_no_number_is_told(typed: Typed, cohorts: list[Any], seed: str) -> None:
    with pytest.raises(InputError, match=r"--seed .* is no whole number: give one"):
        typed("demo-data", "out", "--seed", seed)
    assert cohorts == []


def test_a_negative_seed_is_told_before_anything_is_written(typed: Typed, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="seed is -1: give 0 or a positive number"):
        typed("demo-data", str(tmp_path / "out"), "--seed", "-1")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "wanted"), [([], ("demo", 0)), (["out", "--seed", "4"], ("out", 4)), (["7"], ("7", 0))]
)
def test_demo_runs_the_demonstration(
    typed: Typed, monkeypatch: pytest.MonkeyPatch, arguments: list[str], wanted: tuple[str, int]
) -> None:
    asked: list[tuple[str, int]] = []
    monkeypatch.setattr("scripts.demo.pipeline.run_demo", lambda directory, seed: asked.append((directory, seed)))
    typed("demo", *arguments)
    assert asked == [wanted]


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What convert was asked for."""
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr("scripts.weights.convert.convert", lambda *arguments: asked.append(arguments))
    return asked


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["a.index", "models"], (Path("a.index"), Path("models"), None, Settings(), False)),
        (["12", "3.pt", "--force"], (Path("12"), Path("3.pt"), None, Settings(), True)),  # names, not numbers
        (["a", "b.pt", "--kind", "sa-dmil"], (Path("a"), Path("b.pt"), "sa-dmil", Settings(), False)),
        (
            ["a.pt", "b.pt", "--placement=mid", "--activation", "gelu", "--mode", "exact", "--steps=3", "--alpha=.25",
             "--heads", "8", "--noadd_input"],
            (Path("a.pt"), Path("b.pt"), None, Settings("mid", "gelu", "exact", 3, 0.25, 8, False), False),
        ),
    ],
)  # fmt: skip
def test_convert_asks_for_what_was_typed(
    typed: Typed, conversions: list[tuple[Any, ...]], arguments: list[str], wanted: tuple[Any, ...]
) -> None:
    typed("convert", *arguments)
    assert conversions == [wanted]


def test_a_setting_that_is_none_is_told(typed: Typed, conversions: list[tuple[Any, ...]]) -> None:
    with pytest.raises(InputError, match="--mode 'fast' is not known: give approx, exact"):
        typed("convert", "a.pt", "b.pt", "--mode", "fast")
    assert conversions == []


def test_help_of_convert_names_what_it_reads_and_writes(typed: Typed, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        typed("convert", "--help")
    printed = "".join(capsys.readouterr())
    assert end.value.code == 0
    for words in ("CHECKPOINT OUTPUT", "SA-DMIL", "torchmil", "configs/released.json", "research only", "--force"):
        assert words in printed
    for setting in fields(Settings):
        assert f"--{setting.name}={setting.name.upper()}" in printed
        assert f"Default: {setting.default!r}" in printed  # torchmil's own


def test_convert_tells_its_one_line_in_a_real_process(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "scripts", "convert", str(tmp_path / "x.index"), str(tmp_path / "x.pt")],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ended.returncode != 0
    assert ended.stderr == (
        f"error: {tmp_path / 'x.index'} is missing: give an .index of TensorFlow, or a .pt of torchmil\n"
    )
    assert ended.stdout == ""


@pytest.fixture
def datalists(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What write_ct_datalist was asked for."""
    asked: list[tuple[Any, ...]] = []

    def record(*arguments: Any) -> str:
        asked.append(arguments)
        return "counts"

    monkeypatch.setattr("scripts.preparing.datalist.write_ct_datalist", record)
    return asked


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["data"], (Path("data"), None, None, "any", (0.7, 0.1, 0.2), 0, False)),
        (
            ["2026", "--labels", "1", "--output=2"],
            (Path("2026"), Path("1"), Path("2"), "any", (0.7, 0.1, 0.2), 0, False),
        ),
        (
            ["data", "--subtype", "subdural", "--shares", "0.5,0.25,.25", "--seed", "3", "--force"],
            (Path("data"), None, None, "subdural", (0.5, 0.25, 0.25), 3, True),
        ),
    ],
)
def test_datalist_asks_for_what_was_typed(
    typed: Typed,
    datalists: list[Any],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    wanted: tuple[Any, ...],
) -> None:
    typed("datalist", "ct", *arguments)
    assert datalists == [wanted]
    assert capsys.readouterr().out == "counts\n"


def test_a_seed_of_a_datalist_that_is_no_number_is_told(typed: Typed, datalists: list[Any]) -> None:
    with pytest.raises(InputError, match=r"^--seed 'x' is no whole number: give one$"):
        typed("datalist", "ct", "data", "--seed", "x")
    assert datalists == []


def test_help_of_datalist_names_the_cohorts_and_what_is_written(
    typed: Typed, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        typed("datalist", "ct", "--help")
    printed = "".join(capsys.readouterr())
    assert end.value.code == 0
    for words in (
        *("FOLDER", "RSNA 2019", "stage_2_train.csv", "CQ500", "reads.csv", "labels.csv", "FOLDER/datalist.json"),
        *("_check.json", ".headers.jsonl", "--labels", "--output", "--subtype", "--shares", "--seed"),
    ):
        assert words in printed


def test_datalist_in_a_real_process(tmp_path: Path) -> None:
    write_rsna_cohort(tmp_path, series=8, slices=9, image_size=16)
    ended = subprocess.run(
        [sys.executable, "-m", "scripts", "datalist", "ct", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ended.returncode == 0
    assert "leakage: 0 of " in ended.stdout
    assert ended.stdout.endswith(f"written: {tmp_path}/datalist.json, datalist_check.json and .headers.jsonl\n")
    assert (tmp_path / "datalist.json").is_file()
    assert "Traceback" not in ended.stderr


@pytest.fixture
def slide_datalists(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What write_wsi_datalist was asked for."""
    asked: list[tuple[Any, ...]] = []

    def record(*arguments: Any) -> str:
        asked.append(arguments)
        return "counts"

    monkeypatch.setattr("scripts.preparing.slide_datalist.write_wsi_datalist", record)
    return asked


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (
            ["data"],
            (Path("data"), None, None, "slide", None, (0.7, 0.1, 0.2), 0, False, None, None, None, "label", None),
        ),
        (
            ["1", "--labels", "2", "--output=3", "--by", "patient", "--splits", "4", "--features", "20", "--force",
             "--annotations", "5", "--classes", "['N','PB']", "--shares", "1,0,0", "--seed", "6", "--label_column", "7",
             "--slide_table", "8"],
            (Path("1"), Path("2"), Path("3"), "patient", Path("4"), (1, 0, 0), 6, True, "20", Path("5"), ["N", "PB"],
             "7", Path("8")),
        ),
    ],
)  # fmt: skip
def test_datalist_of_slides_asks_for_what_was_typed(
    typed: Typed, slide_datalists: list[Any], capsys: pytest.CaptureFixture[str], arguments: list[str], wanted: Any
) -> None:
    typed("datalist", "wsi", *arguments)
    assert slide_datalists == [wanted]
    assert capsys.readouterr().out == "counts\n"


def test_help_of_datalist_of_slides_names_the_forms_of_labels(typed: Typed, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        typed("datalist", "wsi", "--help")
    printed = "".join(capsys.readouterr())
    assert end.value.code == 0
    for words in (
        *(
            "FOLDER",
            "CLAM",
            "case_id,slide_id,label",
            "torchmil",
            "splits.csv",
            "TRIDENT",
            "TCGA",
            "FOLDER/datalist.json",
        ),
        *("_check.json", "--labels", "--output", "--by", "--splits", "--classes", "--annotations", "--features"),
        *("--shares", "--seed", "--force", "coarse", "without tissue"),
    ):
        assert words in printed


def test_doctor_of_slides_in_a_real_process(typed: Typed, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for n in range(6):
        own(tmp_path / "features" / f"s{n}.h5")
    write(tmp_path / "labels.csv", "slide,label,patient", *(f"s{n},{n % 2},p{n}" for n in range(6)))
    typed("datalist", "wsi", str(tmp_path))
    assert capsys.readouterr().out.endswith(f"written: {tmp_path}/datalist.json and datalist_check.json\n")
    (tmp_path / "features" / "s3.h5").write_bytes(b"nothing")
    ended = subprocess.run(
        [sys.executable, "-m", "scripts", "doctor", "wsi", str(tmp_path), "--output_dir", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (1, "")
    assert "PASS  none of 6 patients and 6 slides is in two sections\n" in ended.stdout
    assert f"FAIL  s3: {tmp_path}/features/s3.h5 is not an HDF5" in ended.stdout
    assert ended.stdout.splitlines()[-1].endswith(" 1 FAIL")


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["data"], (Path("data"), None, Path("."), None, False, None, None)),
        (
            [
                "1",
                "--datalist",
                "2",
                "--output_dir",
                "3",
                "--slides",
                "4",
                "--quick",
                "--slide_mpp",
                "0.25",
                "--annotation_values",
                "[1,'tumor']",
            ],
            (Path("1"), Path("2"), Path("3"), Path("4"), True, 0.25, [1, "tumor"]),
        ),
    ],
)
def test_doctor_of_slides_asks_for_what_was_typed(
    typed: Typed, monkeypatch: pytest.MonkeyPatch, arguments: list[str], wanted: tuple[Any, ...]
) -> None:
    asked: list[Any] = []

    def record(*given: Any) -> list[Finding]:
        asked.append(given)
        return [Finding(Level.WARN, "so so")]

    monkeypatch.setattr("scripts.preparing.slide_doctor.examine_wsi", record)
    typed("doctor", "wsi", *arguments)
    assert asked == [wanted]


def test_help_of_doctor_of_slides_names_what_it_looks_at(typed: Typed, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        typed("doctor", "wsi", "--help")
    printed = "".join(capsys.readouterr())
    assert end.value.code == 0
    for words in (
        *("PATH", "--datalist", "--output_dir", "--slides", "--quick", "OpenSlide", "pitch", "NaN", "neighbours"),
        *("--slide_mpp", "--annotation_values", "magnification", "exit code", "PATH/datalist.json"),
    ):
        assert words in printed


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["demo-data", "out", "--sed", "3"], "demo-data has no --sed, perhaps --seed"),
        (["demo-data", "out", "--seeds=3"], "demo-data has no --seeds, perhaps --seed"),
        (["demo-data", "out", "--noctt"], "demo-data has no --noctt"),
        (["datalist", "ct", "data", "--out-put", "x"], "datalist ct has no --out-put, perhaps --output"),
        (["datalist", "wsi", "data", "--by=slide", "-z", "3"], "datalist wsi has no -z"),
        (["doctor", "ct", "data", "--output-folder=x"], "doctor ct has no --output-folder, perhaps --output_dir"),
        (["convert", "a", "b", "--xyzzy"], "convert has no --xyzzy"),
    ],
)
def test_a_flag_that_no_verb_has_is_told_before_anything_runs(
    typed: Typed, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str
) -> None:
    for runs in ("demo.cohorts.write_demo_data", "preparing.datalist.write_ct_datalist", "weights.convert.convert"):
        monkeypatch.setattr(f"scripts.{runs}", lambda *given, **named: pytest.fail("it ran"))
    verb = " ".join(arguments[: 2 if arguments[0] in ("datalist", "doctor") else 1])
    message = f"{told}: python -m scripts {verb} --help lists what it takes"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        typed(*arguments)


def test_a_word_too_many_is_told_before_anything_runs(typed: Typed, cohorts: list[Any]) -> None:
    message = "demo-data does not take so many words: python -m scripts demo-data --help lists what it takes"
    with pytest.raises(InputError, match=f"^{message}$"):
        typed("demo-data", "out", "1", "True", "--wsi", "False", "False", "more", "words")
    assert cohorts == []


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["out", "-s", "3"], (Path("out"), 3, True, True)),  # a letter that is enough
        (["--directory", "out", "--seed=-0"], (Path("out"), 0, True, True)),
        (["out", "--seed", "4", "--nowsi", "--ct", "True"], (Path("out"), 4, True, False)),
    ],
)
def test_what_fire_takes_is_not_refused(
    typed: Typed, cohorts: list[Any], arguments: list[str], wanted: tuple[Any, ...]
) -> None:
    typed("demo-data", *arguments)
    assert cohorts == [wanted]


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What examine_ct was asked for; it finds nothing wrong."""
    asked: list[Any] = []

    def record(*arguments: Any) -> list[Finding]:
        asked.append(arguments)
        return [Finding(Level.PASS, "fine")]

    monkeypatch.setattr("scripts.preparing.doctor.examine_ct", record)
    return asked


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["data"], (Path("data"), None, Path("."))),
        (["1", "--datalist", "2", "--output_dir", "3"], (Path("1"), Path("2"), Path("3"))),
    ],
)
def test_doctor_asks_for_what_was_typed(
    typed: Typed, doctor: list[Any], capsys: pytest.CaptureFixture[str], arguments: list[str], wanted: tuple[Any, ...]
) -> None:
    typed("doctor", "ct", *arguments)
    assert doctor == [wanted]
    assert capsys.readouterr().out == "PASS  fine\n1 PASS, 0 WARN, 0 FAIL\n"


def test_doctor_fails_in_a_real_process(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "scripts", "doctor", "ct", str(tmp_path / "none"), "--output_dir", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ended.returncode == 1
    lines = ended.stdout.splitlines()
    assert lines[0].startswith("PASS  Python 3")
    assert lines[-2] == f"FAIL  {tmp_path / 'none'} does not exist: check the path"
    assert lines[-1].endswith(" 1 FAIL")
    assert ended.stderr == ""


def test_help_of_doctor_names_what_it_looks_at(typed: Typed, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        typed("doctor", "ct", "--help")
    printed = "".join(capsys.readouterr())
    assert end.value.code == 0
    for words in ("PATH", "--datalist", "--output_dir", "decoders", "CUDA", "tilt", "exit code", "PATH/datalist.json"):
        assert words in printed


def test_a_verb_that_is_none_fails(typed: Typed, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        typed("dance")
    assert end.value.code == 2
    assert "dance" in capsys.readouterr().err


def test_bad_input_is_one_line_of_a_real_process(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "scripts", "demo-data", str(tmp_path / "out"), "--seed", "x"],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ended.returncode != 0
    assert ended.stderr == "error: --seed 'x' is no whole number: give one\n"
    assert ended.stdout == ""
    assert not (tmp_path / "out").exists()
