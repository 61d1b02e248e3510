# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Whole slides in DICOM: which files of a folder are one slide, and what it is called."""

import logging
import re
import warnings
from collections import Counter, defaultdict
from os.path import abspath
from pathlib import Path

import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag, Tag
from pydicom.uid import VLWholeSlideMicroscopyImageStorage

DICOM_SUFFIX = ".dcm"
LONGEST_CONTAINER = 100
_SERIES_TAGS: list[BaseTag | int] = [Tag(name) for name in ("ImageType", "SeriesInstanceUID", "ContainerIdentifier")]
_LAST_OF_THEM = max(_SERIES_TAGS)  # where each of the thousands of tiles lies stands behind it

logger = logging.getLogger(__name__)


def dicom_slides(folder: Path) -> dict[str, list[Path]]:
    """Return name → files, in order, of each whole slide in DICOM whose files lie in a folder.

    A slide is a series, and OpenSlide opens it by any of its files. One alone is called as its folder; of several each
    by its container, which is the glass, or by its SeriesInstanceUID where it states none or two state the same.
    """
    files: dict[str, list[Path]] = defaultdict(list)
    containers: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        if is_dicom(path) and (found := _series_of(path)) is not None:
            series, container = found
            files[series].append(path)
            containers[series] = containers.get(series) or container
    if len(files) == 1:
        return {Path(abspath(folder)).name or series: files[series] for series in files}  # a link by its own name
    times = Counter(containers.values())
    return {
        containers[series] if containers[series] and times[containers[series]] == 1 else _file_name(series): own
        for series, own in files.items()
    }


def is_dicom(path: Path) -> bool:
    """Return whether a file is named as one of DICOM, and not hidden."""
    return path.suffix.lower() == DICOM_SUFFIX and not path.name.startswith(".") and path.is_file()


def _series_of(path: Path) -> tuple[str, str] | None:
    """Return the series of a picture of a slide and the name of its container; None for labels, scans and the like."""
    try:
        with warnings.catch_warnings(), pydicom.config.disable_value_validation(), path.open("rb") as file:
            warnings.simplefilter("ignore")
            head = read_partial(file, stop_when=lambda tag, vr, length: tag > _LAST_OF_THEM, specific_tags=_SERIES_TAGS)
            is_slide = head.file_meta.MediaStorageSOPClassUID == VLWholeSlideMicroscopyImageStorage
            if is_slide and "VOLUME" in head.ImageType:
                return str(head.SeriesInstanceUID), _file_name(str(head.get("ContainerIdentifier") or ""))
    except (InvalidDicomError, AttributeError):  # no DICOM, or none that states what it is of
        return None
    except Exception as error:  # a damaged file fails in as many ways as there are places to damage it
        why = type(error).__name__
        logger.warning("%s/%s cannot be read (%s) and is passed over: copy it again", path.parent.name, path.name, why)
    return None


def _file_name(text: str) -> str:
    """Return a text as the name of a file on any system."""
    return re.sub(r"[^\w .()+-]", "_", text)[:LONGEST_CONTAINER].strip(" ._")
