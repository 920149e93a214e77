"""Every method alone in one recipe, against the same baseline: results/methods.md as far as its runs are among these."""

from snn_repro.registry import SECTIONS
from snn_repro.report import Found, NothingToShow, Section
from snn_repro.report._page import table
from studies import methods

TITLE = "Methods alone"
ORDER = 4.5


@SECTIONS.register("methods")
def content(found: Found) -> Section:
    studies = [root.parent for root in found.paths if root.name == "runs" and (root / "methods").is_dir()]
    if not studies:
        raise NothingToShow("no run of this study is under these folders; name the folder results/runs")
    return Section(html="".join(table(t) for results in studies for t in methods.tables(results)))
