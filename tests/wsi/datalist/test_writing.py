# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
import json
import re
from pathlib import Path
from typing import Any

import pytest

from scripts.core.errors import InputError
from scripts.wsi.datalist.cohort import WsiDatalistRequest
from scripts.wsi.datalist.labels import training_note
from scripts.wsi.datalist.writing import leakage_of_slides, write_wsi_datalist
from tests.wsi.foreign_features import clam, datalist, grid, own, torchmil, trident, write

COARSE = {"benign": ["N", "PB", "UDH"], "atypical": ["FEA", "ADH"], "malignant": ["DCIS", "IC"]}
BRACS = {fine: coarse for coarse, own in COARSE.items() for fine in own}


def entries(folder: Path) -> dict[str, dict[str, Any]]:
    return {bag["bag_id"]: bag for bags in datalist(folder).values() for bag in bags}


def places(folder: Path) -> dict[str, str]:
    return {bag["bag_id"]: section for section, bags in datalist(folder).items() for bag in bags}


def check(folder: Path) -> Any:
    return json.loads((folder / "datalist_check.json").read_text())


def make(folder: Path, **given: Any) -> str:
    return write_wsi_datalist(WsiDatalistRequest(folder=folder, **given))


def refused(folder: Path, *facts: str, **given: Any) -> None:
    before = {path.name for path in folder.iterdir()}
    with pytest.raises(InputError) as error:  # noqa: PT011
        make(folder, **given)
    assert [fact for fact in facts if fact not in str(error.value)] == []
    assert {path.name for path in folder.iterdir()} == before


def labels(folder: Path, *rows: str, columns: str = "slide,label,patient") -> None:
    write(folder / "labels.csv", columns, *rows)


