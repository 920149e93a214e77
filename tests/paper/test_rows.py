"""Rows: the paper's numbers are sound, each of its own rows has an experiment, and each experiment trains."""

import csv
import hashlib
import io
import json
import os
import re
import shlex
import subprocess
import sys

import pytest
import torch
from all_rows import COMPARED, NAMES, PAPER, compared_rows, rows
from fixtures import (
    write_cifar10,
    write_cifar10_dvs,
    write_cifar100,
    write_dvs_gesture,
    write_imagenet,
    write_ncaltech101,
)

from snn_repro import dry_run
from snn_repro.config import CONF_DIR, config_hash, load_config, to_dict
from snn_repro.data.sets import SETS
from snn_repro.errors import UserError
from snn_repro.paper.rows import Row, facts, join, load_rows
from snn_repro.runs.checkpoint import find_weights, load
from snn_repro.runs.folder import find_results
from snn_repro.train import run

sys.path.insert(0, str(CONF_DIR.parent / "scripts"))
import list_rows  # noqa: E402

# ---------------------------------------------------------------- the paper's numbers


def test_the_papers_tables_are_whole():
    paper = PAPER
    assert [sum(r.table == t for r in paper) for t in (1, 2, 3, "code", "rivals")] == [14, 31, 21, 4, 10]
    assert [sum(r.table == t and r.own for r in paper) for t in (1, 2, 3)] == [14, 9, 6]
    by_id = {r.id: r for r in paper}
    assert all(r.dataset in SETS for r in paper)
    assert {r.id: r.corrected for r in paper if r.corrected} == {
        "table3_tdbn_r34": 63.72,
        "table3_spikformer_6_512": 72.46,
    }
    for row in paper:
        assert (row.gain is None) == (row.gain_over is None)
        if row.gain is not None:
            assert round(row.accuracy - by_id[row.gain_over].accuracy, 2) == row.gain
        assert row.gain is None or row.own
        assert (row.params_M is None) == (row.table in (1, 2, "rivals"))


def test_the_counts_behind_printed_accuracies():
    """Accuracies on small test sets are whole numbers of samples; the one that is none has a note."""
    for row in PAPER:
        if not row.own:
            continue
        n = {"ncaltech101": 914, "dvs_gesture": 288, "cifar10_dvs": 1000}.get(row.dataset)
        if n is None:
            continue
        possible = {round(100 * k / n, 2) for k in range(n + 1)}
        assert row.accuracy in possible or (row.id, "86.11" in row.notes) == ("table2_ncaltech128_t16_imp", True)


def test_ids_name_single_rows_and_gains_are_over_rows():
    ids = [row.id for row in PAPER]
    assert len(ids) == len(set(ids)) and {row.gain_over for row in PAPER} <= {None, *ids}
    assert all(0 < row.accuracy <= 100 for row in PAPER)


def test_a_file_without_rows_is_named(tmp_path):
    (tmp_path / "t.yaml").write_text("- {id: a, acuracy: 1}")
    for name in ("t.yaml", "none.yaml"):
        with pytest.raises(UserError, match=f"{name} cannot be read"):
            load_rows(tmp_path / name)


# ---------------------------------------------------------------- experiments and the paper's rows


def test_each_own_row_has_an_experiment():
    paper = {r.id: r for r in PAPER}
    served = [c.paper_row for c in rows().values() if c.paper_row]
    assert sorted(served) == sorted(r.id for r in paper.values() if r.own)
    for name, config in rows().items():
        if config.paper_row:
            row = paper[config.paper_row]
            assert name == row.id or row.table == "code"
            assert row.dataset == config.dataset.name and row.T in (None, config.timesteps)
            assert row.size in (None, config.dataset.frame_size, SETS[row.dataset].shape[1], 128)
            assert ("IMP" in row.method) == config.neuron.imp


