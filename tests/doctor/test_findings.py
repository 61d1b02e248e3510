# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
import pytest

from scripts.doctor.findings import SHOWN_ILL, SHOWN_WELL, Finding, Level, folded, print_findings


def well(count: int, growth: int = 1) -> list[Finding]:
    return [Finding(Level.PASS, "fine", name=f"s{n}", size=20 + growth * n) for n in range(count)]


def test_few_scans_that_pass_have_a_line_each_and_many_one() -> None:
    assert list(map(str, folded(well(SHOWN_WELL)))) == [f"PASS  s{n}: fine" for n in range(SHOWN_WELL)]
    assert list(folded(well(212))) == [Finding(Level.PASS, "212 scans of 20 to 231 slices")]
    alike = folded(well(12, growth=0), "slides", "patches")
    assert list(alike) == [Finding(Level.PASS, "12 slides of 20 patches")]


def test_the_same_trouble_is_reported_of_some() -> None:
    gaps = [Finding(Level.WARN, f"a gap of {n}.5 mm in s{n}", "look", f"s{n}") for n in range(9)]
    others = [Finding(Level.FAIL, "no images", "give some", "t"), Finding(Level.WARN, "no images", "x", "u")]
    assert list(map(str, folded([*gaps, *others, *well(1)]))) == [
        "PASS  s0: fine",
        "FAIL  t: no images: give some",
        *(f"WARN  s{n}: a gap of {n}.5 mm in s{n}: look" for n in range(SHOWN_ILL)),
        "WARN  4 more scans like s4",
        "WARN  u: no images: x",
    ]


def test_findings_are_printed_with_their_count(capsys: pytest.CaptureFixture[str]) -> None:
    findings = [Finding(Level.PASS, "a"), Finding(Level.WARN, "b", "c"), Finding(Level.INFO, "d")]
    assert print_findings(findings)
    assert capsys.readouterr().out == "PASS  a\nWARN  b: c\nINFO  d\n1 PASS, 1 WARN, 0 FAIL\n"
    assert not print_findings([*findings, Finding(Level.FAIL, "e")])
    assert capsys.readouterr().out.endswith("\n1 PASS, 1 WARN, 1 FAIL\n")
