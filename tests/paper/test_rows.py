"""Rows: the paper's numbers are sound, each of its own rows has an experiment, and each experiment trains."""

import copy
import csv
import hashlib
import io
import json
import re

import fixtures
import pytest
import torch
from all_rows import COMPARED, NAMES, PAPER, compared_rows, rows
from fake_runs import fake_run

import list_rows
from benchmarks import _hours
from list_rows import Row, join
from snn_repro.config import CONF_DIR, config_hash, keys, load_config, to_dict
from snn_repro.data.sets import SETS
from snn_repro.errors import UserError
from snn_repro.paper.rows import facts, load_rows
from snn_repro.runs.checkpoint import find_weights, load
from snn_repro.runs.folder import find_results
from snn_repro.train import run

BY_ID = {row.id: row for row in PAPER}


def test_the_papers_tables_are_whole():
    assert [sum(r.table == t for r in PAPER) for t in (1, 2, 3, "code", "rivals")] == [14, 31, 21, 4, 16]
    assert [sum(r.table == t and r.own for r in PAPER) for t in (1, 2, 3)] == [14, 9, 6]
    assert all(r.dataset in SETS and 0 < r.accuracy <= 100 for r in PAPER) and len(BY_ID) == len(PAPER)
    corrected = {"table3_tdbn_r34": 63.72, "table3_spikformer_6_512": 72.46}
    assert {r.id: r.corrected for r in PAPER if r.corrected} == corrected
    for row in PAPER:
        assert (row.gain is None) == (row.gain_over is None)
        if row.gain is not None:
            assert round(row.accuracy - BY_ID[row.gain_over].accuracy, 2) == row.gain
        assert row.gain is None or row.own
        assert (row.params_M is None) == (row.table in (1, 2, "rivals"))


def test_the_counts_behind_printed_accuracies():
    """Accuracies on small test sets are whole numbers of samples; the one that is none has a note."""
    sizes = {"ncaltech101": 914, "dvs_gesture": 288, "cifar10_dvs": 1000}
    for row, n in [(row, sizes[row.dataset]) for row in PAPER if row.own and row.dataset in sizes]:
        possible = {round(100 * k / n, 2) for k in range(n + 1)}
        assert row.accuracy in possible or (row.id, "86.11" in row.notes) == ("table2_ncaltech128_t16_imp", True)


def test_a_file_without_rows_is_named(tmp_path):
    (tmp_path / "t.yaml").write_text("- {id: a, acuracy: 1}")
    for name in ("t.yaml", "none.yaml"):
        with pytest.raises(UserError, match=f"{name} cannot be read"):
            load_rows(tmp_path / name)


def test_each_own_row_has_an_experiment():
    served = [c.paper_row for c in rows().values() if c.paper_row]
    assert sorted(served) == sorted(r.id for r in PAPER if r.own)
    for name, config in rows().items():
        if config.paper_row:
            row = BY_ID[config.paper_row]
            assert name == row.id or row.table == "code"
            assert row.dataset == config.dataset.name and row.T in (None, config.timesteps)
            assert row.size in (None, config.dataset.frame_size, SETS[row.dataset].shape[1], 128)
            assert ("IMP" in row.method) == config.neuron.imp


