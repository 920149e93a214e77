"""scripts/study.py initial_state: every state by every loss is run, compared with zero, and told apart from "no difference"."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_runs import fake_run
from scripts_of_ours import script

from snn_repro.config import load_config
from snn_repro.errors import UserError
from snn_repro.neurons import initial_states
from snn_repro.paper.results import group_runs, load
from snn_repro.paper.statistics import pairs_needed, visible_effect
from snn_repro.registry import INITIAL_STATES
from snn_repro.runs.sweeps import plan
from snn_repro.train import run
from snn_repro.trained import load_run
from studies import initial_state as study

main = script("study").main


def test_its_states_are_there():
    """The design fixes them: a state that is added later is not in it, and `half` of the threshold 1 is the constant 0.5."""
    assert {*study.STATES} <= {*INITIAL_STATES}
    for part in study.PARTS.values():
        known = {*part.states, *study.STATES}
        assert all({a, b} <= known for a, b in part.against)


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


def test_another_data_set_takes_the_parts_that_fit_it(capsys):
    assert main(["initial_state", "dataset=cifar10_dvs", "model=vgg48", "cache_dir=/c", "--print"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(study.STATES)
    assert all("dataset=cifar10_dvs" in w and "model=vgg48" in w and "model=small" not in w for w in lines)
    assert main(["initial_state", "static", "dataset=cifar10_dvs", "--print"]) == 2
    assert main(["initial_state", "dataset=mnist", "--print"]) == 2
    assert main(["initial_state", "statics", "--print"]) == 2
    assert capsys.readouterr().err.count("\n") == 3


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
    part = study.PARTS["static"]
    judged = study.compare("static", part, study.cells(groups, "fashion_mnist"))
    kinds = {(c.state, c.measure): c.kind for c in judged if c.other == "zero"}
    assert kinds["imp", "readout"] == "more" and kinds["constant", "readout"] == "none"
    assert kinds["random", "readout"] == "unknown" and kinds["mp_init", "readout"] == "too few seeds"
    assert kinds["imp", "synops"] == "none"
    unknown = next(c for c in judged if (c.state, c.other, c.measure) == ("random", "zero", "readout"))
    assert unknown.verdict.startswith("cannot be said (seen from ")
    seen = next(c for c in judged if (c.state, c.other, c.measure) == ("imp", "zero", "readout"))
    assert seen.mean == pytest.approx(3.04) and seen.low < seen.mean < seen.high and seen.verdict == "**+**"


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
    order = ("Fixed before any run", "## At a glance", "What holds, what does not", "## Static images\n\nFashion")
    assert sorted(order, key=text.index) == [*order]
    glance = text[text.index("## At a glance") : text.index("What holds")]
    assert "| lts | imp | +3.0 + |" in glance and "| lts | constant | +0.0 = |" in glance
    assert "| lts | random | +0.4 ? |" in glance and "| lts | mp_init | +0.0 seeds |" in glance
    line = next(row for row in text.splitlines() if row.startswith("- Accuracy at the readout, against zero"))
    assert "higher: imp (LTS, +3.0)" in line and "no difference above 0.5 points: constant" in line
    assert "cannot be said: random" in line and "too few seeds to say: mp_init" in line
    assert (
        "- static, lts: imp_channel, imp_layer" in text
        and "25.0 25.0" in text
        and "as learned" in text
        and "2.50" in text
    )
    assert "Logistic regression on the same samples: 84.32 %." in text
    seeds = text[text.index("## Seeds") :].splitlines()
    (row,) = [
        line for line in seeds if line.startswith("| static | lts | 2.25 | imp - random | 8 | 3 to 5 |")
    ]  # 1, 5.1, 1, 5.1, 1
    see = [f"{visible_effect(2.245535, n):.2f}" for n in (3, 8)]
    assert row.endswith(f" {see[0]} | {see[1]} | {pairs_needed(0.5, 2.2455, exclude=True)} |")
    assert (
        f"- static, lts: the 3 more seeds that the design asks for. Differences of the readout between {see[1]} and {see[0]} points"
        in text
    )
    for name in study.FIGURES:
        assert (results / "figures" / f"{name}.svg").stat().st_size > 1000 and f"figures/{name}.svg" in text
    assert main(["initial_state", "report", "--check", "--results", str(results)]) == 0
    (results / "figures" / "initial_state_steps.svg").write_text("<svg/>")
    assert main(["initial_state", "report", "--check", "--results", str(results)]) == 1
    assert "initial_state_steps.svg" in capsys.readouterr().err


def test_another_data_set_is_judged_too(tmp_path):
    """Who has a GPU runs the study on CIFAR-10: its report has the same parts, and does not miss those of our data sets."""
    for seed in range(5):
        for neuron, more in (("if", 0), ("if_imp", 0.03)):
            for loss in ("lts", "sdt"):
                fake_run(
                    tmp_path / "runs" / "initial_state", "dataset=cifar10", "model=small", f"neuron={neuron}", f"loss={loss}", seed=seed,
                    acc=0.6 + 0.001 * seed + more * (1 + 0.02 * (seed % 2)), n_test=2000, folder=f"{neuron}-{loss}-{seed}",
                )  # fmt: skip
    assert main(["initial_state", "report", "--results", str(tmp_path)]) == 0
    text = (tmp_path / "initial_state.md").read_text()
    assert (
        "## Static images: cifar10" in text
        and "## Static images\n" not in text
        and "higher: imp (SDT, +3.0), imp (LTS, +3.0)" in text
    )
    assert "- static, cifar10, tet: zero, constant" in text and "- static, tet" not in text and "- events" not in text
    assert "initial_state run dataset=cifar10\n" in text and "dataset=fashion_mnist" not in text
    assert (tmp_path / "figures" / "initial_state_effects.svg").exists()


def test_the_cheapest_exit_keeps_accuracy_within_a_point():
    exits = [
        dict(threshold=0.5, acc=0.80, mean_steps=1.2, exits=[0.8, 0.2, 0, 0]),
        dict(threshold=0.7, acc=0.895, mean_steps=2.0, exits=[0.5, 0.25, 0, 0.25]),
        dict(threshold=0.9, acc=0.91, mean_steps=3.1, exits=[0, 0, 0.9, 0.1]),
        dict(threshold=None, acc=0.90, mean_steps=4.0, exits=[0, 0, 0, 1]),
    ]
    found = dict(threshold=0.7, steps=2.0, exits=[0.5, 0.25, 0, 0.25], acc=0.895, acc_all=0.9)
    assert study.cheapest(exits) == found
    assert study.cheapest(exits[:1] + exits[3:])["threshold"] is None


def test_the_start_of_learned_potentials_is_drawn_again(tmp_path):
    words = [
        "neuron=if_imp",
        "neuron.imp_trainable=false",
        "seed=3",
        "recipe.epochs=1",
        "debug.max_steps=2",
        "logger.mode=disabled",
    ]
    run(load_config(words), str(tmp_path))
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
    assert len(imp["longer"]["acc_readout"]) == study.LONGEST and imp["longer"]["acc_readout"][3] == pytest.approx(
        done.acc_last, abs=1e-4
    )
    for entry, result in ((imp, done), (zero, plain)):
        assert entry["exit"]["energy_all"] == pytest.approx(result.energy["energy_pj"] / 1e3, rel=0.2)  # other samples
        assert 0 < entry["exit"]["energy"] <= entry["exit"]["energy_all"] + 0.01
    assert set(imp["changed"]) >= {"shuffled in its layer", "mean of its layer", "back at its start", "zero"}
    assert all(len(v) == 21 and v == sorted(v) for v in imp["layers"].values()) and imp["exit"]["steps"] <= 4


def test_what_was_measured_elsewhere_is_kept(tmp_path, monkeypatch):
    """Checkpoints of some runs may be on another machine, or gone."""
    monkeypatch.chdir(tmp_path)
    run(
        load_config(["neuron=if", "loss=lts", "recipe.epochs=1", "debug.max_steps=2", "logger.mode=disabled"]),
        f"{study.SWEEP_DIR}/b/seed0",
    )
    path = tmp_path / "runs" / "initial_state" / study.MEASURED
    there = dict(dataset="digits", loss="lts", state="zero", seed=0, exit=None)
    away = dict(dataset="fashion_mnist", loss="lts", state="zero", seed=3, exit=None)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(linear={"fashion_mnist": 0.8}, networks=[there, away])))
    study.measure(tmp_path)
    found = json.loads(path.read_text())
    monkeypatch.setattr(study, "_probe", None)  # the same runs are not measured twice
    study.measure(tmp_path)
    assert json.loads(path.read_text()) == found
    assert found["networks"][1] == away and found["linear"] == {"fashion_mnist": 0.8}
    assert [e["dataset"] for e in found["networks"]] == ["digits", "fashion_mnist"] and found["networks"][0]["exit"][
        "steps"
    ] <= 4


def test_the_linear_baseline_reads_what_the_runs_read(tmp_path, monkeypatch):
    """Whose data lie elsewhere gave a data_dir to the runs, not to `measure`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / study.SWEEP_DIR).mkdir(parents=True)
    config = dict(neuron=dict(initial="zero"), data_dir="/data/fashion", cache_dir=None)
    result = dict(dataset="fashion_mnist", loss="lts", seed=0, config=config, folder="x", code={}, acc_last=0.5)
    monkeypatch.setattr("snn_repro.runs.folder.find_results", lambda root: [result])
    monkeypatch.setattr(study, "_probe", lambda *_: dict(dataset="fashion_mnist", loss="lts", state="zero", seed=0))
    asked = []
    monkeypatch.setattr("studies.methods.linear_baseline", lambda *given: asked.append(given) or 0.75)
    study.measure(tmp_path)
    assert asked == [("fashion_mnist", ["recipe.epochs=6", "data_dir=/data/fashion"])]


