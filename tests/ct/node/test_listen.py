# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Each study is read once and none is lost, whatever comes in and whenever the node is killed."""

import csv
import errno
import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pydicom
import pytest

from scripts.core.cli import one_line_errors
from scripts.core.errors import InputError
from scripts.ct.node.inbox import DONE, FAILED, INCOMING, READING, Inbox, short_name
from scripts.ct.node.listen import Node, run_node
from tests.bundle.commands import environment
from tests.bundle.test_viewers import write_bundle
from tests.ct.node.test_receiver import associate, free_port
from tests.ct.series import couch, write_series
from tests.shared_data import ROOT


def write_study(folder: Path, number: int, **tags: Any) -> Path:
    stored = np.random.default_rng(number).integers(0, 80, (4, 12, 10)).astype(np.int16)
    own = {"SeriesInstanceUID": f"1.2.826.0.1.3680043.8.498.7.{number}", "StudyInstanceUID": study_uid(number)}
    return write_series(folder, stored, couch(4), **{**own, **tags})


def study_uid(number: int) -> str:
    return f"1.2.826.0.1.3680043.8.498.8.{number}"


class Reading:
    """A reader that counts, and fails for one study."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.read: list[str] = []

    def __call__(self, study: str, folder: Path) -> None:
        self.read.append(study)
        if study == short_name("2"):
            raise InputError("it is no head: give a head")
        result = {"bag_id": study, "probability": 0.5, "called": "negative", "flagged": 0, "instances": [], "about": {}}
        (self.home / "results" / study).mkdir(parents=True, exist_ok=True)
        (self.home / "results" / study / "result.json").write_text(json.dumps(result))


def a_node(home: Path, *studies: str) -> tuple[Node, Reading]:
    inbox = Inbox(home, quiet_s=0)
    for study in studies:
        inbox.put(study, f"{study}.1", lambda path: path.write_text("image"))
    read = Reading(home)
    return Node(home, read, inbox), read


def test_one_that_cannot_be_read_is_set_apart_and_the_others_are_read_once(tmp_path: Path) -> None:
    node, read = a_node(tmp_path, "1", "2", "3")
    assert node.step() == 3
    assert node.step() == 0
    assert sorted(read.read) == sorted(map(short_name, "123"))
    assert (tmp_path / FAILED / short_name("2") / "reason.txt").read_text() == "it is no head: give a head\n"
    with (tmp_path / "worklist.csv").open() as file:
        assert [row["called"] for row in csv.DictReader(file)] == ["negative", "negative", "failed"]


def test_a_study_whose_result_is_whole_is_not_read_again_after_a_kill(tmp_path: Path) -> None:
    node, read = a_node(tmp_path, "1")
    folder = node.inbox.begin(short_name("1"))
    read(short_name("1"), folder)  # and here the node is killed
    again, read_again = a_node(tmp_path)
    assert again.step() == 1
    assert read_again.read == []
    assert (tmp_path / DONE / short_name("1")).is_dir()


def test_a_late_image_is_read_with_the_others(tmp_path: Path) -> None:
    node, read = a_node(tmp_path, "1")
    node.step()
    time.sleep(0.01)
    node.inbox.put("1", "1.2", lambda path: path.write_text("image"))
    assert node.step() == 1
    assert read.read == [short_name("1")] * 2


def test_an_image_that_comes_while_its_study_is_read_is_read_too(tmp_path: Path) -> None:
    node, read = a_node(tmp_path, "1")

    def slowly(study: str, folder: Path) -> None:
        if len(read.read) == 0:
            node.inbox.put("1", "1.2", lambda path: path.write_text("image"))
        read(study, folder)

    node.read = slowly
    assert [node.step() for _ in range(3)] == [1, 1, 0]
    assert len(read.read) == 2
    assert len(list((tmp_path / DONE / short_name("1")).glob("*.dcm"))) == 2


def test_a_full_disk_sets_no_study_apart(tmp_path: Path) -> None:
    node, read = a_node(tmp_path, "1")

    def full(*_: object) -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise InputError("cannot write result.json: make room") from error

    node.read = full
    with pytest.raises(InputError, match="make room"):
        node.step()
    assert os.listdir(tmp_path / FAILED) == []
    node.read = read
    assert node.step() == 1


def test_what_cannot_be_sent_waits_and_does_not_hold_up_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    factory = logging.getLogRecordFactory()
    one_line_errors()  # as the node runs, whose errors of one line are not logged
    try:
        node, read = a_node(tmp_path, "1", "3")

        def refuse(folder: Path) -> None:
            if folder.name == short_name("1"):
                raise InputError("PACS@there:1 does not answer")

        node.send = refuse
        assert [node.step(), node.step()] == [1, 0]
    finally:
        logging.setLogRecordFactory(factory)
        sys.excepthook = sys.__excepthook__
    assert "not sent yet: PACS@there:1 does not answer" in caplog.text
    assert os.listdir(tmp_path / READING) == [short_name("1")]
    node.send, node.not_before = None, {}
    assert node.step() == 1
    assert sorted(read.read) == sorted(map(short_name, "13"))  # each once, though one was sent at the second attempt


def test_a_study_that_more_makes_unreadable_keeps_no_result_of_before(tmp_path: Path) -> None:
    node, _ = a_node(tmp_path, "1")
    node.step()
    time.sleep(0.01)
    node.inbox.put("1", "1.2", lambda path: path.write_text("image"))

    def fail(*_: object) -> None:
        raise InputError("two studies in one: give each a folder")

    node.read = fail
    assert node.step() == 1
    assert not (tmp_path / "results" / short_name("1")).exists()
    assert os.listdir(tmp_path / DONE) == []


def test_wrong_arguments_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing would come in: give --watch FOLDER, or --port NUMBER"):
        run_node(tmp_path, tmp_path, {}, None, None)
    with pytest.raises(InputError, match="study_ends is 'soon': give quiet, or release"):
        run_node(tmp_path, tmp_path, {}, tmp_path, None, study_ends="soon")


class RealNode:
    """The real command, which may be killed and started again."""

    def __init__(self, home: Path, bundle: Path, log: Path) -> None:
        self.home, self.log = home, log
        self.port = free_port()
        self.command = [
            sys.executable, "-m", "scripts", "listen", "ct", str(home), "--port", str(self.port), "--title", "TEST",
            "--study_ends", "release", "--quiet", "5", "--bundle_root", str(bundle), "--device", "cpu",
        ]  # fmt: skip

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=log
            )

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def kill_at_random(self, kills: int, seconds: float) -> Thread:
        """Kill and start it so many times, each at a random moment after it has begun to listen."""

        def work() -> None:
            chance = random.Random(1)
            for _ in range(kills):
                heard = self.log.read_text().count("receives as")
                while self.log.read_text().count("receives as") == heard - 1:
                    time.sleep(0.1)
                time.sleep(chance.uniform(0.2, seconds))
                self.kill()
                self.start()

        thread = Thread(target=work)
        thread.start()
        return thread

    def send(self, folder: Path) -> None:
        """As a scanner does it: again until every image was taken."""
        images = [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"))]
        while images:
            sending = associate(self.port, pydicom.uid.CTImageStorage)
            while images and sending.is_established:
                try:
                    status = sending.send_c_store(images[0])
                except (RuntimeError, ValueError):
                    break
                if getattr(status, "Status", None) != 0:
                    break
                images.pop(0)
            if sending.is_established:
                sending.release()
            elif images:
                time.sleep(0.2)

    def results(self) -> dict[str, dict[str, Any]]:
        paths = (self.home / "results").glob("*/result.json")
        return {path.parent.name: json.loads(path.read_text()) for path in paths}

    def wait_for(self, done: int, seconds: float) -> None:
        until = time.time() + seconds
        while len(list((self.home / DONE).glob("*"))) < done:
            assert time.time() < until, sorted(path.name for path in self.home.rglob("*"))
            time.sleep(0.1)


def check_killed(tmp_path: Path, studies: int, kills: int) -> None:
    """Send studies in random order, kill the node meanwhile; every one is read, and a duplicate is not read again."""
    log = tmp_path / "node.log"
    node = RealNode(tmp_path / "home", write_bundle(tmp_path / "bundle", 0.0), log)
    folders = [write_study(tmp_path / "sent" / str(number), number) for number in range(studies)]
    random.Random(0).shuffle(folders)
    node.start()
    while not log.exists() or "receives as" not in log.read_text():
        assert node.process.poll() is None, log.read_text()
        time.sleep(0.1)
    killer = node.kill_at_random(kills, 0.05 * studies)
    for folder in folders:
        node.send(folder)
    killer.join()
    node.wait_for(studies, 60 + 2 * studies)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "home" / "results").glob("*/result.json")}
    node.send(folders[0])
    time.sleep(2)
    node.kill()
    wanted = {short_name(study_uid(number)) for number in range(studies)}
    assert set(node.results()) == wanted
    assert {path: path.stat().st_mtime_ns for path in before} == before
    for state in (INCOMING, READING, FAILED):
        assert os.listdir(tmp_path / "home" / state) == []
    readings = Counter(re.findall(r"(\w{16}): read$", log.read_text(), flags=re.MULTILINE))
    assert set(readings) <= wanted
    assert max(readings.values()) == 1  # a kill just before the line is written leaves none
    assert sum(readings.values()) >= studies - kills
    for study, told in node.results().items():
        assert len(told["instances"]) == 4
        assert pydicom.dcmread(tmp_path / "home" / "results" / study / "report.dcm").Modality == "SR"
        assert (tmp_path / "home" / "results" / study / "flagged.dcm").exists() == (told["flagged"] > 0)


@pytest.mark.slow
def test_a_node_that_is_killed_reads_every_study(tmp_path: Path) -> None:
    check_killed(tmp_path, studies=6, kills=1)


@pytest.mark.soak
def test_a_node_that_is_killed_thrice_reads_each_of_two_hundred_studies(tmp_path: Path) -> None:
    check_killed(tmp_path, studies=200, kills=3)
