# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.ledger import __main__ as ledger
from benchmarks.ledger import abmil, cells, cq500, data, figure, ilse, images, madeup, phe_sich, rsna
from benchmarks.ledger.answers import LAST_EPOCHS, Epochs, alike, answers, deletions, scores_of
from benchmarks.ledger.cells import Cell, Store
from benchmarks.ledger.judge import Truth, less_faithful, spelled
from benchmarks.ledger.learning import Bags, Parts, System, fingerprint, fit, options_of, padded, parts_of
from benchmarks.ledger.page import write_page
from benchmarks.ledger.systems import abmil_heads, losses, on_features, pools, smooth_pools
from benchmarks.report import Section, Table, Target

RECIPE = {"in_features": 3, "max_epochs": 2}


@pytest.mark.parametrize(("kind", "extent"), [("chains", 1), ("chains", 3), ("chains", 32), ("lattices", 2)])
def test_the_best_possible_answer_is_bayes_rule_spelled_out(kind: str, extent: int) -> None:
    places = madeup.PLACES[kind](extent)
    bags = madeup.cohort(places, 4, seed=0)
    found = np.exp(madeup.bayes(bags, places)).reshape(4, -1)
    d = madeup.delta(places)
    for instances, posterior in zip(bags.instances, found, strict=True):
        x = instances[:, 0].astype(float)
        healthy = np.exp(-0.5 * x**2).prod()
        with_lesion = [np.exp(-0.5 * (x - d * lesion) ** 2).prod() / len(places.covers) for lesion in places.covers]
        for place in range(len(x)):
            here = sum(p for lesion, p in zip(places.covers, with_lesion, strict=True) if lesion[place])
            assert posterior[place] == pytest.approx(here / (healthy + sum(with_lesion)), rel=1e-6)


def test_lesions_are_squares_of_a_lattice_anywhere_on_it() -> None:
    places = madeup.lattice(3)
    assert len(places.covers) == (madeup.SIDE - 2) ** 2
    for lesion in places.covers:
        rows, columns = places.coords[:, lesion].astype(int)
        assert lesion.sum() == len(set(rows)) * len(set(columns)) == 9
        assert np.ptp(rows) == np.ptp(columns) == 2
    assert places.covers.any(axis=0).all()


def test_the_key_of_an_experiment_changes_with_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = tmp_path / "transforms.py"
    code.write_text("one")
    monkeypatch.setitem(cells.BESIDES, "images", [code])
    cells.sources.cache_clear()
    first, other = Cell("images", "train").key, Cell("cq500", "train").key
    code.write_text("two")
    cells.sources.cache_clear()
    assert Cell("images", "train").key != first
    assert Cell("cq500", "train").key == other  # which does not run it
    assert Cell("cq500", "train", {"fold": 1}).key != Cell("cq500", "train", {"fold": 2}).key
    cells.sources.cache_clear()


def test_the_key_of_images_changes_with_how_they_are_prepared() -> None:
    system = System("ct", (), {})
    windows = system._replace(keys={"preprocessing#transforms#3#windows": [[40, 80]]})
    assert fingerprint(system) == fingerprint(windows)
    assert fingerprint(system, images.PREPARED_BY) != fingerprint(windows, images.PREPARED_BY)


@pytest.mark.parametrize("part", ["rsna", "images", "classical", "digits"])
def test_data_that_are_not_there_are_told(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SMOOTH_MIL_DATA", str(tmp_path))
    data.sha256_of_run.cache_clear()
    monkeypatch.setattr("sys.argv", ["ledger", part, "--quick", "--into", str(tmp_path), "--kept", str(tmp_path)])
    assert ledger.main() == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path}")
    assert "benchmarks/README.md says which files" in error


def test_a_training_whose_loss_is_not_finite_is_no_result() -> None:
    parts = parts_of(pools(RECIPE)["mean"], seed=0)
    bags = padded([np.full([3, 3], np.nan, np.float32)] * 4, [0, 1, 0, 1])
    with pytest.raises(FloatingPointError, match="the validation loss of epoch 1 is nan"):
        fit(parts, bags, bags, seed=0)


