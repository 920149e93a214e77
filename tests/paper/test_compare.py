"""scripts/compare.py: one table of runs, and one sentence when there is nothing to compare."""

import csv
import io
import json

import numpy as np
import pytest
from fake_runs import fake_run
from scipy import stats

import compare as compare_py
from compare import compare, to_text
from snn_repro.config import hashed, load_config
from snn_repro.errors import UserError
from snn_repro.paper.differences import recipe_difference
from snn_repro.paper.formats import to_csv, to_markdown
from snn_repro.paper.results import group_runs, load
from snn_repro.paper.statistics import against_baseline


@pytest.fixture
def runs(tmp_path):
    for seed, acc in enumerate((0.90, 0.91, 0.92)):
        fake_run(tmp_path, "loss=sdt", seed=seed, acc=acc, best=acc + 0.05)
        fake_run(tmp_path, "loss=lts", seed=seed, acc=acc + 0.02, val_acc=None)
    fake_run(tmp_path, "dataset=digits_dvs", "neuron=lif", "loss=tet_s", acc=0.8)
    return tmp_path


def test_one_line_a_row_with_mean_and_sd(runs):
    table = compare([runs])
    assert [row["row"] for row in table.rows] == [
        "digits-small-if_imp-lts [a]", "digits-small-if_imp-sdt [a]", "digits_dvs-small-lif-tet_s [b]",
    ]  # fmt: skip
    sdt = table.rows[1]
    assert sdt["n"] == 3 and sdt["acc_last"][:3] == pytest.approx((91.0, 1.0, 3))
    assert sdt["acc_best_test"].mean == pytest.approx(96.0) and sdt["readout"] == "mean"
    assert sdt["acc_step"] == pytest.approx([22.75, 45.5, 68.25, 91.0])
    assert table.rows[0]["acc_valsel"] is None and table.rows[0]["readout"] == "last"


CHANGES = [  # an override or keys of result.json, and what the row is said to differ in
    ("recipe.lr=0.05", {}, "recipe.lr=0.05"), ("loss=sdt", {"split_sha256": "b" * 64}, "split=bbbbbbbb"),
    ("loss=sdt", {"precision": "fp16 autocast"}, "precision=fp16 autocast"),
    ("loss=sdt", {"images_per_statistic": 16}, "images_per_statistic=16"), ("loss=sdt", {"data": {"sha256": "d" * 64}}, "data="),
]  # fmt: skip


@pytest.mark.parametrize("option, changed, said", CHANGES)
def test_runs_that_differ_are_never_averaged(tmp_path, option, changed, said):
    known = dict(images_per_statistic=32, data={"sha256": "c" * 64})
    for seed, acc in enumerate((0.90, 0.91, 0.92)):
        fake_run(tmp_path, "loss=sdt", seed=seed, acc=acc, extra=known)
    fake_run(tmp_path, "loss=sdt", option, seed=7, acc=0.5, folder="other", extra=known | changed)
    rows = {row["n"]: row["differs"] for row in compare([tmp_path]).rows}
    assert sorted(rows) == [1, 3] and rows[1].startswith(said) and "," not in rows[1]
    a, b = (result for result in load([tmp_path]) if result["seed"] in (0, 7))
    assert any(d.startswith(said.split("=")[0]) for d in recipe_difference(a, b))


def marks(table) -> dict[str, str]:
    return {row["row"]: row["differs"] for row in table.rows}


def test_rows_that_differ_in_more_than_their_names_say_are_marked(tmp_path):
    fake_run(tmp_path, "loss=sdt")
    fake_run(tmp_path, "loss=lts", "recipe.epochs=7", "dataset.train_subset=500", folder="short")
    fake_run(tmp_path, "loss=tet", "neuron=if", "fidelity=described", folder="described")
    table = compare([tmp_path])
    found = marks(table)
    assert list(found) == ["digits-small-if-tet [a]", "digits-small-if_imp-lts [b]", "digits-small-if_imp-sdt [c]"]
    for key, value in {"recipe.epochs": 7, "dataset.train_subset": 500, "fidelity": "published"}.items():
        assert f"{key}={value}" in found["digits-small-if_imp-lts [b]"]
    assert "fidelity=described" in found["digits-small-if-tet [a]"]
    assert not any("loss." in said or "neuron.imp=" in said for said in found.values())  # what the names say
    for form in (to_text(table, 80), to_markdown(table)):
        assert "[b] dataset.train_subset=500, recipe.epochs=7\n" in form and "differ in more than their names" in form
    assert "differs" not in to_markdown(table).split("\n")[2]
    assert "recipe.epochs=7" in [*csv.DictReader(io.StringIO(to_csv(table)))][1]["differs"]
    notes = " ".join(compare([tmp_path], why=False).notes)
    assert "recipe.epochs" not in notes and "differ in more than their names say" in notes and "--why" in notes


