# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from scripts.core.bags import load_bags
from scripts.core.errors import InputError
from scripts.datalist.tables import SECTIONS
from scripts.wsi.datalist import cohort as slide_cohort
from scripts.wsi.datalist.labels import training_note
from scripts.wsi.datalist.writing import WsiDatalistRequest, leakage_of_slides, write_wsi_datalist
from tests.wsi.feature_trees import clam, grid, own, random_features, torchmil, trident, write

COARSE = {"benign": ["N", "PB", "UDH"], "atypical": ["FEA", "ADH"], "malignant": ["DCIS", "IC"]}
BRACS = {fine: coarse for coarse, own in COARSE.items() for fine in own}


def datalist(folder: Path) -> dict[str, list[dict[str, Any]]]:
    content: dict[str, list[dict[str, Any]]] = json.loads((folder / "datalist.json").read_text())
    return content


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


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Twenty slides of ten patients, two each, one patient in two positive; features of this project."""
    for n in range(20):
        own(tmp_path / "features" / f"s{n:02d}.h5")
    labels(tmp_path)
    return tmp_path


def labels(folder: Path, *extra: str) -> None:
    rows = [f"p{n // 2},s{n:02d}.svs,{n // 2 % 2}" for n in range(20)]
    write(folder / "labels.csv", "patient,slide,label", *rows, *extra)


def test_a_csv_with_patients_and_slides(cohort: Path) -> None:
    lines = make(cohort).splitlines()
    assert entries(cohort)["s03"] == {"bag_id": "s03", "label": 1, "image": "features/s03.h5"}
    assert len(entries(cohort)) == 20
    where = places(cohort)
    assert all(where[f"s{n:02d}"] == where[f"s{n + 1:02d}"] for n in range(0, 20, 2))
    assert Counter(where.values()) == {"training": 12, "validation": 4, "test": 4}
    assert [line.split() for line in lines[:5]] == [
        ["section", "slides", "patients", "patches", "positive", "prevalence"],
        ["training", "12", "6", "144", "6", "0.5"],
        ["validation", "4", "2", "48", "2", "0.5"],
        ["test", "4", "2", "48", "2", "0.5"],
        ["total", "20", "10", "240", "10", "0.5"],
    ]
    assert lines[5:] == [
        "leakage: 0 of 10 patients and 0 of 20 slides are in more than one section",
        f"written: {cohort}/datalist.json and datalist_check.json",
    ]


def test_what_is_written_in_the_check(cohort: Path) -> None:
    make(cohort, seed=3)
    written = check(cohort)
    keys = ("datalist", "labels", "splits", "by", "classes", "seed")
    assert [written[key] for key in keys] == ["datalist.json", "labels.csv", None, "slide", [0, 1], 3]
    assert written["features"] == {"forms": {"smooth-mil": 20}, "encoder": "tiny", "dimension": 4}
    assert written["leakage"] == {
        "patients": 10, "patients_in_several_sections": 0, "slides": 20, "slides_in_several_sections": 0,
    }  # fmt: skip
    assert written["bags_of_one_patient"] == [[f"s{n:02d}", f"s{n + 1:02d}"] for n in range(0, 20, 2)]
    assert written["sections"]["total"] == {
        "slides": 20, "patients": 10, "patches": 240, "positive": 10, "prevalence": 0.5,
    }  # fmt: skip
    text = (cohort / "datalist.json").read_text() + json.dumps(written)
    assert not re.search(r"\bp\d\b", text)  # who a patient is stays in the csv


def test_one_bag_per_patient(cohort: Path) -> None:
    write(cohort / "labels.csv", *[line.replace("p3,s07.svs,1", "p3,s07.svs,0") for line in
          (cohort / "labels.csv").read_text().splitlines()])  # fmt: skip
    own(cohort / "features" / "s00.h5", 0)
    summary = make(cohort, by="patient")
    assert entries(cohort)["p3"] == {
        "bag_id": "p3", "label": 1, "image": ["features/s06.h5", "features/s07.h5"],
    }  # fmt: skip
    assert entries(cohort)["p0"] == {"bag_id": "p0", "label": 0, "image": "features/s01.h5"}  # s00 has no tissue
    assert sorted(entries(cohort)) == [f"p{n}" for n in range(10)]
    assert check(cohort)["sections"]["total"] == {
        "bags": 10, "slides": 19, "patients": 10, "patches": 228, "positive": 5, "prevalence": 0.5,
    }  # fmt: skip
    assert "note: patients with slides of both classes, who count as positive: 1\n" in summary
    assert "note: bags are named after patients, so results will be too\n" in summary
    assert "rejected: slide without tissue: 1, such as s00\n" in summary
    for section in SECTIONS:
        load_bags(str(cohort / "datalist.json"), section, str(cohort))


def test_what_does_not_fit_is_counted(cohort: Path) -> None:
    labels(cohort, "p9,s20,1", "p9,s21,1")
    own(cohort / "features" / "s00.h5", 0)
    own(cohort / "features" / "other.h5")
    (cohort / "features" / "s01.h5").write_bytes(b"no features")
    make(cohort)
    assert "s00" not in places(cohort)
    rejected = check(cohort)["rejected"]
    assert rejected.pop("feature file without a row") == {"count": 1, "examples": ["features/other.h5"]}
    assert rejected.pop("row without a feature file") == {"count": 2, "examples": ["s20", "s21"]}
    assert rejected.pop("slide without tissue") == {"count": 1, "examples": ["s00"]}
    ((reason, about),) = rejected.items()
    assert reason.startswith("feature file that cannot be read (it is not an HDF")
    assert about == {"count": 1, "examples": ["s01"]}


def test_patients_may_be_read_from_the_names(tmp_path: Path) -> None:
    names = [f"TCGA-05-{n // 3:04d}-01Z-00-DX{n % 3}.{n:08x}" for n in range(30)] + ["patient_001_node_1"]
    for name in names:
        trident(tmp_path, name)
    write(tmp_path / "labels.csv", "slide_id,label", *(f"{name}.svs,{n // 3 % 2}" for n, name in enumerate(names)))
    own(tmp_path / "else.h5", encoder="uni_v1")
    summary = make(tmp_path)
    where = places(tmp_path)
    assert all(len({where[name] for name in names[n : n + 3]}) == 1 for n in range(0, 30, 3))
    assert "note: patients are read from the names of 31 slides, such as TCGA-05-0000\n" in summary
    assert check(tmp_path)["leakage"]["patients"] == 11
    assert check(tmp_path)["warnings"] == {}
    assert entries(tmp_path)[names[0]]["image"] == f"20x_256px_0px_overlap/features_uni_v1/{names[0]}.h5"


def test_without_patients_each_slide_is_its_own(cohort: Path) -> None:
    write(cohort / "labels.csv", "slide,label", *(f"s{n:02d},{n % 2}" for n in range(20)))
    summary = make(cohort)
    assert "warning: patient not known, so the slide is taken for a patient of its own: 20, such as s00\n" in summary
    assert check(cohort)["leakage"]["patients"] == 20
    assert check(cohort)["bags_of_one_patient"] is None


def test_clam_from_csv_and_splits_to_a_datalist(tmp_path: Path) -> None:
    for n in range(10):
        clam(tmp_path, f"s{n}")
    rows = [f"patient_{n},s{n},{'tumor_tissue' if n % 2 else 'normal_tissue'}" for n in range(10)]
    csv = write(tmp_path / "dataset_csv" / "task.csv", "case_id,slide_id,label", *rows)
    folds = tmp_path / "splits"
    write(folds / "splits_0.csv", ",train,val,test", "0,s0,s6,s8.svs", "1,s1,s7,", "2,s2,,", "3,s3,,", "4,s4,,")
    write(folds / "splits_1.csv", ",train,val,test", "0,s9,s8,s0")
    two = ["normal_tissue", "tumor_tissue"]
    summary = make(tmp_path, labels=csv, splits=folds, classes=two)
    assert datalist(tmp_path) == {
        "training": [{"bag_id": f"s{n}", "label": n % 2, "image": f"h5_files/s{n}.h5"} for n in range(5)],
        "validation": [{"bag_id": f"s{n}", "label": n % 2, "image": f"h5_files/s{n}.h5"} for n in (6, 7)],
        "test": [{"bag_id": "s8", "label": 0, "image": "h5_files/s8.h5"}],
    }
    assert "note: sections are those of splits_0.csv, one of 2 folds (--splits FILE takes another)\n" in summary
    assert "note: normal_tissue is 0, tumor_tissue is 1\n" in summary
    assert "note: test has negative bags alone\n" in summary
    assert "rejected: slide in no section of the splits: 2, such as s5\n" in summary
    make(tmp_path, labels=csv, splits=folds / "splits_1.csv", classes=two)
    assert places(tmp_path) == {"s9": "training", "s8": "validation", "s0": "test"}
    refused(tmp_path, f"{csv} has two labels", "['normal_tissue','tumor_tissue']", labels=csv, splits=folds)


def test_boolean_splits_beside_the_labels_are_found(cohort: Path) -> None:
    rows = [f"s{n:02d},{n < 12},{12 <= n < 16},{n >= 16}" for n in range(20)]
    write(cohort / "splits_0_bool.csv", ",train,val,test", *rows)
    assert "note: sections are those of splits_0_bool.csv\n" in make(cohort)
    assert [len(bags) for bags in datalist(cohort).values()] == [12, 4, 4]
    assert places(cohort)["s12"] == "validation"


@pytest.mark.parametrize("features", ["features_UNI", "features/features_UNI"])
def test_torchmil_without_any_csv_of_labels(tmp_path: Path, features: str) -> None:
    for n in range(20):
        torchmil(tmp_path, f"b{n:02d}", n % 2, positive=3 * (n % 2), features=features)
    rows = [f"{n},b{n:02d},{'train' if n < 16 else 'test'}" for n in range(20)]
    write(tmp_path / "splits.csv", ",bag_name,split", *rows, "20,b20,train")
    summary = make(tmp_path)
    assert entries(tmp_path)["b17"] == {
        "bag_id": "b17", "label": 1, "image": f"patches_512/{features}/b17.npy",
        "instance_label": "patches_512/patch_labels/b17.npy",
    }  # fmt: skip
    assert [len(bags) for bags in datalist(tmp_path).values()] == [14, 2, 4]
    assert {name for name, section in places(tmp_path).items() if section == "test"} == {"b16", "b17", "b18", "b19"}
    assert "note: the sections given have no validation, so 0.125 of training was drawn for it\n" in summary
    assert "rejected: row without a feature file: 1, such as b20\n" in summary
    assert check(tmp_path)["features"] == {"forms": {"torchmil": 20}, "encoder": "UNI", "dimension": 4}
    make(tmp_path, shares=(1, 0, 0))  # who wants no validation gets none
    assert [len(bags) for bags in datalist(tmp_path).values()] == [16, 0, 4]


def test_torchmil_without_labels_or_features_is_refused(tmp_path: Path) -> None:
    path = torchmil(tmp_path, "b1", 1)
    write(tmp_path / "splits.csv", "bag_name,split", "b2,train")
    refused(tmp_path, f"no slide of the splits, such as b2, has features in {tmp_path}")
    write(tmp_path / "splits.csv", "bag_name,split", "b1,train")
    (path.parents[1] / "labels" / "b1.npy").unlink()
    refused(tmp_path, "b1 has no label as labels/b1.npy: give a csv with --labels FILE")


def test_classes_of_a_hierarchy(tmp_path: Path) -> None:
    fine = [list(BRACS)[n % 7] for n in range(70)]
    for n in range(70):
        own(tmp_path / f"BRACS_{n}.h5")
    rows = [f"BRACS_{n},{label},{BRACS[label]},p{n}" for n, label in enumerate(fine)]
    write(tmp_path / "labels.csv", "slide,label,coarse,patient", *rows)
    summary = make(tmp_path, classes=list(BRACS))
    assert all(entries(tmp_path)[f"BRACS_{n}"]["label"] == label for n, label in enumerate(fine))
    for section, count in zip(SECTIONS, (7, 1, 2), strict=True):
        assert Counter(bag["label"] for bag in datalist(tmp_path)[section]) == dict.fromkeys(BRACS, count)
    assert summary.splitlines()[0].split() == ["section", "slides", "patients", "patches", *BRACS]
    assert f"note: {training_note(list(BRACS))}\n" in summary
    assert check(tmp_path)["coarse"] == BRACS
    assert check(tmp_path)["classes"] == list(BRACS)
    write(tmp_path / "labels.csv", "slide,label,coarse,patient", *rows[:-1], "BRACS_69,IC,benign,p69")
    refused(tmp_path, "labels.csv, line 71 puts IC under benign, line 8 under malignant")


def test_slides_of_a_patient_that_disagree_are_refused(tmp_path: Path) -> None:
    """Of grades too: 0 and 1 are two of six, though all that this patient has."""
    for n in range(7):
        own(tmp_path / f"s{n}.h5")
    write(tmp_path / "labels.csv", "slide,label,patient", "s0,N,a", "s1,IC,a", "s2,PB,b", "s3,N,c")
    refused(tmp_path, "s0 has the label N, s1 of the same patient IC: ", by="patient")
    assert f"note: {training_note(['N', 'IC', 'PB'])}\n" in make(tmp_path)
    assert places(tmp_path)["s0"] == places(tmp_path)["s1"]
    grades = [f"s{n},{n},p{n}" for n in range(6)]
    write(tmp_path / "labels.csv", "slide,label,patient", "s6,0,p1", *grades)
    refused(tmp_path, "s1 has the label 1, s6 of the same patient 0: ", by="patient")
    write(tmp_path / "labels.csv", "slide,label,patient", "s6,1,p1", *grades)
    make(tmp_path, by="patient")
    assert {name: bag["label"] for name, bag in entries(tmp_path).items()} == {f"p{n}": n for n in range(6)}


def test_annotations_are_named_in_the_datalist(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    drawn = cohort / "annotations"
    for name in ("s02.geojson", "s03.xml", "nobody.geojson"):
        write(drawn / name, "x")
    summary = make(cohort, annotations=drawn, by="patient")
    assert entries(cohort)["p1"]["annotation"] == ["annotations/s02.geojson", "annotations/s03.xml"]
    assert "annotation" not in entries(cohort)["p0"]
    assert "rejected: annotation without a slide: 1, such as nobody.geojson\n" in summary
    elsewhere = tmp_path_factory.mktemp("drawn")
    write(elsewhere / "s02.geojson", "x")
    make(cohort, annotations=elsewhere)
    assert entries(cohort)["s02"]["annotation"] == str(elsewhere / "s02.geojson")
    write(cohort / "labels.csv", "slide,label,annotation,patient", "s02,1,annotations/s02.geojson,a", "s03,0,no.xml,b")
    summary = make(cohort, shares=(1, 0, 0))
    assert entries(cohort)["s02"]["annotation"] == "annotations/s02.geojson"
    assert "annotation" not in entries(cohort)["s03"]
    assert "warning: annotation that is not there: 1, such as no.xml\n" in summary


def test_what_no_annotation_shows_must_be_of_a_negative_slide(cohort: Path) -> None:
    """null in a datalist says that nothing is annotated: patches of a tumour without an outline would count as none."""
    rows = ["p0,s00,1", "p0,s01,0", "p1,s02,1", "p1,s03,1", "p2,s04,0", "p2,s05,0", "p3,s06,1", "p3,s07,1"]
    write(cohort / "labels.csv", "patient,slide,label", *rows)
    drawn = cohort / "annotations"
    for n in (0, 2, 4):
        write(drawn / f"s{n:02d}.geojson", "x")
    summary = make(cohort, annotations=drawn, by="patient")
    assert {name: bag.get("annotation") for name, bag in entries(cohort).items()} == {
        "p0": ["annotations/s00.geojson", None], "p1": None, "p2": ["annotations/s04.geojson", None], "p3": None,
    }  # fmt: skip
    remark = "slide with a finding and no annotation, so its patient's bag has none"
    assert f"warning: {remark}: 1, such as s03\n" in summary  # of p3 nobody drew anything
    assert check(cohort)["warnings"] == {remark: {"count": 1, "examples": ["s03"]}}
    rows = [f"p{n // 2},s{n:02d},{['normal', 'LUAD', 'LUSC'][n // 2 % 3]}" for n in range(20)]
    write(cohort / "labels.csv", "patient,slide,label", *rows)  # of several classes the first is negative
    make(cohort, annotations=drawn, by="patient")
    assert entries(cohort)["p0"]["annotation"] == ["annotations/s00.geojson", None]
    assert "annotation" not in entries(cohort)["p1"]


def test_of_a_long_run_the_progress_is_seen(
    cohort: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make(cohort)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(slide_cohort, "PROGRESS_AFTER_S", 0)
    make(cohort)
    assert re.search(r"headers: 100%.* 20/20 ", capsys.readouterr().err)


@pytest.mark.parametrize(("by", "example"), [("slide", "s00 and s01"), ("patient", "p0 and p0")])
def test_a_patient_in_two_sections_is_refused(cohort: Path, by: str, example: str) -> None:
    rows = [f"s{n:02d},{n % 2},{'test' if n == 1 else 'training'},p{n // 2}" for n in range(20)]
    write(cohort / "labels.csv", "slide,label,section,patient", *rows)
    leak = f"1 of 10 patients and 0 of 20 slides would be in more than one section (of {example})"
    refused(cohort, leak, by=by, shares=(1, 0, 0))


def test_leaks_are_counted_from_what_is_written() -> None:
    written: dict[str, list[dict[str, Any]]] = {
        "training": [{"bag_id": "a", "image": "a.h5"}, {"bag_id": "b", "image": ["b.h5", "c.h5"]}],
        "validation": [{"bag_id": "d", "image": "c.h5"}],
        "test": [{"bag_id": "e", "image": "e.h5"}, {"bag_id": "f", "image": "f.h5"}],
    }
    for patients, counts, example in (({}, (5, 0, 5, 1), ["b", "d"]), ({"a": "p", "e": "p"}, (4, 1, 5, 1), ["a", "e"])):
        leakage = leakage_of_slides(written, patients)
        assert (tuple(leakage.as_json().values()), leakage.example) == (counts, example)
    assert leakage_of_slides({"training": written["training"]}, {"a": "p", "b": "p"}).example == []


def test_features_of_two_encoders_are_refused(cohort: Path) -> None:
    own(cohort / "features" / "s03.h5", encoder="Tiny")
    make(cohort, output=cohort / "alike.json")  # it is the same one
    own(cohort / "features" / "s03.h5", encoder="other")
    refused(cohort, "their encoders are other (s03) and tiny (s00): ", "--features FOLDER")
    own(cohort / "features" / "s03.h5", dimension=5, encoder="")
    refused(cohort, "their numbers per patch are 4 (s00) and 5 (s03): ", "--features FOLDER")


def test_two_magnifications_are_warned_of(cohort: Path) -> None:
    own(cohort / "features" / "s03.h5", mpp=0.5)
    summary = make(cohort)
    assert "warning: micrometres from patch to patch differ, " in summary
    assert ": 1, such as 19 of 128, 1 of 256\n" in summary
    own(cohort / "features" / "s03.h5", mpp=None)
    assert "level-0 pixels" not in make(cohort)
    own(cohort / "features" / "s03.h5", coords=grid(12, 1024), pitch=1024, tile=1024, mpp=None)
    summary = make(cohort)
    assert "warning: level-0 pixels from patch to patch differ and micrometres per pixel are not known" in summary
    assert ": 1, such as 19 of 512, 1 of 1024\n" in summary


def test_labels_are_found_by_their_columns_among_other_csvs(cohort: Path) -> None:
    lines = (cohort / "labels.csv").read_text().splitlines()
    (cohort / "labels.csv").unlink()
    write(cohort / "mine.csv", lines[0].replace("label", "MSI"), *lines[1:])
    write(cohort / "notes.csv", "who,what", "me,this")
    (cohort / "excel.csv").write_bytes(b"\xff\xfe\x00s")
    make(cohort, label_column="msi")
    assert check(cohort)["labels"] == "mine.csv"
    assert len(entries(cohort)) == 20


def test_several_csvs_of_sections_are_refused(cohort: Path) -> None:
    for name in ("splits.csv", "other.csv"):
        write(cohort / name, "bag_name,split", "s00,train")
    refused(cohort, f"{cohort} holds other.csv and splits.csv: ", "--splits FILE")
    empty = cohort / "folds"
    empty.mkdir()
    refused(cohort, f"{empty} holds no splits_0.csv: ", splits=empty)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"by": "case"}, "--by 'case' is not known: give slide or patient"),
        ({"classes": "tumor"}, "--classes ['tumor']: give two names or more"),
        ({"splits": Path("no.csv")}, "no.csv does not exist: give a csv, or a folder of CLAM's, with --splits"),
        ({"annotations": Path("none")}, "none is not a folder: give the one of the annotations"),
        ({"labels": Path("no.csv")}, "cannot read no.csv (No such file or directory): give the labels"),
        ({"label_column": "MSI"}, "holds no csv with the columns slide and MSI"),
    ],
)
def test_a_flag_that_makes_no_sense_is_refused(cohort: Path, given: dict[str, Any], message: str) -> None:
    refused(cohort, message, **given)


def test_a_folder_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none is not a folder: give the one that holds the features$"):
        make(tmp_path / "none")
    refused(tmp_path, f"{tmp_path} holds no feature files", "configs/features.json")
    own(tmp_path / "s1.h5")
    refused(tmp_path, f"{tmp_path} holds no csv with the columns slide and label and no splits.csv of torchmil: ")
    write(tmp_path / "a.csv", "slide,label", "s2,1")
    reasons = "feature file without a row: 1, such as s1.h5; row without a feature file: 1, such as s2"
    refused(tmp_path, f"{tmp_path} holds no slide that can be used: {reasons}")
    write(tmp_path / "b.csv", "slide_id,label", "s1,1")
    refused(tmp_path, f"{tmp_path} holds a.csv and b.csv: ", "--labels FILE")
    write(tmp_path / "labels.csv", "slide,label,patient", "s1,1,a")
    make(tmp_path)  # of several this one
    assert list(entries(tmp_path)) == ["s1"]


def test_one_patient_cannot_be_split(cohort: Path) -> None:
    write(cohort / "labels.csv", "slide,label,patient", *(f"s{n:02d},{n % 2},p" for n in range(20)))
    refused(cohort, f"the 20 slides in {cohort} are of one patient: ")


def test_micrometres_of_stamp_are_compared_with_pixels(tmp_path: Path) -> None:
    """128 micrometres and 512 pixels of 0.25 are the same pitch."""
    own(tmp_path / "a.h5", dimension=4, encoder="")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["feats"], file["coords"] = random_features("b"), grid(12, 128.0).astype(np.float32)
        file.attrs.update(unit="um", tile_size_um=128.0)
    write(tmp_path / "labels.csv", "slide,label,patient", "a,0,p", "b,1,q")
    make(tmp_path, shares=(1, 0, 0))
    assert check(tmp_path)["features"]["forms"] == {"STAMP": 1, "smooth-mil": 1}
    assert check(tmp_path)["warnings"] == {}


def test_stamp_from_its_two_tables_to_a_datalist(tmp_path: Path) -> None:
    for n in range(6):
        own(tmp_path / f"s{n}.h5", dimension=4, encoder="")
    clinical = [f"p{n},{50 + n},{'yes' if n % 2 else 'no'}" for n in range(5)]
    write(tmp_path / "clini.csv", "PATIENT,AGE,MSI", *clinical)
    slides = ["p0,s0.h5", "p0,s1.h5", *(f"p{n},s{n + 1}.h5" for n in (1, 2, 3)), "p9,s5.h5"]
    write(tmp_path / "slide.csv", "PATIENT,FILENAME", *slides)
    make(
        tmp_path, labels=Path("clini.csv"), label_column="MSI", slide_table=Path("slide.csv"), classes=["no", "yes"],
        by="patient",
    )  # fmt: skip
    bags = {bag["bag_id"]: (bag["label"], bag["image"]) for bags in datalist(tmp_path).values() for bag in bags}
    assert bags == {"p0": (0, ["s0.h5", "s1.h5"]), "p1": (1, "s2.h5"), "p2": (0, "s3.h5"), "p3": (1, "s4.h5")}
    assert check(tmp_path)["slide_table"] == "slide.csv"
    assert check(tmp_path)["rejected"] == {
        "row without a label": {"count": 1, "examples": ["s5"]},
        "patient without a slide": {"count": 1, "examples": ["p4"]},
    }
    refused(tmp_path, "holds no csv with the columns slide and MSI", label_column="MSI", slide_table=Path("slide.csv"))
