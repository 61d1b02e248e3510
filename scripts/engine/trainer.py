# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The trainer of both bundles, by whichever MONAI is installed."""

from inspect import signature
from typing import Any

import monai
from monai.engines import SupervisedTrainer

from scripts.core.errors import InputError


def trainer(accumulation_steps: int = 1, **arguments: Any) -> SupervisedTrainer:
    """Return MONAI's SupervisedTrainer, which adds up the gradients of several batches since its 1.6.

    Args:
        accumulation_steps: batches to a step of the optimizer.
        arguments: all others of the SupervisedTrainer.
    """
    if "accumulation_steps" in signature(SupervisedTrainer).parameters:
        arguments["accumulation_steps"] = accumulation_steps
    elif accumulation_steps != 1:
        raise InputError(
            f"accumulation_steps is {accumulation_steps}, and MONAI {monai.__version__} adds up no gradients: "
            "install MONAI 1.6, or give 1"
        )
    return SupervisedTrainer(**arguments)