@pytest.mark.parametrize("name", NAMES)
def test_the_file_says_what_it_is(name):
    config, text = rows()[name], (CONF_DIR / "experiment" / f"{name}.yaml").read_text()
    first, *lines = text.splitlines()
    assert first == "# @package _global_" and config.name == name
    head = "\n".join(line for line in lines if line.startswith("#"))
    for word in ("# Claim: ", "# Cost: ", f"# Run: python -m snn_repro.train experiment={name} "):
        assert word in head
    assert f"{config.recipe.epochs} epochs of" in head and f"T={config.timesteps}" in head
    assert ("# unspecified: " in head) == bool(config.unspecified)
    assert all(baseline in NAMES for baseline in config.baselines) and name not in config.baselines
    if config.paper_row:
        accuracy = {r.id: r for r in PAPER}[config.paper_row].accuracy
        assert f"{accuracy:.2f} %" in lines[0]
    assert ("prepare_data.py" in head) == (not SETS[config.dataset.name].static)


HARD = {  # builds on another row, has no recipe, a recipe of another set, an own network, a method of others
    "table3_psn_r18_same_recipe", "rivals_cifar10dvs48_mp_init_trsg_same_recipe", "table1_ncaltech101_sdt", "table2_ncaltech128_t16_imp",
    "table2_ncaltech48_tcja",
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [n if n in HARD else pytest.param(n, marks=pytest.mark.slow) for n in NAMES + COMPARED]
)
def test_its_files_say_what_hydra_composes(name):
    """So that all other tests, the list of rows and the table of sources need not compose."""
    for fidelity in (None, "described")[: 1 + (name in NAMES)]:
        composed = to_dict(load_config([f"experiment={name}", *([f"fidelity={fidelity}"] if fidelity else [])]))
        read = to_dict((rows(fidelity) if name in NAMES else compared_rows())[name])
        assert composed | {k: read[k] for k in ("run_dir", "logger")} == read


# ---------------------------------------------------------------- our runs beside


def a_result(config, **more) -> dict:
    plain = to_dict(config)
    return dict(
        name=config.name, seed=config.seed, recipe_hash=config_hash(config, without=("seed",)), config=plain,
        dataset=config.dataset.name, model=config.model.name, timesteps=config.timesteps, device="cuda",
        n_train=100, samples_per_s=1000.0, acc_last=0.5, acc_best_test=0.6, acc_valsel=None,
        schema_version=1, split_id="fixed", split_sha256="a" * 64, precision="float32", readout="mean", n_test=10, correct=5,
        acc_step=[0.5] * config.timesteps, params_weights=1, params_imp=0, epochs=1, loss=config.loss.name,
        neuron=plain["neuron"], paper_row=config.paper_row,
    ) | more  # fmt: skip


def test_only_runs_of_the_rows_configuration_count():
    name, partner = "table2_cifar10dvs48_t10_imp", "table2_cifar10dvs48_t10_tet"
    config = rows()[name]
    tweaked = load_config([f"experiment={name}", "recipe.lr=0.2"])
    other_seed = load_config([f"experiment={name}", "seed=1", "data_dir=/elsewhere"])
    results = [a_result(config), a_result(config, acc_last=0.1), a_result(other_seed, acc_last=0.7), a_result(tweaked)]
    row, other = join((name, partner), PAPER, results)
    assert row.seeds == [0, 1] and row.departing == 1
    assert row.mean("acc_last") == pytest.approx(60.0) and row.mean("acc_valsel") is None
    assert row.paper.accuracy == 85.9 and row.missing == [f"runs of its baselines {partner}"]
    assert other.results == [] and other.missing == ["a run"] and other.paper is None
    row, _ = join((name, partner), PAPER, [*results, a_result(rows()[partner])])
    assert row.missing == []
    row, _ = join((name, partner), PAPER, results, ["recipe.lr=0.2", "data_dir=/data"])
    assert (row.seeds, row.departing, row.config.data_dir) == ([0], 3, "/data")


