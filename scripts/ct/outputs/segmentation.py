# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Writes the flagged slices as a DICOM segmentation, which a PACS keeps beside the scan."""

import io
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from monai.transforms import Transform
from pydicom import Dataset, uid
from pydicom.sr.coding import Code

from scripts.core.files import write_whole
from scripts.core.record import RESEARCH_USE, BagResult
from scripts.ct.dicom.files import open_image
from scripts.ct.dicom.tags import quietly
from scripts.ct.outputs.report import (
    HEMORRHAGE,
    TYPE_2,
    UNKNOWN,
    identity_of,
    moment_of,
    referable_images,
    sign_for,
    valid_uid,
)

SEGMENTATION_NUMBER = 902  # behind the report's
ABNORMAL = Code("49755003", "SCT", "Morphologically abnormal structure")
AI = Code("123110", "DCM", "Artificial Intelligence")
OF_GEOMETRY = (
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns", "NumberOfFrames"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)


class SaveSegmentationd(Transform):
    """The writer of `output_dir/<bag_id>/flagged.dcm`: each flagged slice is marked from edge to edge.

    None is written of a scan in which no slice is flagged, as a segmentation must mark something; nor where the input
    is not DICOM, or several files of many frames.

    Args:
        output_dir: folder of the results.
    """

    def __init__(self, output_dir: str) -> None:
        self.output_dir = Path(output_dir)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result: BagResult = data["bag_result"]
        path = self.output_dir / result.bag_id / "flagged.dcm"
        if "file" in result.instances[0] and result.flagged.any() and not _is_of_several_files(result):
            content = io.BytesIO()
            with quietly():  # a complaint about the source would quote it, perhaps a name
                segmentation(result).save_as(content)
            write_whole(path, content.getvalue())
        else:
            path.unlink(missing_ok=True)  # of an earlier run
        return dict(data)


def _is_of_several_files(result: BagResult) -> bool:
    return "frame" in result.instances[0] and len({instance["file"] for instance in result.instances}) > 1


def segmentation(result: BagResult) -> Dataset:
    """Make highdicom's segmentation, the same at any hour; its UIDs are made from its content."""
    import highdicom as hd

    model, identity = result.model or UNKNOWN, identity_of(result)
    images, marks = _marked_images(result, identity)
    algorithm = hd.AlgorithmIdentificationSequence(model.name, hd.sr.CodedConcept.from_code(AI), model.version)
    segment = hd.seg.SegmentDescription(
        1,
        "suspected hemorrhage: flagged slices",
        hd.sr.CodedConcept.from_code(ABNORMAL),
        hd.sr.CodedConcept.from_code(HEMORRHAGE),
        hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm,
    )
    series = uid.generate_uid(entropy_srcs=[images[0].SeriesInstanceUID, "segmentation", *model])
    content = [[str(instance["id"]) for instance in result.instances], np.flatnonzero(result.flagged).tolist()]
    made: Dataset = hd.seg.Segmentation(
        images,
        marks,
        hd.seg.SegmentationTypeValues.BINARY,
        [segment],
        series,
        SEGMENTATION_NUMBER,
        uid.generate_uid(entropy_srcs=[series, repr(content)]),
        1,
        manufacturer=model.name,
        manufacturer_model_name=model.name,
        software_versions=model.version,
        device_serial_number=model.sha256[:16] or "unknown",
        content_description=RESEARCH_USE.capitalize(),
        series_description=f"Flagged slices, {RESEARCH_USE}",
        omit_empty_frames=True,
    )
    sign_for(made, identity)
    made.ContentDate, made.ContentTime = moment_of(identity)
    dimensions = uid.generate_uid(entropy_srcs=[series, "dimensions"])  # which highdicom draws by chance
    for item in [*made.DimensionOrganizationSequence, *made.DimensionIndexSequence]:
        item.DimensionOrganizationUID = dimensions
    return made


def _marked_images(result: BagResult, identity: Dataset) -> tuple[list[Dataset], np.ndarray]:
    """Return the source images and marks [frames, rows, columns] in their order: of one file of many frames, all."""
    frames: list[Any] = [instance.get("frame") for instance in result.instances]
    in_one_file = frames[0] is not None
    images = referable_images(result, identity)[: 1 if in_one_file else None]
    for image, instance in zip(images, result.instances, strict=False):
        _say_where(image, result, instance, identity)
    flagged = result.flagged
    if in_one_file:
        flagged = np.zeros(int(images[0].NumberOfFrames), dtype=bool)
        flagged[[frame - 1 for frame, marked in zip(frames, result.flagged, strict=True) if marked]] = True
    marks = np.zeros((len(flagged), images[0].Rows, images[0].Columns), dtype=np.uint8)
    marks[flagged] = 1
    return images, marks


def _say_where(image: Dataset, result: BagResult, instance: Mapping[str, Any], identity: Dataset) -> None:
    """Say of an image where its slice lies."""
    with open_image(result.source, instance["file"]) as file:
        header = pydicom.dcmread(file, stop_before_pixels=True, force=True)
    for keyword in OF_GEOMETRY:
        if keyword in header:
            setattr(image, keyword, header[keyword].value)
    image.SliceThickness, image.Modality = header.get("SliceThickness") or 1.0, "CT"
    missing = f"FrameOfReferenceUID of {result.instances[0]['id']}"
    image.FrameOfReferenceUID = valid_uid(str(identity.get("FrameOfReferenceUID", missing)))
    for keyword in TYPE_2:
        setattr(image, keyword, None)
