"""scripts/study.py anytime: fronts are judged against the zero state, and failures of the guarantee are counted."""

import numpy as np
import pytest
from fake_runs import fake_run
from scripts_of_ours import script

from snn_repro.config import load_config
from snn_repro.errors import UserError
from snn_repro.trained.anytime import RULES
from studies import anytime as study

main = script("study").main
NAMES = [f"{rule}, {scores}" for scores in ("mean", "readout") for rule in RULES]
GAINS = {"zero": (0, 0), "constant": (5, 5), "imp": (5, 0), "mp_init": (-5, -5)}  # points at step 1 and later


def test_commands_compose_seed_by_seed(capsys):
    assert main(["anytime", "run", "events", "--print", "--seeds", "3"]) == 0
    words = capsys.readouterr().out.split()[4:]
    assert words.index("seed=0,1,2") < words.index("neuron.initial=zero,constant,imp,mp_init")
    load_config([w.split(",")[0] for w in words if not w.startswith("hydra.")])
    assert main(["anytime", "run", "event", "--print"]) == 2


def planted(results):
    """Write runs of the static part with made-up curves."""
    steps, there = np.linspace(1, 4, 101), {}
    for state, (first, later) in GAINS.items():
        for seed in range(4):
            words = ("dataset=fashion_mnist", "model=small", "neuron=if", f"neuron.initial={state}", "loss=tet")
            folder = f"{state}{seed}"
            run = fake_run(results / "runs" / "anytime", *words, seed=seed, folder=folder, n_test=1000)
            acc = (
                500
                + 60 * steps
                + 10 * np.where(steps == 1, first, later)
                + np.random.default_rng([seed, len(state)]).normal()
            )
            there[run["config_hash"]] = dict(
                name=NAMES, right=np.tile(acc.round(), (6, 1)), steps=np.tile(1000 * steps, (6, 1)), n=1000,
                operations=np.tile(1e6 * steps, (6, 1)), threshold=np.full(6, 0.5),
                lost=np.array([0.02 * (seed < 3), *[0.005] * 5]),
            )  # fmt: skip
    study._write(results / "runs" / study.CURVES, there)
    script("make_tables").collect([results / "runs" / "anytime"], results / "runs", "anytime")


@pytest.fixture
def results(tmp_path):
    planted(tmp_path)
    return tmp_path


def test_planted_fronts_are_judged(results):
    judged = study.judge(study.cells(results), "static", "tet")
    assert {state: study.conclusion(verdicts) for state, verdicts in judged.items()} == {
        "constant": "moves the front", "imp": "only step 1", "mp_init": "lowers the front",
    }  # fmt: skip
    assert [v.found.mean for v in judged["imp"]][:2] == pytest.approx([5, 0], abs=0.3)
    text = study.report(results)["anytime.md"]
    assert "- **moves the front**: constant with TET (static)" in text
    assert "| confidence, mean | 12 of 16 | 12 of 16 | 25.00 | fails |" in text
    assert "| entropy, readout | 0 of 16 | 0 of 16 | 100.00 | holds |" in text
    assert "| 2.50 | 2.50 | 4.00 |" in text  # steps, and thousand operations with and without early exit


def test_runs_without_curves_are_refused(results):
    (results / "runs" / study.CURVES).unlink()
    with pytest.raises(UserError, match="no run with curves; use `study.py anytime run`"):
        study.report(results)