def test_rows_that_differ_as_their_names_say_have_no_mark(tmp_path):
    for loss in ("sdt", "tet_s"):
        for neuron in ("if", "if_imp", "lif"):
            fake_run(tmp_path, f"loss={loss}", f"neuron={neuron}")
    fake_run(tmp_path, "loss=sdt", "neuron=if", seed=1)
    table = compare([tmp_path])
    assert all("[" not in label and not said for label, said in marks(table).items()) and len(table.rows) == 6
    assert "names say" not in to_markdown(table)


def test_comparing_composes_nothing_and_knows_what_hydra_would(runs, monkeypatch):
    some = {"dataset": "digits_dvs", "model": "small", "neuron": "trsg_imp", "loss": "tet_s"}
    composed = hashed(load_config([f"{group}={choice}" for group, choice in some.items()]))
    monkeypatch.setattr("snn_repro.config.compose.compose", lambda *_, **__: pytest.fail("composed"))
    assert len(compare([runs]).rows) == 3
    for group, choice in some.items():
        of_group = {k: v for k, v in composed.items() if k.startswith(f"{group}.")}
        means = compare_py._means.__wrapped__(group, choice)
        assert of_group == {k: v for k, v in means.items() if k in of_group} != {}
    assert compare_py._means("dataset", "digits_dvs")["timesteps"] == composed["timesteps"] == 10


def test_a_name_of_ones_own_says_only_imp_and_loss(tmp_path):
    fake_run(tmp_path, "name=mine", "loss=sdt", "neuron=if")
    fake_run(tmp_path, "name=yours", "loss=lts", "neuron=if_imp")
    assert list(marks(compare([tmp_path]))) == ["mine", "yours"]
    fake_run(tmp_path, "name=theirs", "loss=lts", "neuron=lif_imp")
    assert "neuron.name=lif" in marks(compare([tmp_path]))["theirs [b]"]


def test_what_one_of_two_did_not_record_tells_them_apart(tmp_path):
    fake_run(tmp_path, extra={"images_per_statistic": None, "data": None}, folder="one")
    fake_run(tmp_path, extra={"images_per_statistic": 32, "data": None}, seed=1, folder="two")
    found = marks(compare([tmp_path]))
    assert len(found) == 2 and all("lts [images_per_statistic=" in label for label in found)
    assert recipe_difference(*load([tmp_path])) == []  # perhaps the same


def test_debug_runs_are_left_out_unless_asked_for(tmp_path, capsys):
    fake_run(tmp_path / "real", "loss=sdt")
    for seed in range(2):
        fake_run(tmp_path / "smoke", "loss=lts", "debug=smoke", seed=seed)
    fake_run(tmp_path / "real", "loss=tet")
    table = compare([tmp_path])
    assert [row["row"] for row in table.rows] == ["digits-small-if_imp-sdt", "digits-small-if_imp-tet"]
    assert "left out: 2 debug runs (debug.max_eval_batches=2, debug.max_steps=2)" in table.notes[-1]
    everything = compare([tmp_path], debug_runs=True)
    assert len(everything.rows) == 3 and "debug.max_steps=2" in everything.rows[0]["differs"]
    assert compare_py.main([str(tmp_path / "smoke")]) == 2 and "--debug-runs" in capsys.readouterr().err
    assert compare_py.main([str(tmp_path / "smoke"), "--debug-runs"]) == 0


