# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Writes a DICOM structured report of a scan: its probability, and a measurement group for each flagged slice."""

import io
import json
import logging
from collections.abc import Hashable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai.transforms import Transform
from pydicom import Dataset, uid
from pydicom.charset import decode_element, python_encoding
from pydicom.config import IGNORE
from pydicom.filereader import read_partial
from pydicom.sr.coding import Code
from pydicom.valuerep import DA, TM

from scripts.core.files import write_whole
from scripts.core.record import RESEARCH_USE, BagResult, Model
from scripts.core.scoring import ATTENTION, EVIDENCE, INSTANCE, WEIGHTED
from scripts.ct.dicom.files import open_image
from scripts.ct.dicom.tags import Tags, quietly
from scripts.ct.outputs.answer import without_names
from scripts.outputs.writers import with_warnings

if TYPE_CHECKING:
    import highdicom as hd

SERIES_NUMBER = 901  # behind the scanner's own in a viewer's list
OF_THE_PICTURE = 0x00280000  # the first tag behind patient, study and series
NO_DATE, NO_TIME = "19000101", "000000"  # of a study without; today's would make each run's file another
UNKNOWN = Model("unknown", "unknown", "unknown")

UNKNOWN_LETTERS = "its SpecificCharacterSet is none that is known, so letters of its names may be wrong in report.dcm"

_CLASSES = (
    *(uid.CTImageStorage, uid.EnhancedCTImageStorage, uid.LegacyConvertedEnhancedCTImageStorage),
    uid.SecondaryCaptureImageStorage,
)
TYPE_2 = [  # must be there, but may be empty
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"),
]
_HOW_REMOVED = ("DeidentificationMethod", "DeidentificationMethodCodeSequence")

HEMORRHAGE = Code("1386000", "SCT", "Intracranial hemorrhage")
POSITIVE, NEGATIVE = Code("10828004", "SCT", "Positive"), Code("260385009", "SCT", "Negative")
PROBABILITY = Code("122157", "DCM", "Probability")
SCHEME = "99SMOOTHMIL"  # of our own, as no standard one has these
OF_SLICES = {  # as BagResult.of_instances names them
    "attention": Code("attention", SCHEME, "Attention, as a share of the whole scan's"),
    "attention_logit": Code("attention_logit", SCHEME, "Attention logit, before the softmax"),
    "evidence": Code("evidence", SCHEME, "Evidence, the slice's share of the scan's logit"),
    "instance_logit": Code("instance_logit", SCHEME, "Logit of the slice alone"),
    "leave_one_out": Code("leave_one_out", SCHEME, "Change of the scan's logit by leaving the slice out"),
}
SCORES_THAT_FLAG = {
    INSTANCE: Code("score_instance", SCHEME, "Score that flags: logit of the slice alone"),
    EVIDENCE: Code("score_evidence", SCHEME, "Score that flags: evidence"),
    ATTENTION: Code("score_attention", SCHEME, "Score that flags: attention logit"),
    WEIGHTED: Code("score_weighted", SCHEME, "Score that flags: attention x probability"),
}
NO_UNITS = Code("1", "UCUM", "no units")
DEVICE = Code("121007", "DCM", "Device")
COMMENT = Code("121106", "DCM", "Comment")
CT_OF_HEAD = Code("303653007", "SCT", "CT of head")


class SaveReportd(Transform):
    """The writer of `output_dir/<bag_id>/report.dcm`, a Comprehensive SR (TID 1500); none where the input is not DICOM.

    Ahead of the measurements it has the warnings of the scan. Its first measurement group (TID 1501) has the scan's
    probability, and whether that makes the scan positive. Then comes one group per flagged slice, with "Intracranial
    hemorrhage" as its finding and a reference to the image.
    A UID that breaks the rules ("ID_0a1b...") is replaced by one made from it; the tracking identifier of a group is
    the original one, of the series or of the slice, followed by "/" and the frame's number if there are several.

    Args:
        output_dir: folder of the results.
    """

    def __init__(self, output_dir: str) -> None:
        self.output_dir = Path(output_dir)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result: BagResult = data["bag_result"]
        if "file" not in result.instances[0]:
            return dict(data)
        content = io.BytesIO()
        with quietly():  # a complaint about the source would quote it, perhaps a name
            identity = identity_of(result)
            structured_report(result, identity).save_as(content)
        write_whole(self.output_dir / result.bag_id / "report.dcm", content.getvalue())
        known = set(Tags(identity).texts("SpecificCharacterSet")) <= python_encoding.keys()
        return dict(data) if known else with_warnings(data, [UNKNOWN_LETTERS])


