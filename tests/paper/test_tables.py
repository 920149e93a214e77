"""Tables from made-up runs: joined to the paper's numbers, never mixed, empty where nothing ran, the same every time."""

import csv
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from fake_runs import fake_run
from scripts_of_ours import script

from snn_repro.errors import UserError
from snn_repro.paper.differences import gain
from snn_repro.paper.formats import Column, Table, to_markdown
from snn_repro.paper.results import Group, group_runs, load, right_answers
from snn_repro.paper.rows import PaperRow
from snn_repro.paper.statistics import mcnemar, paired, summary
from snn_repro.paper.tables import paper_table
from snn_repro.provenance import code_version

TABLES = script("make_tables")
collect, fill_in, generate, to_latex, MEASURED = (
    getattr(TABLES, name) for name in ("collect", "fill_in", "generate", "to_latex", "MEASURED")
)
RESULTS = Path(__file__).parents[2] / "results"


def row(id, accuracy, **more):
    fields = dict(table=1, dataset="digits", method="SDT", network="small", T=4, size=8, params_M=None, own=True)
    return PaperRow(id=id, accuracy=accuracy, **fields | more)


ROWS = [row("a", 91.5, notes="a doubt"), row("b", 92.5, method="IMP", gain=1.0), row("c", 70.0, own=False)]
BASE = ("loss=sdt", "neuron=if", "paper_row=a", "name=row_a")
IMP = ("loss=sdt", "neuron=if_imp", "paper_row=b", "name=row_b", "baselines=[row_a]")


@pytest.fixture
def runs(tmp_path):
    for seed in range(4):
        fake_run(tmp_path / "runs", *BASE, seed=seed, acc=0.90 + 0.01 * seed, best=0.97)
        fake_run(tmp_path / "runs", *IMP, seed=seed, acc=0.92 + 0.011 * seed)
    return tmp_path


def groups(folder):
    return {g.label: g for g in group_runs(load([folder]))[0]}


def test_operations_and_energy_have_columns_where_runs_counted_them(runs):
    before = paper_table(1, ROWS, list(groups(runs).values()))
    assert "synops" not in {c.key for c in before.columns} and not any("synops" in note for note in before.notes)
    for seed, synops in enumerate((2000.0, 4000.0), 10):
        counted = {"energy": {"synops": synops, "macs": 1000.0, "energy_pj": 4600.0 + 0.9 * synops}}
        fake_run(runs / "runs", *IMP, seed=seed, extra=counted)
    table = paper_table(1, ROWS, list(groups(runs).values()))
    (line,) = [r for r in table.rows if r["accuracy"] == 92.5]
    assert (line["synops"], line["macs"], line["energy"]) == (3.0, 1.0, pytest.approx(7.3))
    assert any(note.startswith("synops") for note in table.notes) and "energy a sample, nJ" in to_markdown(table)


def test_gain_is_paired_over_common_seeds(runs):
    g = groups(runs)
    found = gain(g["row_b"], g["row_a"])
    a, b = ([100 * r["acc_last"] for r in g[k].runs] for k in ("row_a", "row_b"))
    expected = paired(a, b)
    assert found[:4] == pytest.approx((expected.mean, expected.low, expected.high, expected.p))
    assert (found.test, found.n, found.baseline) == ("paired t", 4, "row_a")


def test_gain_of_one_seed_is_mcnemars(tmp_path):
    rng = np.random.default_rng(0)
    a = rng.random(300) < 0.7
    b = a ^ (rng.random(300) < 0.1)
    fake_run(tmp_path, "loss=sdt", "neuron=if", right=a)
    fake_run(tmp_path, "loss=lts", "neuron=if", right=b)  # read at the last step
    g = groups(tmp_path)
    found = gain(g["digits-small-if-lts"], g["digits-small-if-sdt"])
    assert found.p == mcnemar(a, b) and found.low is None and (found.test, found.n) == ("McNemar", 1)
    assert found.value == pytest.approx(100 * (b.mean() - a.mean()))