def test_cost_is_never_invented():
    name, alike, unlike = "table2_cifar10dvs48_t10_imp", "table2_cifar10dvs48_t10_tet", "table2_cifar10dvs48_t8_imp"
    row = Row(facts([name])[name])
    assert list_rows.estimate_cost(row, []) is None
    assert list_rows.estimate_cost(row, [a_result(rows()[unlike]), a_result(rows()[alike], samples_per_s=None)]) is None
    smoke = load_config([f"experiment={name}", "debug=smoke"])
    assert list_rows.estimate_cost(row, [a_result(smoke)]) is None
    cost = list_rows.estimate_cost(row, [a_result(rows()[alike], samples_per_s=500.0)])
    assert (cost.hours, cost.source, cost.device) == (200 * 9000 / 500 / 3600, alike, "cuda")
    own = [a_result(rows()[alike], samples_per_s=9.0), a_result(rows()[name]), a_result(rows()[name], device="cpu")]
    assert list_rows.estimate_cost(row, own).samples_per_s == 1000.0
    assert list_rows.estimate_cost(row, own[2:]).device == "cpu"


def test_the_list(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config(["experiment=figure4_cifar10_lts", "seed=3"])
    (tmp_path / "runs/r").mkdir(parents=True)
    (tmp_path / "runs/r/result.json").write_text(json.dumps(a_result(config)))
    write_cifar10(tmp_path / "data")
    assert list_rows.main(["--table", "figures", "data_dir=data", "--cost"]) == 0
    text = capsys.readouterr().out
    assert "4 rows, 1 with a run" in text and "ready" in text and "60.00" in text
    assert "4.17" in text and "figure4_cifar10_lts on cuda, 1,000/s" in text  # 300 epochs of 50,000 at 1,000/s
    assert list_rows.main(["--table", "figures", "--csv"]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [line["runs"] for line in lines] == ["none", "none", "none", "3"]
    assert lines[0]["command"] == "python -m snn_repro.train experiment=figure4_cifar10_imp_lts data_dir=DIR"
    assert list_rows.main(["--table", "figures", "--json", "fidelity=described"]) == 0
    lines = json.loads(capsys.readouterr().out)
    assert lines[3]["runs"] == [] and lines[3]["departing"] == 1 and lines[3]["command"].endswith("fidelity=described")
    assert list_rows.main(["--table", "figures", "--commands"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert list_rows.main(["--table", "figures", "recipe.lr=x"]) == 2
    assert "recipe.lr=x" in capsys.readouterr().err
    assert list_rows.main(["--table", "figures", "--runs", "nowhere"]) == 2


def test_the_list_says_fidelity_and_caveats(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert list_rows.main(["--own", "--table", "2"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"table2_cifar10dvs128_t16_imp +│ extended", text) and "published" in text
    assert "table2_ncaltech48_t10_imp [1]" in text and "- [1] test list: the paper's cannot be had" in text
    assert list_rows.main(["--table", "code", "--json"]) == 0
    lines = json.loads(capsys.readouterr().out)
    assert [line["fidelity"] for line in lines] == ["extended"] * 3 + ["published"]
    assert all(line["caveats"] == [] and "marks" not in line for line in lines)
    assert list_rows.main(["--own", "--table", "2", "--csv"]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert sum("test list" in line["caveats"] for line in lines) == 10


# ---------------------------------------------------------------- what a row costs


def test_cost_of_rows_that_never_ran(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dry_run, "_measured", {})
    measured = []
    monkeypatch.setattr(dry_run, "measure", lambda c, device: measured.append(c.name) or (0.01, 0.256))
    config = load_config(["experiment=figure4_cifar10_lts", "seed=3"])
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/result.json").write_text(json.dumps(a_result(config)))
    assert list_rows.main(["--table", "figures", "--cost", "--json", "device=cpu"]) == 0
    cost = {line["experiment"]: line["cost"] for line in json.loads(capsys.readouterr().out)}
    ours = cost["figure4_cifar10_imp_sdt"]  # the run of another loss says more than a step
    assert (ours["estimated"], ours["source"], ours["device"]) == (False, "figure4_cifar10_lts", "cuda")
    assert measured == []
    assert list_rows.main(["--table", "code", "--cost", "--json", "device=cpu"]) == 0
    out, err = capsys.readouterr()
    (step,) = {json.dumps(line["cost"]) for line in json.loads(out)}
    step = json.loads(step)
    assert step["estimated"] and step["source"] == "a step here" and step["device"] == "cpu"
    assert step["hours"] == pytest.approx(200 * 128_117 * (0.01 + 0.256 / 128) / 3600)
    assert len(measured) == 1 == err.count("timing a step of ")
    assert list_rows.main(["--table", "code", "--cost", "device=cpu"]) == 0
    out, err = capsys.readouterr()
    assert "~" in out and "a step here on cpu" in out and "estimated from a step on random data on this machine" in out
    assert len(measured) == 1 and err == ""  # kept in this process


def test_a_cost_that_cannot_be_had_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dry_run, "_measured", {})

    def too_large(*_):
        raise dry_run.TooLarge("")

    monkeypatch.setattr(dry_run, "measure", too_large)
    assert list_rows.main(["--table", "code", "--cost", "device=cpu"]) == 0
    assert capsys.readouterr().out.count("unknown") == 4
    if not torch.cuda.is_available():
        assert list_rows.main(["--table", "code", "--cost", "device=cuda"]) == 2
        assert "device=cuda" in capsys.readouterr().err


def test_a_step_is_timed_and_draws_stay_as_they_were(monkeypatch):
    monkeypatch.setattr(dry_run, "REPEATS", 0.0)
    for overrides in (["neuron=if_imp"], ["dataset=digits_dvs", "neuron=lif"]):
        config = load_config([*overrides, "device=cpu"])
        torch.manual_seed(5)
        sample, step = dry_run.measure(config, torch.device("cpu"))
        assert 0 < sample < 10 and 0 < step < 10
        drawn = torch.rand(1)
        torch.manual_seed(5)
        assert torch.equal(drawn, torch.rand(1))
    key = dry_run.network_key(config)
    assert key == dry_run.network_key(load_config(["dataset=digits_dvs", "neuron=lif_imp", "loss=sdt", "seed=2"]))
    assert key != dry_run.network_key(load_config(["dataset=digits_dvs", "neuron=lif", "timesteps=3"]))


# ---------------------------------------------------------------- rows as batch jobs, with stubs for SLURM's commands


@pytest.fixture
def stubs(tmp_path):
    """sbatch that runs the script of an array's first task, srun that writes its words, a NUL behind each."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in {
        "sbatch": 'printf "%s\\0" "$@" >> "$SAID"; while [[ $1 == -* ]]; do shift; done\n'
        'SLURM_ARRAY_TASK_ID=1 SLURM_JOB_ID=1 exec bash "$@"',
        "srun": 'printf "%s\\0" "$@" >> "$RAN"',
        "squeue": "true",
        "python": f'exec {shlex.quote(sys.executable)} "$@"',
    }.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (folder / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{folder}:{os.environ['PATH']}", "SAID": str(tmp_path / "said"), "RAN": str(tmp_path / "ran"),
        "PYTHONPATH": os.pathsep.join([str(CONF_DIR.parent), *sys.path]),
    }  # fmt: skip

    def submit(*arguments):
        script = CONF_DIR.parent / "scripts/cluster/submit_table.sh"
        return subprocess.run(
            ["bash", script, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    return submit


def test_commands_with_a_space_reach_the_job_whole(stubs, tmp_path, capsys):
    place = "data_dir=/my data/it's"
    command = Row(facts(["figure4_cifar10_lts"])["figure4_cifar10_lts"], [place, "recipe.lr=0.2"]).command()
    assert shlex.split(command)[3:] == ["experiment=figure4_cifar10_lts", place, "recipe.lr=0.2"]
    done = stubs("figures", "0 1", "--partition=gpu", "--", "data_dir=/my data", "fidelity=described")
    assert done.returncode == 0, done.stderr
    words = "python -m snn_repro.train experiment=figure4_cifar10_imp_lts".split() + [
        "data_dir=/my data",
        "fidelity=described",
    ]
    assert (tmp_path / "ran").read_text().split("\0")[:-1] == [*words, "seed=0", *words, "seed=1"]
    said = (tmp_path / "said").read_text().split("\0")
    assert said[:2] == ["--array=1-4", "--partition=gpu"] and said[4] == "seed=0"
    hand_made = tmp_path / "rows.txt"
    hand_made.write_text(f"{command}\n")
    (tmp_path / "ran").unlink()
    subprocess.run(
        ["bash", CONF_DIR.parent / "scripts/cluster/rows.sbatch", hand_made, "seed=0"], check=True, capture_output=True,
        env=os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "RAN": str(tmp_path / "ran"),
                          "SLURM_ARRAY_TASK_ID": "1", "SLURM_JOB_ID": "1"},
    )  # fmt: skip
    assert (tmp_path / "ran").read_text().split("\0")[4:7] == [place, "recipe.lr=0.2", "seed=0"]


# ---------------------------------------------------------------- every row trains two steps


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """data_dir and cache_dir with tiny copies of every data set; frames are prepared when a row first asks for them."""
    root = tmp_path_factory.mktemp("data")
    write_cifar10(root / "cifar10")
    write_cifar100(root / "cifar100")
    write_imagenet(root / "imagenet")
    write_cifar10_dvs(root / "cifar10_dvs")
    write_dvs_gesture(root / "dvs_gesture")
    write_ncaltech101(root / "ncaltech101")
    return [f"data_dir={root}", f"cache_dir={root / 'cache'}"]


QUICK = {  # a representative few, of under three seconds; the others run with the slow tests
    "table1_cifar10_sdt", "table1_cifar100_tet", "figure4_cifar10_imp_lts", "table2_cifar10dvs48_t8_imp_tet_s",
    "rivals_cifar10dvs48_mp_init_trsg_same_recipe",
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*results do not compare:UserWarning")
@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NAMES + COMPARED]
)
def test_every_row_trains_two_steps(name, places, tmp_path):
    row = rows()[name] if name in NAMES else compared_rows()[name]
    batch = 1 if "ncaltech128" in name or "table1_ncaltech101" in name else 2
    config = load_config([
        f"experiment={name}", *places, "debug=smoke", "debug.max_eval_batches=1", "logger.mode=disabled",
        f"recipe.batch_size={batch}", "recipe.accumulate=1", "recipe.eval_batch_size=2", "dataset.workers=0",
        f"hydra.run.dir={tmp_path / 'run'}",
        *(["model.weights=null"] if row.model.weights else []),
    ])  # fmt: skip
    if not SETS[config.dataset.name].static:
        from fixtures import make_cache as prepare

        prepare(config.dataset.name, config.data_dir, config.cache_dir, config.timesteps,
                frame_size=config.dataset.frame_size, workers=0, say=lambda _: None)  # fmt: skip
    result = run(config)
    assert result.name == name and result.paper_row == row.paper_row
    assert result.epochs == 1 and len(result.acc_step) == config.timesteps
    assert (result.params_imp > 0) == config.neuron.imp
    assert result.readout == ("last" if config.loss.name == "lts" else "mean")
    assert find_results(tmp_path)[0]["config"]["fidelity"] == row.fidelity


def test_initial_weights_are_found_by_name_and_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    state = torch.nn.Linear(2, 2).state_dict()
    torch.save(state, tmp_path / "saved", _use_new_zipfile_serialization=False)  # as torchvision's older files
    content = (tmp_path / "saved").read_bytes()
    name = f"resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    for folder in ("data", "data/weights", "hub/checkpoints", "."):
        path = tmp_path / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        wanted = str(path) if folder == "." else name
        assert find_weights(wanted, str(tmp_path / "data")) == path
        assert load(path).keys() == state.keys()
        path.write_bytes(content + b"more")
        with pytest.raises(UserError, match="is not what its name says"):
            find_weights(wanted, str(tmp_path / "data"))
        path.unlink()
    with pytest.raises(UserError, match=f"{name} was not found"):
        find_weights(name, None)