@pytest.mark.parametrize("width", [60, 80, 160])
def test_text_fits_the_terminal_in_three_lines_a_row(tmp_path, monkeypatch, capsys, width):
    monkeypatch.setenv("COLUMNS", str(width))
    for i, name in enumerate(("my_own_" * 25 + "end", "b", "dvs")):
        options = ["dataset=digits_dvs", "neuron=lif"] if name == "dvs" else [f"recipe.lr=0.0{i + 1}", "loss=sdt"]
        for seed in range(2):
            fake_run(tmp_path, f"name={name}", *options, seed=seed, acc=0.5 + 0.01 * seed)
    assert compare_py.main([str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    rules = [i for i, line in enumerate(lines) if line.startswith("---")]
    text = " ".join(" ".join(lines).split())
    assert max(map(len, lines)) <= width and (width == 60 or rules[1] - rules[0] <= 10)
    assert text.count("50.50 ± 0.71") == 9 and " 10.1 " in text and "…" in text and "own_end [" in text
    assert len({line.index("50.50") for line in lines if "50.50" in line}) == (2 if width == 60 else 1)  # in a column
    assert "--why" in text and "recipe.lr=" not in text
    assert compare_py.main([str(tmp_path), "--why"]) == 0 and "recipe.lr=0.02" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, rows",
    [
        ("--sort readout", ["lts", "sdt", "tet_s"]), ("--sort acc_valsel", ["sdt", "tet_s", "lts"]),
        ("--sort step5", ["tet_s", "lts", "sdt"]), ("--sort name", ["lts", "sdt", "tet_s"]), ("--only loss=sdt", ["sdt"]),
        ("--only neuron=if_imp --only timesteps=4 --sort seeds", ["lts", "sdt"]), ("--only name=mine", ["mine"]),
        ("--only recipe.lr=5e-2 --only neuron=lif_imp --only loss=tet", ["mine"]),
        ("--sort stepp", "choose one of readout, acc_last, acc_valsel"), ("--only loss=ltss", "loss is lts, sdt, tet"),
        ("--only recipe.lrr=1", "did you mean 'recipe.lr'"), ("--only lts", "write KEY=VALUE"),
    ],
)  # fmt: skip
def test_rows_are_sorted_and_chosen(runs, capsys, words, rows):
    if "mine" in rows:
        fake_run(runs, "name=mine", "loss=tet", "neuron=lif_imp", "recipe.lr=0.05")
    code = compare_py.main([str(runs), "--format", "csv", *words.split()])
    out, err = capsys.readouterr()
    found = [line.split(",")[0].split("-")[-1].split(" ")[0] for line in out.splitlines()[1:]]
    assert (code, found) == (0, rows) or (code, err.count("\n")) == (2, 1) and rows in err


def test_threads_processes_and_changes_on_resume_are_named(tmp_path):
    fake_run(tmp_path, "loss=sdt", seed=0, extra=dict(threads=1, processes=1))
    fake_run(tmp_path, "loss=sdt", seed=1, extra=dict(threads=2, processes=1))
    fake_run(tmp_path, "loss=lts", extra=dict(threads=2, processes=4, changed_on_resume=["threads: 1 -> 2"]))
    fake_run(tmp_path, "loss=tet", extra=dict(threads=None, processes=1, changed_on_resume=[]))
    table = compare([tmp_path])
    text = "\n".join(table.notes)
    assert "threads differ" in text and "1 in digits-small-if_imp-sdt [b] (seed 0)" in text
    assert "2 in digits-small-if_imp-lts [a], digits-small-if_imp-sdt [b] (seed 1)" in text
    assert "not recorded in digits-small-if_imp-tet" in text and "processes differ" in text and "4 in digits" in text
    assert "digits-small-if_imp-lts [a] (seed 0) was resumed under other conditions: threads: 1 -> 2" in text
    assert marks(table)["digits-small-if_imp-sdt [b]"] == "processes=1, threads=1 and 2"


@pytest.fixture
def two(tmp_path):
    """Rows of 5 seeds: lts is better than sdt at the readout, by 2 points and noise; lts has a seed more."""
    for seed, noise in enumerate(np.random.default_rng(0).standard_normal(5)):
        for loss, gain, first in (("sdt", 0, 0.5), ("lts", 0.02 + 0.002 * noise, 0.5 + 0.02 * noise)):
            right = np.arange(10_000) < round((0.9 + 0.01 * seed + gain) * 10_000)
            steps = {"acc_step": [first, right.mean() / 2, right.mean(), right.mean()]}
            fake_run(tmp_path / loss, f"loss={loss}", "dataset.train_subset=500", seed=seed, right=right, extra=steps)
    fake_run(tmp_path / "lts", "loss=lts", "dataset.train_subset=500", seed=9, acc=0.1)
    return tmp_path


def said(capsys, *words) -> str:
    """What the program says in one wide line, after exit code 0, or its one line of error."""
    code = compare_py.main([*map(str, words)])
    out, err = capsys.readouterr()
    assert code == (2 if err else 0) and err.count("\n") == (1 if err else 0)
    return " ".join((out or err).split())


def test_two_rows_are_paired_over_seeds_at_the_readout_and_at_each_step(two, capsys):
    text = said(capsys, two / "sdt", two / "lts", "--format", "json")
    table, found = json.loads(text)
    a, b = ([r["acc_last"] * 100 for r in load([two / loss]) if r["seed"] < 9] for loss in ("sdt", "lts"))
    readout, *steps = found["rows"]
    t = stats.ttest_rel(b, a)
    assert (readout["difference"], readout["p"]) == pytest.approx((np.mean(b) - np.mean(a), t.pvalue))
    assert [readout["low"], readout["high"]] == pytest.approx(list(t.confidence_interval()))
    assert (readout["p_sign_flip"], readout["p_adjusted"], readout["verdict"]) == (2 / 2**5, readout["p"], "better")
    assert [row["at"] for row in steps] == [f"step {t}" for t in (1, 2, 3, 4)] and len(table["rows"]) == 2
    assert [row["verdict"] for row in steps] == ["cannot be said", *["better"] * 3]
    assert steps[2]["p_adjusted"] == pytest.approx(4 * steps[2]["p"])
    assert steps[0]["seeds"] > 5 and readout["seeds"] is None
    notes = " ".join(found["notes"])
    assert "paired over 5 common seeds: 0, 1, 2, 3, 4" in notes and "lts, seed 9" in notes
    assert "B differs from A in loss.name: sdt -> lts" in notes and "mean, digits-small-if_imp-lts: last" in notes
    swapped = json.loads(said(capsys, two / "lts", two / "sdt", "--format", "json"))[1]["rows"][0]
    assert swapped["verdict"] == "worse" and swapped["difference"] == -readout["difference"]
    wide = json.loads(said(capsys, two / "lts", two / "sdt", "--format", "json", "--margin", "5"))[1]["rows"]
    assert wide[0]["verdict"] == "worse, < 5" and wide[1]["verdict"] == "equivalent"


def test_rows_are_folders_names_or_settings(two, capsys, monkeypatch):
    monkeypatch.chdir(two)
    names = "digits-small-if_imp-sdt", "digits-small-if_imp-lts"
    whole = said(capsys, *names, "--in", ".", "--format", "csv")
    assert whole.startswith("baseline,row,at,n,difference,low,high,p,") and whole.count("better") == 4
    assert ",0.0000," not in whole
    as_printed = f"{names[0]},recipe.lr=0.005", f"{names[1]} [loss.name=lts]"
    for words in (("loss=sdt,neuron.initial=imp", "loss=lts"), ("sdt", names[1]), as_printed):
        assert said(capsys, *words, "--in", ".", "--format", "csv") == whole
    assert said(capsys, "sdt", "lts", "--format", "csv") == whole  # below the table in the other formats
    for form, mark in (("text", "A: digits-small-if_imp-sdt"), ("markdown", "### B - A in points"), ("latex", "B - A")):
        text = said(capsys, "sdt", "lts", "--format", form)
        assert "cannot be said" in text and mark in text and "Runs by row" in text
    for words, error in {
        ("loss=sdt", "loss=tet"): "compare.py: loss=tet: no run has this value; loss is lts, sdt",
        ("loss=sdt", names[1] + "x"): f"did you mean '{names[1]}'?", ("loss=sdt", "neuron=if_imp"): "is 2 rows of ., which differ in name (",
        ("loss=sdt", "sdt"): "are not 2 rows", ("sdt", "lts", "--margin", "0"): "--margin 0: a positive", ("sdt", "--test"): "two or more",
    }.items():  # fmt: skip
        assert error in said(capsys, *words, "--in", ".")
    assert "and no runs are in runs or results/runs" in said(capsys, "loss=sdt", "loss=lts")


def test_what_cannot_be_paired_is_named(two, capsys):
    fake_run(two / "short", "loss=lts", "dataset.train_subset=500", "recipe.epochs=7")
    fake_run(two / "dvs", "dataset=digits_dvs", "loss=lts")
    fake_run(two / "split", "loss=lts", "dataset.train_subset=500", split="b" * 64)
    fake_run(two / "late", "loss=tet", "dataset.train_subset=500", seed=5)
    for other, why in {
        "short": "in more than the rows say: recipe.epochs: 30 -> 7;", "split": "not tested on the same data as",
        "dvs": "dataset.name: digits -> digits_dvs", "late": "1 must be common, and 0 are; run the missing seeds (",
    }.items():  # fmt: skip
        assert "- not compared: " in (text := said(capsys, two / "sdt", two / other)) and why in text
        assert why in said(capsys, two / "sdt", two / "lts", two / other, "--test") or other == "late"
    words = "loss=sdt", "loss=lts,recipe.epochs=7", "--in", two, "--format", "json"
    found = json.loads(said(capsys, *words))[1]
    assert "recipe.epochs: 30 -> 7" in found["notes"][0] and found["rows"][0]["verdict"] == "cannot be said"  # one seed


def test_several_rows_are_compared_with_the_first_one(two, capsys):
    for seed in range(1, 4):
        fake_run(two / "tet", "loss=tet", "dataset.train_subset=500", seed=seed, acc=0.91 + 0.01 * seed)
    folders = [two / loss for loss in ("sdt", "lts", "tet")]
    assert len(json.loads(said(capsys, *folders, "--format", "json"))) == 1  # one table, as many folders always give
    _, lts, tet = json.loads(said(capsys, *folders, "--test", "--format", "json"))
    values = [[100 * r["acc_last"] for r in load([folder]) if r["seed"] in (1, 2, 3)] for folder in folders]
    expected = against_baseline(values[0], values[1:])
    for found, one in zip((lts, tet), expected, strict=True):
        numbers = [found["rows"][0][key] for key in ("n", "difference", "low", "high", "p")]
        assert numbers == pytest.approx([3, one.mean, one.low, one.high, one.p])
    assert "Dunnett" in " ".join(tet["notes"]) and "loss.name: sdt -> tet" in tet["notes"][0]
    assert "p steps" in said(capsys, *folders, "--test")


def test_a_seed_counts_once(runs):
    fake_run(runs, "loss=sdt", seed=0, acc=0.1, folder="zz-copy")
    groups, notes = group_runs(load([runs, runs / "digits-small-if_imp-sdt"]))
    assert [len(g.runs) for g in groups] == [3, 3, 1]
    assert len(notes) == 1 and "repeats seed 0" in notes[0]


BROKEN = [  # (content, or what is changed in that of a good one; what is said)
    ('{"schema_version": 1, "name": "x"}', "lacks the keys experiment"),
    ('{"schema_version": 99}', "schema_version=99, and this version reads 1"),
    ("[" * 100_000, "is not valid JSON"),
    ("[1]", "no JSON object"),
    (b"\xff\xfe\x00", "is not valid JSON"),
    ({"acc_last": float("nan")}, "NaN"),
    ({"acc_step": "0.5"}, "acc_step"),
    ({"acc_last": 91.5}, "an accuracy of 91.5"),
    ({"seed": "0"}, "seed='0', which is not a whole number"),
    ({"config": {}}, "a config without dataset, recipe, debug"),
]


@pytest.mark.parametrize("content, said", BROKEN)
def test_a_broken_result_is_named_and_skipped_unless_it_is_the_only_one(tmp_path, capsys, content, said):
    fake_run(tmp_path, folder="broken")
    path = tmp_path / "broken" / "result.json"
    if isinstance(content, dict):
        content = json.dumps(json.loads(path.read_text()) | content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match="no result can be read") as caught:
        compare([tmp_path])
    assert str(path) in str(caught.value) and said in str(caught.value)
    for seed in range(2):
        fake_run(tmp_path, seed=seed, folder=f"good{seed}")
    assert compare_py.main([str(tmp_path), "--format", "csv"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2 and ",2,last," in out
    assert len(err.splitlines()) == 1 and err.startswith(f"skipped: {path}") and said in err


def test_the_program_prints_or_writes(runs, tmp_path, capsys):
    assert compare_py.main([str(runs), "--format", "csv"]) == 0
    printed = capsys.readouterr().out
    assert compare_py.main([str(runs), "--format", "csv", "--output", str(tmp_path / "t.csv")]) == 0
    assert (tmp_path / "t.csv").read_text() == printed and printed.startswith("row,n,readout,acc_last_mean")
    assert compare_py.main([str(runs), "--format", "latex"]) == 0
    assert r"91.00 $\pm$ 1.00 & " in (tex := capsys.readouterr().out) and tex.count(r"rule") == 3 and tex.isascii()
