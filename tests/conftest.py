# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""What every test runs under."""

import torch

torch.set_num_threads(1)  # the tests themselves run on every core
