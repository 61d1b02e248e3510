# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The page of a slide as a browser takes it apart: its numbers, its colours, its pictures, and what must not run."""

import base64
import dataclasses
import hashlib
import io
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from matplotlib import colormaps
from PIL import Image

from scripts.core.errors import InputError
from scripts.core.record import BagResult, PatchCoordinates
from scripts.wsi.outputs.map import layer
from scripts.wsi.outputs.map_page import SaveMapPaged, map_page
from scripts.wsi.outputs.view import TIMES_AVERAGE, SlideView, slides_of, view_slide
from scripts.wsi.slides.slide import SlideFolder
from tests.outputs.results import told
from tests.wsi.outputs.slide_results import SCAN_SIZE, bag, grid, header, own_form

HOSTILE = '</script><img src=x onerror="alert(1)"><!--<script>'
SQUARE = np.array([[100.0, 100.0], [400.0, 100.0], [400.0, 300.0], [100.0, 300.0]])
LUMA = np.array([0.299, 0.587, 0.114])
RNG = np.random.default_rng(8)
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


def scored(columns: int = 5, rows: int = 4, **given: Any) -> BagResult:
    """A positive slide of a network that tells everything, some of whose patches are flagged; shuffled."""
    coords = np.random.default_rng(2).permutation(grid(columns, rows, 256))
    about = header(len(coords), pitch=256, **given.pop("about", {}))
    plain = bag(coords, RNG.exponential(size=len(coords)), about, **given)
    return told(plain, score_smoothing=0.7)


def viewed(result: BagResult, slides: Path | None = None, number: int = 0, **more: Any) -> SlideView:
    view = view_slide(slides_of(result)[number], SlideFolder(None if slides is None else str(slides)))
    return dataclasses.replace(view, **more)


def page(result: BagResult, view: SlideView | None = None, **given: Any) -> str:
    view = view or viewed(result)
    layers = [layer(view.slide, score) for score in (None, "attention", "evidence")]
    return map_page(view, layers, **given)


class Parsed(HTMLParser):
    """A page as a browser divides it: what stands in which element, and which elements and attributes there are."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.texts, self.elements = "", list[tuple[str, str]](), list[tuple[str, dict[str, str | None]]]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open = tag
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open, data))

    def of(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag and text.strip()]


def facts(text: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Parsed(text).of("script")[0])
    return content


def decoded(given: dict[str, str]) -> np.ndarray:
    """As JavaScript's typed arrays read it, which no browser of today has in another order of bytes."""
    return np.frombuffer(base64.b64decode(given["data"]), f"<{given['kind']}")


def coords_of(content: dict[str, Any]) -> np.ndarray:
    return np.stack([decoded(axis["values"])[decoded(axis["of"])] for axis in content["coords"]], axis=1)


def picture(data: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data)))


@pytest.mark.parametrize("shift", [0, 0.25])
def test_the_numbers_of_a_page_are_those_of_the_result(shift: float) -> None:
    plain, truth = scored(), RNG.integers(0, 2, 20)
    assert isinstance(plain.instances, PatchCoordinates)
    places = plain.instances.coords + shift
    result = dataclasses.replace(plain, truth=truth, instances=PatchCoordinates(places, plain.instances.slide))
    content = facts(page(result))
    np.testing.assert_array_equal(coords_of(content), places)
    numbers = {each["name"]: decoded(each["values"]) for each in content["numbers"]}
    assert result.evidence is not None
    wanted = {
        "smoothed (α 0.7) own logit": result.scores, TIMES_AVERAGE: result.times_average, "evidence": result.evidence
    }  # fmt: skip
    assert list(numbers) == list(wanted)
    for name, values in wanted.items():
        np.testing.assert_array_equal(numbers[name], values.astype(np.float32))
    marks = decoded(content["marks"])
    np.testing.assert_array_equal(marks & 1, result.flagged)
    np.testing.assert_array_equal(marks >> 1, truth)
    assert 0 < result.flagged.sum() < 20
    assert (content["tile"], content["cell"], content["microns"]) == (256, 256, 0.25)


