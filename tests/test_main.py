# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m scripts` as a person types it: help, refusals before anything runs, and each verb for real."""

import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scripts.core.errors import InputError
from tests.ct.rsna_cohort import write_rsna_cohort
from tests.shared_data import ROOT

Typed = Callable[..., None]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Typed]:
    """Runs the command line in this process; what it changes here is put back."""
    hook = sys.excepthook

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["scripts", *arguments])
        monkeypatch.delitem(sys.modules, "scripts.__main__", raising=False)
        runpy.run_module("scripts", run_name="__main__")

    yield run
    sys.excepthook = hook


def process(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scripts", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("", "adopt calibrate compare convert crossval datalist deliver doctor features release report search"),
        ("adopt", "FOLDER npz safetensors --features_key --coords_key --coords_unit --pitch --slides level0"),
        ("calibrate", "RESULTS WEIGHTS --labels --target --coverage summary.csv youden"),
        ("compare", "A B --output DeLong bootstrap"),
        ("convert", "CHECKPOINT OUTPUT SA-DMIL torchmil --force --placement --heads"),
        (
            "crossval",
            "WING FOLDER repeat_R summary.csv --output_dir --folds --repeats --jobs --config --datalist --seed",
        ),
        ("search", "WING FOLDER GRID best_by search.csv --random --jobs --config"),
        ("datalist ct", "FOLDER RSNA CQ500 labels.csv _check.json --labels --output --subtype --shares --seed"),
        ("datalist wsi", "FOLDER CLAM TRIDENT torchmil TCGA --by --splits --classes --annotations --slide_table"),
        ("features ct", "SOURCE OUTPUT parquet npz --scan --order --slice_label --feature --join --labels --shares"),
        ("release", "WING WEIGHTS model.pt --metrics --output_dir --trained_on --url"),
        ("report", "FOLDER summary.csv cross-validation --bundle_root --ckpt_path"),
        ("doctor ct", "PATH --datalist --output_dir decoders CUDA tilt"),
        ("doctor wsi", "PATH --slides --quick --slide_mpp --annotation_values OpenSlide NaN neighbours"),
    ],
)
def test_help_explains_each_verb(typed: Typed, capsys: pytest.CaptureFixture[str], verb: str, words: str) -> None:
    with pytest.raises(SystemExit) as end:
        typed(*verb.split(), "--help")
    printed = "".join(capsys.readouterr())
    assert end.value.code == 0
    assert [word for word in words.split() if word not in printed] == []


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ("scripts.__main__", {"torch", "monai"}),
        ("scripts.wsi.doctor.cohort, scripts.wsi.datalist.writing", {"monai", "ignite", "mlflow"}),
    ],
)
def test_a_command_does_not_wait_for_what_it_does_not_need(modules: str, absent: set[str]) -> None:
    """MONAI takes seconds to import."""
    code = f"import sys, {modules}; print(*sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert absent & set(printed.split()) == set()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("datalist ct data --out-put x", "datalist ct has no --out-put, perhaps --output"),
        ("datalist wsi data --by=slide -z 3", "datalist wsi has no -z"),
        ("convert a b --xyzzy", "convert has no --xyzzy"),
        ("calibrate a --weights b --lables c", "calibrate has no --lables, perhaps --labels"),
        ("compare a b c d", "compare does not take so many words"),
        ("doctor ct a b c d", "doctor ct does not take so many words"),
        ("search ct a b c d e f g h i j", "search does not take so many words"),
    ],
)
def test_what_a_verb_does_not_take_is_refused_before_it_runs(
    typed: Typed, monkeypatch: pytest.MonkeyPatch, arguments: str, message: str
) -> None:
    for runs in ("ct.datalist.writing.write_ct_datalist", "ct.doctor.examine_ct", "weights.convert.convert_checkpoint"):
        monkeypatch.setattr(f"scripts.{runs}", lambda *given, **named: pytest.fail("it ran"))
    with pytest.raises(InputError, match=f"^{re.escape(message)}: python -m scripts .* --help lists what it takes$"):
        typed(*arguments.split())


def test_neither_a_verb_nor_a_seed_may_be_anything(typed: Typed, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        typed("dance")
    assert end.value.code == 2
    assert "dance" in capsys.readouterr().err
    for wing in ("ct", "wsi"):
        with pytest.raises(InputError, match=r"^--seed 'x' is no whole number: give one$"):
            typed("datalist", wing, "data", "--seed", "x")


def test_a_report_is_made_of_a_folder_with_results_and_of_no_other(
    typed: Typed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=rf"^{tmp_path} holds no results .*: give the output_dir of an evaluation$"):
        typed("report", str(tmp_path))
    (tmp_path / "summary.csv").write_text("bag_id,status\n")
    with pytest.raises(InputError, match=r"none.pt cannot be read \(No such file or directory\): check the path$"):
        typed("report", str(tmp_path), "--ckpt_path", "none.pt")
    typed("report", str(tmp_path), "--bundle_root", str(ROOT / "bundle" / "hemorrhage_ct_smooth_mil"))
    assert capsys.readouterr().out == f"{tmp_path}/report.html\n"


def test_a_study_refuses_a_key_that_no_config_has_before_it_begins(typed: Typed, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"^--max_epoch is no key of train\.json, perhaps max_epochs: nothing would re"
    ):
        typed("crossval", "ct", str(tmp_path), "--output_dir", str(tmp_path / "out"), "--max_epoch", "3")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_datalist_and_doctor_of_head_ct(tmp_path: Path) -> None:
    ended = process("convert", str(tmp_path / "x.index"), str(tmp_path / "x.pt"))  # an error is one line
    assert (ended.returncode != 0, ended.stdout, ended.stderr.count("\n")) == (True, "", 1)
    assert ended.stderr.startswith(f"error: {tmp_path / 'x.index'} is missing: ")
    write_rsna_cohort(tmp_path, series=8, slices=9, image_size=16)
    ended = process("datalist", "ct", str(tmp_path), "--shares", "0.5,0.25,.25", "--seed", "-0")
    assert ended.returncode == 0, ended.stderr
    assert "leakage: 0 of " in ended.stdout
    assert ended.stdout.endswith(f"written: {tmp_path}/datalist.json, datalist_check.json and .headers.jsonl\n")
    ended = process("doctor", "ct", str(tmp_path / "none"), "--output_dir", str(tmp_path))
    assert (ended.returncode, ended.stderr) == (1, "")
    assert ended.stdout.splitlines()[-2] == f"FAIL  {tmp_path / 'none'} does not exist: check the path"
