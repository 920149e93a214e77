"""The section of the report that the study of methods adds."""

from snn_repro.report import Found, NothingToShow, Section, register_section, table
from studies import methods


@register_section("methods", "Methods alone", 4.5)
def content(found: Found) -> Section:
    """Every method exchanged alone in one recipe, against the same baseline: the tables of results/methods.md."""
    studies = [root.parent for root in found.paths if root.name == "runs" and (root / "methods").is_dir()]
    if not studies:
        raise NothingToShow("no run of this study is under these folders; name the folder results/runs")
    return Section(html="".join(table(t) for results in studies for t in methods.tables(results)))
