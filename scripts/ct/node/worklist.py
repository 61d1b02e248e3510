# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Who should be looked at first: worklist.csv and worklist.html, the likeliest hemorrhage at the top."""

import csv
import html
import io
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from scripts.core.files import write_whole
from scripts.core.record import RESEARCH_USE
from scripts.ct.node.inbox import FAILED, REASON

COLUMNS = ("study", "probability", "called", "flagged", "slices", "warnings", "read")
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="10">
<title>Worklist</title><style>body{{font:15px sans-serif;margin:2em}}td,th{{padding:.3em .8em;text-align:left}}
tr.positive{{background:#fde0dd}}tr.failed{{background:#eee}}table{{border-collapse:collapse}}</style>
<h1>Worklist</h1><p>{note}. {count} studies, the likeliest first; those that cannot be read are below.</p>
<table><tr>{heads}</tr>
{rows}
</table></html>
"""


class Worklist:
    """Both files of one node.

    Args:
        home: folder of the node.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.known: dict[Path, tuple[int, dict[str, Any]]] = {}  # result.json → its time, its row

    def write(self) -> None:
        """Write both anew, each whole."""
        rows = self.rows()
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
        write_whole(self.home / "worklist.csv", text.getvalue())
        heads = "".join(f"<th>{name}</th>" for name in COLUMNS[:-1])
        page = PAGE.format(
            note=RESEARCH_USE.capitalize(), count=len(rows), heads=heads, rows="\n".join(map(_html, rows))
        )
        write_whole(self.home / "worklist.html", page)

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each study that was read, the likeliest first, then one for each that could not be."""
        rows = []
        for path in (self.home / "results").glob("*/result.json"):
            time = path.stat().st_mtime_ns
            if self.known.get(path, (0,))[0] != time:
                with suppress(ValueError, KeyError):  # damaged by somebody
                    self.known[path] = time, _row(json.loads(path.read_text()), time)
            if path in self.known:
                rows.append(self.known[path][1])
        rows.sort(key=lambda row: (-row["probability"], row["study"]))
        for path in sorted((self.home / FAILED).glob(f"*/{REASON}")):
            rows.append({"study": path.parent.name, "called": "failed", "warnings": path.read_text().strip()})
        return rows


def _row(told: dict[str, Any], time: int) -> dict[str, Any]:
    return {
        "study": told["bag_id"],
        "probability": told["probability"],
        "called": told["called"],
        "flagged": told["flagged"],
        "slices": len(told["instances"]),
        "warnings": "; ".join(told["about"].get("warnings", [])),
        "read": time // 10**9,
    }


def _html(row: dict[str, Any]) -> str:
    study = html.escape(row["study"])
    if row["called"] != "failed":
        row = {**row, "probability": f"{row['probability']:.3f}"}
        study = f'<a href="results/{study}/slices.png">{study}</a>'
    cells = [study, *(html.escape(str(row.get(name, ""))) for name in COLUMNS[1:-1])]
    return f'<tr class="{row["called"]}">' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