def test_folds_share_no_scan() -> None:
    cohort = data.Scans([str(n) for n in range(60)], [np.zeros([2, 8])] * 60, np.arange(60) % 2, [])
    held_out = []
    for fold in range(cq500.FOLDS):
        parts = cq500.dealt(cohort, fold)
        together = np.concatenate(parts)
        assert sorted(together) == list(range(60))
        held_out += parts[2].tolist()
    assert sorted(held_out) == list(range(60))


@pytest.mark.slow
def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    code = (
        "import os, time\n"
        "from benchmarks.ledger.cells import end_with_parent\n"
        "parent = os.getpid()\n"
        "if os.fork() == 0:\n"
        "    end_with_parent(parent)\n"
        f"    open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        "    time.sleep(60)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    pid = tmp_path / "pid"
    wait_until(lambda: pid.exists() and bool(pid.read_text()))
    parent.kill()
    parent.wait()
    wait_until(lambda: not Path(f"/proc/{pid.read_text()}").exists() or "Z" in state_of(pid.read_text()))


def state_of(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


def wait_until(holds: Callable[[], bool]) -> None:
    for _ in range(300):
        if holds():
            return
        time.sleep(0.1)
    raise AssertionError("it did not come in 30 seconds")


@pytest.mark.slow
def test_what_is_done_is_not_done_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    system = on_features({**RECIPE, "in_features": madeup.DIMENSIONS}, "attention.json")
    options = {**options_of(system), "kind": "chains", "extent": 4, "seed": 0}
    cell, store = Cell("madeup", "train", options), Store(tmp_path)
    store.complete([cell, cell], 1, "chains")
    first = store.path(cell).read_bytes()
    beside = store.path(cell)
    (beside.parent / f".{beside.name}.999999999.part").write_bytes(b"half")  # as a run that was killed leaves it
    store.complete([cell], 1, "chains")
    assert "1 experiments, 0 to do" in capsys.readouterr().out
    again = cell.arrays()
    store.keep(cell, again)
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
    mean = truth.mean_auroc([score, -score])
    assert mean(np.ones(2)) == mean(np.ones(2)) == pytest.approx(0.5)
    assert truth.gain(truth.mean_auroc([score]), mean).value == pytest.approx(9 / 10 - 0.5)
    assert truth.f1(score > 1.5) == pytest.approx(2 * 2 / (3 + 2))


def test_smoothing_a_scan_leaves_the_others() -> None:
    bags = padded([np.zeros([n, 1], np.float32) for n in (3, 2)], [1, 0])
    found = scores_of({"instance": np.array([0.0, 1, 0, 5, 5])}, bags)["instance, Sm 0.5"]
    walk = np.array([[0, 1, 0], [0.5, 0, 0.5], [0, 1, 0]])
    np.testing.assert_allclose(found[:3], 0.5 * np.linalg.solve(np.eye(3) - 0.5 * walk, [0, 1, 0]), atol=1e-6)
    np.testing.assert_allclose(found[3:], 5, atol=1e-5)


def test_what_an_answer_rests_on_is_told_from_what_it_does_not() -> None:
    """Of a mean of instances the evidence is the order of deletion itself, and its opposite the worst there is."""
    rng = np.random.default_rng(0)
    bags = padded([rng.normal(size=(n, 3)).astype(np.float32) + 1 for n in (20, 12)], [1, 1])
    network = parts_of(pools(RECIPE)["mean"], seed=0).network
    answered = answers(network, bags)
    answered["logit"] = np.array([1.0, -1.0])  # the second is called negative: not asked about
    right = deletions(network, bags, answered)
    wrong = deletions(network, bags, {**answered, "evidence": -answered["evidence"]})
    assert right["deletion of evidence"][0] < right["deletion of random"][0] < wrong["deletion of evidence"][0]
    assert np.isnan(right["deletion of evidence"][1])
    assert less_faithful([right["deletion of evidence"]]).value == right["deletion of evidence"][0]


def test_scores_that_rank_alike_are_steady() -> None:
    one = np.array([1.0, 2, 3, 7, 8])
    assert alike(one, one**3, [3, 2]) == pytest.approx(1)
    assert alike(one, np.array([1.0, 2, 3, 8, 7]), [3, 2]) == pytest.approx(0)
    assert np.isnan(alike(one, np.zeros(5), [3, 2]))
    bags = padded([np.ones([3, 2], np.float32)], [1])
    epochs = Epochs(bags)
    network = parts_of(pools({**RECIPE, "in_features": 2})["instance mean"], seed=0).network
    for _ in range(LAST_EPOCHS + 3):
        epochs.watch(network)
    assert len(epochs.last) == LAST_EPOCHS + 1


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (None, "–"),
        ({"value": 0.5, "low": np.nan, "high": np.nan}, "0.500"),
        ({"value": 0.5, "low": 0.4, "high": 0.6}, "0.500 [0.400, 0.600]"),
        ({"mean": 0.5, "sd": np.nan}, "0.500"),
        ({"mean": 0.5, "sd": 0.1}, "0.500 ± 0.100"),
        ({"mean": np.nan, "sd": np.nan}, "–"),
    ],
)
def test_a_figure_is_spelled_with_what_is_known_of_it(found: dict[str, float] | None, text: str) -> None:
    assert spelled(found) == text


