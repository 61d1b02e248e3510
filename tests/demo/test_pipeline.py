# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The demonstration runs what is not yet there, says what failed, and gives commands that the bundles understand."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from demo.pipeline import ARMS, ROOT, Step, ct_steps, run_demo, wsi_steps


def one_after_the_other(steps: Sequence[Step]) -> Iterator[Step]:
    for before, step in zip([None, *steps], steps, strict=False):
        yield replace(step, after=(before.name,) if before else ())


class Demo:
    """A demonstration of steps that take no time; each writes its name into `ran`."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home = home
        self.ct: list[Step] = []
        self.wsi: list[Step] = []
        self.pages: list[Path] = []
        self.ran = home / "ran"
        home.mkdir()
        monkeypatch.chdir(home.parent)
        monkeypatch.setattr("demo.pipeline.ct_steps", lambda home, seed: one_after_the_other(self.ct))
        monkeypatch.setattr("demo.pipeline.wsi_steps", lambda home, seed: one_after_the_other(self.wsi))
        monkeypatch.setattr("demo.pipeline.write_page", self.write_page)

    def write_page(self, home: Path) -> Path:
        self.pages.append(home)
        return home / "index.html"

    def step(self, name: str, code: str = "") -> Step:
        note = f"open({str(self.ran)!r}, 'a').write({name + chr(10)!r})"
        return Step(name, f"step {name}", [sys.executable, "-S", "-c", f"{note}\n{code}"], self.home)

    def run(self) -> list[str]:
        """The names of the steps that ran this time."""
        self.ran.write_text("")
        run_demo(str(self.home))
        return self.ran.read_text().split()


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Demo:
    return Demo(tmp_path / "demo", monkeypatch)


def test_what_ran_is_not_run_again(demo: Demo, capsys: pytest.CaptureFixture[str]) -> None:
    demo.ct = [demo.step("a"), demo.step("b")]
    assert demo.run() == ["a", "b"]
    assert "open demo/index.html in a browser" in capsys.readouterr().out
    assert demo.run() == []
    printed = capsys.readouterr().out
    assert "step a: already there" in printed
    assert "step b: already there" in printed
    assert demo.pages == [demo.home, demo.home]  # the page is made each time: it costs little


def test_a_changed_command_runs_again(demo: Demo) -> None:
    demo.ct = [demo.step("a"), demo.step("b")]
    demo.run()
    demo.ct[1] = demo.step("b", "print('another seed')")
    assert demo.run() == ["b"]
    assert demo.run() == []


def test_what_follows_a_step_that_ran_again_runs_again(demo: Demo) -> None:
    """Another seed makes other slides; the command that encodes them names no seed, but its results are out of date."""
    demo.wsi = [demo.step("data", "'seed 0'"), demo.step("features"), demo.step("train")]
    demo.run()
    demo.wsi[0] = demo.step("data", "'seed 1'")
    assert demo.run() == ["data", "features", "train"]


def test_a_failure_is_one_line_that_names_the_log(demo: Demo) -> None:
    demo.ct = [
        demo.step("good"),
        demo.step("bad", "print('much')\nraise SystemExit('no space left')"),
        demo.step("later"),
    ]
    demo.wsi = [demo.step("other")]
    with pytest.raises(SystemExit) as failure:
        demo.run()
    assert failure.value.code == "error: step bad failed: no space left (all of it: demo/logs/bad.log)"
    assert (demo.home / "logs" / "bad.log").read_text() == "much\nno space left\n"
    assert sorted(demo.ran.read_text().split()) == [
        "bad",
        "good",
        "other",
    ]  # the other bundle goes on, `later` is not tried
    assert demo.pages == []


def test_a_command_that_says_nothing_fails_in_one_line_too(demo: Demo) -> None:
    demo.ct = [demo.step("mute", "raise SystemExit(3)")]
    with pytest.raises(SystemExit, match=r"^error: step mute failed: .*demo/logs/mute\.log\)$"):
        demo.run()


def test_both_failures_are_told(demo: Demo) -> None:
    demo.ct, demo.wsi = [demo.step("x", "1 / 0")], [demo.step("y", "[][1]")]
    with pytest.raises(SystemExit) as failure:
        demo.run()
    first, second = sorted(str(failure.value.code).splitlines())
    assert first.startswith("error: step x failed: ZeroDivisionError")
    assert second.startswith("error: step y failed: IndexError")


def test_what_failed_is_tried_again_and_what_succeeded_is_kept(demo: Demo) -> None:
    cure = demo.home / "cure"
    demo.ct = [demo.step("a"), demo.step("ill", f"open({str(cure)!r})"), demo.step("b")]
    with pytest.raises(SystemExit):
        demo.run()
    cure.touch()
    assert demo.run() == ["ill", "b"]


def test_a_failure_forgets_the_success_before_it(demo: Demo) -> None:
    """The failed command may have overwritten what the one before it had written."""
    demo.ct = [demo.step("a")]
    demo.run()
    demo.ct = [demo.step("a", "raise SystemExit(1)")]
    with pytest.raises(SystemExit):
        demo.run()
    demo.ct = [demo.step("a")]
    assert demo.run() == ["a"]


def test_two_steps_run_side_by_side(demo: Demo) -> None:
    """Each waits for the other: one alone waits in vain."""
    meet = "import os, time\nopen({mine!r}, 'w')\nend = time.time() + 20\n"
    meet += "while not os.path.exists({other!r}):\n    assert time.time() < end\n    time.sleep(0.01)"
    here, there = str(demo.home / "here"), str(demo.home / "there")
    demo.ct = [demo.step("a", meet.format(mine=here, other=there))]
    demo.wsi = [demo.step("b", meet.format(mine=there, other=here))]
    assert sorted(demo.run()) == ["a", "b"]


def commands(task: str, seed: int = 3) -> list[Step]:
    home = Path("/somewhere/demo")
    return list({"ct": ct_steps, "wsi": wsi_steps}[task](home, seed))


def bundle_runs(task: str) -> list[Step]:
    return [step for step in commands(task) if "monai.bundle" in step.command]


def options(step: Step) -> dict[str, str]:
    words = list(step.command)
    first = next(i for i, word in enumerate(words) if word.startswith("--"))
    keys, values = words[first::2], words[first + 1 :: 2]
    assert all(key.startswith("--") for key in keys)
    return {key.removeprefix("--"): value for key, value in zip(keys, values, strict=True)}


def config_files(step: Step) -> Sequence[str]:
    given = options(step)["config_file"]
    return ast.literal_eval(given) if given.startswith("[") else [given]


each_task = pytest.mark.parametrize("task", ["ct", "wsi"])


@each_task
def test_the_commands_name_files_and_keys_that_exist(task: str) -> None:
    for step in bundle_runs(task):
        assert step.command[:4] == [sys.executable, "-m", "monai.bundle", "run"]
        files = [step.folder / file for file in config_files(step)]
        assert all(file.is_file() for file in files), step.name
        config = ConfigParser(ConfigParser.load_config_files(files))
        for key in options(step).keys() - {"config_file"}:
            assert key in config.get(), f"{step.name} sets {key}, which no file of it names"


@each_task
def test_each_arm_is_evaluated_after_its_training_where_that_left_its_network(task: str) -> None:
    names = [step.name for step in commands(task)]
    by_name = {step.name: step for step in commands(task)}
    assert len(by_name) == len(names)  # a name is also that of a log
    for arm in ARMS:
        train, evaluate = by_name[f"{task}-train-{arm}"], by_name[f"{task}-evaluate-{arm}"]
        assert names.index(train.name) < names.index(evaluate.name)
        assert config_files(evaluate) == [*config_files(train), "configs/evaluate.json"]
        differing = {k for k in options(train) if options(train)[k] != options(evaluate)[k]}
        assert differing == {"config_file", "run_name"}
        assert options(train)["run_name"] == arm  # the page looks for it
    inference = options(by_name[f"{task}-inference"])
    assert inference["ckpt_path"] == options(by_name[f"{task}-train-smooth"])["ckpt_dir"] + "/model.pt"
    assert names.index(f"{task}-train-smooth") < names.index(f"{task}-inference")


@each_task
def test_the_arms_differ_in_nothing_but_smoothness(task: str) -> None:
    by_name = {step.name: step for step in commands(task)}
    attention, smooth = (options(by_name[f"{task}-train-{arm}"]) for arm in ("attention", "smooth"))
    differing = {key for key in smooth if attention[key] != smooth[key]}
    assert differing == {"config_file", "ckpt_dir", "output_dir", "cache_dir", "run_name"}
    files = (config_files(by_name[f"{task}-train-{arm}"]) for arm in ("attention", "smooth"))
    assert next(files) == [*next(files), "configs/attention.json"]


@each_task
def test_the_seed_is_that_of_the_data_and_of_the_training(task: str) -> None:
    data, *_ = commands(task, seed=7)
    position = list(data.command).index("--seed")
    assert data.command[position + 1] == "7"
    assert data.command[1:4] == ["-m", "demo", "data"]
    assert data.folder == ROOT
    assert list(data.command[-2:]) == ["--only", task]
    trainings = [step for step in commands(task, seed=7) if "train" in step.name]
    assert [options(step)["seed"] for step in trainings] == ["7", "7"]


@each_task
def test_bags_prepared_from_other_data_are_not_taken_from_the_cache(task: str) -> None:
    """A prepared bag is known by its path and label, which may be those of another seed's."""
    caches = [{options(s)["cache_dir"] for s in commands(task, seed) if "train" in s.name} for seed in (0, 1)]
    assert caches[0].isdisjoint(caches[1])


@each_task
def test_all_that_is_written_goes_below_the_folder_given(task: str) -> None:
    for step in commands(task):
        places = [word.removeprefix("sqlite:///") for word in step.command if "/" in word and "configs/" not in word]
        places.remove(sys.executable)
        assert places
        assert all(place.startswith("/somewhere/demo/") for place in places), step.name
