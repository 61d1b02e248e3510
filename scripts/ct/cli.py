# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The command line of head CT: `python -m scripts datalist ct`, `features ct`, `doctor ct`."""

from pathlib import Path
from typing import Any

from scripts.core.cli import path_or_none
from scripts.core.files import writable_folder


def datalist(
    folder: str,
    labels: str | None = None,
    output: str | None = None,
    subtype: str = "any",
    shares: tuple[float, float, float] = (0.7, 0.1, 0.2),
    seed: int = 0,
    force: bool = False,
) -> None:
    """Make the datalist of a head CT cohort, split by patient, with a check of what it holds.

    FOLDER is RSNA 2019 as downloaded (stage_2_train.csv beside its slices; a scan is positive where a slice is), CQ500
    as downloaded (reads.csv beside the folders or zips of the cases; two of three readers decide), or any folder with
    labels.csv, whose columns are scan (a path below FOLDER to a folder or zip with a study, or to a volume file), label
    (0 or 1) and if wanted patient and section (training, validation or test). Beside OUTPUT are written OUTPUT's name
    with _check.json, counts, what was rejected and why, and leakage; and .headers.jsonl, which makes a second run fast.

    Args:
        folder: the --dataset_dir of training; paths in the datalist are relative to it.
        labels: the csv, a path from here or else from FOLDER; by default one of these three in FOLDER.
        output: the datalist, or a folder for it; by default FOLDER/datalist.json.
        subtype: of RSNA: any, epidural, intraparenchymal, intraventricular, subarachnoid or subdural.
        shares: of training, validation and test.
        seed: the same seed splits the same patients in the same way.
        force: overwrite a datalist that this command did not write.
    """
    from scripts.ct.datalist.writing import CtDatalistRequest, write_ct_datalist

    request = CtDatalistRequest(
        folder=Path(str(folder)),
        labels=path_or_none(labels),
        output=path_or_none(output),
        subtype=str(subtype),
        shares=shares,
        seed=seed,
        force=force,
    )
    print(write_ct_datalist(request))


def features(
    source: str,
    output: str,
    scan: str = "scan",
    order: str = "order",
    position: str = "position_mm",
    slice_id: str = "slice",
    slice_label: str = "slice_label",
    label: str = "label",
    patient: str = "patient",
    section: str = "section",
    feature: str = "feature",
    join: str | None = None,
    labels: str | None = None,
    encoder: str = "",
    shares: tuple[float, float, float] = (0.7, 0.1, 0.2),
    seed: int = 0,
    force: bool = False,
) -> None:
    """Turn features of slices that another program wrote into feature files and their datalist, split by patient.

    SOURCE is a csv, parquet, npz, h5 or npy file with a row per slice, or a folder with such a file (but a csv) for
    each scan. The flags from --scan to --section say what its columns, or arrays, are called; features are the columns
    feature_0, feature_1, and so on, or one array `features`. Train on OUTPUT with on_features.json.

    Args:
        source: the features.
        output: a folder for a feature file per scan and datalist.json.
        scan: the name of the scan that a slice is of; without that column a file is a scan.
        order: a number that grows from the lowest slice up; `rows` where the rows of each scan stand so.
        position: millimetres from the lowest slice up; it goes before the order, and without it slices are 5 mm apart.
        slice_id: the slice's own name.
        slice_label: 0 or 1 of each slice, for evaluation alone.
        label: 0 or 1 of the scan; by default 1 where a slice is.
        patient: whom the scan is of.
        section: training, validation or test; by default patients are drawn.
        feature: what stands before the number of a feature.
        join: a csv with further columns of the same slices, found by their name (--slice_id).
        labels: a csv with the columns scan and label, and if wanted patient and section.
        encoder: the network that the features are of; by default the name of SOURCE.
        shares: of training, validation and test.
        seed: the same seed splits the same patients in the same way.
        force: overwrite a datalist that this command did not write.
    """
    from scripts.ct.datalist.from_features import FeatureRequest, write_cohort_of_features
    from scripts.ct.datalist.slice_tables import Roles

    request = FeatureRequest(
        source=Path(str(source)),
        folder=writable_folder(str(output)),
        roles=Roles(*map(str, (scan, order, position, slice_id, slice_label, label, patient, section))),
        prefix=str(feature),
        join=path_or_none(join),
        labels=path_or_none(labels),
        encoder=str(encoder),
        shares=shares,
        seed=seed,
        force=force,
    )
    print(write_cohort_of_features(request))


def doctor(path: str, datalist: str | None = None, output_dir: str = ".") -> None:
    """Find what would stop or spoil a run on head CT: PASS, INFO, WARN or FAIL, each with what to do.

    First this computer: versions, decoders of compressed DICOM, CUDA, room for results. Then the datalist: sections,
    labels, files, patients in two sections. Then each scan: the series read and why others are not, order, spacing,
    tilt, missing and double slices, plausible Hounsfield units in the middle. The exit code is 1 where something FAILs.

    Args:
        path: the folder of the scans (--dataset_dir), or one scan.
        datalist: what to examine; by default PATH/datalist.json, or without it every scan below PATH.
        output_dir: where the results would go.
    """
    from scripts.doctor.computer import HEAD_CT, examine_computer
    from scripts.doctor.findings import print_findings

    try:
        from scripts.ct.doctor import examine_ct

        findings = examine_ct(Path(str(path)), path_or_none(datalist), Path(str(output_dir)))
    except ImportError as missing:
        findings = examine_computer(Path(str(output_dir)), HEAD_CT, missing)
    if not print_findings(findings):
        raise SystemExit(1)


def listen(
    output_dir: str,
    port: int | None = None,
    watch: str | None = None,
    host: str = "127.0.0.1",
    title: str = "SMOOTHMIL",
    quiet: float = 30.0,
    study_ends: str = "quiet",
    send_to: str | None = None,
    once: bool = False,
    bundle_root: str | None = None,
    **keys: Any,
) -> None:
    """Read head CTs as they come in, by DICOM (--port) or as files (--watch), and list the likeliest hemorrhage first.

    OUTPUT_DIR holds everything: images in incoming, reading, done and failed, the last with a reason; results with a
    folder per study, named by a hash; worklist.csv and worklist.html. A study is whole when no image of it has come for
    --quiet seconds, or with --study_ends release when the sender has hung up. An interrupted or killed node goes on
    where it was. Research use only, not for diagnosis.

    Args:
        output_dir: Its disk should hold what comes in; nothing in it is ever removed.
        port: To listen on; 11112 is usual.
        watch: A folder that another receiver fills; its files stay as they are.
        host: By default this machine alone; 0.0.0.0 is everybody in the network.
        title: The AE title.
        quiet: Seconds.
        study_ends: quiet or release.
        send_to: TITLE@host:port that report.dcm and flagged.dcm are sent to.
        once: End when all that is there was read.
        bundle_root: The bundle; by default the one this code is of.
        keys: Of inference.json, such as --ckpt_path /data/model.pt or --device cpu.
    """
    import logging

    from scripts.ct.node.listen import run_node
    from scripts.studies.runs import bundle_folder

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    receive = None if port is None else (str(title), str(host), int(port))
    bundle = bundle_folder("ct") if bundle_root is None else Path(str(bundle_root))
    address = None if send_to is None else str(send_to)
    given = {"segmentation": True, **keys}
    run_node(
        Path(str(output_dir)), bundle, given, path_or_none(watch), receive, float(quiet), study_ends, address, once
    )
