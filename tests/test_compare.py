"""scripts/compare.py: one table of runs, and one sentence when there is nothing to compare."""

import csv
import importlib.util
import io
import json
from pathlib import Path

import pytest
from fake_runs import fake_run

from snn_repro.errors import UserError
from snn_repro.tables import compare, group_runs, load, to_csv, to_markdown, to_text

SCRIPTS = Path(__file__).parents[1] / "scripts"


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
        "digits-small-if_imp-lts", "digits-small-if_imp-sdt", "digits_dvs-small-lif-tet_s",
    ]  # fmt: skip
    sdt = table.rows[1]
    assert sdt["n"] == 3 and sdt["acc_last"][:3] == pytest.approx((91.0, 1.0, 3))
    assert sdt["acc_best_test"].mean == pytest.approx(96.0) and sdt["readout"] == "mean"
    assert sdt["acc_step"] == pytest.approx([22.75, 45.5, 68.25, 91.0])
    assert table.rows[0]["acc_valsel"] is None and table.rows[0]["readout"] == "last"


def test_text_markdown_and_csv_say_the_same(runs):
    table = compare([runs])
    text, markdown, rows = to_text(table), to_markdown(table), list(csv.DictReader(io.StringIO(to_csv(table))))
    for form in (text, markdown):
        assert "91.00 ± 1.00" in form and "80.00 (n=1)" in form and "optimistic" in form
    assert "…" not in text  # nothing cut to fit a terminal
    assert rows[1]["acc_last_mean"] == "91.0000" and rows[1]["acc_last_n"] == "3"
    assert rows[2]["acc_last_sd"] == "" and rows[1]["acc_step_t4"] == "91.0000" and rows[1]["acc_step_t5"] == ""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize("change", ["recipe", "split", "precision"])
def test_runs_that_differ_are_never_averaged(runs, change):
    options = {"recipe": ("recipe.lr=0.05",)}.get(change, ())
    other = {"split": {"split": "b" * 64}, "precision": {"precision": "fp16 autocast"}}.get(change, {})
    fake_run(runs, "loss=sdt", *options, seed=7, acc=0.5, folder=f"other-{change}", **other)
    labels = {row["row"]: row["n"] for row in compare([runs]).rows if "-sdt" in row["row"]}
    said = {"recipe": "recipe.lr=0.05", "split": "split=bbbbbbbb", "precision": "precision=fp16 autocast"}[change]
    assert labels[f"digits-small-if_imp-sdt [{said}]"] == 1 and sorted(labels.values()) == [1, 3]


def test_a_seed_counts_once(runs):
    fake_run(runs, "loss=sdt", seed=0, acc=0.1, folder="zz-copy")
    groups, notes = group_runs(load([runs, runs / "digits-small-if_imp-sdt"]))
    assert [len(g.runs) for g in groups] == [3, 3, 1]
    assert len(notes) == 1 and "repeats seed 0" in notes[0]


def test_names_from_outside_cannot_break_a_table(runs):
    path = runs / "digits_dvs-small-lif-tet_s" / "seed0" / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"name": "[red]a|b[/red]"}))
    table = compare([runs])
    assert "[red]a|b[/red]" in to_text(table) and "a\\|b" in to_markdown(table)


@pytest.mark.parametrize(
    "content, said",
    [
        ('{"schema_version": 1, "name": "x"}', "lacks the keys seed"),
        ('{"schema_version": 99}', "schema_version=99"),
        ("{", "JSON"),
    ],
)
def test_a_broken_result_is_named(tmp_path, content, said):
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(UserError, match=said) as caught:
        compare([tmp_path])
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("place", ["missing", "."])
def test_nothing_to_compare_is_one_sentence_and_exit_code_2(tmp_path, capsys, place):
    assert script("compare").main([str(tmp_path / place)]) == 2
    out, err = capsys.readouterr()
    assert not out and len(err.splitlines()) == 1 and str(tmp_path) in err


def test_the_program_prints_or_writes(runs, tmp_path, capsys):
    compare_py = script("compare")
    assert compare_py.main([str(runs), "--format", "csv"]) == 0
    printed = capsys.readouterr().out
    assert compare_py.main([str(runs), "--format", "csv", "--out", str(tmp_path / "t.csv")]) == 0
    assert (tmp_path / "t.csv").read_text() == printed and printed.startswith("row,n,readout,acc_last_mean")
