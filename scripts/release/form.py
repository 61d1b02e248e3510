# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Code in the form that the model zoo's isort and black leave as it is."""

import logging

ZOO_LINE = 120

logger = logging.getLogger(__name__)


def in_zoo_form(texts: dict[str, str]) -> dict[str, str]:
    """Return Python files, path → text, sorted and formatted; as they are where isort or black is not installed."""
    try:
        import black
        import isort
    except ImportError:
        logger.warning("isort and black are not installed: the code is not brought into the form of the model zoo")
        return texts
    # in the zoo our package is nobody's own: its imports stand among those of others
    order = isort.Config(profile="black", line_length=ZOO_LINE, known_first_party=frozenset({"models"}), src_paths=())
    versions = {black.TargetVersion.PY37, black.TargetVersion.PY38, black.TargetVersion.PY39}
    mode = black.Mode(line_length=ZOO_LINE, target_versions=versions)
    return {path: black.format_str(isort.code(text, config=order), mode=mode) for path, text in texts.items()}