def identity_of(result: BagResult) -> Dataset:
    """Return who and what was scanned: the tags of the first slice ahead of its picture that can be read."""
    first = result.instances[0]
    with open_image(result.source, first["file"]) as file:
        header = read_partial(file, lambda tag, *_: tag >= OF_THE_PICTURE, force=True)
    for tag in list(header.keys()):
        is_usable = False
        with suppress(Exception):  # a damaged value fails in many ways, and the scan was read without it
            decode_element(header[tag], header.get("SpecificCharacterSet"))
            is_usable = bool(header[tag].value) and not header[tag].is_empty
        if not is_usable:
            del header[tag]
    sop_class = header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID")
    header.SOPClassUID = sop_class if sop_class in _CLASSES else uid.CTImageStorage
    header.SOPInstanceUID = file_uid(first)
    if header.get("PatientIdentityRemoved") == "YES" and not any(how in header for how in _HOW_REMOVED):
        header.DeidentificationMethod = "not stated"  # something must be
    return header


def structured_report(result: BagResult, identity: Dataset) -> "hd.sr.ComprehensiveSR":
    """Make a report that is the same at any hour, with UIDs made from its content.

    The instances have an `id` each, and a `frame` where a file holds several; the identity is patient, study and
    series of the scan, as in its slices.
    """
    import highdicom as hd
    from highdicom.coding_schemes import CodingSchemeIdentificationItem

    logging.getLogger("highdicom").setLevel(logging.WARNING)  # it reports each step
    model = result.model or UNKNOWN
    images = referable_images(result, identity)
    for keyword in TYPE_2:
        setattr(images[0], keyword, None)
    series_uid = uid.generate_uid(entropy_srcs=[images[0].SeriesInstanceUID, *model])
    ids = [instance["id"] for instance in result.instances]
    of_slices = [values.tolist() for values in result.of_instances.values()]
    numbers = [result.probability, result.threshold, result.flag_rule, *of_slices]
    told = [result.threshold_origin, *without_names(result)]
    report_uid = uid.generate_uid(entropy_srcs=[series_uid, json.dumps([ids, *numbers, *told])])
    date, time = moment_of(identity)
    of_scan, *of_flagged = _measurement_groups(result, identity, images, model, report_uid)
    report = hd.sr.ComprehensiveSR(
        evidence=images,
        content=_measurement_report(result, model, of_scan),
        series_instance_uid=series_uid,
        series_number=SERIES_NUMBER,
        series_description=RESEARCH_USE.capitalize(),
        sop_instance_uid=report_uid,
        instance_number=1,
        is_complete=True,
        content_qualification="RESEARCH",
        content_date=date,
        content_time=time,
        manufacturer_model_name=model.name,
        software_versions=model.version,
        coding_schemes=[CodingSchemeIdentificationItem(SCHEME, name="Smooth multiple instance learning")],
        specific_character_set="ISO_IR 192",
    )
    sign_for(report, identity)
    for group in of_flagged:  # not before, as highdicom copies and searches all it is given, several times
        report.ContentSequence[-1].ContentSequence.extend(group)
    return report


def moment_of(identity: Dataset) -> tuple[str, str]:
    """Return date and time of the study, each as far as it is one."""
    found = {"StudyDate": NO_DATE, "StudyTime": NO_TIME}
    for keyword, kind in (("StudyDate", DA), ("StudyTime", TM)):
        with suppress(KeyError, TypeError, ValueError):
            found[keyword] = str(kind(identity[keyword].value))
    return found["StudyDate"], found["StudyTime"]


def sign_for(made: Any, identity: Dataset) -> None:
    """Say whose an object of highdicom is, and take out what it reads from the clock."""
    study_uid = made.StudyInstanceUID
    made.copy_patient_and_study_information(identity)
    made.StudyInstanceUID = study_uid
    del made.InstanceCreationDate, made.InstanceCreationTime
    for equipment in made.ContributingEquipmentSequence:
        del equipment.ContributionDateTime


