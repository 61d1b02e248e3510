# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The tables of peers, without the peers: what they are handed, and what becomes of their answers."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.ledger import cq500, data, peers, peers_run, torchmil_heads
from benchmarks.ledger.answers import Arrays
from benchmarks.ledger.cells import Cell, Store
from benchmarks.ledger.learning import Bags, Parts, fit
from benchmarks.ledger.rsna import BASELINE, RECIPE
from benchmarks.ledger.systems import pools
from benchmarks.ledger.torchmil_heads import HEADS
from scripts.core.errors import InputError


class Seen(Exception):  # noqa: N818  it is no error
    """What our own training was given."""


def scans(count: int, seed: int) -> data.Scans:
    """Scans of 3 to 7 slices, every other with bleeding in its middle, which the first feature tells."""
    rng = np.random.default_rng(seed)
    truth = [(np.arange(3 + k % 5) == 1).astype(int) * (k % 2) for k in range(count)]
    slices = [rng.normal(size=(len(own), 8)).astype(np.float32) for own in truth]
    for features, own in zip(slices, truth, strict=True):
        features[:, 0] += 9 * own
    return data.Scans([f"scan {k}" for k in range(count)], slices, np.array([own.max() for own in truth]), truth)


@pytest.fixture(autouse=True)
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "cq500", lambda run: scans(40, 0))
    monkeypatch.setattr(data, "rsna", lambda run: scans(12, 1))
    monkeypatch.setattr(data, "sha256_of_run", lambda run: "made up")


def handed(own: data.Scans, training: np.ndarray, validation: np.ndarray, asked: np.ndarray) -> Arrays:
    return peers_run.handed(own.slices, own.labels, training, validation, asked, 2, 0)


def bag(bags: Bags, number: int) -> np.ndarray:
    """Its instances, [N, D]."""
    return bags.image[number][:, bags.mask[number, 0] > 0].T.numpy()


def test_peers_are_handed_the_folds_and_the_order_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def caught(parts: Parts, training: Bags, validation: Bags, seed: int, watch: object) -> None:
        raise Seen(training, validation, seed)

    monkeypatch.setattr(cq500, "fit", caught)
    monkeypatch.setattr(peers_run, "ask", lambda peer, seed, question: {**question, "seed": np.array(seed)})
    (cell,) = peers.rsna_cells([], 1)[f"ours: {BASELINE}",][3:4]
    with pytest.raises(Seen) as seen:
        cell.arrays()
    training, validation, seed = seen.value.args

    shown = list[np.ndarray]()

    class Watcher(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, image: Tensor, coords: Tensor, mask: Tensor) -> Tensor:
            if self.training:
                shown.extend(bag(Bags(image, coords, mask, mask), number) for number in range(len(image)))
            return self.weight * image[:, :1, 0]

    network = Watcher()
    made = Parts(network, nn.BCEWithLogitsLoss(), torch.optim.SGD(network.parameters()), torchmil_heads.BATCH, 2)
    fit(made, training, validation, seed)

    (theirs,) = peers.rsna_cells(["ABMIL"], 2)["ABMIL",][3:4]
    question = theirs.arrays()
    assert question["seed"] == seed
    bags = np.split(question["instances"], np.cumsum(question["counts"])[:-1])
    for own, number in zip(shown, question["order"].ravel(), strict=True):
        np.testing.assert_array_equal(own, bags[number])
    np.testing.assert_array_equal(validation.label[:, 0], question["label"][question["validation"]])
    for place, number in enumerate(question["validation"]):
        np.testing.assert_array_equal(bag(validation, place), bags[number])
    for own, number in zip(data.rsna("0").slices, question["asked"], strict=True):
        np.testing.assert_array_equal(own, bags[number])


def test_peers_are_trained_by_the_recipe_of_ours() -> None:
    recipe = pools(RECIPE)[BASELINE].parser()
    assert recipe["max_epochs"] == peers.EPOCHS
    assert recipe["batch_size"] == torchmil_heads.BATCH
    assert recipe["learning_rate"] == torchmil_heads.LEARNING_RATE
    assert recipe["weight_decay"] == torchmil_heads.WEIGHT_DECAY
    assert recipe["network_def#encoder#out_features"] == torchmil_heads.WIDTH
    assert set(peers.REMARKS) <= set(HEADS)


def test_bags_of_one_length_go_together_and_none_is_lost() -> None:
    own = scans(11, 0)
    bags, which = torchmil_heads.Bags(handed(own, *[np.arange(11)] * 3)), np.array([9, 3, 1, 4, 0, 8])
    pieces = list(bags.pieces(which, 2))
    assert sorted(np.concatenate(pieces)) == sorted(which)
    for piece in pieces:
        assert len(piece) <= 2
        np.testing.assert_array_equal(bags.image(piece), np.stack([own.slices[number] for number in piece]))