ANOTHER = [
    (("recipe.epochs=20",), {}, "recipe.epochs"), (("neuron.detach_reset=true",), {}, "neuron.detach_reset"),
    ((), {"split": "b" * 64}, "split: "), ((), {"precision": "bf16 autocast"}, "precision"), ((), {"seed": 9}, "no seed"),
]  # fmt: skip


@pytest.mark.parametrize("overrides, more, said", ANOTHER)
def test_another_recipe_is_no_baseline(tmp_path, overrides, more, said):
    fake_run(tmp_path, *BASE)
    fake_run(tmp_path, *IMP, "neuron.imp_init=[0.0, 1.0]", "neuron.imp_lr=10", *overrides, **more)
    g = groups(tmp_path)
    with pytest.raises(UserError, match=said):
        gain(g["row_b"], g["row_a"])
    table = paper_table(1, ROWS, list(g.values()))
    assert table.rows[1]["gain_1"] is None and any("no gain over row_a" in n and said in n for n in table.notes)


def test_collected_runs_say_the_same_with_less(runs, tmp_path):
    written = collect([runs / "runs"], tmp_path / "kept")
    assert len(written) == 8 and written[0].relative_to(tmp_path / "kept") == Path("row_a/seed0")
    assert {p.name for p in (tmp_path / "kept").iterdir()} == {"row_a.jsonl", "row_b.jsonl"}
    (one,) = load([written[0]])  # a line is read as the folder that it was
    assert (one.seed, one.folder) == (0, str(written[0])) and len(load([written[0].parent])) == 4
    with pytest.raises(UserError, match="does not exist"):
        load([written[0].parent / "seed9"])
    before, after = groups(runs / "runs"), groups(tmp_path / "kept")
    assert gain(before["row_b"], before["row_a"]) == gain(after["row_b"], after["row_a"])
    for old, new in zip(before["row_a"].runs, after["row_a"].runs, strict=True):
        np.testing.assert_array_equal(right_answers(old), right_answers(new))
        assert new["recipe_hash"] == old["recipe_hash"]
    text = (tmp_path / "kept" / "row_a.jsonl").read_text()
    assert json.loads(text.splitlines()[0])["config"]["run_dir"] is None and str(tmp_path) not in text
    fake_run(tmp_path / "more", "name=row_a", seed=0, acc=0.5)
    fake_run(tmp_path / "more", "name=row_a", seed=9)
    collect([tmp_path / "more"], tmp_path / "kept")  # takes the place of the earlier one, and the others stay
    assert [r.seed for r in load([written[0].parent])] == [0, 1, 2, 3, 9] and load([written[0]])[0].acc_last == 0.5
    assert collect([tmp_path / "more" / "row_a" / "seed9"], tmp_path, "mine")[0].relative_to(tmp_path) == Path("mine")


def test_a_damaged_line_is_skipped_and_named(runs, tmp_path, capsys):
    collect([runs / "runs"], tmp_path / "kept")
    file = tmp_path / "kept" / "row_a.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], lines[1][:50], *lines[2:]]))
    assert [r.seed for r in load([file])] == [0, 2, 3] and len(load([tmp_path / "kept"])) == 7
    assert capsys.readouterr().err.count(f"skipped: {file}, line 2, is damaged") == 2
    with pytest.raises(UserError, match="row_a.jsonl has a line that is not a collected run"):
        collect([runs / "runs"], tmp_path / "kept")


def test_predictions_of_another_run_are_noticed(tmp_path):
    fake_run(tmp_path, acc=0.9, folder="one")
    fake_run(tmp_path, acc=0.5, folder="two")
    (tmp_path / "two" / "predictions.npz").replace(tmp_path / "one" / "predictions.npz")
    with pytest.raises(UserError, match="not of one run"):
        right_answers(load([tmp_path / "one"])[0])


