# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Multiple instance learning on large medical images: head CT in `ct`, whole slides in `wsi`, on what both share."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """Tell where the first step of a 0.4.0 config is now; nothing else of it would run before that."""
    if name == "running":
        from scripts.core.errors import InputError
        from scripts.engine.launch import one_line_errors
        from scripts.engine.moved import moved_line

        one_line_errors()
        raise InputError(moved_line("scripts.running.prepare_run"))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
