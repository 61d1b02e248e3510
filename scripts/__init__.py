# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Multiple instance learning on large medical images: head CT in `ct`, whole slides in `wsi`, on what both share."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Say where the first step of a 0.4.0 config is now; nothing else of it would run before that."""
    if name == "running":
        from scripts.core.cli import one_line_errors
        from scripts.engine.launch import refuse_moved

        one_line_errors()
        refuse_moved({"_target_": "scripts.running.prepare_run"})
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
