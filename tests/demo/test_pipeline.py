# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The demonstration runs what is out of date, tells what failed, and gives commands that the bundles understand."""

import ast
import sys
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from demo.pipeline import ARMS, Step, ct_steps, run_demo, wsi_steps


class Demo:
    """A demonstration of steps that take no time; each writes its name into `ran`."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home, self.ran = home, home / "ran"
        self.ct: list[Step] = []
        self.wsi: list[Step] = []
        self.pages = 0
        home.mkdir()
        monkeypatch.chdir(home.parent)
        monkeypatch.setattr("demo.pipeline.ct_steps", lambda home, seed: self.ct)
        monkeypatch.setattr("demo.pipeline.wsi_steps", lambda home, seed: self.wsi)
        monkeypatch.setattr("demo.pipeline.write_page", self.write_page)

    def write_page(self, home: Path) -> Path:
        self.pages += 1
        return home / "index.html"

    def step(self, name: str, code: str = "", after: tuple[str, ...] = ()) -> Step:
        note = f"open({str(self.ran)!r}, 'a').write({name + chr(10)!r})"
        return Step(name, f"step {name}", [sys.executable, "-S", "-c", f"{note}\n{code}"], self.home, after)

    def run(self) -> list[str]:
        """The names of the steps that ran this time, whether or not one failed."""
        self.ran.write_text("")
        try:
            run_demo(str(self.home))
        except SystemExit as error:
            self.errors = sorted(str(error.code).splitlines())
        return self.ran.read_text().split()


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Demo:
    return Demo(tmp_path / "demo", monkeypatch)


def test_a_step_runs_again_if_it_changed_or_one_before_it_ran_or_it_failed_in_between(demo: Demo) -> None:
    """Another seed makes other slides; the command that encodes them names no seed, but its results are out of date."""
    every = ["data", "features", "train"]
    for seed, train, ran in (
        ("0", "", every),
        ("0", "", []),
        ("0", "'more epochs'", ["train"]),
        ("1", "'more epochs'", every),
        ("1", "raise SystemExit(1)", ["train"]),
        ("1", "'more epochs'", ["train"]),  # the failed command may have overwritten what was there
    ):
        features = demo.step("features", after=("data",))
        demo.wsi = [demo.step("data", f"'seed {seed}'"), features, demo.step("train", train, after=("features",))]
        assert demo.run() == ran
    assert demo.pages == 5  # made after each success: it costs little


def test_a_failure_is_one_line_that_names_the_log_and_what_failed_is_tried_again(demo: Demo) -> None:
    cure = demo.home / "cure"
    bad = demo.step("bad", f"print('much')\nopen({str(cure)!r})")
    demo.ct = [demo.step("good"), bad, demo.step("later", after=("bad",))]
    demo.wsi = [demo.step("mute", "raise SystemExit(3)")]
    assert sorted(demo.run()) == ["bad", "good", "mute"]  # `later` is not tried
    assert demo.errors[0].startswith("error: step bad failed: FileNotFoundError")
    assert [error.split("demo/logs/")[-1] for error in demo.errors] == ["bad.log)", "mute.log)"]
    assert (demo.home / "logs" / "bad.log").read_text().startswith("much\n")
    assert demo.pages == 0
    cure.touch()
    assert sorted(demo.run()) == ["bad", "later", "mute"]


def test_two_steps_run_side_by_side(demo: Demo) -> None:
    """Each waits for the other: one alone waits in vain."""
    meet = "import os, time\nopen({0!r}, 'w')\nend = time.time() + 20\n"
    meet += "while not os.path.exists({1!r}):\n    assert time.time() < end\n    time.sleep(0.01)"
    here, there = str(demo.home / "here"), str(demo.home / "there")
    demo.ct, demo.wsi = [demo.step("a", meet.format(here, there))], [demo.step("b", meet.format(there, here))]
    assert sorted(demo.run()) == ["a", "b"]
    assert demo.pages == 1


def commands(task: str, seed: int = 3) -> dict[str, Step]:
    steps = list({"ct": ct_steps, "wsi": wsi_steps}[task](Path("/somewhere/demo"), seed))
    by_name = {step.name: step for step in steps}
    assert len(by_name) == len(steps)  # a name is also that of a log
    return by_name


def options(step: Step) -> dict[str, str]:
    words = list(step.command)
    first = next(i for i, word in enumerate(words) if word.startswith("--"))
    return {key.removeprefix("--"): value for key, value in zip(words[first::2], words[first + 1 :: 2], strict=True)}


def config_files(step: Step) -> list[str]:
    given = options(step)["config_file"]
    return ast.literal_eval(given) if given.startswith("[") else [given]


def differing(one: Step, other: Step) -> set[str]:
    return {key for key, value in options(one).items() if options(other)[key] != value}


each_task = pytest.mark.parametrize("task", ["ct", "wsi"])


@each_task
def test_the_commands_name_files_and_keys_that_exist_and_write_below_the_folder_given(task: str) -> None:
    for step in commands(task).values():
        places = [word.removeprefix("sqlite:///") for word in step.command if "/" in word and "configs/" not in word]
        assert {place.startswith("/somewhere/demo/") for place in places if place != sys.executable} == {True}
        if "monai.bundle" in step.command:
            config = ConfigParser(ConfigParser.load_config_files([step.folder / file for file in config_files(step)]))
            assert options(step).keys() - {"config_file"} <= config.get().keys(), step.name


@each_task
def test_the_arms_differ_in_smoothness_alone_and_each_has_a_cache_and_is_evaluated_as_it_was_trained(task: str) -> None:
    steps = commands(task)
    for arm in ARMS:
        train, evaluate = steps[f"{task}-train-{arm}"], steps[f"{task}-evaluate-{arm}"]
        assert evaluate.after == (train.name,)
        assert config_files(evaluate) == [*config_files(train), "configs/evaluate.json"]
        assert differing(train, evaluate) == {"config_file", "run_name"}
        assert options(train)["run_name"] == arm  # the page looks for it
    plain, smooth = (steps[f"{task}-train-{arm}"] for arm in ARMS)
    assert differing(smooth, plain) == {"config_file", "ckpt_dir", "output_dir", "cache_dir", "run_name"}
    assert config_files(plain) == [*config_files(smooth), "configs/attention.json"]
    inference = steps[f"{task}-inference"]
    assert options(inference)["ckpt_path"] == options(smooth)["ckpt_dir"] + "/model.pt"
    assert inference.after == (smooth.name,)
    given = [options(commands(task, seed)[f"{task}-train-{arm}"]) for seed in (7, 8) for arm in ARMS]
    assert [keys["seed"] for keys in given] == ["7", "7", "8", "8"]
    assert len({keys["cache_dir"] for keys in given}) == 4  # a bag is known by its path, which may be another's
    data = list(commands(task, 7)[f"{task}-data"].command)
    assert data[data.index("--seed") + 1] == "7"
