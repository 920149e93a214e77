"""scripts/study.py initial_state: every state by every loss is run, compared with zero, and told apart from "no difference"."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_runs import fake_run
from scripts_of_ours import script

from snn_repro.config import load_config
from snn_repro.neurons import initial_states
from snn_repro.paper.results import group_runs, load
from snn_repro.paper.statistics import pairs_needed
from snn_repro.runs.sweeps import plan
from snn_repro.train import run
from snn_repro.trained import load_run
from studies import initial_state as study

main = script("study").main


def test_commands_compose_and_are_known_again(capsys):
    assert main(["initial_state", "run", "--print", "--seeds", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    states = [s for part in study.PARTS.values() for s in part.states]
    assert len(lines) == len(states)
    for line, state in zip(lines, states, strict=True):
        words = [w.strip("'") for w in line.split()[4:]]
        assert "seed=0,1" in words and words[-1] == f"hydra.sweep.dir={study.SWEEP_DIR}"
        config = load_config([w if "[" in w else w.split(",")[0] for w in words if not w.startswith("hydra.")])
        neuron = vars(config.neuron) | config.neuron.own
        assert study.state_of({"neuron": neuron}) == state


def test_a_dry_run_says_how_many_runs_and_hours(capsys, monkeypatch):
    study_script = script("study")
    monkeypatch.setattr(study_script, "hours_of_training", lambda config, say: (0.5, "cpu", 1.0))
    assert study_script.main(["initial_state", "depth", "--dry-run", "--seeds", "4"]) == 0
    assert "12 runs; ~6.0 hours" in capsys.readouterr().out


def write(folder, *words, seed, acc):
    fake_run(
        folder / "runs" / "initial_state", "dataset=fashion_mnist", "model=small", "recipe.epochs=6", *words, seed=seed, acc=acc,
        n_test=2000, folder="-".join([*words, str(seed)]), extra={"energy": {"synops": 4e5}},
    )  # fmt: skip


@pytest.fixture
def results(tmp_path):
    for seed in range(5):
        base = 0.8 + 0.004 * seed
        write(tmp_path, "neuron=if", "loss=lts", seed=seed, acc=base)
        write(tmp_path, "neuron=if_imp", "loss=lts", seed=seed, acc=base + 0.03 + 0.001 * (seed % 2))
        write(tmp_path, "neuron=if", "neuron.initial=constant", "loss=lts", seed=seed, acc=base + 0.0005 * (seed % 2))
        write(tmp_path, "neuron=if", "neuron.initial=random", "loss=lts", seed=seed, acc=base + 0.02 * (-1) ** seed)
        if seed < 3:
            write(tmp_path, "neuron=if", "neuron.initial=mp_init", "loss=lts", seed=seed, acc=base)
    return tmp_path


def test_a_difference_is_seen_excluded_or_cannot_be_told(results):
    groups, _ = group_runs(load([results / "runs" / "initial_state"]))
    judged = study.compare("static", study.PARTS["static"], study.cells(groups, "fashion_mnist"))
    to_zero = {(c.state, c.measure): c for c in judged if c.other == "zero"}
    kinds = {key: c.kind for key, c in to_zero.items()}
    assert kinds["imp", "readout"] == "more" and kinds["constant", "readout"] == "none"
    assert kinds["random", "readout"] == "unknown" and kinds["mp_init", "readout"] == "too few seeds"
    assert kinds["imp", "synops"] == "none"
    assert to_zero["random", "readout"].verdict.startswith("cannot be said (seen from ")
    seen = to_zero["imp", "readout"]
    assert seen.mean == pytest.approx(3.04) and seen.low < seen.mean < seen.high and seen.verdict == "**+**"


def test_a_verdict_that_the_first_seeds_do_not_give_is_exploratory(tmp_path):
    for seed in range(17):  # eight do not exclude half a point, 17 do; two points are excluded by eight
        write(tmp_path, "neuron=if", "loss=lts", seed=seed, acc=0.8)
        write(tmp_path, "neuron=if", "neuron.initial=constant", "loss=lts", seed=seed, acc=0.8 + 0.008 * (-1) ** seed)
    groups, _ = group_runs(load([tmp_path / "runs" / "initial_state"]))
    judged = study.compare("static", study.PARTS["static"], study.cells(groups, "fashion_mnist"))
    marks = {c.measure: (c.verdict, c.mark) for c in judged}
    assert marks["readout"] == ("none above 0.5 (exploratory)", "=†") and marks["first"] == ("none above 2", "=")


def test_the_report_says_all_of_it_and_draws_it(results, capsys):
    probe = dict(
        dataset="fashion_mnist", loss="lts", state="imp", exit=dict(threshold=0.9, steps=2.5, acc=0.83, acc_all=0.84, energy=1234.5, energy_all=4321.0),
        layers={"sn1": [0.1] * 21}, changed={"as learned": dict(acc=0.83, acc_step=[0.8, 0.83])},
        longer=dict(acc_step=[0.5] * 8, acc_readout=[0.25] * 8), code={},
    )  # fmt: skip
    found = dict(linear={"fashion_mnist": 0.84321}, networks=[probe | dict(seed=s) for s in range(2)])
    (results / "runs" / "initial_state" / study.MEASURED).write_text(json.dumps(found))
    assert main(["initial_state", "report", "--results", str(results)]) == 0
    text = (results / "initial_state.md").read_text()
    order = ("## Summary", "Fixed before any run", "## At a glance", "What holds, what", "## Static images\n\nF")
    assert sorted(order, key=text.index) == [*order]
    glance = text[text.index("## At a glance") : text.index("What holds")]
    assert "| lts | imp | +3.0 + |" in glance and "| lts | constant | +0.0 = |" in glance
    assert "| lts | random | +0.4 ? |" in glance and "| lts | mp_init | +0.0 seeds |" in glance
    line = next(row for row in text.splitlines() if row.startswith("| accuracy at the readout, points | zero |"))
    assert "| imp (LTS, +3.0) |" in line, "higher"
    assert "| constant (LTS, +0.0) | random (LTS, +0.4) | mp_init (LTS, +0.0) |" in line, "none, unknown, too few seeds"
    assert "- Accuracy at the readout, IMP (learned) against zero: higher with LTS (static)." in text
    assert all(said in text for said in ("- static, lts: imp_channel, imp_layer", "25.0 25.0", "as learned", "2.50"))
    assert "Logistic regression on the same samples: 84.32 %." in text
    seeds = text[text.index("## Seeds") :].splitlines()
    asked = "| static | lts | 2.25 | imp - random | 8 | 3 to 5 |"  # 1, 5.1, 1, 5.1, 1
    (row,) = [line for line in seeds if line.startswith(asked)]
    see = [f"{study.visible_effect(2.245535, n):.2f}" for n in (3, 8)]
    assert row.endswith(f" {see[0]} | {see[1]} | {pairs_needed(0.5, 2.2455, exclude=True)} |")
    more = "- static, lts: the 3 more seeds that the design asks for. Differences of the readout between"
    assert f"{more} {see[1]} and {see[0]} points" in text
    for name in study.FIGURES:
        assert (results / "figures" / f"{name}.svg").stat().st_size > 1000 and f"figures/{name}.svg" in text
    assert main(["initial_state", "report", "--check", "--results", str(results)]) == 0
    (results / "figures" / "initial_state_steps.svg").write_text("<svg/>")
    assert main(["initial_state", "report", "--check", "--results", str(results)]) == 1
    assert "initial_state_steps.svg" in capsys.readouterr().err


def test_a_finding_holds_in_both_networks_or_not():
    pairs = [("constant", "zero"), ("imp", "zero"), ("imp_frozen", "zero"), ("imp", "constant")]

    def judged(*means, n=8):  # at step 1; seen unless 0
        head = [("", "lts", *pair, "first", n) for pair in pairs]
        return [study.Comparison(*h, m, m - 1, m + 1, 1.0, 0.9 - 0.89 * (m > 0), 0.9) for h, m in zip(head, means)]  # noqa: B905

    lacking, no = "a part was not run", "not shown"
    for second, holds in (((5, 5, 5, 0), "yes"), ((5, 0, 5, 0), no), ((5, 5, 5, 3), no), ((5, 5, 5), lacking)):
        rows = study._both({"static": judged(9, 9, 9, 0), "network": judged(*second)}).rows
        assert {(row["loss"], row["holds"]) for row in rows} == {("lts", holds), ("sdt", lacking), ("tet", lacking)}
    rows = study._both({"static": judged(9, 9, 9, 0), "network": judged(5, 0, 5, 0, n=4)}).rows
    assert [row["holds"] for row in rows if row["loss"] == "lts"] == 4 * ["too few seeds"]


def test_the_cheapest_exit_keeps_accuracy_within_a_point():
    exits = [
        dict(threshold=0.5, acc=0.80, mean_steps=1.2, exits=[0.8, 0.2, 0, 0]),
        dict(threshold=0.7, acc=0.895, mean_steps=2.0, exits=[0.5, 0.25, 0, 0.25]),
        dict(threshold=0.9, acc=0.91, mean_steps=3.1, exits=[0, 0, 0.9, 0.1]),
        dict(threshold=None, acc=0.90, mean_steps=4.0, exits=[0, 0, 0, 1]),
    ]
    assert study.cheapest(exits) == dict(threshold=0.7, steps=2.0, exits=[0.5, 0.25, 0, 0.25], acc=0.895, acc_all=0.9)
    assert study.cheapest(exits[:1] + exits[3:])["threshold"] is None


def test_the_start_of_learned_potentials_is_drawn_again(tmp_path):
    words = "neuron=if_imp neuron.imp_trainable=false seed=3 recipe.epochs=1 debug.max_steps=2 logger.mode=disabled"
    run(load_config(words.split()), str(tmp_path))
    frozen = load_run(tmp_path)
    starts = study.starts_of(frozen)
    assert starts and all(torch.equal(p, starts[name]) for name, p in initial_states(frozen.model).items())


def test_trained_networks_are_probed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = ["recipe.epochs=1", "debug.max_steps=2", "logger.mode=disabled", "energy=true"]
    done = run(load_config(["neuron=if_imp", "loss=lts", *short]), f"{study.SWEEP_DIR}/a/seed0")
    plain = run(load_config(["neuron=if", "loss=lts", *short]), f"{study.SWEEP_DIR}/b/seed0")
    study.measure(tmp_path)
    found = json.loads((tmp_path / "runs" / "initial_state" / study.MEASURED).read_text())
    imp, zero = found["networks"]
    assert (imp["state"], zero["state"]) == ("imp", "zero") and "changed" not in zero
    assert imp["changed"]["as learned"]["acc"] == pytest.approx(done.acc_last, abs=1e-4)
    np.testing.assert_allclose(imp["changed"]["as learned"]["acc_step"], done.acc_step, atol=1e-4)
    np.testing.assert_allclose(imp["longer"]["acc_step"][:4], done.acc_step, atol=1e-4)
    assert len(imp["longer"]["acc_readout"]) == study.LONGEST
    assert imp["longer"]["acc_readout"][3] == pytest.approx(done.acc_last, abs=1e-4)
    for entry, result in ((imp, done), (zero, plain)):
        assert entry["exit"]["energy_all"] == pytest.approx(result.energy["energy_pj"] / 1e3, rel=0.2)  # other samples
        assert 0 < entry["exit"]["energy"] <= entry["exit"]["energy_all"] + 0.01
    assert set(imp["changed"]) >= {"shuffled in its layer", "mean of its layer", "back at its start", "zero"}
    assert all(len(v) == 21 and v == sorted(v) for v in imp["layers"].values()) and imp["exit"]["steps"] <= 4


def test_what_results_lack_can_be_run_alone(tmp_path, capsys):
    def asked():
        assert main(["initial_state", "depth", "--seeds", "3", "--missing", "--print", "--results", str(tmp_path)]) == 0
        return [line.split() for line in capsys.readouterr().out.splitlines()]

    before = asked()
    assert len(before) == 3
    jobs = [job for words in before for job in plan([w.strip("'") for w in words[4:]])]
    root = Path(study.SWEEP_DIR).absolute()
    some = [*jobs[:3], jobs[4]]  # layer 1 whole, of layer 2 the seed 1
    done = [job.folder.relative_to(root).as_posix() for job in some]
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "initial_state.jsonl").write_text("".join(f'{{"run": "{run}"}}\n' for run in done))
    left = asked()
    assert ["seed=0,2" in words for words in left] == [True, False] and left[1] == before[2]
    folders = {job.folder for words in left for job in plan([w.strip("'") for w in words[4:]])}
    assert folders == {job.folder for job in (jobs[3], *jobs[5:])}


def test_missing_data_are_said_once_before_any_sweep(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("a sweep was started"))
    assert main(["initial_state", "run", "static", "learning", f"data_dir={tmp_path / 'nowhere'}"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("fashion_mnist was not found in data_dir=") == 1 == err.count("\n")