@pytest.mark.parametrize("name", NAMES + COMPARED)
def test_the_file_says_what_it_is(name):
    config, text = (rows() | compared_rows())[name], (CONF_DIR / "experiment" / f"{name}.yaml").read_text()
    first, *lines = text.splitlines()
    assert first == "# @package _global_" and config.name == name
    head = "\n".join(line for line in lines if line.startswith("#"))
    for word in ("# Claim: ", "# Cost: ", f"# Run: python -m snn_repro.train experiment={name} "):
        assert word in head
    epochs, said = config.recipe.epochs, f"T={config.timesteps}"
    assert f"{epochs} epochs of" in head and said in head
    assert ("# unspecified: " in head) == bool(config.unspecified) and set(config.unspecified) <= keys().keys()
    assert ("prepare_data.py" in head) == (not SETS[config.dataset.name].static)
    assert all(baseline in NAMES + COMPARED for baseline in config.baselines) and name not in config.baselines
    assert ("\n# Extended: " in text) == (config.fidelity == "extended")
    if name in NAMES:
        if config.paper_row:
            assert f"{BY_ID[config.paper_row].accuracy:.2f} %" in lines[0]
        return
    twin = f"{name}_same_recipe"
    assert name.endswith("_same_recipe") != ("# Source: github.com/" in head)
    caltech = {"front90": 7886, "front90_rounded": 7839} if config.dataset.name == "ncaltech101" else {}
    n = caltech.get(config.dataset.split, SETS[config.dataset.name].samples[0])
    steps = n // config.recipe.batch_size if config.recipe.drop_last else -(-n // config.recipe.batch_size)
    assert f"{epochs} epochs of {n:,} " in head and f"{said} ({steps * epochs:,} " in head
    unknown = bool(caltech) and config.dataset.split != "front90"  # which recordings they tested
    assert any("test list" in caveat for caveat in config.caveats) == unknown
    assert twin not in COMPARED or twin in head or f"{name.rsplit('_', 1)[0]}_t16_same_recipe" in head


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


def a_result(config, **more) -> dict:
    return dict(
        name=config.name, seed=config.seed, recipe_hash=config_hash(config, without=("seed",)), config=to_dict(config),
        device="cuda", n_train=100, samples_per_s=1000.0, acc_last=0.5, acc_valsel=None,
    ) | more  # fmt: skip


def test_only_runs_of_the_rows_configuration_count():
    name, partner = "table2_cifar10dvs48_t10_imp", "table2_cifar10dvs48_t10_tet"
    config = rows()[name]
    tweaked, other_seed = copy.deepcopy(config), copy.deepcopy(config)
    tweaked.recipe.lr, other_seed.seed, other_seed.data_dir = 0.2, 1, "/elsewhere"
    results = [a_result(config), a_result(config, acc_last=0.1), a_result(other_seed, acc_last=0.7), a_result(tweaked)]
    row, other = join((name, partner), PAPER, results)
    assert row.seeds == [0, 1] and row.departing == 1
    assert row.mean("acc_last") == pytest.approx(60.0) and row.mean("acc_valsel") is None
    assert row.paper.accuracy == 85.9 and row.missing == [f"runs of its baselines {partner}"]
    assert other.results == [] and other.missing == ["a run"] and other.paper is None
    row, _ = join((name, partner), PAPER, [*results, a_result(rows()[partner])])
    assert row.missing == []
    (row,) = join([name], PAPER, results, ["recipe.lr=0.2", "data_dir=/data"])
    assert (row.seeds, row.departing, row.config.data_dir) == ([0], 3, "/data")


def test_cost_is_never_invented():
    name, alike, unlike = "table2_cifar10dvs48_t10_imp", "table2_cifar10dvs48_t10_tet", "table2_cifar10dvs48_t8_imp"
    row = Row(facts([name])[name])
    smoke = copy.deepcopy(rows()[name])
    smoke.debug.max_steps = 19
    unlike, unmeasured = a_result(rows()[unlike]), a_result(rows()[alike], samples_per_s=None)
    assert list_rows.estimate_cost(row, [unlike, unmeasured, a_result(smoke)]) is None
    cost = list_rows.estimate_cost(row, [a_result(rows()[alike], samples_per_s=500.0)])
    assert (cost.hours, cost.source, cost.device) == (200 * 9000 / 500 / 3600, alike, "cuda")
    own = [a_result(rows()[alike], samples_per_s=9.0), a_result(rows()[name]), a_result(rows()[name], device="cpu")]
    assert list_rows.estimate_cost(row, own).samples_per_s == 1000.0
    assert list_rows.estimate_cost(row, own[2:]).device == "cpu"


