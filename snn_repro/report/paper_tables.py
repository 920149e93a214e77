"""The paper's numbers, ours beside, and the gain over runs of the same recipe. An empty cell: nothing ran."""

from functools import cache

from snn_repro.paper.differences import debug_keys
from snn_repro.paper.rows import PaperRow, load_rows
from snn_repro.paper.tables import TITLES, paper_table, runs_table
from snn_repro.registry import SECTIONS
from snn_repro.report._page import NothingToShow, Section, table
from snn_repro.report._read import Found

TITLE = "The paper's tables"
ORDER = 4


@cache
def _rows() -> list[PaperRow]:  # half a second, which a page that is made again need not wait for
    return list(load_rows())


@SECTIONS.register("paper_tables")
def content(found: Found) -> Section:
    groups = found.groups
    if not groups:
        raise NothingToShow("no run is finished")
    cut = [g.label for row in found.rows if (g := row.group) and debug_keys(g.first)]
    left_out = [f"left out, cut short by a debug key: {', '.join(cut)}"] if cut else []
    rows = _rows()
    tables = []
    for number in TITLES:
        lines = [row for row in rows if row.table == number]
        ours = {g.first["paper_row"] for g in groups} & {row.id for row in lines}
        made = paper_table(number, lines, groups)
        made.title += f" (ours in {len(ours)} of {len(lines)} rows)"
        tables.append(table(made, opened=bool(ours)))
    if any(g.first["paper_row"] is None for g in groups):
        tables.append(table(runs_table(groups, left_out), opened=len(groups) <= 20))
    return Section(html="".join(tables))
