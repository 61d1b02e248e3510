# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Every image is kept once, and whatever step a node is killed in, its study is there to be read."""

import os
import time
from functools import partial
from pathlib import Path

from scripts.ct.node.inbox import DONE, FAILED, INCOMING, READING, Inbox, short_name

STUDY = short_name("1.2.3")


def put(inbox: Inbox, *images: str, study: str = "1.2.3") -> list[bool]:
    return [inbox.put(study, image, partial(Path.write_text, data=image)) for image in images]


def images_in(home: Path, state: str) -> set[str]:
    return {path.read_text() for path in (home / state / STUDY).glob("*.dcm")}


def test_a_study_is_whole_when_nothing_has_come_for_a_while_or_its_sender_says_so(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path, quiet_s=60)
    put(inbox, "a")
    assert inbox.whole() == []
    inbox.end_study("1.2.3")
    inbox.end_study("of nobody")
    assert inbox.whole() == [STUDY]
    put(inbox, "b", study="4.5.6")
    past = inbox.folder / INCOMING / short_name("4.5.6")
    os.utime(past, (0, 0))
    assert inbox.whole() == [short_name("4.5.6"), STUDY]  # that which came first
    inbox.open_since = time.time()  # its sender could not send the rest before
    assert inbox.whole() == [STUDY]


def test_an_image_is_kept_once_in_whatever_state_its_study_is(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path, quiet_s=0)
    assert put(inbox, "a", "a", "b") == [True, False, True]
    inbox.begin(STUDY)
    assert put(inbox, "a") == [False]
    inbox.finish(STUDY)
    assert put(inbox, "b") == [False]
    assert inbox.whole() == []


def test_images_that_come_later_join_those_that_were_read(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path, quiet_s=0)
    put(inbox, "a")
    inbox.begin(STUDY)
    put(inbox, "b")  # while the study is read
    inbox.finish(STUDY)
    assert inbox.whole() == [STUDY]
    inbox.begin(STUDY)
    assert images_in(tmp_path, READING) == {"a", "b"}
    inbox.finish(STUDY)
    assert images_in(tmp_path, DONE) == {"a", "b"}
    assert [*(tmp_path / INCOMING).iterdir(), *(tmp_path / READING).iterdir()] == []


def test_what_was_begun_is_begun_again_after_a_kill(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path, quiet_s=0)
    put(inbox, "a", "b")
    inbox.begin(STUDY)
    again = Inbox(tmp_path, quiet_s=0)  # the next process
    assert again.whole() == [STUDY]
    assert images_in(tmp_path, READING) == {"a", "b"}
    assert again.begin(STUDY) == tmp_path / READING / STUDY


def test_one_that_cannot_be_read_is_set_apart_with_its_reason_until_more_of_it_comes(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path, quiet_s=0)
    put(inbox, "a")
    inbox.begin(STUDY)
    inbox.finish(STUDY, "it is no head")
    assert (tmp_path / FAILED / STUDY / "reason.txt").read_text() == "it is no head\n"
    assert put(inbox, "a") == [False]  # sent again, it is no better
    assert inbox.whole() == []
    assert put(inbox, "b") == [True]
    inbox.begin(STUDY)
    inbox.finish(STUDY)
    assert images_in(tmp_path, DONE) == {"a", "b"}
    assert {path.suffix for path in (tmp_path / DONE / STUDY).iterdir()} == {".dcm"}


def test_folders_are_named_after_nobody() -> None:
    assert short_name("1.2.3") != short_name("1.2.4")
    assert "1.2.3" not in short_name("1.2.3")