@pytest.mark.parametrize("content", [b"PK\x03\x04 no zip", b""])
def test_damaged_predictions_are_skipped_and_named(tmp_path, capsys, content):
    for loss in ("sdt", "lts"):
        fake_run(tmp_path / "runs", f"loss={loss}")
    path = tmp_path / "runs" / "digits-small-if_imp-sdt" / "seed0" / "predictions.npz"
    path.write_bytes(content)
    g = groups(tmp_path / "runs")
    found = gain(g["digits-small-if_imp-lts"], g["digits-small-if_imp-sdt"])
    assert found.p is None and found.test == "no predictions"
    err = capsys.readouterr().err
    assert err.startswith(f"skipped: {path}") and err.count("\n") == 1
    written = collect([tmp_path / "runs"], tmp_path / "kept")
    assert capsys.readouterr().err == err and len(written) == 2
    assert [r.right is None for r in load([tmp_path / "kept"])] == [False, True]  # its result stays


NOW = code_version()
BEFORE = dict(commit="c" * 40, dirty=False, sha256="0" * 64)  # of the hash that results had before


def test_rows_of_older_numbers_are_marked(tmp_path, capsys, monkeypatch):
    runs = tmp_path / "runs"
    for seed, code in enumerate((NOW, BEFORE)):
        fake_run(runs, *BASE, seed=seed, extra=dict(code=code))
    fake_run(runs, *IMP, extra=dict(code=NOW | dict(commit="other", dirty=True)))  # another commit, the same numbers
    fake_run(runs, "loss=tet", "name=mine", extra=dict(code=None))
    files = generate(tmp_path, ROWS)
    table = list(csv.DictReader(io.StringIO(files["table1.csv"])))
    assert [line["numbers"] for line in table] == ["older", "", ""]
    assert [line["numbers"] for line in csv.DictReader(io.StringIO(files["runs.csv"]))] == ["older"]
    for name, said in {"table1": "older numbers: 1 of 3 runs", "runs": "older numbers: 1 of 1 runs"}.items():
        assert said in files[f"{name}.md"] and said in files.get(f"{name}.tex", said)
    assert "runs.tex" not in files
    assert "older numbers" not in files["table2.md"]
    monkeypatch.setattr(TABLES, "load_rows", lambda: ROWS)
    assert TABLES.main(["--results", str(tmp_path)]) == 0 == TABLES.main(["--results", str(tmp_path), "--check"])
    assert "warning: older numbers: 2 of 4 runs" in capsys.readouterr().err
    fake_run(runs, *BASE, seed=1, extra=dict(code=NOW))
    assert TABLES.main(["--results", str(tmp_path), "--check"]) == 1


def test_paper_and_ours_side_by_side(runs):
    table = paper_table(1, ROWS, list(groups(runs).values()))
    a, b, c = table.rows
    assert a["accuracy"] == 91.5 and a["acc_best_test"].mean == pytest.approx(97.0) and a["n"] == 4
    assert a["params"] == "1,000 + 100" and a["split"] == "fixed (aaaaaaaa)" and a["fidelity"] == "published"
    expected = summary([90, 91, 92, 93])
    assert a["interval"][:2] == pytest.approx((expected.low, expected.high)) and a["interval"].kind == "t"
    assert b["gain"] == 1.0 and b["gain_1"].baseline == "row_a" and "gain_1" not in a
    assert c["method"] == "SDT (quoted)" and "acc_last" not in c
    assert a["note"] == "[1]" and "[1] a doubt" in table.notes


def test_each_configuration_has_a_line_of_its_own(runs):
    fake_run(runs / "runs", *IMP, "fidelity=described", seed=0, acc=0.5, folder="described")
    fake_run(runs / "runs", *IMP, seed=1, acc=0.6, split="b" * 64, folder="split")
    lines = [r for r in paper_table(1, ROWS, list(groups(runs).values())).rows if r["method"] == "IMP"]
    assert sorted(r["n"] for r in lines) == [1, 1, 4] and {r["fidelity"] for r in lines} == {"published", "described"}
    assert {r["split"] for r in lines} == {"fixed (aaaaaaaa)", "fixed (bbbbbbbb)"}


