"""Initial membrane potentials as they were learned, one box a layer: the quartiles, and from the 5th to the 95th percentile. From
the last checkpoint of one seed."""

from snn_repro.registry import SECTIONS
from snn_repro.report._networks import trained
from snn_repro.report._page import Chart, NothingToShow, Section, text
from snn_repro.report._read import Found, Row

TITLE = "Learned IMP"
ORDER = 6


def _learns(row: Row) -> bool:
    """Whether there may be such potentials: a run under way does not say how many it has."""
    if row.group:
        return row.group.first["params_imp"] > 0
    neuron = row.config["neuron"]
    return bool(neuron.get("imp")) or neuron.get("initial", "zero") != "zero"


@SECTIONS.register("learned_imp")
def content(found: Found) -> Section:
    traces, notes = {}, []
    for row, run, network in trained(found, _learns):
        if isinstance(network, str):
            notes.append(network)
            continue
        import numpy as np

        from snn_repro.neurons import initial_states

        found_there = initial_states(network.model).items()
        imps = {name.rpartition(".")[0] or name: p.detach().double().numpy() for name, p in found_there}
        if not imps:
            continue
        points = [np.percentile(values, (5, 25, 50, 75, 95)).tolist() for values in imps.values()]
        low, q1, median, q3, high = map(list, zip(*points, strict=True))
        traces[row.id] = [dict(
            type="box", x=list(imps), lowerfence=low, q1=q1, median=median, q3=q3, upperfence=high,
            mean=[float(values.mean()) for values in imps.values()],
        )]  # fmt: skip
        sizes = ", ".join(f"{name} {'×'.join(map(str, values.shape))}" for name, values in imps.items())
        began = run.config["neuron"].get("imp_init")
        drawn = f"; drawn from {began[0]} to {began[1]} at the start" if began else ""
        notes.append(f"{row.label}, seed {run.seed}: {sizes}{drawn}")
    if not traces:
        raise NothingToShow("; ".join(notes) or "no run with a checkpoint has such potentials")
    return Section([Chart("learned IMP", "layer", "initial potential", traces)], text(notes))