ROWS = [f"s{n:02d}.svs,{n // 2 % 2},p{n // 2}" for n in range(20)]


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Twenty slides of ten patients, two each, one patient in two positive; features of this project."""
    for n in range(20):
        own(tmp_path / "features" / f"s{n:02d}.h5")
    labels(tmp_path, *ROWS)
    return tmp_path


def test_a_csv_with_patients_and_slides(cohort: Path) -> None:
    assert make(cohort, seed=3).splitlines() == [
        "   section  slides  patients  patches  positive  prevalence",
        "  training      12         6      144         6         0.5",
        "validation       4         2       48         2         0.5",
        "      test       4         2       48         2         0.5",
        "     total      20        10      240        10         0.5",
        "leakage: 0 of 10 patients and 0 of 20 slides are in more than one section",
        f"written: {cohort}/datalist.json and datalist_check.json",
    ]
    assert entries(cohort)["s03"] == {"bag_id": "s03", "label": 1, "image": "features/s03.h5", "patient": "2"}
    assert all(places(cohort)[f"s{n:02d}"] == places(cohort)[f"s{n + 1:02d}"] for n in range(0, 20, 2))
    written = check(cohort)
    keys = ("datalist", "labels", "splits", "by", "classes", "seed")
    assert [written[key] for key in keys] == ["datalist.json", "labels.csv", None, "slide", [0, 1], 3]
    assert written["features"] == {"forms": {"smooth-mil": 20}, "encoder": "tiny", "dimension": 4}
    assert written["bags_of_one_patient"] == [[f"s{n:02d}", f"s{n + 1:02d}"] for n in range(0, 20, 2)]
    text = (cohort / "datalist.json").read_text() + json.dumps(written)
    assert not re.search(r"\bp\d\b", text)  # who a patient is stays in the csv


def test_one_bag_per_patient(cohort: Path) -> None:
    labels(cohort, *(row.replace("s07.svs,1", "s07.svs,0") for row in ROWS))
    own(cohort / "features" / "s00.h5", 0)
    summary = make(cohort, by="patient")
    bags = entries(cohort)
    assert (bags["p3"]["label"], bags["p3"]["image"]) == (1, ["features/s06.h5", "features/s07.h5"])
    assert (bags["p0"]["label"], bags["p0"]["image"]) == (0, "features/s01.h5")  # s00 has no tissue
    assert sorted(bags) == [f"p{n}" for n in range(10)]
    assert list(check(cohort)["sections"]["total"].items())[:3] == [("bags", 10), ("slides", 19), ("patients", 10)]
    assert "note: patients with slides of both classes, who count as positive: 1\n" in summary
    assert "note: bags are named after patients, so results will be too\n" in summary


def test_what_does_not_fit_is_counted(cohort: Path) -> None:
    labels(cohort, *ROWS, "s20,1,p9", "s21,1,p9")
    own(cohort / "features" / "s00.h5", 0)
    own(cohort / "features" / "other.h5")
    (cohort / "features" / "s01.h5").write_bytes(b"no features")
    make(cohort)
    rejected = check(cohort)["rejected"]
    assert {reason.partition(" (it is not an HDF")[0]: each["examples"] for reason, each in rejected.items()} == {
        "feature file that cannot be read": ["s01"], "feature file without a row": ["features/other.h5"],
        "row without a feature file": ["s20", "s21"], "slide without tissue": ["s00"],
    }  # fmt: skip


def test_patients_may_be_read_from_the_names(tmp_path: Path) -> None:
    names = [f"TCGA-05-{n // 3:04d}-01Z-00-DX{n % 3}.{n:08x}" for n in range(30)] + ["patient_001_node_1"]
    for name in names:
        trident(tmp_path, name)
    labels(tmp_path, *(f"{name}.svs,{n // 3 % 2}" for n, name in enumerate(names)), columns="slide_id,label")
    own(tmp_path / "else.h5", encoder="uni_v1")
    summary = make(tmp_path)
    where = places(tmp_path)
    assert all(len({where[name] for name in names[n : n + 3]}) == 1 for n in range(0, 30, 3))
    assert "note: patients are read from the names of 31 slides, such as TCGA-05-0000\n" in summary
    assert (check(tmp_path)["leakage"]["patients"], check(tmp_path)["warnings"]) == (11, {})


def test_clam_from_csv_and_splits_to_a_datalist(tmp_path: Path) -> None:
    for n in range(10):
        clam(tmp_path, f"s{n}")
    rows = [f"patient_{n},s{n},{'tumor_tissue' if n % 2 else 'normal_tissue'}" for n in range(10)]
    csv = write(tmp_path / "dataset_csv" / "task.csv", "case_id,slide_id,label", *rows)
    folds = csv.parent
    write(folds / "splits_0.csv", ",train,val,test", "0,s0,s6,s8.svs", "1,s1,s7,", "2,s2,,", "3,s3,,", "4,s4,,")
    write(folds / "splits_1.csv", ",train,val,test", "0,s9,s8,s0")
    two = ["normal_tissue", "tumor_tissue"]
    summary = make(tmp_path, labels=csv, splits=folds, classes=two)
    assert datalist(tmp_path) == {
        section: [
            {"bag_id": f"s{n}", "label": n % 2, "image": f"h5_files/s{n}.h5", "patient": f"{n + (n < 5)}"}
            for n in numbers
        ]
        for section, numbers in (("training", range(5)), ("validation", (6, 7)), ("test", (8,)))
    }
    assert "note: sections are those of splits_0.csv, one of 2 folds (--splits FILE takes another)\n" in summary
    assert "note: normal_tissue is 0, tumor_tissue is 1\n" in summary
    assert "rejected: slide in no section of the splits: 2, such as s5\n" in summary
    assert make(tmp_path, labels=csv, classes=two) == summary  # found beside the labels
    make(tmp_path, labels=csv, splits=folds / "splits_1.csv", classes=two)
    assert places(tmp_path) == {"s9": "training", "s8": "validation", "s0": "test"}


def test_torchmil_without_any_csv_of_labels(tmp_path: Path) -> None:
    for n in range(20):
        torchmil(tmp_path, f"b{n:02d}", 3 * (n % 2))
    rows = [f"{n},b{n:02d},{'train' if n < 16 else 'test'}" for n in range(20)]
    write(tmp_path / "splits.csv", ",bag_name,split", *rows, "20,b20,train")
    summary = make(tmp_path)
    assert entries(tmp_path)["b17"] == {
        "bag_id": "b17", "label": 1, "image": "patches_512/features_UNI/b17.npy",
        "instance_label": "patches_512/patch_labels/b17.npy", "patient": "18",
    }  # fmt: skip
    assert [len(bags) for bags in datalist(tmp_path).values()] == [14, 2, 4]
    assert [bag["bag_id"] for bag in datalist(tmp_path)["test"]] == ["b16", "b17", "b18", "b19"]
    assert "note: the sections given have no validation, so 0.125 of training was drawn for it\n" in summary
    assert check(tmp_path)["features"] == {"forms": {"torchmil": 20}, "encoder": "UNI", "dimension": 8}
    make(tmp_path, shares=(1, 0, 0))  # who wants no validation gets none
    assert [len(bags) for bags in datalist(tmp_path).values()] == [16, 0, 4]
    (tmp_path / "patches_512" / "labels" / "b01.npy").unlink()
    refused(tmp_path, "b01 has no label as labels/b01.npy: give a csv with --labels FILE")
    write(tmp_path / "splits.csv", "bag_name,split", "b20,train")
    refused(tmp_path, f"no slide of the splits, such as b20, has features in {tmp_path}")


def test_classes_of_a_hierarchy(tmp_path: Path) -> None:
    fine = [list(BRACS)[n % 7] for n in range(70)]
    for n in range(70):
        own(tmp_path / f"BRACS_{n}.h5")
    rows = [f"BRACS_{n},{label},{BRACS[label]},p{n}" for n, label in enumerate(fine)]
    labels(tmp_path, *rows, columns="slide,label,coarse,patient")
    summary = make(tmp_path, classes=list(BRACS))
    assert all(entries(tmp_path)[f"BRACS_{n}"]["label"] == label for n, label in enumerate(fine))
    assert summary.splitlines()[0].split() == ["section", "slides", "patients", "patches", *BRACS]
    assert f"note: {training_note(list(BRACS))}\n" in summary
    assert (check(tmp_path)["coarse"], check(tmp_path)["classes"]) == (BRACS, list(BRACS))


def test_slides_of_a_patient_that_disagree_are_refused(tmp_path: Path) -> None:
    """Of grades too: 0 and 1 are two of six, though all that this patient has."""
    for n in range(7):
        own(tmp_path / f"s{n}.h5")
    labels(tmp_path, "s0,N,a", "s1,IC,a", "s2,PB,b", "s3,N,c")
    refused(tmp_path, "s0 has the label N, s1 of the same patient IC: ", by="patient")
    grades = [f"s{n},{n},p{n}" for n in range(6)]
    labels(tmp_path, "s6,0,p1", *grades)
    refused(tmp_path, "s1 has the label 1, s6 of the same patient 0: ", by="patient")
    labels(tmp_path, "s6,1,p1", *grades)
    make(tmp_path, by="patient")
    assert {name: bag["label"] for name, bag in entries(tmp_path).items()} == {f"p{n}": n for n in range(6)}


def test_annotations_are_named_in_the_datalist(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    drawn, elsewhere = cohort / "annotations", tmp_path_factory.mktemp("drawn")
    for path in (drawn / "s02.geojson", drawn / "nobody.geojson", elsewhere / "s02.geojson"):
        write(path, "x")
    assert "rejected: annotation without a slide: 1, such as nobody.geojson\n" in make(cohort, annotations=drawn)
    assert entries(cohort)["s02"]["annotation"] == "annotations/s02.geojson"
    make(cohort, annotations=elsewhere)
    assert entries(cohort)["s02"]["annotation"] == str(elsewhere / "s02.geojson")
    labels(cohort, "s02,1,a,annotations/s02.geojson", "s03,0,b,no.xml", columns="slide,label,patient,annotation")
    summary = make(cohort, shares=(1, 0, 0))
    assert entries(cohort)["s02"]["annotation"] == "annotations/s02.geojson"
    assert "annotation" not in entries(cohort)["s03"]
    assert "warning: annotation that is not there: 1, such as no.xml\n" in summary


def test_what_no_annotation_shows_must_be_of_a_negative_slide(cohort: Path) -> None:
    """null in a datalist says that nothing is annotated: patches of a tumour without an outline would count as none."""
    rows = ["s00,1,p0", "s01,0,p0", "s02,1,p1", "s03,1,p1", "s04,0,p2", "s05,0,p2", "s06,1,p3", "s07,1,p3"]
    labels(cohort, *rows)
    for n in (0, 2, 4):
        write(cohort / "annotations" / f"s{n:02d}.geojson", "x")
    make(cohort, annotations=cohort / "annotations", by="patient")
    assert {name: bag.get("annotation") for name, bag in entries(cohort).items()} == {
        "p0": ["annotations/s00.geojson", None], "p1": None, "p2": ["annotations/s04.geojson", None], "p3": None,
    }  # fmt: skip
    remark = "slide with a finding and no annotation, so its patient's bag has none"
    assert check(cohort)["warnings"] == {remark: {"count": 1, "examples": ["s03"]}}  # of p3 nobody drew anything
    names = ["normal", "LUAD", "LUSC"]  # of several classes the first is negative
    labels(cohort, *(f"s{n:02d},{names[n // 2 % 3]},p{n // 2}" for n in range(20)))
    make(cohort, annotations=cohort / "annotations", by="patient")
    assert entries(cohort)["p0"]["annotation"] == ["annotations/s00.geojson", None]
    assert "annotation" not in entries(cohort)["p1"]


def test_a_patient_or_a_slide_in_two_sections_is_a_leak(cohort: Path) -> None:
    rows = (f"{row},{'test' if row.startswith('s01') else 'training'}" for row in ROWS)
    labels(cohort, *rows, columns="slide,label,patient,section")
    for by, example in (("slide", "s00 and s01"), ("patient", "p0 and p0")):
        leak = f"1 of 10 patients and 0 of 20 slides would be in more than one section (of {example})"
        refused(cohort, leak, by=by, shares=(1, 0, 0))
    one, other = [{"bag_id": "b", "image": ["b.h5", "c.h5"]}], [{"bag_id": "d", "image": "c.h5"}]
    leakage = leakage_of_slides({"training": one, "test": other}, {})
    assert (list(leakage.as_json().values()), leakage.example) == ([2, 0, 2, 1], ["b", "d"])


def test_features_of_two_encoders_are_refused_and_of_two_magnifications_warned_of(cohort: Path) -> None:
    def changed(**changes: Any) -> str:
        own(cohort / "features" / "s03.h5", **changes)
        return make(cohort)

    assert "warning" not in changed(encoder="Tiny")  # it is the same one
    micrometres = changed(mpp=0.5)
    assert "warning: micrometres from patch to patch differ, " in micrometres
    assert ": 1, such as 19 of 128, 1 of 256\n" in micrometres
    assert "level-0 pixels" not in changed(mpp=None)
    pixels = changed(coords=grid(12, 1024), pitch=1024, tile=1024, mpp=None)
    assert "warning: level-0 pixels from patch to patch differ and micrometres per pixel are not known" in pixels
    assert ": 1, such as 19 of 512, 1 of 1024\n" in pixels
    with pytest.raises(InputError, match=r"their encoders are other \(s03\) and tiny \(s00\): .*--features FOLDER"):
        changed(encoder="other")


def test_csvs_are_found_by_their_columns_among_others(cohort: Path) -> None:
    (cohort / "labels.csv").unlink()
    (cohort / "excel.csv").write_bytes(b"\xff\xfe\x00s")
    write(cohort / "notes.csv", "who,what", "me,this")
    write(cohort / "mine.csv", "slide,MSI", *(f"s{n:02d},{n % 2}" for n in range(20)))
    rows = (f"s{n:02d},{n < 12},{12 <= n < 16},{n >= 16}" for n in range(20))
    write(cohort / "splits_0_bool.csv", ",train,val,test", *rows)
    summary = make(cohort, label_column="msi")
    assert "note: sections are those of splits_0_bool.csv\n" in summary
    assert "warning: patient not known, so the slide is taken for a patient of its own: 20, such as s00\n" in summary
    written = check(cohort)
    assert (written["labels"], written["leakage"]["patients"], written["bags_of_one_patient"]) == ("mine.csv", 20, None)
    assert [len(bags) for bags in datalist(cohort).values()] == [12, 4, 4]
    write(cohort / "other.csv", "bag_name,split", "s00,train")
    refused(cohort, f"{cohort} holds other.csv and splits_0_bool.csv: ", "--splits FILE", label_column="msi")
    refused(cohort, f"{cohort / 'features'} holds no splits_0.csv: ", label_column="msi", splits=cohort / "features")
    refused(cohort, "none does not exist: give a csv, or a folder of CLAM's, with --splits", splits=Path("none"))
    refused(cohort, "--by 'case' is not known: give slide or patient", by="case")


def test_a_folder_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "no feature file (", "configs/features.json")
    own(tmp_path / "s1.h5")
    own(tmp_path / "s2.h5")
    refused(tmp_path, f"{tmp_path} holds no csv with the columns slide and label and no splits.csv of torchmil: ")
    write(tmp_path / "a.csv", "slide,label", "s3,1")
    reasons = "feature file without a row: 2, such as s1.h5; row without a feature file: 1, such as s3"
    refused(tmp_path, f"{tmp_path} holds no slide that can be used: {reasons}")
    write(tmp_path / "b.csv", "slide_id,label", "s1,1")
    refused(tmp_path, f"{tmp_path} holds a.csv and b.csv: ", "--labels FILE")
    labels(tmp_path, "s1,1,p", "s2,0,p")  # of several labels.csv
    refused(tmp_path, f"the 2 slides in {tmp_path} are of one patient: ")


def test_stamp_from_its_two_tables_to_a_datalist(tmp_path: Path) -> None:
    """A row for each patient with labels of many kinds, and a row for each slide."""
    for n in range(7):
        own(tmp_path / f"s{n}.h5")
    known = zip(range(6), ("no", "yes", "no", "yes", "no", "NA"), strict=True)
    write(tmp_path / "clini.csv", "PATIENT,AGE,MSI", *(f"p{n},{50 + n},{label}" for n, label in known))
    write(tmp_path / "slide.csv", "PATIENT,FILENAME", *(f"p{n},s{k}.h5" for k, n in enumerate((0, 0, 1, 2, 3, 9, 5))))
    tables = {"label_column": "MSI", "slide_table": Path("slide.csv")}
    refused(tmp_path, "holds no csv with the columns slide and MSI", **tables)
    make(tmp_path, labels=Path("clini.csv"), classes=["no", "yes"], by="patient", **tables)
    bags = {name: (bag["label"], bag["image"]) for name, bag in entries(tmp_path).items()}
    assert bags == {"p0": (0, ["s0.h5", "s1.h5"]), "p1": (1, "s2.h5"), "p2": (0, "s3.h5"), "p3": (1, "s4.h5")}
    assert check(tmp_path)["slide_table"] == "slide.csv"
    assert check(tmp_path)["rejected"] == {
        "row without a label": {"count": 2, "examples": ["s5", "s6"]},
        "patient without a slide": {"count": 1, "examples": ["p4"]},
    }