@pytest.fixture
def made_up_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ten scans of noise, with a bright square where they bleed, under the names of the public files."""
    rng, folder = np.random.default_rng(0), tmp_path / "ct_images"
    folder.mkdir()
    image = rng.integers(60, 100, size=(60, 32, 32), dtype=np.uint8)
    image[:, 0, 0] = np.repeat(np.arange(10) * 10, 6)  # tells the scan
    label = np.tile([0, 0, 0, 1, 1, 0], 10)
    image[label == 1, 8:24, 8:24] += 120
    scan = np.repeat([f"{n:04}" for n in range(10)], 6)
    np.savez(folder / "phe_sich.npz", image=image, label=label, scan=scan, order=np.tile(np.arange(6), 10))
    windows = [
        {"scan": f"{n:04}", "start": start, "slices": 3, "label": label, "height": 0.5, "pair": n, "fold": n % 5}
        for n in range(10)
        for start, label in ((0, 0), (2, 1))
    ]
    (folder / "matched_windows.json").write_text(json.dumps(windows))
    monkeypatch.setenv("SMOOTH_MIL_DATA", str(tmp_path))
    images.cohort.cache_clear()
    yield
    images.cohort.cache_clear()


def brightness(bags: Bags) -> set[float]:
    """The grey of the first pixel, which tells the scan of a bag: in the brain window 0 is 0 and 1 is 255."""
    return {float(np.round(grey * 255)) for grey in bags.image[:, 0, 0, 0, 0].tolist()}


@pytest.mark.slow
@pytest.mark.usefixtures("made_up_images")
def test_images_are_judged_on_patients_that_nobody_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which slices bleed is found from the labels of bags, and no scan of the judged fold is trained on."""
    keys = {
        "image_size": 32,
        "channels": [8, 8],
        "batch_norm_momentum": 0.5,
        "max_epochs": 12,
        "batch_size": 4,
        "learning_rate": 0.01,
        "network_def#encoder#dropout_after": [],
    }
    rows = {"gated attention": System("ct", ("attention.json",), keys)}
    monkeypatch.setattr(phe_sich, "image_heads", lambda: rows)
    shown = []

    def watched(made: Parts, training: Bags, validation: Bags, seed: int) -> tuple[torch.nn.Module, list[float]]:
        shown.append((brightness(training), brightness(validation)))
        return fit(made, training, validation, seed)

    monkeypatch.setattr(images, "fit", watched)
    options = options_of(rows["gated attention"])
    answered = [images.train(**options, data_sha256="", fold=fold) for fold in range(images.FOLDS)]
    known = images.cohort()
    by_fold = [{known.scans[name][:, 0, 0].mean() for name in known.scans_of_fold(fold)} for fold in range(5)]
    for fold, (training, validation) in enumerate(shown):
        assert validation == by_fold[(fold + 1) % 5]
        assert training == set().union(*(by_fold[k] for k in range(5) if k not in (fold, (fold + 1) % 5)))
    judge = phe_sich.Judge(known, images.FOLDS, answered)
    found = judge.row(answered)
    assert found["scores"]["instance"]["slice AUC"]["value"] > 0.9
    assert found["scores"]["instance"]["gain over the same score"]["value"] == 0
    assert found["bag AUC"]["value"] > 0.9
    own = [answered[0]["instance"][6 * k : 6 * k + 6] for k in range(2)]  # the scans of a fold, one after the other
    by_hand = Truth([known.truth[name] for name in known.scans_of_fold(0)]).values(np.concatenate(own))
    assert judge.truth[0].values(answered[0]["instance"]) == by_hand


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
        *("height alone", "PC1 of the features", "supervised, logistic"),
        *("attention", "gated attention", "shipped default"),
    }
    assert section.measured["supervised, logistic"]["scores"]["instance"]["single"]["slice AUC"]["mean"] == 1
    own = section.measured["attention"]["scores"]["attention"]
    assert own["gain over the same score of attention"]["value"] == 0
    assert {target.what for target in section.targets} >= {"shipped default: slice AUC, single"}
    section.write(tmp_path / "results")
    assert "NaN" not in (tmp_path / "results" / "rsna.json").read_text()


