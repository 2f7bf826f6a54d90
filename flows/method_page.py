"""The page docs/methods.md: its tables of methods that can be chosen by name are written from those of `diffusion_core`.

`python -m flows.method_page` rewrites them; the rest of the page is written by hand. A table lies between `<!-- NAME -->` and
`<!-- end -->`, with a name of `diffusion_core.method_tables.TABLES`.
"""

from __future__ import annotations

import re
from pathlib import Path

from diffusion_core import method_tables
from tasks.common import files

PAGE = Path(__file__).resolve().parents[1] / "docs/methods.md"
HEAD = ("| method | made by | reference |", "|---|---|---|")
TABLE = re.compile(r"<!-- (\w+) -->\n.*?<!-- end -->", re.DOTALL)


def current(text: str) -> str:
    """The page with its tables as they are now. Raises KeyError if it names a table that does not exist."""

    def table(match: re.Match[str]) -> str:
        rows = [f"| {' | '.join(cells)} |" for cells in method_tables.rows(match[1])]
        return "\n".join((f"<!-- {match[1]} -->", *HEAD, *rows, "<!-- end -->"))

    return TABLE.sub(table, text)


def tables(text: str) -> dict[str, list[list[str]]]:
    """The tables of a Markdown page: heading above the table -> rows of cells, the header row first."""
    found: dict[str, list[list[str]]] = {}
    title = ""
    for line in text.splitlines():
        if line.startswith("#"):
            title = line.lstrip("# ")
        elif line.startswith("|") and not re.match(r"[|\s:-]+$", line):
            cells = [cell.strip().replace("`", "") for cell in line.strip("|").split(" | ")]
            rows = found.setdefault(title, [])
            if cells not in rows:  # a heading with two tables has one header row
                rows.append(cells)
    return found


if __name__ == "__main__":
    files.write_bytes(PAGE, current(PAGE.read_text(encoding="utf-8")).encode())