def test_a_head_that_raises_is_a_row_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(cell: Cell) -> Arrays:
        if cell.options.get("peer") == "ABMIL, gated" and cell.options.get("fold", 1) == 1:
            return {"failed": np.array("RuntimeError: 2 is not 3")}
        rsna = cell.function == "on_rsna" or cell.module == "cq500"
        bags = data.rsna("0").slices if rsna else list(np.zeros((400, 32, 8)))
        score = np.concatenate(bags)[:, 0]
        return {"logit": np.array([own[:, 0].max() for own in bags])} | dict.fromkeys(
            ("score", "instance") if cell.module == "peers_run" else ("attention", "instance"), score
        )

    monkeypatch.setattr(Cell, "arrays", answer)
    monkeypatch.setattr(peers.environment, "build", lambda: None)
    monkeypatch.setattr(Store, "complete", lambda self, cells, jobs, title: [self.do(cell) for cell in cells])
    section = peers.peers(Store(tmp_path / "kept"), 1, quick=True)
    rsna, chains, _ = section.tables
    failed = [row for row in rsna.rows if row[0] == "ABMIL, gated"]
    assert [row[1] for row in failed] == ["failed: RuntimeError: 2 is not 3 (1 of 5 trainings)"]
    assert ["ABMIL", "its own", "1.000 ± 0.000", "1.000 ± 0.000"] in [list(row[:4]) for row in rsna.rows]
    assert ["ABMIL, gated", "failed: RuntimeError: 2 is not 3 (1 of 1 trainings)"] in [*map(list, chains.rows)]
    section.write(tmp_path)
    assert "failed: RuntimeError" in (tmp_path / "peers.json").read_text()


def test_an_environment_that_does_not_work_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "Traceback\nNo module named torch\n")

    monkeypatch.setattr(subprocess, "run", ended)
    with pytest.raises(InputError, match=r"ended with 1 .*\(No module named torch\): remove \.venv-peers"):
        peers_run.ask("ABMIL", 0, {"counts": np.array([1])})


class First(nn.Module):
    """A head of the peers' kind that goes by the first feature."""

    def __init__(self, in_shape: tuple[int], feat_ext: nn.Module) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def predict(self, X: Tensor, return_inst_pred: bool = False) -> Any:  # noqa: N803  torchmil's name
        scores = self.weight * X[..., 0]
        logits = scores.max(dim=1).values
        return (logits, scores) if return_inst_pred else logits

    def compute_loss(self, Y: Tensor, X: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:  # noqa: N803
        assert mask.shape == X.shape[:2]
        logits = self.predict(X)
        return logits, {"loss": nn.functional.binary_cross_entropy_with_logits(logits, Y)}


class Broken(First):
    def compute_loss(self, Y: Tensor, X: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:  # noqa: N803
        raise ValueError("2 is not 3\nnor 4")


def answered(model: type[First], folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Arrays, Arrays]:
    """What the peers' side is asked and answers, with a model in place of torchmil's ABMIL."""
    monkeypatch.setitem(sys.modules, "torchmil", SimpleNamespace(models=SimpleNamespace(ABMIL=model)))
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    own = scans(20, 0)
    question = handed(own, np.arange(10), np.arange(10, 14), np.array([19, 3, 14, 16]))
    np.savez(folder / "question.npz", allow_pickle=False, **question)
    torchmil_heads.main("ABMIL", "0", str(folder / "question.npz"), str(folder / "answer.npz"))
    with np.load(folder / "answer.npz") as file:
        return question, dict(file)


def test_answers_are_in_the_order_of_the_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    question, answer = answered(First, tmp_path, monkeypatch)
    asked = [scans(20, 0).slices[number][:, 0] for number in question["asked"]]
    weight = answer["score"][0] / asked[0][0]
    np.testing.assert_allclose(answer["score"], weight * np.concatenate(asked), rtol=1e-5)
    np.testing.assert_allclose(answer["instance"], weight * np.concatenate(asked), rtol=1e-5)
    np.testing.assert_allclose(answer["logit"], [weight * own.max() for own in asked], rtol=1e-5)
    assert answer["course"][1] < answer["course"][0]


def test_what_torchmil_raises_is_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, answer = answered(Broken, tmp_path, monkeypatch)
    assert {key: str(each) for key, each in answer.items()} == {"failed": "ValueError: 2 is not 3"}
