# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""A forked command is as one in a new python, and one that hangs is no command that failed."""

import subprocess
from pathlib import Path

import pytest

from tests.bundle import forked
from tests.bundle.commands import environment


def test_mlflow_is_imported_with_its_telemetry_off_and_the_command_has_its_own_environment(tmp_path: Path) -> None:
    (tmp_path / "asks.py").write_text(
        "import os\nfrom pathlib import Path\n"
        "server = Path(f'/proc/{os.getppid()}/environ').read_text().split(chr(0))\n"
        "name = 'MLFLOW_DISABLE_TELEMETRY'\n"
        "print(f'{name}=true' in server, name in os.environ, os.environ['GIVEN'])\n"
    )
    given = {name: value for name, value in environment().items() if name != "MLFLOW_DISABLE_TELEMETRY"}
    (ended,) = forked.run_forked(["asks"], tmp_path, {**given, "GIVEN": "7"})
    assert (ended.returncode, ended.stdout) == (0, "True False 7\n"), ended.stderr


def test_a_command_that_hangs_is_killed_and_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hangs.py").write_text(
        "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(600 * (os.environ.get('RANK') != '1'))\n"
    )
    monkeypatch.setattr(forked, "LONGEST", 10.0)
    with pytest.raises(subprocess.TimeoutExpired) as raised:
        forked.run_forked(["hangs"], tmp_path, environment(), ranks=2)
    assert not Path(f"/proc/{int(raised.value.output)}").exists()
