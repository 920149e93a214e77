"""The numbers behind the figures against reference values, and drawings that come out the same every time."""

import json
import re
from itertools import product
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from fake_runs import fake_run
from scripts_of_ours import script
from test_anytime_study import planted
from test_methods_tuned import tuned_runs

from snn_repro.paper.figures import accuracy_steps, render, seeds
from snn_repro.paper.results import group_runs, load
from snn_repro.provenance import code_version
from snn_repro.registry import FIGURES
from snn_repro.runs import checkpoint
from studies import figures, initial_state
from studies.figures import convergence, firing_pattern, learned_imp, pattern_mapping

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "figures.json").read_text())
RESULTS = Path(__file__).parents[2] / "results"
GRIDS = dict(zip(("imp0", "imp0.25", "learnable"), pattern_mapping.MAPPINGS.values(), strict=True))


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_golden_firing_pattern(precision):
    panels = firing_pattern.panels(getattr(torch, precision))
    for i, panel in enumerate(panels, 1):
        fired = [np.nonzero(column)[0].tolist() for column in panel["spikes"].T]
        assert fired == GOLDEN["firing_pattern"][f"panel{i}_{precision}"]
        if precision == "float32":
            np.testing.assert_allclose(panel["v"][-1], GOLDEN["firing_pattern"][f"panel{i}_v_last"], atol=1e-6)


@pytest.mark.parametrize("name", GRIDS)
def test_golden_pattern_mapping(name):
    golden = GOLDEN["pattern_mapping"]["ge"][name]
    reached = pattern_mapping.reached(*GRIDS[name])
    assert [np.nonzero(reached[:, i])[0].tolist() for i in range(16)] == golden["reached"]
    assert reached.sum() == golden["cells"] and reached.sum() / 16 == golden["mean"]
    assert pattern_mapping.reached(*GRIDS[name], fire_at="gt").sum() == GOLDEN["pattern_mapping"]["gt_cells"][name]


def test_a_trained_network_is_mapped_with_its_own_neuron():
    neuron = dict(name="if", reset="soft", v_threshold=1.0, tau=2.0, retain=0.25)
    run = dict(neuron=neuron, layers=[dict(percentiles=[0.25]), dict(percentiles=[0.0])])
    both = [pattern_mapping.reached([v], pattern_mapping.WEIGHTS) for v in (0.0, 0.25)]
    np.testing.assert_array_equal(pattern_mapping.trained(run, "ge"), both[0] | both[1])
    for family in ("lif", "leaky"):  # each of their inputs can make a spike, as it can for an IF neuron
        reached = pattern_mapping.trained(dict(run, neuron=dict(neuron, name=family)), "ge")
        assert reached[1:, 1:].any(0).all()
    whole, leaky = (
        pattern_mapping.trained(dict(run, neuron=dict(neuron, **own)), "ge")
        for own in (dict(name="lif", decay_input=False), dict(name="leaky", retain=0.5))
    )
    np.testing.assert_array_equal(whole, leaky)