@pytest.fixture
def listed(capsys, monkeypatch, tmp_path):
    """The lines that list_rows.py prints as JSON, of an empty folder unless it was filled."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        assert list_rows.main([*words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def test_the_list(tmp_path, capsys, listed):
    fake_run(tmp_path / "runs", "experiment=figure4_cifar10_lts", seed=3, acc=0.5, best=0.6)
    fixtures.write_cifar10(tmp_path / "data")
    assert list_rows.main(["--table", "figures", "data_dir=data", "--cost"]) == 0
    text = capsys.readouterr().out
    assert "4 rows, 1 with a run" in text and "ready" in text and "60.00" in text
    assert "figure4_cifar10_lts on cpu, 100/s" in text and "41.67" in text  # 300 epochs of 50,000 at 100/s
    assert list_rows.main(["--table", "figures", "--csv"]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [line["runs"] for line in lines] == ["none", "none", "none", "3"]
    assert lines[0]["command"] == "python -m snn_repro.train experiment=figure4_cifar10_imp_lts data_dir=DIR"
    line = listed("--table", "figures", "fidelity=described")[3]
    assert line["runs"] == [] and line["departing"] == 1 and line["command"].endswith("fidelity=described")
    assert list_rows.main(["--table", "figures", "--commands"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert list_rows.main(["--table", "figures", "recipe.lr=x"]) == 2
    assert "recipe.lr=x" in capsys.readouterr().err
    assert list_rows.main(["--table", "figures", "--runs", "nowhere"]) == 2


def test_the_list_says_fidelity_and_caveats(capsys, listed):
    assert list_rows.main(["--own", "--table", "2"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"table2_cifar10dvs128_t16_imp +│ extended", text) and "published" in text
    assert "table2_ncaltech48_t10_imp [1]" in text and "- [1] test list: the paper's cannot be had" in text
    lines = listed("--table", "code")
    assert [line["fidelity"] for line in lines] == ["extended"] * 3 + ["published"]
    assert all(line["caveats"] == [] for line in lines)
    assert sum(any("test list" in c for c in line["caveats"]) for line in listed("--own", "--table", "2")) == 10


def test_the_list_shows_every_row_of_tables_2_and_3(capsys, listed):
    for table in (2, 3):
        lines = listed("--table", str(table))
        assert {row.id for row in PAPER if row.table == table} <= {line["paper_row"] for line in lines}
        nothing = [line for line in lines if line["experiment"] is None]
        assert nothing and all(line["missing"] and line["command"] is None for line in nothing)
    assert {line["experiment"] for line in listed("--table", "2", "--own")} == {n for n in NAMES if "table2_" in n}
    assert listed("--table", "rivals", "fidelity=described") == []  # the paper's equations are about its own rows
    assert list_rows.main(["--table", "2"]) == 0
    text = capsys.readouterr().out
    assert "(table2_ncaltech128_str)" in text and "unidentified: no text found has STR" in text
    assert "6 quoted numbers without a row" in text
    assert list_rows.main(["--table", "2", "--commands"]) == 0
    commands = capsys.readouterr().out.splitlines()
    assert len(commands) == len([n for n in (*NAMES, *COMPARED) if n.startswith("table2_")])


def test_cost_of_rows_that_never_ran(tmp_path, capsys, monkeypatch, listed):
    monkeypatch.setattr(_hours, "_measured", {})
    measured = []
    monkeypatch.setattr(_hours, "measure", lambda c, device: measured.append(c.name) or (0.01, 0.256))
    fake_run(tmp_path / "runs", "experiment=figure4_cifar10_lts", seed=3)
    cost = {line["experiment"]: line["cost"] for line in listed("--table", "figures", "--cost", "device=cpu")}
    ours = cost["figure4_cifar10_imp_sdt"]  # the run of another loss says more than a step
    assert (ours["estimated"], ours["source"], ours["device"]) == (False, "figure4_cifar10_lts", "cpu")
    assert measured == []
    assert list_rows.main(["--table", "code", "--cost", "device=cpu"]) == 0
    out, err = capsys.readouterr()
    assert "~" in out and "a step here on cpu" in out and "estimated from a step on random data on this machine" in out
    assert len(measured) == 1 == err.count("timing a step of ")
    for step in (line["cost"] for line in listed("--table", "code", "--cost", "device=cpu")):
        assert step["estimated"] and step["source"] == "a step here" and step["device"] == "cpu"
        assert step["hours"] == pytest.approx(200 * 128_117 * (0.01 + 0.256 / 128) / 3600)
    assert len(measured) == 1  # kept in this process


def test_a_cost_that_cannot_be_had_is_said(capsys, monkeypatch, listed):
    def too_large(*_):
        raise _hours.TooLarge("")

    monkeypatch.setattr(_hours, "_measured", {})
    monkeypatch.setattr(_hours, "measure", too_large)
    assert [line["cost"] for line in listed("--table", "code", "--cost", "device=cpu")] == [None] * 4


def test_a_step_is_timed_and_draws_stay_as_they_were(monkeypatch):
    monkeypatch.setattr(_hours, "REPEATS", 0.0)
    config = load_config(["dataset=digits_dvs", "neuron=lif", "device=cpu"])
    torch.manual_seed(5)
    sample, step = _hours.measure(config, torch.device("cpu"))
    drawn = torch.rand(1)
    assert 0 < sample < 10 and 0 < step < 10 and torch.equal(drawn, torch.rand(1, generator=torch.manual_seed(5)))
    key = _hours.network_key(config)
    assert key == _hours.network_key(load_config(["dataset=digits_dvs", "neuron=lif_imp", "loss=sdt", "seed=2"]))
    assert key != _hours.network_key(load_config(["dataset=digits_dvs", "neuron=lif", "timesteps=3"]))


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """data_dir and cache_dir with tiny copies of every data set; frames are prepared when a row first asks for them."""
    root = tmp_path_factory.mktemp("data")
    for name in "cifar10 cifar100 imagenet cifar10_dvs dvs_gesture ncaltech101".split():
        getattr(fixtures, f"write_{name}")(root / name)
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
    teacher = []
    if getattr(row.loss, "teacher", None):  # the baseline teaches, instead of torchvision's weights too
        test_every_row_trains_two_steps(row.baselines[0], places, tmp_path / "teacher")
        teacher = [f"loss.teacher={tmp_path}/teacher/run"]
    config = load_config([
        f"experiment={name}", *places, "debug=smoke", "debug.max_eval_batches=1", "logger.mode=disabled",
        f"recipe.batch_size={batch}", "recipe.accumulate=1", "recipe.eval_batch_size=2", "dataset.workers=0",
        f"hydra.run.dir={tmp_path / 'run'}",
        *(["model.weights=null"] if row.model.weights else []), *teacher,
    ])  # fmt: skip
    if not SETS[config.dataset.name].static:
        fixtures.make_cache(config.dataset.name, config.data_dir, config.cache_dir, config.timesteps,
                frame_size=config.dataset.frame_size, workers=0, say=lambda _: None)  # fmt: skip
    result = run(config)
    assert result.name == name and result.paper_row == row.paper_row
    assert result.epochs == 1 and len(result.acc_step) == config.timesteps
    assert (result.params_imp > 0) == config.neuron.imp
    assert result.readout == ("last" if config.loss.name == "lts" else "mean")
    assert find_results(tmp_path / "run")[0]["config"]["fidelity"] == row.fidelity


def test_initial_weights_are_found_by_name_and_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    state = torch.nn.Linear(2, 2).state_dict()
    torch.save(state, tmp_path / "saved", _use_new_zipfile_serialization=False)  # as torchvision's older files
    content = (tmp_path / "saved").read_bytes()
    name, data = f"resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth", str(tmp_path / "data")
    for folder in ("data", "data/weights", "hub/checkpoints", "."):
        path = tmp_path / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        wanted = str(path) if folder == "." else name
        assert find_weights(wanted, data) == path and load(path).keys() == state.keys()
        path.write_bytes(content + b"more")
        with pytest.raises(UserError, match="does not match its name"):
            find_weights(wanted, data)
        path.unlink()
    with pytest.raises(UserError, match=f"{name} was not found"):
        find_weights(name, None)
