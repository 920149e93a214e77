"""One inference: accumulations that spikes drive (synaptic operations), multiply-accumulates, and the energy that the field
estimates from them (45 nm, 32 bit: 0.9 and 4.6 pJ). Measured where a run had energy=true."""

from statistics import fmean
from typing import Any

from snn_repro.paper.formats import Column, Table
from snn_repro.registry import SECTIONS
from snn_repro.report._page import Chart, NothingToShow, Section, table
from snn_repro.report._read import Found

TITLE = "Energy and operations"
ORDER = 7


@SECTIONS.register("energy")
def content(found: Found) -> Section:
    against: dict[int, list[dict[str, Any]]] = {}
    layers: dict[str, dict[int, list[dict[str, Any]]]] = {"synops": {}, "macs": {}}
    lines = []
    for row in found.rows:
        measured = [run.result for run in row.runs if run.result and run.result.get("energy")]
        if not measured:
            continue
        reports: list[dict[str, Any]] = [r["energy"] for r in measured]
        first = reports[0]

        def mean(key: str, reports: list[dict[str, Any]] = reports) -> float:
            return fmean(report[key] for report in reports)

        energy = [report["energy_pj"] / 1e6 for report in reports]
        against[row.id] = [{"x": energy, "y": [100 * r["acc_last"] for r in measured], "mode": "markers"}]
        for kind, traces in layers.items():
            counts = {name: fmean(r["layers"].get(name, {}).get(kind, 0) for r in reports) for name in first["layers"]}
            traces[row.id] = [{"x": list(counts), "y": list(counts.values()), "type": "bar"}]
        lines.append(dict(
            row=row.label, n=len(reports), synops=f"{mean('synops'):,.0f}", macs=f"{mean('macs'):,.0f}", energy=mean("energy_pj") / 1e6,
            memory=mean("with_memory_pj") / 1e6, imp=f"{first['imp']['bytes']:,}",
        ))  # fmt: skip
    if not lines:
        raise NothingToShow("no run was measured; energy=true on a finished run adds it")
    columns = [
        Column("row", "row"), Column("n", "seeds", "number"), Column("synops", "synaptic operations", "number"),
        Column("macs", "multiply-accumulates", "number"), Column("energy", "energy µJ", "number"),
        Column("memory", "with memory and neurons µJ", "number"), Column("imp", "IMP bytes", "number"),
    ]  # fmt: skip
    charts = [
        Chart("accuracy against energy", "energy of an inference µJ", "test accuracy %", against),
        Chart("synaptic operations by layer", "layer", "accumulations a sample", layers["synops"]),
        Chart("multiply-accumulates by layer", "layer", "multiply-accumulates a sample", layers["macs"]),
    ]
    return Section(charts, table(Table("Operations of one inference, by row", columns, lines)))