def test_convergence_curves_start_alike_and_fall():
    curves = {loss: convergence.train(2, loss, epochs=61, samples=64) for loss in convergence.LOSSES}
    for curve in curves.values():
        assert curve["values"][0] == pytest.approx(np.log(16), abs=1e-3) and len(curve["values"]) == 13
        assert curve["last"] < 2.7 and len(curve["acc_step"]) == 2
    assert curves["sdt"]["values"][0] == curves["lts"]["values"][0]  # no spike has reached the output yet
    assert curves["tet"] == convergence.train(2, "tet", epochs=61, samples=64)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A results folder with small made-up data for every figure, all of them drawn."""
    tmp_path = tmp_path_factory.mktemp("figures")
    folder = tmp_path / "results"
    silent = dict(code=None)  # as results were before they said by which code
    for loss, neuron, seed in product(("sdt", "tet", "lts"), ("if", "if_imp"), range(2)):
        fake_run(folder / "runs", f"loss={loss}", f"neuron={neuron}", seed=seed, acc=0.8 + 0.05 * seed, extra=silent)
    fake_run(folder / "runs", "dataset=digits_dvs", "neuron=lif", "loss=tet_s", extra=silent)
    for words in (["neuron=if"], ["neuron=if_imp"], ["neuron.initial=constant", "neuron=if"]):
        for seed in range(2):
            fake_run(
                folder / "runs" / "initial_state", "dataset=fashion_mnist", *words, "loss=lts", seed=seed, acc=0.7 + 0.1 * seed,
                folder=f"{words[0]}{seed}",
            )  # fmt: skip
    probe = dict(dataset="fashion_mnist", loss="lts", state="imp", seed=0, layers={"sn1": [0.1 * k for k in range(21)]})
    found = json.dumps({"linear": {}, "networks": [probe]})
    (folder / "runs" / "initial_state" / initial_state.MEASURED).write_text(found)
    planted(folder)
    tuned_runs(folder, tmp_path / "tuned")
    run = tmp_path / "trained"
    fake_run(run, "dataset=digits_dvs", "neuron=lif_imp", "loss=tet_s", folder=".", extra=silent)
    state = {"sn1.imp": torch.linspace(0.3, 0.8, 72).view(2, 6, 6), "fc.weight": torch.zeros(2, 2)}
    checkpoint.save(run, {"model": state})
    (folder / "figures").mkdir()
    learned_imp.measure(folder / "figures" / "learned_imp.json", [run])
    both = product(convergence.TIMESTEPS, convergence.LOSSES)
    curves = [dict(timesteps=t, loss=loss, every=5, values=[2.8, 1.0 / t, 0.1]) for t, loss in both]
    figures.write_data(folder / "figures" / "convergence.json", dict(command="made up", curves=curves))
    (folder / "benchmarks").mkdir()
    took, both = dict(seconds_without=1.0, seconds_with=1.01), product((2, 8), (256, 4096))
    rows = [dict(took, timesteps=t, neurons=n, seconds_without_again=0.98 + t / 100) for t, n in both]
    report = dict(machine={"processor": "a CPU"}, rounds=21, imp_overhead=rows)
    (folder / "benchmarks" / "cpu.json").write_text(json.dumps(report))
    assert script("make_figures").main(["--results", str(folder)]) == 0
    return folder


@pytest.mark.parametrize("name", figures.names())
def test_every_figure_draws_the_same_bytes_again_and_says_its_n(results, name, monkeypatch):
    svg, pdf = ((results / "figures" / f"{name}.{form}").read_bytes() for form in ("svg", "pdf"))
    drawn = []
    with matplotlib.rc_context({"font.size": 30, "svg.hashsalt": None}):  # a user's own settings change nothing
        draw = FIGURES[name]
        monkeypatch.setitem(FIGURES, name, lambda at: drawn.append(draw(at)) or drawn[0])
        files = render(name, results)
    assert [*files.values()] == [svg, pdf]
    assert re.search(r"\bn(, by panel:| =) [\d,]+", texts(drawn[0]))
    assert svg.startswith(b"<?xml") and pdf.startswith(b"%PDF") and b"CreationDate" not in pdf
    assert not re.search(r"20\d\d-\d\d|<dc:date|/home|/tmp", text := svg.decode())
    sizes = [float(size) for size in re.findall(r"(?:font: |font-size: )([\d.]+)px", text)]
    assert 'width="396pt"' in text and min(sizes) >= 7  # 5.5 inches, not scaled in a paper
    (source,) = re.findall(r"<dc:description>(.*?)</dc:description>", text)
    readme = (results / "figures" / "README.md").read_text()
    assert f"## {name}" in readme and f"Made from {source}." in readme and "version of the numbers: " in source
    if name == "first_page":
        hashes = {r["recipe_hash"][:8] for r in load([results / "runs" / "initial_state"])}
        assert source.startswith(f"runs: {', '.join(sorted(hashes))}; ")


def test_numbers_of_seeds_say_whose_they_are():
    assert seeds([("SDT", 8), ("TET", 8)]) == "n = 8"
    assert seeds([("SDT", 8), ("TET-S", 5), ("TET", 8)]) == "n = 8 (SDT, TET), 5 (TET-S)"


def texts(figure) -> str:
    titles = [axes.get_title(at) for axes in figure.axes for at in ("left", "center")]
    return "\n".join([*titles, figure.get_supxlabel()])


def test_figures_say_that_their_numbers_are_older(results, tmp_path):
    for name in ("accuracy_steps", "learned_imp", "convergence", "pattern_mapping"):
        assert "older numbers" in texts(figures.figure(name).draw(results)), name
    fake_run(tmp_path, extra=dict(code=code_version()))
    figure = accuracy_steps.draw_groups(group_runs(load([tmp_path]))[0])
    assert "older numbers" not in texts(figure)


def test_missing_or_damaged_data_are_said_and_the_rest_is_drawn(results, tmp_path, capsys):
    program = script("make_figures")
    (tmp_path / "benchmarks").mkdir()
    assert program.main(["--results", str(tmp_path)]) == 0
    err = capsys.readouterr().err
    assert "imp_overhead skipped" in err and "scripts/benchmark.py" in err and "measure=convergence" in err
    drawn = {p.stem for p in (tmp_path / "figures").glob("*.svg")}
    assert drawn == {"firing_pattern", "pattern_mapping"}
    assert "imp_overhead" not in (tmp_path / "figures" / "README.md").read_text()
    assert program.main(["--results", str(tmp_path), "figure=imp_overhead"]) == 2
    for damaged in ("figures/convergence.json", "benchmarks/bad.json"):
        (tmp_path / damaged).write_text("{")
    (tmp_path / "benchmarks" / "cpu.json").write_text((results / "benchmarks" / "cpu.json").read_text())
    (missing,) = figures.make(["convergence", "imp_overhead"], tmp_path)
    assert "convergence.json is damaged" in missing and (tmp_path / "figures" / "imp_overhead.svg").exists()
    assert f"skipped: {tmp_path / 'benchmarks' / 'bad.json'}" in capsys.readouterr().err


WRONG = {
    "figure=conv": "did you mean 'convergence'", "measure=imp": "measure=imp is unknown", "figures=all": "did you mean 'figure'",
    "measure=learned_imp": "needs run=DIR", "measure=learned_imp run=/nowhere": "/nowhere does not exist",
}  # fmt: skip


@pytest.mark.parametrize("words, said", WRONG.items())
def test_wrong_words_are_one_sentence(tmp_path, capsys, words, said):
    assert script("make_figures").main([*words.split(), "--results", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert said in err and len(err.splitlines()) == 1


def test_learned_imp_keeps_its_distribution(results):
    data = json.loads((results / "figures" / "learned_imp.json").read_text())
    (layer,) = data["runs"][0]["layers"]
    assert layer["layer"] == "sn1" and layer["shape"] == [2, 6, 6] and sum(layer["histogram"]["counts"]) == 72
    assert layer["percentiles"][0] == 0.3 and layer["percentiles"][100] == 0.8 and layer["mean"] == pytest.approx(0.55)


def test_committed_figures_are_the_generated_ones():
    made_with = re.search(r"matplotlib (\d[\w.]*);", (RESULTS / "figures" / "README.md").read_text()).group(1)
    if made_with != matplotlib.__version__:
        pytest.skip(f"committed figures were drawn by matplotlib {made_with}, here is {matplotlib.__version__}")
    assert [*figures.stale(figures.names(), RESULTS)] == []


@pytest.mark.parametrize("steps", convergence.TIMESTEPS)
def test_committed_convergence_follows_the_published_curves(steps):
    curves = json.loads((RESULTS / "figures" / "convergence.json").read_text())["curves"]
    for loss, published in GOLDEN["convergence"]["published"][str(steps)].items():
        (curve,) = [c for c in curves if c["timesteps"] == steps and c["loss"] == loss]
        for level, epoch in published.items():
            ours = curve["first_at_most"][level]
            if ours is None:  # not within the epochs: only where the published curve arrives close to their end
                assert curve["last"] < 1.5 * float(level), (loss, level)
                ours = max(epoch, curve["epochs"])
            assert ours == pytest.approx(epoch, rel=0.2), (loss, level)