def test_the_price_of_each_state(tmp_path):
    for state in ("zero", "imp", "imp_channel", "imp_layer", "mp_init", "random"):
        words = [] if state == "zero" else [f"neuron.initial={state}"]
        write(tmp_path, "neuron=if", *words, "loss=lts", seed=0, acc=0.8)
    for path in (tmp_path / "runs").rglob("result.json"):
        run = json.loads(path.read_text())
        run["params_imp"] = dict(imp=800, imp_channel=24, imp_layer=3).get(study.state_of(run["config"]), 0)
        path.write_text(json.dumps(run))
    folder = tmp_path / "runs" / "methods"
    folder.mkdir()
    steps = {"baseline": dict(step_ratio=1.0, kept_mb=5.0), "initial=imp": dict(step_ratio=1.015, kept_mb=5.25)}
    (folder / "measured.json").write_text(json.dumps({"fashion_mnist": {"steps": steps}}))
    rows = {row["state"]: row for row in study._price(study.collected(tmp_path)[0], tmp_path).rows}
    assert rows["imp"] == dict(state="imp", learned="800", bytes="3,200", reads="800", time="1.01", memory="+0.25")
    assert [rows[s]["reads"] for s in ("zero", "imp_channel", "imp_layer", "mp_init", "random")] == [
        "0",
        "24",
        "3",
        "3",
        "800",
    ]
    assert rows["mp_init"]["time"] is None and rows["zero"]["time"] == "1.00" and "constant" not in rows