@pytest.fixture
def small_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty bags of three numbers, the last of which tells the label of one instance; digits that are bright or not."""
    rng = np.random.default_rng(0)
    bag = np.repeat(np.arange(1, 41), 3)
    x = rng.normal(size=(120, 166)).astype(np.float32)
    x[::6, :8] += 6  # the first instance of every other bag
    label = np.tile([1, -1], 20)
    (tmp_path / "mil_benchmarks").mkdir()
    np.savez(tmp_path / "mil_benchmarks" / "musk1.npz", X=x, bag=bag, y_bag=label, bag_ids=np.arange(1, 41))
    digit = np.tile(np.arange(10), 20)
    image = rng.integers(0, 60, size=(200, 28, 28), dtype=np.uint8)
    image[digit == abmil.NINE, 6:22, 6:22] = 250
    (tmp_path / "mnist").mkdir()
    np.savez(tmp_path / "mnist" / "mnist.npz", x_train=image, y_train=digit, x_test=image, y_test=digit)
    monkeypatch.setenv("SMOOTH_MIL_DATA", str(tmp_path))


@pytest.mark.slow
@pytest.mark.usefixtures("small_sets")
def test_small_bags_are_learned_from_and_judged_on_the_fold_left_out() -> None:
    bags = abmil.classical_bags("musk1")
    assert bags.label[:, 0].tolist() == [1, 0] * 20
    system = ilse.classical_heads("musk1", 30)["attention"]
    system = system._replace(keys={**system.keys, "optimizer": {**system.keys["optimizer"], "lr": 0.002}})
    found = [abmil.classical(**options_of(system), data_sha256="", name="musk1", repeat=0, fold=k) for k in range(3)]
    held_out = np.concatenate([own["held_out"] for own in found])
    assert len(set(held_out)) == len(held_out) == 12
    assert np.mean([((own["logit"] > 0) == own["label"]).mean() for own in found]) > 0.8


@pytest.mark.slow
@pytest.mark.usefixtures("small_sets")
def test_nines_are_found_in_bags_whose_label_says_that_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(abmil, "MNIST_BAGS", {"training": 40, "validation": 10, "test": 50})
    monkeypatch.setattr(abmil, "VALIDATED_FROM", 100)
    bags, nines = abmil.digit_bags("test", 10, seed=0)
    assert [int(own.any()) for own in nines] == bags.label[:, 0].tolist() == [0, 1] * 25
    optimizer = {"_target_": "torch.optim.Adam", "params": "$@network.parameters()", "lr": 1e-3}
    system = abmil_heads(ilse.LENET, 500, {"optimizer": optimizer, "max_epochs": 3})["gated attention"]
    found = abmil.digits(**options_of(system), data_sha256="", size=10, seed=0)
    assert ilse._auc_of_digits(found, "instance") > 0.95


def test_the_picture_of_the_same_figures_is_the_same_file(tmp_path: Path) -> None:
    one = {"single": {"slice AUC": {"mean": 0.9, "sd": 0.01}}}
    measured = {
        "height alone": {"models": 0, "scores": {"height": one}},
        "SmAP": {"models": 3, "scan AUC": {"mean": 0.97, "sd": 0.01}, "scores": {"attention": one, "instance": one}},
    }
    for name in ("one.svg", "two.svg"):
        figure.draw(measured, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert "height of a slice alone" in (tmp_path / "one.svg").read_text()


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
