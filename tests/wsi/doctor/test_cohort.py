# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from scripts.wsi.datalist.writing import WsiDatalistRequest, write_wsi_datalist
from scripts.wsi.doctor import cohort as slide_doctor
from scripts.wsi.doctor.cohort import class_names, examine_wsi
from scripts.wsi.doctor.slide import ExamOptions
from tests.wsi.feature_trees import clam, grid, own, random_features, trident, write
from tests.wsi.slide_files import tissue, write_slide

ENCODER = "PASS  all features are of the encoder tiny"
PITCH = "PASS  128 micrometres from patch to patch"


@pytest.fixture(autouse=True)
def healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The computer has a test of its own."""
    monkeypatch.setattr(slide_doctor, "examine_computer", lambda output_dir, purpose: iter([]))


def examine(path: Path, datalist: Path | None = None, **options: Any) -> list[str]:
    return list(map(str, examine_wsi(path, datalist, Path("results"), ExamOptions(**options))))


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """s00 to s19 of ten patients, every second patient positive, and a datalist."""
    for n in range(20):
        own(tmp_path / "features" / f"s{n:02d}.h5")
    write(tmp_path / "labels.csv", "patient,slide,label", *(f"p{n // 2},s{n:02d},{n // 2 % 2}" for n in range(20)))
    write_wsi_datalist(WsiDatalistRequest(folder=tmp_path))
    return tmp_path


def sections(folder: Path) -> dict[str, list[dict[str, Any]]]:
    content: dict[str, list[dict[str, Any]]] = json.loads((folder / "datalist.json").read_text())
    return content


def rewrite(folder: Path, content: Any) -> None:
    (folder / "datalist.json").write_text(json.dumps(content))


def test_a_cohort_that_can_be_trained_on(cohort: Path) -> None:
    healthy = [
        "PASS  training: 12 bags, 6 negative, 6 positive",
        "PASS  validation: 4 bags, 2 negative, 2 positive",
        "PASS  test: 4 bags, 2 negative, 2 positive",
        "PASS  none of 10 patients and 20 slides is in two sections",
        "PASS  20 slides of 12 patches",
        "INFO  20 smooth-mil, in level-0 pixels, pitch from pitch_level0, 4.8 of 8 neighbours",
        ENCODER,
        PITCH,
    ]
    assert examine(cohort) == healthy
    (cohort / "datalist.json").rename(cohort / "mine.json")
    (cohort / "datalist_check.json").rename(cohort / "mine_check.json")
    assert examine(cohort, cohort / "mine.json") == healthy


def test_patients_in_two_sections_are_known_by_the_check(cohort: Path) -> None:
    content = sections(cohort)
    moved = content["training"].pop()
    content["test"].append(moved)
    rewrite(cohort, content)
    leak = "FAIL  1 of 10 patients and 0 of 20 slides are in more than one section (of {} and {}): make it again"
    other = f"s{int(moved['bag_id'][1:]) ^ 1:02d}"
    assert leak.format(other, moved["bag_id"]) in examine(cohort)[3]
    (cohort / "datalist_check.json").unlink()
    assert examine(cohort)[3].startswith("WARN  none of 20 slides is in two sections, but their patients are not known")


def test_patients_in_two_sections_are_known_by_their_names(tmp_path: Path) -> None:
    bags = []
    for n in range(6):
        name = f"TCGA-05-{n % 3:04d}-01Z-00-DX1.{n}"
        own(tmp_path / f"{name}.h5")
        bags.append({"bag_id": name, "image": f"{name}.h5", "label": n % 2})
    rewrite(tmp_path, {"training": bags[:2], "validation": bags[2:4], "test": bags[4:]})
    example = f"(of {bags[0]['bag_id']} and {bags[3]['bag_id']})"
    leak = f"FAIL  3 of 3 patients and 0 of 6 slides are in more than one section {example}"
    assert examine(tmp_path)[3].startswith(leak)


def test_labels_without_files_and_files_without_labels(cohort: Path) -> None:
    content = sections(cohort)
    gone = content["training"][0]["image"]
    (cohort / gone).unlink()
    own(cohort / "features" / "new.h5")
    own(cohort / "other encoder" / "s00.h5")
    assert examine(cohort)[0].startswith(f"FAIL  training: 1 of 12 bags lack a feature file, such as {gone}: extract")
    rewrite(cohort, {**content, "training": content["training"][1:]})
    found = examine(cohort)
    assert any(line.startswith("INFO  feature files in no section: 1, such as features/new.h5: ") for line in found)
    assert not any(line.startswith("FAIL") for line in found)


def test_classes_by_name_are_counted(cohort: Path) -> None:
    content = sections(cohort)
    for bags in content.values():
        for n, bag in enumerate(bags):
            bag["label"] = ["N", "IC", "PB"][n % 3]
    content["test"] = content["test"][:2]
    rewrite(cohort, content)
    assert examine(cohort)[:3] == [
        "PASS  training: 12 bags, 4 N, 4 IC, 4 PB",
        "PASS  validation: 4 bags, 2 N, 1 IC, 1 PB",
        "WARN  test: 2 bags, 1 N, 1 IC, 0 PB: put bags of every class into it",
    ]
    rewrite(cohort, {**content, "training": [], "test": None})
    found = examine(cohort)
    for line, section in ((found[0], "training"), (found[2], "test")):
        assert line.startswith(f'WARN  {cohort / "datalist.json"} has no bags under "{section}": add them before ')


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([0, 1, 1], None),
        ([], None),
        ([0, 3, 1], ["0", "1", "2", "3"]),
        (["N", "IC", "N"], ["N", "IC"]),
        (["N", 0], ["N", "0"]),
        ([-1, 5], None),
    ],
)
def test_the_classes_of_a_datalist(labels: list[Any], names: list[str] | None) -> None:
    assert class_names({"training": [{"label": label} for label in labels], "test": "nothing", "x": [3]}) == names


def test_one_bag_of_several_slides_is_examined_slide_by_slide(cohort: Path) -> None:
    write(cohort / "labels.csv", "patient,slide,label", *(f"p{n // 2},s{n:02d},{n % 4 == 3:d}" for n in range(20)))
    write(cohort / "drawn" / "s03.geojson", "{}")
    write_wsi_datalist(WsiDatalistRequest(folder=cohort, by="patient", annotations=cohort / "drawn"))
    found = examine(cohort)
    assert found[0] == "PASS  training: 6 bags, 3 negative, 3 positive"
    assert "PASS  none of 10 patients and 20 slides is in two sections" in found
    (failed,) = (line for line in found if line.startswith("FAIL"))
    assert failed.startswith("FAIL  s03: ")
    assert "PASS  19 slides of 12 patches" in found


def test_annotations_are_read_as_a_run_reads_them(tmp_path: Path) -> None:
    """A square over four patches, on a slide that says micrometres alone."""
    ring = [[0, 0], [1024, 0], [1024, 1024], [0, 1024], [0, 0]]
    tumor = {"classification": {"name": "Tumor"}}
    drawn = {"type": "Feature", "properties": tumor, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    write(tmp_path / "s.geojson", json.dumps({"type": "FeatureCollection", "features": [drawn]}))
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["feats"], file["coords"] = random_features("s"), grid(12, 128.0).astype(np.float32)
        file.attrs.update(unit="um", tile_size_um=128.0)
    rewrite(tmp_path, {"training": [{"bag_id": "s", "image": "s.h5", "label": 1, "annotation": "s.geojson"}]})

    def line(**options: Any) -> str:
        return next(line for line in examine(tmp_path, **options) if " s: " in line)

    assert line().startswith("FAIL  s: its annotation is in pixels and its features in micrometres: give --slides")
    write_slide(tmp_path / "slides" / "s.tif", tissue(1536, 2048), 0.25)
    known = line(slides=tmp_path / "slides")
    assert known.startswith("PASS  s: 12 patches")
    assert line(slides=tmp_path / "slides", annotation_values="tumor") == known
    none = "WARN  s: label 1, though none of its patches is annotated"
    assert line(slides=tmp_path / "slides", annotation_values=("stroma",)).startswith(none)
    assert line(slide_mpp=0.25).startswith("WARN  s: its GeoJSON counts from the bounds of the slide, which are not ")
    assert line(slide_mpp=0.05).startswith(none)  # tiles of 2560 pixels
    for given in (0, -0.25, "x", True, float("nan"), float("inf")):
        (finding,) = examine(tmp_path, slide_mpp=given)
        assert finding.startswith(f"FAIL  --slide_mpp {given!r}: ")


@pytest.mark.parametrize("given", [["annotations/s06.geojson"], "annotations/s06.geojson"])
def test_annotations_that_do_not_fit_the_slides_of_a_bag_fail(cohort: Path, given: Any) -> None:
    write_wsi_datalist(WsiDatalistRequest(folder=cohort, by="patient"))
    content = sections(cohort)
    content["training"][0]["annotation"] = given
    rewrite(cohort, content)
    name = content["training"][0]["bag_id"]
    assert examine(cohort)[-1].startswith(f'FAIL  {name} has 2 slides: give "annotation" as a list')


def test_a_list_of_one_annotation_is_one(cohort: Path) -> None:
    content = sections(cohort)
    content["training"][0] |= {"image": [content["training"][0]["image"]], "annotation": ["no.geojson"]}
    rewrite(cohort, content)
    name = content["training"][0]["bag_id"]
    assert any(line.startswith(f"FAIL  {name}: no annotation can be read from {cohort}/no.geojson") for line in
               examine(cohort))  # fmt: skip


def test_patients_that_the_check_does_not_know_are_not_known(cohort: Path) -> None:
    write(cohort / "labels.csv", "slide,label", *(f"s{n:02d},{n % 2}" for n in range(20)))
    write_wsi_datalist(WsiDatalistRequest(folder=cohort))
    assert examine(cohort)[3].startswith("WARN  none of 20 slides is in two sections, but their patients are not known")


def test_encoders_dimensions_and_magnifications_must_be_alike(cohort: Path) -> None:
    own(cohort / "features" / "s03.h5", encoder="other", dimension=5, mpp=0.5)
    own(cohort / "features" / "s04.h5", mpp=None)
    own(cohort / "features" / "s05.h5", encoder="")
    found = examine(cohort)[-3:]
    for line, fact in zip(
        found, ("numbers per patch are 4 (s00) and 5 (s03)", "encoders are other (s03) and tiny (s00)"), strict=False
    ):
        assert line.startswith(f"FAIL  the features are not of one kind, their {fact}: extract")
    assert found[-1].startswith("WARN  128 to 256 micrometres from patch to patch, known of 19 of 20 slides: a network")


UNKNOWN = (
    "WARN  512 (2 slides) and 1024 (2 slides) level-0 pixels from patch to patch, micrometres per pixel not known of "
)


def test_the_name_of_the_objective_tells_magnifications_apart(tmp_path: Path) -> None:
    for n, target in enumerate((20, 10)):
        trident(tmp_path / "features", f"s{n}", target=target, patches=2)
    assert examine(tmp_path / "features")[-1].startswith("WARN  128 to 256 micrometres from patch to patch")


def test_two_pitches_without_micrometres_are_warned_of(tmp_path: Path) -> None:
    for n, target in enumerate((20, 10, 20, 10)):
        trident(tmp_path / "features", f"s{n}", target=target, patches=2, known=False)
    assert examine(tmp_path / "features")[-1].startswith(f"{UNKNOWN}4 of 4 slides: give --slides or --slide_mpp")
    differ = "WARN  128 to 256 micrometres from patch to patch: a network"
    assert examine(tmp_path / "features", slide_mpp=0.25)[-1].startswith(differ)
    for n, mpp in enumerate((0.5, 0.25, 0.5, 0.25)):  # scanned at 20x and at 40x, so the pitches rightly differ
        write_slide(tmp_path / "slides" / f"s{n}.tif", tissue(1024, 2048), mpp)
    found = examine(tmp_path / "features", slides=tmp_path / "slides")
    assert "PASS  256 micrometres from patch to patch" in found
    assert not any(line.startswith("WARN") for line in found)
    (tmp_path / "slides" / "s1.tif").unlink()
    known = "PASS  256 micrometres from patch to patch, known of 3 of 4 slides"
    found = examine(tmp_path / "features", slides=tmp_path / "slides")
    assert found[found.index(known) - 1].startswith(f"{UNKNOWN}1 of 4 slides")


def test_scanners_differ_by_a_few_percent_and_a_lone_patch_by_anything(tmp_path: Path) -> None:
    for n, pitch in enumerate((512.0, 530.0)):
        own(tmp_path / f"s{n}.h5", coords=np.rint(grid(12, pitch)).astype(int), pitch=pitch, tile=pitch, mpp=None)
    with h5py.File(tmp_path / "s2.h5", "w") as file:
        file["features"], file["coords"] = random_features("s2", 1), grid(1)
    assert examine(tmp_path)[-1].startswith("INFO  micrometres per pixel are known of no slide")
    own(tmp_path / "s3.h5", coords=grid(12, 540), pitch=540, tile=540, mpp=None)
    assert examine(tmp_path)[-1].startswith("WARN  521 (2 slides) and 540 (1 slide) level-0 pixels")


def test_nan_copies_and_empty_slides(cohort: Path) -> None:
    own(cohort / "features" / "s03.h5", features=random_features("s04"))
    own(cohort / "features" / "s07.h5", 0)
    with h5py.File(cohort / "features" / "s05.h5", "r+") as file:
        file["features"][0, 0] = np.nan
    found = examine(cohort)
    assert "FAIL  s05: 1 of 12 patches hold NaN or infinite values: extract the features again" in found
    assert any(line.startswith("WARN  s07: no patches, a slide without tissue: ") for line in found)
    (copies,) = (line for line in found if "features of another" in line)
    assert copies.startswith("WARN  2 slides have the features of another one, such as s0")
    assert {"s03", "s04"} <= set(copies.replace(":", "").split())
    quick = examine(cohort, quick=True)
    assert not any("NaN" in line or "another" in line for line in quick)


def test_formats_and_units_are_reported(tmp_path: Path) -> None:
    trident(tmp_path, "a", "tiny")
    own(tmp_path / "features" / "b.h5")
    with h5py.File(tmp_path / "features" / "c.h5", "w") as file:
        file["feats"], file["coords"] = random_features("c"), grid(12, 128.0).astype(np.float32)
        file.attrs.update(unit="um", tile_size_um=128.0)
    assert (
        "INFO  1 STAMP, 1 TRIDENT and 1 smooth-mil, in level-0 pixels and micrometres, pitch from patch_size_level0 "
        "less overlap, pitch_level0 and tile_size_um, 4.8 of 8 neighbours"
    ) in examine(tmp_path)


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


def test_without_labels_the_files_are_examined(tmp_path: Path) -> None:
    clam(tmp_path, "s1")
    found = examine(tmp_path)
    assert found[:2] == [
        f"PASS  {tmp_path} holds 1 feature file",
        "INFO  no datalist and no csv of labels, so there is nothing to train on yet",
    ]
    assert found[2].startswith("PASS  s1: 12 patches of 4 numbers (CLAM)")
    for line, fact in zip(found[3:], ("1 CLAM, in level-0 pixels", "1 of 1 files do not", "micrometres"), strict=True):
        assert line.startswith(f"INFO  {fact}")


def test_two_encoders_in_one_folder_keep_their_places(tmp_path: Path) -> None:
    for encoder in ("uni", "conch"):
        trident(tmp_path, "s1", encoder)
    found = examine(tmp_path)
    root = "20x_256px_0px_overlap"
    first, second = f"{root}/features_conch/s1", f"{root}/features_uni/s1"
    assert [line.split(":")[0] for line in found[2:4]] == [f"PASS  {first}", f"PASS  {second}"]
    assert any(f"their encoders are conch ({first}) and uni ({second}): " in line for line in found)


def test_one_file_may_be_given(tmp_path: Path) -> None:
    (line,) = examine(own(tmp_path / "s1.h5"))
    assert line.startswith("PASS  s1: 12 patches of 4 numbers (smooth-mil)")
    (line,) = examine(write_slide(tmp_path / "s1.tif", tissue(512, 512), 0.5))
    assert line == "PASS  s1: 512 x 512 pixels, levels at 1, 4, generic-tiff, 0.5 micrometres per pixel"


def test_a_folder_of_slides_shows_how_to_make_features(tmp_path: Path) -> None:
    for name in "ab":
        write_slide(tmp_path / f"{name}.tif", tissue(512, 512), 0.5)
    write(tmp_path / "c.svs", "no slide")
    found = examine(tmp_path)
    todo = "INFO  3 of 3 slides have no features yet, such as a.tif"
    assert [line.split(":")[0] for line in found] == ["PASS  a", "PASS  b", "FAIL  c", todo]
    command = "python -m monai.bundle run --config_file configs/features.json --slides"
    assert found[-1] == f"{todo}: {command} {tmp_path} --output_dir FEATURES"


def test_slides_are_held_against_their_features(cohort: Path) -> None:
    slides = cohort / "scans"
    write_slide(slides / "s00.tif", tissue(512, 512), 0.5)
    write_slide(slides / "x.tif", tissue(512, 512), 0.5)
    own(cohort / "features" / "s00.h5", slide_size=(512, 512))
    found = examine(cohort, slides=slides)[8:]
    assert [line.split(":")[0] for line in found] == [
        "PASS  s00",
        "PASS  x",
        "INFO  1 of 2 slides have no features yet, such as x.tif",
        f"INFO  19 of 20 feature files have no slide in {slides}, such as s01",
    ]


def test_slides_of_other_features_are_one_warning(cohort: Path) -> None:
    slides = cohort / "scans"
    for name in "yx":
        write_slide(slides / f"{name}.tif", tissue(512, 512), 0.5)
    (finding,) = examine(cohort, slides=slides)[8:]
    assert finding.startswith(f"WARN  none of 2 slides in {slides}, such as x.tif, is named like a feature file, such ")


def test_a_slide_is_found_by_its_id_as_a_run_finds_it(tmp_path: Path) -> None:
    own(tmp_path / "features.h5", slide_id="x", slide_size=(512, 512))
    rewrite(tmp_path, {"training": [{"bag_id": "somebody", "image": "features.h5", "label": 1}]})
    write_slide(tmp_path / "slides" / "x.tif", tissue(512, 512), 0.5)
    found = examine(tmp_path, slides=tmp_path / "slides")
    assert found[-1].startswith("PASS  x: 512 x 512 pixels")
    assert not any("none of 1 slides in" in line and "feature files" in line for line in found)


def test_what_is_not_there_fails(tmp_path: Path) -> None:
    none = tmp_path / "none"
    assert examine(none) == [f"FAIL  {none} does not exist: check the path"]
    (line,) = examine(tmp_path)
    assert line.startswith(f"FAIL  no slide in {tmp_path} (")
