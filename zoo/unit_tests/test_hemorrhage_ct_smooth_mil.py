# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0

import unittest

import smooth_mil_cases as cases


class TestHemorrhageCT(cases.OnOneProcess, cases.HeadCTCase):
    pass


if __name__ == "__main__":
    unittest.main()