def test_fidelity_and_caveats_of_a_row_are_shown(tmp_path):
    name, other = "table2_ncaltech48_t10_imp", "table2_cifar10dvs128_t16_imp"
    fake_run(tmp_path, f"experiment={name}", folder="n")
    fake_run(tmp_path, f"experiment={other}", "fidelity=described", folder="d")
    fake_run(tmp_path, f"experiment={other}", folder="e")
    fake_run(tmp_path, f"experiment={other}", "fidelity=published", seed=1, folder="p")  # as it was called before
    rows = [row(n, 86.0, table=2, method="IMP") for n in (name, other)]
    lines = paper_table(2, rows, list(groups(tmp_path).values())).rows
    assert [line["fidelity"] for line in lines] == ["published", "extended", "described"]
    assert [line["n"] for line in lines] == [1, 2, 1] and {line["departs"] for line in lines} == {None}
    assert "test list" in lines[0]["caveats"] and lines[1]["caveats"] is None
    assert "| caveat |" in to_markdown(paper_table(2, rows, list(groups(tmp_path).values())))
    assert "| caveat |" not in to_markdown(paper_table(2, rows, []))


def test_a_run_that_departs_from_its_row_says_so(tmp_path):
    name = "table1_cifar10_tet"
    fake_run(tmp_path, f"experiment={name}", folder="as_written")
    fake_run(tmp_path, f"experiment={name}", "debug.max_steps=3", "recipe.epochs=9", "cache_dir=x", folder="quick")
    fake_run(tmp_path, *IMP)
    rows = [row(name, 94.33), ROWS[1]]
    said = [line["departs"] for line in paper_table(1, rows, list(groups(tmp_path).values())).rows]
    assert said == [None, "debug.max_steps=3, recipe.epochs=9", "row_b is no experiment"]


AWKWARD = Table(
    "50 % & more_",
    [Column("a", "a_b"), Column("x", "x & y", "number")],
    [dict(a="<b>|#1 ~^\\{}$", x=1.0)],
    ["n < 2 ± 1"],
)


def test_latex_escapes_and_closes():
    tex = to_latex(AWKWARD)
    assert r"50 \% \& more\_" in tex and r"\textbackslash{}\{\}\$" in tex and r"$\pm$" in tex
    for name in ("table", "tabular"):
        assert tex.count(rf"\begin{{{name}}}") == tex.count(rf"\end{{{name}}}") == 1
    depth = 0
    for c in re.sub(r"\\[\\{}]", "", tex):
        depth += (c == "{") - (c == "}")
        assert depth >= 0
    assert depth == 0 and tex.isascii()


def test_an_empty_column_and_a_note_on_it_are_left_out_and_notes_come_once():
    columns = [Column("row", "row"), Column("x", "x", "number"), Column("y", "nothing", "number")]
    tex = to_latex(Table("Table 1: t", columns, [dict(row="a", x=1.0)], ["n.", "n.", "of y"], about={"of y": ["y"]}))
    assert "nothing" not in tex and "of y" not in tex and tex.count("n.") == 1 and "t (Table 1 of the paper)" in tex
    noted = paper_table(1, [row("a", 1.0, notes="n"), row("b", 2.0, notes="n")], []).rows
    assert [line["note"] for line in noted] == ["[1]", "[1]"]


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs pdflatex")
def test_tables_fit_a_neurips_page_at_8_points_and_one_that_is_too_wide_and_tall_is_split(tmp_path):
    wide = [Column("row", "row"), *(Column(f"c{i}", f"accuracy of column {i} %", "steps") for i in range(9))]
    rows = [dict(row=f"fashion_mnist-small-if-lts {n}") | {c.key: [88.8] * 12 for c in wide[1:]} for n in range(40)]
    tables = [path.read_text("utf-8") for path in sorted((RESULTS / "tables").glob("*.tex"))]
    tables.append(to_latex(Table("wide", wide, rows, ["a long note " * 9] + [f"note {n} " * 20 for n in range(90)])))
    assert all(text.count(r"\caption") == 1 and "resizebox" not in text for text in tables)
    page = r"\documentclass{article}\usepackage[textwidth=5.5in,textheight=9in]{geometry}\usepackage{booktabs}\begin{document}"
    (tmp_path / "page.tex").write_text("\n\\clearpage\n".join([page, *tables]) + r"\end{document}")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "Overfull" not in done.stdout and "too large" not in done.stdout, done.stdout[
        -2000:
    ]