def test_of_a_score_of_attention_its_logit_is_told_too_and_what_the_network_does_not_tell_is_not() -> None:
    result = bag(grid(3, 1), [1.0, 2.0, 5.0], header(3))
    content = facts(page(result))
    assert [each["name"] for each in content["numbers"]] == [TIMES_AVERAGE, "attention logit"]
    np.testing.assert_array_equal(decoded(content["numbers"][1]["values"]), result.scores)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_colours_of_a_page_are_those_of_the_picture(number: int) -> None:
    """A shade apart at most, where a value lies on the edge of two."""
    result = scored(40, 30)
    assert result.evidence is not None
    result = dataclasses.replace(result, evidence=result.evidence / 1200)
    content, drawn = facts(page(result)), layer(slides_of(result)[0], [None, "attention", "evidence"][number])
    shown = content["layers"][number]
    assert (shown["key"], shown["on"]) == (["instance", "attention", "evidence"][number], number == 0)
    values = decoded(content["numbers"][shown["number"]]["values"]).astype(float)
    shades = np.searchsorted(shown["edges"], values, side="right")
    assert len(np.unique(shades)) > 50
    wanted = np.clip(np.floor(np.asarray(drawn.norm(drawn.values)) * 256), 0, 255)
    assert np.abs(shades - wanted).max() <= 1
    assert (shades == wanted).mean() > 0.99
    table = decoded(shown["colours"]).reshape(256, 3)
    np.testing.assert_array_equal(table, colormaps[drawn.colours](np.arange(256), bytes=True)[:, :3])
    for (place, text), at in zip(shown["ticks"], drawn.ticks, strict=True):
        assert place == pytest.approx(float(drawn.norm(at)), abs=1e-4)
        assert text == drawn.ticks[at]


def test_names_run_nothing_and_the_page_loads_nothing_and_tells_no_path(scanned: Path) -> None:
    result = scored(bag_id=HOSTILE, source=f"/data/Doe, Jane/{HOSTILE}")
    result = dataclasses.replace(result, label=1, threshold_origin=f"chosen {HOSTILE}")
    text = page(result, viewed(result, scanned.parent, outlines=[SQUARE]))
    parsed = Parsed(text)
    assert [name for name, _ in parsed.elements].count("script") == 2
    sources = [str(given["src"]) for name, given in parsed.elements if name == "img"]
    assert len(sources) == 12
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert not any(key.startswith("on") for _, given in parsed.elements for key in given)
    flagged = f"{result.flagged.sum()} of 20 patches flagged"
    assert parsed.of("title") == [f"{HOSTILE}: positive, probability 0.90 (label: positive) · {flagged}"]
    assert {given.get("href") for _, given in parsed.elements} == {None}
    assert not re.search(r"https?://|url\(|@import|\bfetch\b|XMLHttpRequest|WebSocket", text)
    assert "Jane" not in text
    assert str(scanned.parent) not in text
    (policy,) = [given["content"] for _, given in parsed.elements if "http-equiv" in given]
    digest = base64.b64encode(hashlib.sha256(parsed.of("script")[1].encode()).digest()).decode()
    assert policy is not None
    assert policy.split("; ")[0] == "default-src 'none'"
    assert f"script-src 'sha256-{digest}'" in policy


def test_a_hostile_name_of_a_slide_ends_no_script_either() -> None:
    result = bag([grid(2, 1), grid(1, 1)], [1.0, 2, 3], header(2, HOSTILE), header(1, "b"))
    text = page(result)
    assert HOSTILE in Parsed(text).of("h1")[0]
    assert HOSTILE not in text


