# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""One trainer, whether or not the MONAI that is installed adds up gradients; tests/bundle runs an older one."""

from typing import Any

import pytest
import torch
from monai.engines import SupervisedTrainer
from torch import nn

from scripts.core.errors import InputError
from scripts.engine.trainer import trainer


def arguments() -> dict[str, Any]:
    network = nn.Linear(1, 1)
    return {
        "device": torch.device("cpu"),
        "max_epochs": 1,
        "train_data_loader": [],
        "network": network,
        "optimizer": torch.optim.SGD(network.parameters(), 0.1),
        "loss_function": nn.MSELoss(),
    }


class Older:
    """A trainer that knows as many arguments as MONAI's did before 1.6."""

    def __init__(self, device: Any, max_epochs: int, train_data_loader: Any, network: Any, **others: Any) -> None:
        self.others = others


def test_it_is_monais_own_with_all_that_was_given() -> None:
    made = trainer(accumulation_steps=3, **arguments())
    assert type(made) is SupervisedTrainer
    assert (made.accumulation_steps, made.state.max_epochs) == (3, 1)


def test_an_older_monai_is_asked_for_no_accumulation_and_the_want_of_one_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("scripts.engine.trainer.SupervisedTrainer", Older)
    made: Any = trainer(accumulation_steps=1, **arguments())
    assert "accumulation_steps" not in made.others
    with pytest.raises(InputError, match=r"accumulation_steps is 4, and MONAI .* install MONAI 1\.6, or give 1"):
        trainer(accumulation_steps=4, **arguments())
