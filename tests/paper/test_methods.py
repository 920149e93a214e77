"""scripts/study.py methods: the registries say what is run, and each choice is judged against its baseline."""

import pytest
from fake_runs import fake_run
from scripts_of_ours import script

from snn_repro.config import load_config
from snn_repro.errors import UserError
from snn_repro.files import write_json
from snn_repro.paper.results import group_runs, load
from snn_repro.registry import INITIAL_STATES, LOSSES, NEURONS, NORMS, SURROGATES
from studies import methods, names, study
from studies.methods_tuned import RESULTS

main = script("study").main


def test_every_choice_is_run_once_a_data_set():
    for dataset in methods.PARTS:
        cells = list(methods.cells(methods.part(dataset)))
        assert len(cells) == len(set(cells))
        chosen = {axis: {c for a, c in cells if a == axis} for axis in methods.axes()}
        base = {axis: methods.base_value(axis, methods.part(dataset)) for axis in chosen}
        everything = {"initial": INITIAL_STATES, "neuron": NEURONS, "norm": NORMS, "surrogate": SURROGATES}
        for axis, registry in everything.items():
            assert chosen[axis] == {*registry} - {base[axis]}, axis
        alone = {n for n in LOSSES if "teacher" not in LOSSES.own(n)}
        assert alone - {base["loss"]} <= chosen["loss"] and "distill" not in chosen["loss"]


def test_commands_compose_and_exchange_one_thing(capsys):
    assert main(["methods", "run", "fashion_mnist", "data_dir=/data", "--seeds", "5", "--print"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(methods.axes())
    for line in lines:
        words = line.split()[4:]
        assert "seed=0,1,2,3,4" in words and words[-1] == "hydra.sweep.dir=runs/methods"
        load_config([w.split(",")[0] for w in words if not w.startswith("hydra.")])


def run(folder, *words, seed, acc, **more):
    fake_run(folder / "runs" / "methods", "dataset=digits_dvs", "model=small", *words, "recipe.epochs=8", seed=seed, acc=acc, n_test=1000, folder="-".join([*words, str(seed)]), **more)  # fmt: skip


@pytest.fixture
def results(tmp_path):
    energy = {"energy": {"synops": 50_000.0, "macs": 1_000.0, "energy_pj": 49_600.0}}
    for seed, wobble in enumerate((0.0, 0.01, 0.02, 0.005)):
        base = 0.8 + wobble
        run(tmp_path, "neuron=lif", "loss=tet", seed=seed, acc=base, extra=energy)
        run(tmp_path, "neuron=lif_imp", "loss=tet", seed=seed, acc=base + 0.05 + 0.001 * (seed % 2))
        for state in ("half", "constant"):  # one network
            run(
                tmp_path, "neuron=lif", f"neuron.initial={state}", "loss=tet", seed=seed, acc=base + 0.02 * (-1) ** seed
            )
        run(
            tmp_path, "neuron=psn", "loss=tet", seed=seed, acc=base - 0.05 - 0.001 * (seed % 2), extra={"causal": False}
        )
        run(tmp_path, "neuron=lif", "loss=tks", "model.norm=tebn", seed=seed, acc=0.5)  # more than one thing
    run(tmp_path, "neuron=lif", "loss=tks", seed=0, acc=0.7)
    return tmp_path


def test_choices_are_known_and_judged(results):
    groups, _ = group_runs(load([results / "runs" / "methods"]))
    assert {methods.cell_of(g.first, methods.part("digits_dvs")) for g in groups} == {
        ("", "baseline"), ("initial", "imp"), ("initial", "half"), ("initial", "constant"), ("neuron", "psn"), ("loss", "tks"), None,
    }  # fmt: skip
    write_json(
        results / "runs" / "methods" / methods.MEASURED,
        {"digits_dvs": {"linear": 0.5, "steps": {"initial=imp": {"step_ratio": 1.25, "kept_mb": 3.0}}}},
    )
    assert main(["methods", "report", "--results", str(results)]) == 0
    text = (results / "methods.md").read_text()
    assert text.index("The design was fixed") < text.index("## digits_dvs") < text.index("### Initial state")
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    assert "**better**" in rows["imp"] and "1.25" in rows["imp"] and "3.00" in rows["imp"]
    assert "cannot be said (" in rows["constant"] and "| the network of constant |" in rows["half"]
    assert "**worse**" in rows["psn"] and "| no |" in rows["psn"] and rows["psn"].split("|")[4].strip() == ""
    assert rows["psn"].split("|")[8].strip() == "10"  # it takes all T inputs at once
    assert "baseline" in rows["zero"] and "50.00" in rows["zero"]
    assert "too few seeds" in rows["tks"] and rows["tks"].split("|")[3].strip() == "1"
    assert "Logistic regression on the same samples: 50.00 %" in text
    assert "Not run: initial=random" in text and "**imp_channel**: IMP with one value per channel." in text
    assert main(["methods", "report", "--check", "--results", str(results)]) == 0


def test_an_unknown_study_or_data_set_is_one_sentence(capsys, tmp_path):
    assert "methods" in names() and "small_scale" in names()
    with pytest.raises(UserError, match="no study.*did you mean 'methods'"):
        study("method")
    assert main(["methods", "run", "mnist", "--print"]) == 2
    assert main(["methods", "report", "--results", str(tmp_path)]) == 2
    assert main(["small_scale", "measure"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_a_step_is_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(methods, "PARTS", {"digits_dvs": methods.PARTS["digits_dvs"]})
    monkeypatch.setattr(methods, "cells", lambda p: [("", "baseline"), ("neuron", "clif"), ("loss", "rmp")])
    methods.measure(tmp_path, rounds=1, batch=4)
    found = methods.json.loads((tmp_path / "runs" / "methods" / methods.MEASURED).read_text())["digits_dvs"]
    steps = found["steps"]
    assert all(step["step_ratio"] > 0 for step in steps.values())
    assert steps["neuron=clif"]["kept_mb"] > steps["baseline"]["kept_mb"] > 0
    assert 0.8 < found["linear"] < 1


@pytest.mark.parametrize("name", sorted({path.stem for path in (RESULTS / "runs").glob("*.jsonl")} & {*names()}))
def test_the_committed_report_is_the_generated_one(name):
    assert main([name, "report", "--check"]) == 0
