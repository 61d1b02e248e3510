# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from scripts.wsi.datalist.cohort import WsiDatalistRequest
from scripts.wsi.datalist.writing import write_wsi_datalist
from scripts.wsi.doctor import cohort as slide_doctor
from scripts.wsi.doctor.cohort import class_names, examine_wsi
from scripts.wsi.doctor.slide import ExamOptions
from tests.wsi.foreign_arrays import write_owkin, write_spatialdata
from tests.wsi.foreign_features import (
    clam,
    datalist,
    grid,
    own,
    random_features,
    square,
    trident,
    write,
    write_h5,
    write_stamp,
)
from tests.wsi.slide_files import tissue, write_slide
from tests.wsi.trade_slides import write_dicom


@pytest.fixture(autouse=True)
def healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The computer has a test of its own."""
    monkeypatch.setattr(slide_doctor, "examine_computer", lambda output_dir, purpose: iter([]))


def examine(path: Path, datalist: Path | None = None, **options: Any) -> list[str]:
    return list(map(str, examine_wsi(path, datalist, Path("results"), ExamOptions(**options))))


def make(folder: Path, *rows: str, **given: Any) -> None:
    write(folder / "labels.csv", "patient,slide,label", *rows)
    write_wsi_datalist(WsiDatalistRequest(folder=folder, **given))


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """s00 to s19 of ten patients, every second patient positive, and a datalist."""
    for n in range(20):
        own(tmp_path / "features" / f"s{n:02d}.h5")
    make(tmp_path, *(f"p{n // 2},s{n:02d},{n // 2 % 2}" for n in range(20)))
    return tmp_path


def rewrite(folder: Path, content: Any) -> None:
    (folder / "datalist.json").write_text(json.dumps(content))


def stamp(folder: Path, name: str) -> Path:
    """It says micrometres alone."""
    return write_stamp(folder, name, grid(12, 128.0), attributes=False, unit="um", tile_size_um=128.0)


def slides(folder: Path, **mpp: float) -> Path:
    for name, each in mpp.items():
        write_slide(folder / f"{name}.tif", tissue(1024, 2048), each)
    return folder


def test_a_cohort_that_can_be_trained_on(cohort: Path) -> None:
    healthy = [
        "PASS  training: 12 bags, 6 negative, 6 positive",
        "PASS  validation: 4 bags, 2 negative, 2 positive",
        "PASS  test: 4 bags, 2 negative, 2 positive",
        "PASS  none of 10 patients and 20 slides is in two sections",
        "PASS  20 slides of 12 patches",
        "INFO  20 smooth-mil, in level-0 pixels, pitch from pitch_level0, 4.8 of 8 neighbours",
        "PASS  all features are of the encoder tiny",
        "PASS  128 micrometres from patch to patch",
    ]
    assert examine(cohort) == healthy
    (cohort / "datalist.json").rename(cohort / "mine.json")
    (cohort / "datalist_check.json").rename(cohort / "mine_check.json")
    assert examine(cohort, cohort / "mine.json") == healthy


def test_patients_in_two_sections_are_known_by_the_check_or_by_their_names(cohort: Path) -> None:
    content = datalist(cohort)
    content["test"].append(content["training"].pop())
    moved = content["test"][-1]["bag_id"]
    rewrite(cohort, content)
    leak = "FAIL  {} of {} patients and 0 of {} slides are in more than one section (of {} and {}): make it again"
    assert leak.format(1, 10, 20, f"s{int(moved[1:]) ^ 1:02d}", moved) in examine(cohort)[3]
    unknown = "WARN  none of 20 slides is in two sections, but their patients are not known"
    (cohort / "datalist_check.json").write_text('{"bags_of_one_patient": null}')
    assert examine(cohort)[3].startswith(unknown)
    (cohort / "datalist_check.json").unlink()
    assert examine(cohort)[3].startswith(unknown)
    names = [f"TCGA-05-{n % 3:04d}-01Z-00-DX1.{n}" for n in range(6)]
    bags = [{"bag_id": own(cohort / f"{name}.h5").stem, "image": f"{name}.h5", "label": 0} for name in names]
    rewrite(cohort, {"training": bags[:2], "validation": bags[2:4], "test": bags[4:]})
    assert leak.format(3, 3, 6, names[0], names[3]) in examine(cohort)[3]


def test_labels_without_files_and_files_without_labels(cohort: Path) -> None:
    content = datalist(cohort)
    gone = content["training"][0]["image"]
    (cohort / gone).unlink()
    own(cohort / "features" / "new.h5")
    own(cohort / "other encoder" / "s00.h5")
    assert examine(cohort)[0].startswith(f"FAIL  training: 1 of 12 bags lack a feature file, such as {gone}: extract")
    rewrite(cohort, {**content, "training": content["training"][1:]})
    found = examine(cohort)
    assert any(line.startswith("INFO  feature files in no section: 1, such as features/new.h5: ") for line in found)
    assert not any(line.startswith("FAIL") for line in found)
    (cohort / "datalist.json").write_text("no JSON")
    assert examine(cohort)[0].startswith(f"FAIL  the datalist {cohort / 'datalist.json'} is not JSON")


def test_classes_by_name_are_counted(cohort: Path) -> None:
    content = datalist(cohort)
    for bags in content.values():
        for n, bag in enumerate(bags):
            bag["label"] = ["N", "IC", "PB"][n % 3]
    rewrite(cohort, {**content, "validation": None, "test": content["test"][:2]})
    assert examine(cohort)[:3] == [
        "PASS  training: 12 bags, 4 N, 4 IC, 4 PB",
        f'WARN  {cohort / "datalist.json"} has no bags under "validation": add them before training',
        "WARN  test: 2 bags, 1 N, 1 IC, 0 PB: put bags of every class into it",
    ]


@pytest.mark.parametrize(
    ("labels", "names"),
    [([0, 1, 1], None), ([], None), ([-1, 5], None), ([0, 3, 1], list("0123")), (["N", 0, "N"], ["N", "0"])],
)
def test_the_classes_of_a_datalist(labels: list[Any], names: list[str] | None) -> None:
    assert class_names({"training": [{"label": label} for label in labels], "test": "nothing", "x": [3]}) == names


def test_one_bag_of_several_slides_is_examined_slide_by_slide(cohort: Path) -> None:
    write(cohort / "drawn" / "s03.geojson", "{}")
    rows = (f"p{n // 2},s{n:02d},{n % 4 == 3:d}" for n in range(20))
    make(cohort, *rows, by="patient", annotations=cohort / "drawn")
    found = examine(cohort)
    assert found[0] == "PASS  training: 6 bags, 3 negative, 3 positive"
    assert "PASS  none of 10 patients and 20 slides is in two sections" in found
    (failed,) = (line for line in found if line.startswith("FAIL"))
    assert failed.startswith("FAIL  s03: ")
    assert "PASS  19 slides of 12 patches" in found
    given: Any
    for given in (["drawn/s03.geojson"], "drawn/s03.geojson"):
        content = datalist(cohort)
        bag = content["training"][0]
        bag["annotation"] = given
        rewrite(cohort, content)
        assert examine(cohort)[-1].startswith(f'FAIL  {bag["bag_id"]} has 2 slides: give "annotation" as a list')
    bag |= {"image": bag["image"][:1], "annotation": ["no.geojson"]}  # of one slide a list of one is one
    rewrite(cohort, content)
    failed = f"FAIL  {bag['bag_id']}: no annotation can be read from {cohort}/no.geojson"
    assert any(line.startswith(failed) for line in examine(cohort))


def test_annotations_are_read_as_a_run_reads_them(tmp_path: Path) -> None:
    """A square over four patches, on a slide that says micrometres alone."""
    square(tmp_path, "s", 0, 0, 1024)
    image = stamp(tmp_path, "s").name
    write_slide(tmp_path / "slides" / "s.tif", tissue(1536, 2048), 0.25)

    def line(label: int = 1, **options: Any) -> str:
        rewrite(tmp_path, {"training": [{"bag_id": "s", "image": image, "label": label, "annotation": "s.geojson"}]})
        return next(line for line in examine(tmp_path, **options) if " s: " in line)

    assert line().startswith("FAIL  s: its annotation is in pixels and its features in micrometres: give --slides")
    known = line(slides=tmp_path / "slides")
    assert known.startswith("PASS  s: 12 patches")
    assert line(slides=tmp_path / "slides", annotation_values="tumor") == known
    none = "WARN  s: label 1, though none of its patches is annotated"
    assert line(0, slides=tmp_path / "slides").startswith("WARN  s: label 0, though 4 of its patches are annotated")
    assert line(slides=tmp_path / "slides", annotation_values=("stroma",)).startswith(none)
    assert line(slide_mpp=0.25).startswith("WARN  s: its GeoJSON counts from the bounds of the slide, which are not ")
    assert line(slide_mpp=0.05).startswith(none)  # tiles of 2560 pixels
    for given in (0, -0.25, "x", True, float("nan"), float("inf")):
        (finding,) = examine(tmp_path, slide_mpp=given)
        assert finding.startswith(f"FAIL  --slide_mpp {given!r}: ")


def test_encoders_dimensions_and_magnifications_must_be_alike_and_features_differ(cohort: Path) -> None:
    own(cohort / "features" / "s03.h5", encoder="other", dimension=5, mpp=0.5)
    own(cohort / "features" / "s04.h5", mpp=None)
    own(cohort / "features" / "s05.h5", encoder="")
    own(cohort / "features" / "s06.h5", features=random_features("s07"), coords=grid(12) + 1000)
    almost = random_features("s09") + (np.arange(12) == 11)[:, None]  # a copy but for its last patch
    own(cohort / "features" / "s08.h5", features=almost.astype(np.float32))
    dimensions, encoders, magnifications, copies = examine(cohort)[-4:]
    fault = "FAIL  the features are not of one kind, their"
    assert dimensions.startswith(f"{fault} numbers per patch are 4 (s00) and 5 (s03): extract")
    assert encoders.startswith(f"{fault} encoders are other (s03) and tiny (s00): extract")
    differ = "WARN  128 to 256 micrometres from patch to patch, known of 19 of 20 slides: a network"
    assert magnifications.startswith(differ)
    assert copies.startswith("WARN  2 slides have the features of another one, such as s0")
    assert {"s06", "s07"} <= set(copies.replace(":", "").split())
    assert "another" not in examine(cohort, quick=True)[-1]


def test_two_pitches_without_micrometres_are_warned_of(tmp_path: Path) -> None:
    def of_unknown(scale: bool) -> Path:
        for n, target in enumerate((20, 10, 20, 10)):
            trident(tmp_path / "features", f"s{n}", target=target, patches=2, known=scale)
        return tmp_path / "features"

    differ = "WARN  128 to 256 micrometres from patch to patch: a network"
    unknown = "WARN  512 (2 slides) and 1024 (2 slides) level-0 pixels from patch to patch, micrometres per pixel not"
    assert examine(of_unknown(True))[-1].startswith(differ)  # the name of the objective tells them apart
    assert examine(of_unknown(False))[-1].startswith(f"{unknown} known of 4 of 4 slides: give --slides or --slide_mpp")
    assert examine(tmp_path / "features", slide_mpp=0.25)[-1].startswith(differ)
    scans = slides(tmp_path / "slides", s0=0.5, s1=0.25, s2=0.5, s3=0.25)  # at 20x and 40x: pitches rightly differ
    found = examine(tmp_path / "features", slides=scans)
    assert "PASS  256 micrometres from patch to patch" in found
    assert not any(line.startswith("WARN") for line in found)
    (scans / "s1.tif").unlink()
    found = examine(tmp_path / "features", slides=scans)
    known = found.index("PASS  256 micrometres from patch to patch, known of 3 of 4 slides")
    assert found[known - 1].startswith(f"{unknown} known of 1 of 4 slides")


def test_scanners_differ_by_a_few_percent_and_a_lone_patch_by_anything(tmp_path: Path) -> None:
    for n, pitch in enumerate((512.0, 530.0)):
        own(tmp_path / f"s{n}.h5", coords=np.rint(grid(12, pitch)).astype(int), pitch=pitch, tile=pitch, mpp=None)
    write_h5(tmp_path / "s2.h5", features=random_features("s2", 1), coords=grid(1))
    assert examine(tmp_path)[-1].startswith("INFO  micrometres per pixel are known of no slide")
    own(tmp_path / "s3.h5", coords=grid(12, 540), pitch=540, tile=540, mpp=None)
    assert examine(tmp_path)[-1].startswith("WARN  521 (2 slides) and 540 (1 slide) level-0 pixels")


def test_formats_and_units_are_reported(tmp_path: Path) -> None:
    trident(tmp_path, "a", "tiny")
    own(tmp_path / "features" / "b.h5")
    stamp(tmp_path / "features", "c")
    found = examine(tmp_path)
    units, pitches = "level-0 pixels and micrometres", "patch_size_level0 less overlap, pitch_level0 and tile_size_um"
    formats = f"INFO  1 STAMP, 1 TRIDENT and 1 smooth-mil, in {units}, pitch from {pitches}, 4.8 of 8 neighbours"
    assert formats in found
    assert "PASS  128 micrometres from patch to patch" in found  # of all of them


def test_without_a_datalist_the_csv_is_held_against_the_files(cohort: Path) -> None:
    (cohort / "datalist.json").unlink()
    (cohort / "features" / "s03.h5").unlink()
    own(cohort / "features" / "new.h5")
    assert [line.partition(": correct")[0] for line in examine(cohort)[:4]] == [
        f"PASS  {cohort} holds 20 feature files",
        "WARN  feature file without a row: 1, such as features/new.h5",
        "WARN  row without a feature file: 1, such as s03",
        f"INFO  19 slides have a label: python -m scripts datalist wsi {cohort}",
    ]
    write(cohort / "labels.csv", "slide,label", "s00,normal", "s01,tumor")
    assert examine(cohort)[1].startswith(f"WARN  {cohort / 'labels.csv'} has two labels: ")


def test_a_file_is_opened_once_with_a_csv_beside_it_too(cohort: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cohort / "datalist.json").unlink()
    opened: list[str] = []
    plain = h5py.File.__init__

    def counted(file: h5py.File, name: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(name, (str, Path)):
            opened.append(Path(name).name)
        plain(file, name, *args, **kwargs)

    monkeypatch.setattr(h5py.File, "__init__", counted)
    assert any("20 slides have a label" in line for line in examine(cohort))
    assert sorted(opened) == [f"s{n:02d}.h5" for n in range(20)]


def test_without_labels_the_files_are_examined(tmp_path: Path) -> None:
    clam(tmp_path, "s1")
    facts = [
        f"PASS  {tmp_path} holds 1 feature file",
        "INFO  no datalist and no csv of labels, so there is nothing to train on yet",
        "PASS  s1: 12 patches of 4 numbers (CLAM)",
        "INFO  1 CLAM, in level-0 pixels",
        "INFO  1 of 1 files do not say which encoder",
        "INFO  micrometres per pixel are known of no slide",
    ]
    assert [line.startswith(fact) for line, fact in zip(examine(tmp_path), facts, strict=True)] == [True] * 6
    (line,) = examine(tmp_path / "h5_files" / "s1.h5")  # or one file
    assert line.startswith(facts[2])


def test_two_encoders_in_one_folder_keep_their_places(tmp_path: Path) -> None:
    for encoder in ("uni", "conch"):
        trident(tmp_path, "s1", encoder)
    first, second = (f"20x_256px_0px_overlap/features_{encoder}/s1" for encoder in ("conch", "uni"))
    found = examine(tmp_path)
    assert [line.split(":")[0] for line in found[2:4]] == [f"PASS  {first}", f"PASS  {second}"]
    assert any(f"their encoders are conch ({first}) and uni ({second}): " in line for line in found)


def test_slides_alone_show_how_to_make_features(tmp_path: Path) -> None:
    assert examine(tmp_path / "none") == [f"FAIL  {tmp_path / 'none'} does not exist: check the path"]
    (line,) = examine(tmp_path)
    assert line.startswith("FAIL  no feature file (.h5, ")
    slides(tmp_path, a=0.5, b=0.5)
    write(tmp_path / "c.svs", "no slide")
    found = examine(tmp_path)
    todo = "INFO  3 of 3 slides have no features yet, such as a.tif"
    assert [line.split(":")[0] for line in found] == ["PASS  a", "PASS  b", "FAIL  c", todo]
    command = "python -m monai.bundle run --config_file configs/features.json --slides"
    assert found[-1] == f"{todo}: {command} {tmp_path} --output_dir FEATURES"
    assert examine(tmp_path / "a.tif") == found[:1]


def test_slides_in_dicom_are_called_as_their_folders(tmp_path: Path) -> None:
    write_dicom(tmp_path / "case 7", tissue(300, 500), mpp=0.5)
    write_dicom(tmp_path / "case 8", tissue(300, 500), mpp=0.5)
    found = examine(tmp_path)
    assert [line.split(":")[0] for line in found] == [
        "PASS  case 7",
        "PASS  case 8",
        "INFO  2 of 2 slides have no features yet, such as case 7/a.dcm",
    ]
    (line,) = examine(tmp_path / "case 7/b.dcm")
    assert line.startswith("PASS  b: 500 x 300 pixels, levels at 1, 2, dicom, 0.5 micrometres per pixel")


def test_slides_are_held_against_their_features(cohort: Path) -> None:
    """A slide is found as a run finds it, by its id or else by its name."""
    scans = slides(cohort / "scans", x=0.5, y=0.5)
    (finding,) = examine(cohort, slides=scans)[8:]
    assert finding.startswith(f"WARN  none of 2 slides in {scans}, such as x.tif, is named like a feature file, such ")
    own(cohort / "features" / "s00.h5", slide_id="x", slide_size=(2048, 1024))
    assert [line.split(":")[0] for line in examine(cohort, slides=scans)[8:]] == [
        "PASS  x",
        "PASS  y",
        "INFO  1 of 2 slides have no features yet, such as y.tif",
        f"INFO  19 of 20 feature files have no slide in {scans}, such as s01",
    ]


def test_coords_of_another_unit_and_a_folder_of_what_is_not_read_say_so_and_a_store_is_one_file(tmp_path: Path) -> None:
    for name in ("s1", "s2"):
        write_owkin(tmp_path / "owkin", name, grid(12, 1))
    found = examine(tmp_path / "owkin")
    assert (
        "WARN  where patches lie on their slides is not known, as their coords are tiles: nothing can be drawn there: "
        "say what one of them is: python -m scripts adopt FOLDER --coords_unit MICROMETRES"
    ) in found
    assert [line.split(":")[0] for line in found if line.startswith("PASS  s")] == ["PASS  s1", "PASS  s2"]
    (line,) = examine(write_spatialdata(tmp_path / "lazy", "CMU-1", grid(12)))
    assert line.startswith(
        "PASS  CMU-1: 12 patches of 8 numbers (SpatialData), 512 level-0 pixels apart (stride_width x"
    )
    write(tmp_path / "other" / "s1.pkl", "")
    (line,) = examine(tmp_path / "other")
    assert line.startswith("FAIL  no feature file (.h5, ")
    assert " but 1 .pkl; correct the folder, or make them with configs/features.json" in line
