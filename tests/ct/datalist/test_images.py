# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
import pytest

from scripts.core.errors import InputError
from scripts.ct.datalist.images import Cohort, Scan


def scan(number: int, label: int = 0, sops: str = "") -> Scan:
    return Scan(f"s{number}", label, f"s{number}", 30, f"patient {number}", tuple(sops))


def test_copies_of_a_scan_are_rejected_and_refused_where_their_labels_differ() -> None:
    cohort = Cohort([scan(2, 1, "bx"), scan(1, 1, "abc"), scan(3, 1, "x"), scan(4)])
    cohort.drop_copies()
    assert [scan.bag_id for scan in cohort.scans] == ["s1", "s3", "s4"]
    assert cohort.rejected.as_json() == {"copy of another scan's slices": {"count": 1, "examples": ["s2 (of s1)"]}}
    with pytest.raises(InputError, match=r"^s1 and s2 hold the same slices and have two labels: "):
        Cohort([scan(2, 0, "b"), scan(1, 1, "ab")]).drop_copies()