def test_half_of_the_threshold_is_the_constant(tmp_path):
    """Why `half` is no cell of its own: with a threshold of 1 both train the same network, bit for bit."""
    short = ["neuron=if", "loss=lts", "recipe.epochs=1", "debug.max_steps=3", "logger.mode=disabled"]
    half, constant = (
        run(load_config([*short, f"neuron.initial={s}"]), str(tmp_path / s)) for s in ("half", "constant")
    )
    assert half.acc_step == constant.acc_step and half.loss_last == constant.loss_last
    ours, others = (load_run(tmp_path / s).model.state_dict() for s in ("half", "constant"))
    assert all(torch.equal(v, others[name]) for name, v in ours.items())


def test_one_loss_alone_can_be_run_with_more_seeds(capsys):
    assert main(["initial_state", "static", "loss=lts", "--seeds", "8", "--print"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(study.STATES)
    assert all({"loss=lts", "seed=0,1,2,3,4,5,6,7"} <= {*line.split()} and "sdt" not in line for line in lines)
    assert main(["initial_state", "loss=tet_s", "--print"]) == 0
    assert capsys.readouterr().out.count("\n") == len(study.STATES)
    assert main(["initial_state", "depth", "loss=sdt", "--print"]) == 2
    assert "loss=sdt" in capsys.readouterr().err


def test_what_results_lack_can_be_run_alone(tmp_path, capsys):
    def asked():
        assert main(["initial_state", "depth", "--seeds", "3", "--missing", "--print", "--results", str(tmp_path)]) == 0
        return [line.split() for line in capsys.readouterr().out.splitlines()]

    before = asked()
    assert len(before) == 3
    jobs = [job for words in before for job in plan([w.strip("'") for w in words[4:]])]
    root = Path(study.SWEEP_DIR).absolute()
    done = [
        job.folder.relative_to(root).as_posix() for job in [*jobs[:3], jobs[4]]
    ]  # layer 1 whole, of layer 2 the seed 1
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "initial_state.jsonl").write_text("".join(f'{{"run": "{run}"}}\n' for run in done))
    left = asked()
    assert ["seed=0,2" in words for words in left] == [True, False] and left[1] == before[2]
    folders = {job.folder for words in left for job in plan([w.strip("'") for w in words[4:]])}
    assert folders == {job.folder for job in (jobs[3], *jobs[5:])}


def test_without_runs_it_is_one_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["initial_state", "report", "--results", str(tmp_path)]) == 2
    assert main(["initial_state", "measure", "--results", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 2
    with pytest.raises(UserError, match="is no part of this study"):
        study.part_of("layers")


def test_missing_data_are_said_once_before_any_sweep(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("a sweep was started"))
    assert main(["initial_state", "run", "static", "learning", f"data_dir={tmp_path / 'nowhere'}"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("fashion_mnist was not found in data_dir=") == 1 == err.count("\n")
