"""scripts/study.py methods_tuned: the validation part chooses each learning rate, and final runs at that rate are judged."""

import numpy as np
import pytest
from fake_runs import fake_run
from scripts_of_ours import script

from snn_repro.config import load_config
from snn_repro.train import run
from snn_repro.trained.evaluate import anytime_run
from studies import methods
from studies import methods_tuned as study

main, collect = script("study").main, script("make_tables").collect
CHOICES = {study.BASELINE: (), ("neuron", "if"): ("neuron=if",), ("neuron", "psn"): ("neuron=psn",)}


def tuned_runs(results, runs):
    """Three choices on events, tuned and run: IF is best, and PSN ties."""
    part, rng = study.PARTS["events"], np.random.default_rng(0)

    def fake(own, lr, seed, acc, final, **more):
        words = f"dataset=fashion_mnist_dvs neuron=lif loss=tet model=small timesteps=5 recipe.lr={lr}".split()
        fake_run(runs, *words, *own, seed=seed, acc=acc, n_test=1000, folder="-".join([*own, lr, str(seed)]), extra={"n_val": 0 if final else 80}, **more)  # fmt: skip

    for cell, own in CHOICES.items():
        for lr, seed in ((lr, seed) for lr in part.rates() for seed in study.TUNING_SEEDS):
            val = 0.9 - 0.1 * (lr != ("0.015" if own else "0.005")) + 0.04 * (seed - 100)
            fake(own, lr, seed, 0.99, False, val_acc=val)
        for seed in range(8):
            fake(own, "0.015" if own else "0.005", seed, 0.7 + 0.1 * (cell[1] == "if") + 0.002 * rng.integers(5), True)
            fake(own, "0.00167", seed, 0.2, True)  # not the chosen rate: not judged
    collect([runs], results / "runs", study.NAME)


def test_rates_are_chosen_and_final_runs_judged(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, "RESULTS", tmp_path)
    with pytest.raises(study.UserError, match="events is not tuned"):
        next(study.commands(["events"], 2))
    tuned_runs(tmp_path, tmp_path / "runs_here")
    there = study.collected(tmp_path)
    assert study.chosen_rates("events", there) == dict(zip(CHOICES, ("0.005", "0.015", "0.015"), strict=True))
    words = list(study.commands(["events"], 2))
    assert ["seed=0" in w for w in words] == [True, True, False, False] and "neuron=if,psn" in words[1]
    seeds, judged = study.judge(study.final("events", there), {})
    assert seeds == list(range(8)) and {c: v.word for c, v in judged["readout"].items()}["neuron", "if"] == "better"
    assert main(["methods_tuned", "report", "--results", str(tmp_path)]) == 0
    text = (tmp_path / "methods_tuned.md").read_text()
    assert "**readout**: better: neuron=if; worse: none" in text and "| if | 3* |" in text and "Tuned: 3 of 41" in text


def test_the_area_is_that_of_snn_eval(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    part = study.Part("digits", methods.Part("if", "tet", (), ""), (), 2, (("initial", "imp"),))
    monkeypatch.setattr(study, "PARTS", {"static": part})
    run(load_config(["neuron=if", "loss=tet", "dataset.validation=0", "recipe.epochs=1", "logger.mode=disabled"]), f"{study.SWEEP_DIR}/a/seed0")  # fmt: skip
    study.measure(tmp_path)
    areas, steps = (study._read(tmp_path / "runs/methods_tuned" / f) for f in ("areas.json", "steps.json"))
    rule = anytime_run(tmp_path / study.SWEEP_DIR / "a/seed0")["rules"][3]
    assert (rule["rule"], rule["scores"]) == ("confidence", "readout") and [*areas.values()] == [rule["area_steps"]]
    assert steps["static"]["steps"].keys() == {"baseline", "initial=imp"} and 0.8 < steps["static"]["linear"] < 1
