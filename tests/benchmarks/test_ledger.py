# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.ledger import chains, data, rsna
from benchmarks.ledger.cells import Cell, Store
from benchmarks.ledger.judge import Truth, smoothed
from benchmarks.ledger.learning import fingerprint, fit, padded, parts_of
from benchmarks.ledger.page import write_page
from benchmarks.ledger.systems import losses, on_features, pools, smooth_pools
from benchmarks.report import Section, Table, Target

RECIPE = {"in_features": 3, "max_epochs": 2}


@pytest.mark.parametrize("length", [1, 3, 32])
def test_the_best_possible_answer_is_bayes_rule_spelled_out(length: int) -> None:
    scans = chains.cohort(length, 4, seed=0)
    found = np.exp(chains.bayes(scans, length)).reshape(4, chains.SLICES)
    starts, d = range(chains.SLICES - length + 1), chains.delta(length)
    for scan, posterior in zip(scans.slices, found, strict=True):
        x = scan[:, 0].astype(float)
        healthy = np.exp(-0.5 * x**2).prod()
        with_lesion = []
        for first in starts:
            mean = d * np.isin(np.arange(chains.SLICES), np.arange(first, first + length))
            with_lesion.append(np.exp(-0.5 * (x - mean) ** 2).prod() / len(starts))
        for place in range(chains.SLICES):
            here = sum(p for first, p in zip(starts, with_lesion, strict=True) if first <= place < first + length)
            assert posterior[place] == pytest.approx(here / (healthy + sum(with_lesion)), rel=1e-6)


@pytest.mark.slow
def test_what_is_done_is_not_done_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    system = on_features({**RECIPE, "in_features": chains.DIMENSIONS}, "attention.json")
    options = {"files": system.files, "keys": system.keys, "config": fingerprint(system), "length": 4, "seed": 0}
    cell, store = Cell("chains", "train", options), Store(tmp_path)
    store.complete([cell, cell], 1, "chains")
    first = store.path(cell).read_bytes()
    beside = store.path(cell)
    (beside.parent / f".{beside.name}.999999999.part").write_bytes(b"half")  # as a run that was killed leaves it
    store.complete([cell], 1, "chains")
    assert "1 experiments, 0 to do" in capsys.readouterr().out
    store.path(cell).unlink()
    store.complete([cell], 1, "chains")
    assert store.path(cell).read_bytes() == first  # the same numbers, whenever it is done


@pytest.mark.slow
def test_every_row_is_another_system_that_learns() -> None:
    rows = {**pools(RECIPE), **losses(RECIPE), **smooth_pools(RECIPE)}
    shipped = {"shipped default", "SmAP as shipped"}  # may be rows of the grids too
    assert len({fingerprint(system) for name, system in rows.items() if name not in shipped}) == len(rows) - 2
    rng = np.random.default_rng(0)
    scans = [rng.normal(size=(n, 3)).astype(np.float32) + (n % 2) for n in range(4, 16)]
    bags = padded(scans, [n % 2 for n in range(4, 16)])
    for name in ("shipped default", "SmAP as shipped", "mean, MLP", "instance mean"):
        parts = parts_of(rows[name], seed=0)
        network, course = fit(parts, bags, bags, seed=0)
        assert course[1] < course[0]
        again = fit(parts_of(rows[name], seed=0), bags, bags, seed=0)
        assert again[1] == course
        logits = network(bags.image, mask=bags.mask)
        alone = network(bags.image[:1, :, :4])
        torch.testing.assert_close(logits[:1], alone, atol=1e-5, rtol=1e-4)


def test_a_judge_counts_what_it_says() -> None:
    truth = Truth([np.array([0, 1, 1, 0]), np.array([0, 0, 0])])
    score = np.array([0.0, 2, 3, 1, 0, 0, 2.5])
    found = truth.values(score)
    assert found["slice AUC"] == pytest.approx(9 / 10)
    assert found["within scans"] == 1
    assert found["auroc_lesions_of_1_to_3"] == 1  # against the other slices of positive scans
    assert truth.gain([score], [score]).value == 0
    assert truth.f1(score > 1.5) == pytest.approx(2 * 2 / (3 + 2))


def test_smoothing_a_scan_leaves_the_others() -> None:
    found = smoothed(np.array([0.0, 1, 0, 5, 5]), [3, 2], 0.5)
    walk = np.array([[0, 1, 0], [0.5, 0, 0.5], [0, 1, 0]])
    np.testing.assert_allclose(found[:3], 0.5 * np.linalg.solve(np.eye(3) - 0.5 * walk, [0, 1, 0]), atol=1e-6)
    np.testing.assert_allclose(found[3:], 5, atol=1e-5)


@pytest.mark.slow
def test_heads_are_judged_on_scans_that_nobody_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made-up features under the names of the public tables, one feature telling the label of a slice."""
    rng = np.random.default_rng(0)
    for table, scans in (("ct_features/cq500/cq500_test_0", 40), ("ct_features/rsna_test/rsna_test_0", 12)):
        rows, order = [",".join([*data.FEATURES, "bag_label", "instance_name", "bag_name"])], []
        for scan in range(scans):
            for place in range(6):
                label = int(scan % 2 and place in (2, 3))
                features = [*rng.normal(size=7), 4 * label + 0.1 * rng.normal()]
                rows.append(",".join([*map(str, features), str(scan % 2), f"{scan}_{place}", f"scan_{scan}"]))
                order.append(f"{label},{scan}_{place},scan_{scan},{scan % 2},{place}")
        (tmp_path / table).parent.mkdir(parents=True)
        (tmp_path / f"{table}.csv").write_text("\n".join([rows[0], *reversed(rows[1:])] if "rsna" in table else rows))
    (tmp_path / "sa_mil" / "tables").mkdir(parents=True)
    head = "instance_label,instance_name,bag_name,bag_label,order"
    (tmp_path / "sa_mil" / "tables" / "testing_example.csv").write_text("\n".join([head, *order]))
    monkeypatch.setenv("SMOOTH_MIL_DATA", str(tmp_path))
    for cached in (data.cq500, data.rsna, data.sha256_of_run):
        cached.cache_clear()
    try:
        section = rsna.heads(Store(tmp_path / "kept"), 1, quick=True)
    finally:
        for cached in (data.cq500, data.rsna, data.sha256_of_run):
            cached.cache_clear()
    assert set(section.measured) == {
        *("height alone", "PC1 of the features", "supervised ceiling"),
        *("attention", "gated attention", "shipped default"),
    }
    assert section.measured["supervised ceiling"]["scores"]["instance"]["single"]["slice AUC"]["mean"] == 1
    own = section.measured["attention"]["scores"]["attention"]
    assert own["gain over the same score of attention"]["value"] == 0
    assert {target.what for target in section.targets} >= {"shipped default: slice AUC, single"}
    section.write(tmp_path / "results")
    assert "NaN" not in (tmp_path / "results" / "rsna.json").read_text()


def test_the_page_is_made_of_the_results_alone(tmp_path: Path) -> None:
    table = Table(["row", "slice AUC"], [["SmAP", "0.975"]])
    Section(
        "rsna",
        "Slices",
        "How.",
        False,
        {"torch": "2"},
        [Target("gain", 0.1, 0.0, at_least=True)],
        [table],
        {},
        "ledger",
    ).write(tmp_path)
    Section("speed", "Speed", "How.", False, {}).write(tmp_path)
    write_page(tmp_path, tmp_path / "results.md")
    page = (tmp_path / "results.md").read_text()
    assert "| SmAP | 0.975 |" in page
    assert "reached" in page
    assert "Speed" not in page
