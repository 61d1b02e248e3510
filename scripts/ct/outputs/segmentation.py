# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Writes the flagged slices as a DICOM segmentation, which a PACS keeps beside the scan."""

import io
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pydicom
from monai.transforms import Transform
from pydicom import Dataset, uid
from pydicom.sr.coding import Code

from scripts.core.files import write_whole
from scripts.core.record import RESEARCH_USE, BagResult
from scripts.ct.dicom.files import open_image
from scripts.ct.dicom.tags import quietly
from scripts.ct.outputs.report import HEMORRHAGE, TYPE_2, UNKNOWN, file_uid, identity_of, valid_uid

if TYPE_CHECKING:
    import highdicom as hd

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


def segmentation(result: BagResult) -> "hd.seg.Segmentation":
    """Make a segmentation that is the same at any hour; its UIDs are made from its content."""
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
    made = hd.seg.Segmentation(
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
    study = made.StudyInstanceUID
    made.copy_patient_and_study_information(identity)
    made.StudyInstanceUID = study
    _without_chance(made, identity, uid.generate_uid(entropy_srcs=[series, "dimensions"]))
    return made


def _without_chance(made: Dataset, identity: Dataset, dimensions: str) -> None:
    """Replace what highdicom draws by chance or takes from the clock."""
    made.ContentDate = identity.get("StudyDate") or "19000101"
    made.ContentTime = identity.get("StudyTime") or "000000"
    for keyword in ("InstanceCreationDate", "InstanceCreationTime", "SeriesDate", "SeriesTime"):
        if keyword in made:
            delattr(made, keyword)
    for equipment in made.get("ContributingEquipmentSequence", []):
        del equipment.ContributionDateTime
    for item in [*made.DimensionOrganizationSequence, *made.DimensionIndexSequence]:
        item.DimensionOrganizationUID = dimensions


def _marked_images(result: BagResult, identity: Dataset) -> tuple[list[Dataset], np.ndarray]:
    """Return the source images and marks [frames, rows, columns] in their order: of one file of many frames, all."""
    frames: list[Any] = [instance.get("frame") for instance in result.instances]
    if frames[0] is None:
        images = [_image(result, instance, identity) for instance in result.instances]
        flagged = result.flagged
    else:
        images = [_image(result, result.instances[0], identity)]
        flagged = np.zeros(int(images[0].NumberOfFrames), dtype=bool)
        flagged[[frame - 1 for frame, marked in zip(frames, result.flagged, strict=True) if marked]] = True
    marks = np.zeros((len(flagged), images[0].Rows, images[0].Columns), dtype=np.uint8)
    marks[flagged] = 1
    return images, marks


def _image(result: BagResult, instance: Mapping[str, Any], identity: Dataset) -> Dataset:
    """Return where a slice lies, without the patient: whatever highdicom complains of, it would print."""
    with open_image(result.source, instance["file"]) as file:
        header = pydicom.dcmread(file, stop_before_pixels=True, force=True)
    image, first = Dataset(), result.instances[0]["id"]
    for keyword in OF_GEOMETRY:
        if keyword in header:
            setattr(image, keyword, header[keyword].value)
    image.SliceThickness = header.get("SliceThickness") or 1.0
    image.SOPClassUID, image.Modality = identity.SOPClassUID, "CT"
    image.SOPInstanceUID = valid_uid(file_uid(instance))
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        missing = f"{keyword.removesuffix('InstanceUID')} of {first}"  # as in the report
        setattr(image, keyword, valid_uid(str(identity.get(keyword, missing))))
    for keyword in TYPE_2:
        setattr(image, keyword, None)
    return image