def referable_images(result: BagResult, identity: Dataset) -> list[Dataset]:
    """Return an image to refer to per instance, without the patient, whose name highdicom would print."""
    first = result.instances[0]["id"]
    study, series = (valid_uid(str(identity.get(f"{of}InstanceUID", f"{of} of {first}"))) for of in ("Study", "Series"))
    images = [Dataset() for _ in result.instances]
    for image, instance in zip(images, result.instances, strict=True):
        image.SOPClassUID, image.SOPInstanceUID = identity.SOPClassUID, valid_uid(file_uid(instance))
        image.StudyInstanceUID, image.SeriesInstanceUID = study, series
    return images


def file_uid(instance: Mapping[str, Any]) -> str:
    """Return the UID of the file that a slice is in."""
    return str(instance["id"]).removesuffix(f"/{instance['frame']}") if "frame" in instance else str(instance["id"])


def valid_uid(text: str) -> str:
    """Return the UID itself, or where it is none, always the same one in its place."""
    return text if uid.UID(text, IGNORE).is_valid else str(uid.generate_uid(entropy_srcs=[text]))


def _measurement_groups(
    result: BagResult, identity: Dataset, images: list[Dataset], model: Model, report_uid: str
) -> list["hd.sr.MeasurementsAndQualitativeEvaluations"]:
    """Return the group of the scan, and of each flagged slice."""
    from highdicom import sr

    origin = f" ({result.threshold_origin})" if result.threshold_origin else ""
    parameters = [f"threshold {result.threshold}{origin}", f"weights sha256 {model.sha256}"]
    parameters += [f"slices flagged above {result.flag_rule}", *result.learned_from]
    algorithm = sr.AlgorithmIdentification(model.name, model.version, parameters)

    def group(name: str, figures: Mapping[Code, float], **more: Any) -> sr.MeasurementsAndQualitativeEvaluations:
        return sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=sr.TrackingIdentifier(uid.generate_uid(entropy_srcs=[report_uid, name]), name),
            measurements=[sr.Measurement(code, float(value), NO_UNITS) for code, value in figures.items()],
            **more,
        )

    name = str(identity.get("SeriesInstanceUID", images[0].SeriesInstanceUID))
    calls = [sr.QualitativeEvaluation(HEMORRHAGE, POSITIVE if result.positive else NEGATIVE)]
    groups = [group(name, {PROBABILITY: result.probability}, algorithm_id=algorithm, qualitative_evaluations=calls)]
    flags = SCORES_THAT_FLAG[result.score_name]
    if result.score_smoothing:
        flags = flags._replace(meaning=flags.meaning.replace(": ", ": smoothed "))
    of_slices = {flags: result.scores}
    of_slices |= {OF_SLICES[name]: values for name, values in result.of_instances.items() if name != "score"}
    for index in result.flagged.nonzero()[0].tolist():
        instance, image = result.instances[index], images[index]
        frames = [instance["frame"]] if "frame" in instance else None
        source = sr.SourceImageForMeasurementGroup(image.SOPClassUID, image.SOPInstanceUID, frames)
        figures = {code: values[index] for code, values in of_slices.items()}
        groups.append(group(str(instance["id"]), figures, finding_type=HEMORRHAGE, source_images=[source]))
    return groups


def _measurement_report(
    result: BagResult, model: Model, group: "hd.sr.MeasurementsAndQualitativeEvaluations"
) -> "hd.sr.MeasurementReport":
    from highdicom import sr

    device = sr.DeviceObserverIdentifyingAttributes(uid.generate_uid(entropy_srcs=[*model]), name=model.name)
    observer = sr.ObserverContext(sr.CodedConcept.from_code(DEVICE), device)
    content = sr.MeasurementReport(sr.ObservationContext(observer_device_context=observer), CT_OF_HEAD, [group])
    warnings = [f"Warning: {each}" for each in without_names(result)]
    for comment in (RESEARCH_USE.capitalize(), *warnings):  # ahead of the measurements, where they are seen
        content[0].ContentSequence.insert(-1, sr.TextContentItem(COMMENT, comment, "CONTAINS"))
    return content
