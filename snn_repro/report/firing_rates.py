"""Spikes a neuron and time step over the test part, last epoch, mean over seeds. ✕ marks dead layers (below 0.001), ▲ saturated
ones (above 0.9 of what a neuron can emit): neither tells inputs apart."""

from statistics import fmean

from snn_repro.registry import SECTIONS
from snn_repro.report._page import Chart, NothingToShow, Section, text
from snn_repro.report._read import Found, Row

TITLE = "Firing rates by layer"
ORDER = 5

DEAD, SATURATED = 0.001, 0.9
SIGNS = {"dead": "x", "saturated": "triangle-up"}


@SECTIONS.register("firing_rates")
def content(found: Found) -> Section:
    traces, said = {}, []
    for row in found.rows:
        if not (rates := _rates(row)):
            continue
        state = [_state(rate, row.config["neuron"].get("max_count") or 1) for rate in rates.values()]
        signs = [SIGNS.get(word) for word in state]
        traces[row.id] = [{"x": list(rates), "y": list(rates.values()), "mode": "lines+markers", "mark": signs}]
        for word in SIGNS:
            if named := [f"{k} ({rates[k]:.2g})" for k, s in zip(rates, state, strict=True) if s == word]:
                said.append(f"{row.label}: {word} {', '.join(named)}")
    if not traces:
        raise NothingToShow("no run recorded firing rates")
    charts = [Chart("firing rate", "layer", "spikes a neuron and step", traces)]
    return Section(charts, text(said or ["no layer is dead or saturated"]))


def _rates(row: Row) -> dict[str, float]:
    runs = [run.measured.get("firing_rates") or {} for run in row.counted]
    if not runs or any(rates.keys() != runs[0].keys() for rates in runs):
        return {}
    return {layer: fmean(rates[layer] for rates in runs) for layer in runs[0]}


def _state(rate: float, most: int) -> str:
    return "dead" if rate < DEAD else "saturated" if rate > SATURATED * most else ""
