# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""What every test runs under."""

import logging
import sys
from collections.abc import Iterator

import pytest
import torch

torch.set_num_threads(1)  # the tests themselves run on every core


@pytest.fixture
def restored() -> Iterator[None]:
    """What one_line_errors changes in the process is put back."""
    hook, factory = sys.excepthook, logging.getLogRecordFactory()
    yield
    sys.excepthook = hook
    logging.setLogRecordFactory(factory)