README = """Before <!-- accuracy a -->1 % (n=1)<!-- / -->,
| <!-- accuracy deep/b -->stale<!-- / --> at <!-- steps deep/b -->1 2<!-- / --> | <!-- accuracy absent -->84 %<!-- / --> |
"""


def test_readme_numbers_are_those_of_the_runs(tmp_path, capsys, monkeypatch):
    results = tmp_path / "results"
    for seed, acc in enumerate((0.9, 0.92)):
        fake_run(results / "runs" / "deep", seed=seed, acc=acc, folder=f"b/seed{seed}")
    fake_run(results / "runs", "name=other", acc=0.5, folder="a/seed0")
    (tmp_path / "README.md").write_text(README)
    program = script("make_tables")
    monkeypatch.setattr(program, "load_rows", lambda: ROWS)
    assert program.main(["--results", str(results)]) == 0
    text = (tmp_path / "README.md").read_text()
    assert "<!-- accuracy a -->50.00 % (n=1)<!-- / -->," in text
    assert "-->91.00 ± 1.41 % (2 seeds)<!-- / --> at <!-- steps deep/b -->22.8 45.5 68.3 91.0<!-- / -->" in text
    assert "<!-- accuracy absent -->84 %<!-- / -->" in text  # its run is not here
    assert program.main(["--results", str(results), "--check"]) == 0
    (tmp_path / "README.md").write_text(text.replace("91.00", "91.01"))
    assert program.main(["--results", str(results), "--check"]) == 1
    assert "out of date: README.md" in capsys.readouterr().err
    fake_run(results / "runs" / "a", "recipe.lr=1", seed=3)
    assert program.main(["--results", str(results)]) == 2
    assert "several configurations" in capsys.readouterr().err


def test_numbers_that_are_no_run(tmp_path):
    text = "<!-- linear digits -->1 %<!-- / --> <!-- times data: Raw: peer, slow -->2x<!-- / --> <!-- linear absent -->3<!-- / -->"
    assert fill_in(text, tmp_path) == text  # nothing was measured
    rows = {name: {"cpu_seconds": s} for name, s in {"ours": 0.002, "peer, fast": 0.01, "peer, slow": 0.4794}.items()}
    for file, content in {
        "runs/methods/measured.json": {"digits": {"linear": 0.9689}},
        "benchmarks/data.json": {"tables": [{"title": "Rawest", "rows": rows}]},
    }.items():
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text(json.dumps(content))
    filled = fill_in(text, tmp_path)
    assert "-->96.89 %<!--" in filled and "-->240x<!--" in filled and "-->3<!--" in filled
    page = (RESULTS.parent / "docs" / "performance.md").read_text("utf-8")
    assert [m[2] for m in MEASURED.finditer(page)] == ["times"] * 3 and fill_in(page, RESULTS) == page


def test_means_are_those_of_every_python():
    """`sum` of floats rounds otherwise from Python 3.12 on; in either ten times 0.1 has a mean of 0.1 only by luck."""
    runs = [{"acc_step": [0.1, 0.3], "energy": {"synops": 0.1, "macs": 0.3, "energy_pj": 0.7}} for _ in range(10)]
    group = Group("ten", tuple(runs))
    assert group.steps() == [10.0, 30.0]
    assert group.operations() == {"synops": 0.1 / 1e3, "macs": 0.3 / 1e3, "energy": 0.7 / 1e3}


def test_committed_tables_are_the_generated_ones():
    assert script("make_tables").main(["--check"]) == 0
