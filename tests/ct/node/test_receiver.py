# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Images that another program sends are kept as they were, or their sender is told that they are not."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pynetdicom import AE
from pynetdicom.sop_class import CTImageStorage, MRImageStorage, Verification  # type: ignore[attr-defined]

from scripts.core.errors import InputError
from scripts.ct.node.inbox import INCOMING, Inbox, short_name
from scripts.ct.node.receiver import OUT_OF_RESOURCES, Watched, sender, start_receiver
from tests.ct.series import STUDY_UID, ramp, sop_uid, write_series
from tests.shared_data import free_port

TITLE = "TEST"


@pytest.fixture
def inbox(tmp_path: Path) -> Inbox:
    return Inbox(tmp_path / "home", quiet_s=3600)


@pytest.fixture
def port(inbox: Inbox) -> Iterator[int]:
    number = free_port()
    server = start_receiver(inbox, TITLE, "127.0.0.1", number, "release")
    yield number
    server.shutdown()


def associate(port: int, *kinds: Any) -> Any:
    entity = AE()
    for kind in kinds:
        entity.add_requested_context(kind)
    return entity.associate("127.0.0.1", port, ae_title=TITLE)


def studies_of(inbox: Inbox) -> list[str]:
    return sorted(path.name for path in (inbox.folder / INCOMING).iterdir())


def scan(folder: Path, count: int = 3) -> list[Any]:
    write_series(folder, ramp(count), StudyInstanceUID=STUDY_UID)
    return [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"))]


def test_what_is_sent_is_kept_as_it_was_and_the_end_of_the_association_makes_a_study_whole(
    inbox: Inbox, port: int, tmp_path: Path
) -> None:
    images = scan(tmp_path / "a")
    sending = associate(port, CTImageStorage, Verification)
    assert sending.send_c_echo().Status == 0
    assert [sending.send_c_store(image).Status for image in [*images, images[0]]] == [0, 0, 0, 0]
    assert inbox.whole() == []
    sending.release()
    for _ in range(50):
        if inbox.whole():
            break
        time.sleep(0.1)
    assert inbox.whole() == [short_name(STUDY_UID)]
    kept = {
        path.stem: pydicom.dcmread(path) for path in (inbox.folder / INCOMING / short_name(STUDY_UID)).glob("*.dcm")
    }
    assert set(kept) == {short_name(sop_uid(k)) for k in range(3)}
    for image in images:
        assert kept[short_name(image.SOPInstanceUID)].PixelData == image.PixelData
        assert kept[short_name(image.SOPInstanceUID)].ImagePositionPatient == image.ImagePositionPatient


def test_other_objects_are_refused_and_a_full_disk_is_told(
    inbox: Inbox, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not associate(port, MRImageStorage).is_established
    sending = associate(port, CTImageStorage)

    def full(*_: object) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(inbox, "put", full)
    assert sending.send_c_store(scan(tmp_path / "a")[0]).Status == OUT_OF_RESOURCES
    sending.release()
    assert studies_of(inbox) == []


def test_a_port_that_is_taken_and_a_wrong_address_are_told(inbox: Inbox, port: int, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot listen on 127\.0\.0\.1:.*: give another --port"):
        start_receiver(inbox, TITLE, "127.0.0.1", port, "quiet")
    with pytest.raises(InputError, match="send_to is 'nowhere': give TITLE@host:port"):
        sender("nowhere", TITLE)
    scan(tmp_path / "a")
    with pytest.raises(InputError, match="does not answer, or refuses"):
        sender(f"{TITLE}@127.0.0.1:{free_port()}", TITLE)(tmp_path / "a")


def test_results_are_sent_on(inbox: Inbox, port: int, tmp_path: Path) -> None:
    scan(tmp_path / "a")
    send = sender(f"{TITLE}@127.0.0.1:{port}", "OTHER")
    send(tmp_path / "a")
    assert studies_of(inbox) == [short_name(STUDY_UID)]
    send(tmp_path)  # where there is nothing to send
    write_series(tmp_path / "b", ramp(1), SOPClassUID=MRImageStorage)
    with pytest.raises(InputError, match=r"does not (answer|take all of it)"):
        send(tmp_path / "b")


def test_an_association_that_breaks_off_makes_no_study_whole(inbox: Inbox, port: int, tmp_path: Path) -> None:
    sending = associate(port, CTImageStorage)
    assert sending.send_c_store(scan(tmp_path / "a")[0]).Status == 0
    sending.abort()
    time.sleep(0.5)
    assert studies_of(inbox) == [short_name(STUDY_UID)]
    assert inbox.whole() == []


def test_a_folder_that_is_filled_by_others_is_copied_once_its_files_are_still(inbox: Inbox, tmp_path: Path) -> None:
    scan(tmp_path / "watched" / "a")
    (tmp_path / "watched" / "notes.txt").write_text("no image")
    watched = Watched(tmp_path / "watched", inbox)
    assert watched.look() == 4
    assert studies_of(inbox) == []  # they may still grow
    (tmp_path / "watched" / "a" / "000.dcm").touch()
    assert watched.look() == 1
    assert [watched.look(), watched.look()] == [0, 0]
    (study,) = studies_of(inbox)
    assert len(list((inbox.folder / INCOMING / study).glob("*.dcm"))) == 3
    assert len(list((tmp_path / "watched" / "a").glob("*.dcm"))) == 3
    with pytest.raises(InputError, match="is not a folder: give the one that images come into"):
        Watched(tmp_path / "nowhere", inbox)
