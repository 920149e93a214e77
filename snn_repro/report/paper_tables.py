"""The paper's numbers, ours beside, and the gain over runs of the same recipe. An empty cell: nothing ran."""

from snn_repro.paper.differences import debug_keys
from snn_repro.paper.rows import load_rows
from snn_repro.paper.studies import methods
from snn_repro.paper.tables import TITLES, paper_table, runs_table
from snn_repro.report._page import NothingToShow, Section, table
from snn_repro.report._read import Found

TITLE = "The paper's tables"
ORDER = 4


def content(found: Found) -> Section:
    groups = found.groups
    if not groups:
        raise NothingToShow("no run is finished")
    cut = [g.label for row in found.rows if (g := row.group) and debug_keys(g.first)]
    left_out = [f"left out, cut short by a debug key: {', '.join(cut)}"] if cut else []
    rows = load_rows()
    tables = []
    for number in TITLES:
        lines = [row for row in rows if row.table == number]
        ours = any(g.first["paper_row"] == row.id for g in groups for row in lines)
        tables.append(table(paper_table(number, lines, groups), opened=ours))
    if any(g.first["paper_row"] is None for g in groups):
        tables.append(table(runs_table(groups, left_out), opened=len(groups) <= 20))
    studies = [root.parent for root in found.paths if root.name == "runs" and (root / "methods").is_dir()]
    return Section(html="".join(tables + [table(t) for results in studies for t in methods.tables(results)]))