def test_the_picture_is_that_of_the_slide_in_pieces_whole_and_by_halves(scanned: Path) -> None:
    result = scored()
    content = facts(page(result, viewed(result, scanned.parent)))["picture"]
    pixels = np.asarray(Image.open(scanned).convert("RGB"), dtype=float)
    assert (content["downsample"], content["corner"], content["side"]) == (1, [0, 0], 512)
    for level in content["levels"]:
        rows = [np.concatenate([np.asarray(picture(one)) for one in row], axis=1) for row in level["tiles"]]
        joined, step = np.concatenate(rows).astype(float), level["step"]
        assert joined.shape[:2] == tuple(-(-side // step) for side in SCAN_SIZE[::-1])
        small = pixels.reshape(1024 // step, step, 1280 // step, step, 3).mean(axis=(1, 3))
        assert np.abs((joined - small) @ LUMA).mean() < 10  # the slide is noise, whose colours a JPEG blurs
        np.testing.assert_allclose(joined.mean(axis=(0, 1)), small.mean(axis=(0, 1)), atol=3)
    assert [level["step"] for level in content["levels"]] == [1, 2, 4]
    assert len(content["levels"][2]["tiles"]) == len(content["levels"][2]["tiles"][0]) == 1
    assert not picture(content["levels"][0]["tiles"][0][0]).getexif()
    coarse = facts(page(result, viewed(result, scanned.parent), most_pixels=640))["picture"]
    assert coarse["downsample"] == 2
    assert [picture(one).size for one in coarse["levels"][0]["tiles"][0]] == [(512, 512), (128, 512)]


def test_without_a_file_of_the_slide_its_thumbnail_is_shown_and_without_that_its_patches_alone(tmp_path: Path) -> None:
    stored = np.random.default_rng(1).integers(0, 256, (128, 160, 3), dtype=np.uint8)
    size = (160 * 8, 128 * 8)
    result = scored(source=own_form(tmp_path / "a.h5", stored), about={"slide_size": size})
    content = facts(page(result))
    assert content["window"] == [0, 0, *size]
    assert content["picture"]["downsample"] == 8
    assert picture(content["picture"]["levels"][0]["tiles"][0][0]).size == (160, 128)
    plain = page(scored())
    assert facts(plain)["picture"] is None
    assert facts(plain)["window"] == [-256, -256, 6 * 256, 5 * 256]
    assert not [name for name, _ in Parsed(plain).elements if name == "img"]
    assert sum("data-patch" in given for _, given in Parsed(plain).elements) == 12
    for unit, microns in (("micrometres", 1), ("tiles", None)):
        assert facts(page(scored(about={"unit": unit, "mpp": None})))["microns"] == microns
    nothing = page(bag(grid(0, 1), [], header(0)))
    assert "no tissue" in nothing
    assert coords_of(facts(nothing)).shape == (0, 2)


def test_the_best_patches_lead_to_their_places_and_show_their_pixels(scanned: Path) -> None:
    result = scored()
    view = viewed(result, scanned.parent)
    parsed = Parsed(page(result, view, shown=3))
    best = np.argsort(-result.scores)[:3]
    buttons = [given for name, given in parsed.elements if name == "button"]
    assert [given["data-patch"] for given in buttons] == [str(index) for index in best]
    assert [given.get("class") == "flagged" for given in buttons] == result.flagged[best].tolist()
    shown = [given["src"] for name, given in parsed.elements if name == "img"]
    for src, tile in zip(shown, view.tiles(best.tolist(), 224), strict=True):
        assert src is not None
        pixels = np.asarray(picture(src.partition(",")[2]), dtype=float)
        assert pixels.shape == (224, 224, 3)
        np.testing.assert_allclose(pixels.mean(axis=(0, 1)), tile.mean(axis=(0, 1)), atol=3)


def test_an_annotation_keeps_its_area_with_fewer_points() -> None:
    angle = np.linspace(0, 2 * np.pi, 2000, endpoint=False)
    circle = 3000 + 2000 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    result = scored()
    first, second = facts(page(result, viewed(result, outlines=[circle, SQUARE])))["outlines"]
    points = decoded(first).reshape(-1, 2)
    assert len(points) < 200
    assert shapely.Polygon(points).area == pytest.approx(shapely.Polygon(circle).area, rel=0.01)
    np.testing.assert_array_equal(decoded(second).reshape(-1, 2), SQUARE)


@pytest.mark.parametrize(
    ("coords", "tile", "cell"),
    [
        (grid(30, 20, 113.33), 113.33, 113.33),  # rounded to whole pixels
        (grid(30, 20, 64), 128, 32),  # patches overlap
        (np.concatenate([grid(5, 5, 100), grid(5, 5, 100) + 1033]), 100, 25),  # pieces of tissue, each on its lattice
        (np.array([[0, 0], [819_200 - 100, 7]]), 100, 200),  # no finer than a canvas of a browser
    ],
)
def test_a_pixel_of_the_map_is_a_patch_or_a_part_of_one_where_they_lie_anyhow(
    coords: np.ndarray, tile: float, cell: float
) -> None:
    result = bag(coords, np.ones(len(coords)), header(len(coords), pitch=tile))
    assert facts(page(result))["cell"] == cell


def test_slides_of_many_patches_have_a_page_each_and_others_none_not_even_of_an_earlier_run(tmp_path: Path) -> None:
    result = bag([grid(3, 1), grid(2, 2)], np.arange(1.0, 8), header(3, "a"), header(4, "b"))

    def written(**given: Any) -> list[str]:
        SaveMapPaged(str(tmp_path), **given)({"bag_result": result})
        return sorted(path.name for path in (tmp_path / "bag 7").glob("*"))

    assert written(page_from=0) == ["a.html", "b.html"]
    first = (tmp_path / "bag 7" / "b.html").read_bytes()
    np.testing.assert_array_equal(coords_of(facts(first.decode())), grid(2, 2))
    assert b"bag 7, slide b: positive" in first
    assert written(page_from=4) == ["b.html"]
    assert (tmp_path / "bag 7" / "b.html").read_bytes() == first
    assert written(page_from=5) == written() == []
    written(page_from=0)
    assert written(page_from=None) == written(page_from="None") == []
    alone = bag(grid(3, 1), np.ones(3), header(3))
    SaveMapPaged(str(tmp_path), page_from=3)({"bag_result": alone})
    assert [path.name for path in (tmp_path / "bag 7").iterdir()] == ["map.html"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"page_from": "many"}, "page_from is 'many': give --page_from a whole number from 0 on, or none"),
        ({"page_from": True}, "page_from is True: give --page_from a whole number from 0 on, or none"),
        ({"most_pixels": 0}, "most_pixels is 0: give --most_pixels a whole number from 1 on"),
        ({"score": "heat"}, "the score 'heat' is not known: give --picture_score"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        SaveMapPaged("out", **given)


def test_the_score_that_is_asked_for_is_in_sight_first(tmp_path: Path) -> None:
    cases = {None: ["instance", "attention", "evidence"], "evidence": ["evidence", "instance", "attention"]}
    for score, keys in cases.items():
        SaveMapPaged(str(tmp_path), score=score, page_from=0)({"bag_result": scored()})
        layers = facts((tmp_path / "bag 7" / "map.html").read_text())["layers"]
        assert [each["key"] for each in layers] == keys
        assert [each["on"] for each in layers] == [True, False, False]


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@pytest.mark.parametrize("shape", [(5, 4), (0, 1)])
def test_a_browser_opens_the_page_and_tells_the_numbers_of_a_patch(
    tmp_path: Path, scanned: Path, shape: Sequence[int]
) -> None:
    result = scored(*shape) if shape[0] else bag(grid(0, 1), [], header(0))
    view = viewed(result, scanned.parent if shape[0] else None, outlines=[SQUARE] if shape[0] else [])
    path = tmp_path / "a page.html"
    path.write_text(page(result, view))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    flags += ["--virtual-time-budget=20000"]  # it is drawn, then dumped
    flags += ["--enable-logging=stderr", "--dump-dom", f"{path.as_uri()}#patch=7&colours=percentile"]
    ended = subprocess.run([str(BROWSER), *flags], capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in ended.stderr  # where a fault of the script, or what the policy forbade, would stand
    parsed = Parsed(ended.stdout)
    (root,) = [given for name, given in parsed.elements if name == "html"]
    assert int(root["data-opened"] or -1) >= 0
    if shape[0]:
        x, y = result.instances[7]["x"], result.instances[7]["y"]
        cells = [text for text in parsed.of("td") if text.strip()]
        assert cells[:2] == ["x, y", f"{x}, {y}"]
        assert float(cells[3]) == pytest.approx(float(result.scores[7]), rel=1e-3)
