"""The documentation's own parts: links, tables, what it loads, results in pandas, and the notebook."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
from fake_runs import fake_run

from snn_repro.paper.results import load, to_frame

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made():
    pytest.importorskip("mkdocs", reason='pip install -e ".[docs]"')
    spec = importlib.util.spec_from_file_location("pages", ROOT / "docs" / "_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_of_the_repository_are_turned_to_pages(made):
    known = {"start.md", "CONTRIBUTING.md", "results/README.md", "results/figures/README.md", "results/figures/a.svg"}
    text = "[a](../CONTRIBUTING.md#x) ![b](../results/figures/a.svg) [c](start.md) [d](#here) [e](https://example.org)"
    assert made.relinked(text, "docs/index.md", known) == text.replace("../", "")
    assert made.relinked("[a](../docs/start.md)", "results/README.md", known) == "[a](../start.md)"
    assert made.relinked("[a](a.svg)", "results/figures/README.md", known) == "[a](a.svg)"
    assert made.relinked("[code](../snn_repro/train.py)", "docs/index.md", known) == "code"
    missing = "[a](../nothing.md)"
    assert made.relinked(missing, "docs/index.md", known) == missing, "mkdocs has to see it, and say so"


def test_what_comes_from_another_host_is_seen(made):
    for text in (
        '<script src="https://example.org/a.js">', "<img alt=x src=//example.org/a.png>", "@import 'https://example.org/a.css'",
        '<link rel="stylesheet" href="https://example.org/a.css">', "url(https://example.org/a.woff2)",
    ):  # fmt: skip
        assert made.foreign(text), text
    for text in (
        '<a href="https://example.org">',
        '<script src="../a.js">',
        '<link rel="canonical" href="https://example.org">',
    ):
        assert not made.foreign(text), text


def test_every_thing_of_every_kind_has_its_place(made):
    from snn_repro import registry

    pages = dict(made.pages())
    kinds = [r for r in vars(registry).values() if isinstance(r, registry.Registry)]
    for kind, text in zip(kinds, list(pages.values())[-len(kinds) :], strict=True):
        assert all(f"{{ #{name} }}" in text for name in kind if kind._owners[name].startswith("snn_repro."))
    assert "::: snn_repro.neurons.lif.LIF" in pages["reference/neurons.md"]
    assert (
        "| `neuron.tau` | `2` |" in pages["reference/neurons.md"] and "`initial=zero`" in pages["reference/neurons.md"]
    )
    assert "| `recipe.lr` | learning rate" in pages["reference/keys/recipe.md"]
    assert all(
        f"## python scripts/{file.name}" in pages["reference/commands.md"] for file in (ROOT / "scripts").glob("*.py")
    )


def test_equations_are_typeset_and_of_things_that_are_there(made):
    from snn_repro.registry import INITIAL_STATES, LOSSES, NEURONS, NORMS, SURROGATES

    text = (ROOT / "docs" / "equations.md").read_text("utf-8")
    rows = {name for row in re.findall(r"(?m)^\| (`.*?) \|", text) for name in re.findall(r"`(\w+)`", row)}
    known = {name for kind in (NEURONS, INITIAL_STATES, SURROGATES, LOSSES, NORMS) for name in kind}
    assert rows - {"soft", "hard"} <= known and len(rows) > 40
    html = made.on_page_content(r'<span class="arithmatex">\(h[t] \ge \theta\)</span>', None, None, None)
    assert html.startswith("<math") and "&#x003B8;" in html and "arithmatex" not in html


def test_runs_as_a_table_of_pandas(tmp_path):
    for seed in range(2):
        fake_run(tmp_path / "runs", "loss=sdt", seed=seed)
    runs = load([tmp_path / "runs"])
    frame = to_frame(runs)
    assert len(frame) == 2 and set(frame.seed) == {0, 1}
    assert list(frame["config.recipe.lr"]) == [run["config"]["recipe"]["lr"] for run in runs]
    assert [list(frame[f"acc_step_{t + 1}"]) for t in range(4)] == [
        list(s) for s in zip(*(r["acc_step"] for r in runs), strict=True)
    ]


@pytest.mark.slow
def test_the_notebook_runs():
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    notebook = nbformat.read(ROOT / "docs" / "results.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code), "it is committed without outputs"
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT / "docs")}}).execute()
    assert "image/png" in code[-1].outputs[-1]["data"], "the last cell draws"


def test_reports_of_gpus_are_listed(made, tmp_path):
    page = (ROOT / "docs" / "performance_gpu.md").read_text("utf-8")
    assert made.with_reports(page) == page, "run: python docs/_pages.py"
    assert "No report has come in yet." in made.with_reports(page, tmp_path)
    speeds = {"ours": 400.0, "ours, kernels=off": 100.0, "the same weights on spikingjelly's nodes": 320.0}
    steps = {"title": "steps: VGG-48, B=32, T=10: training", "rows": {k: {"samples/s": v} for k, v in speeds.items()}}
    machine = {"GPU": "A100, 80 GiB", "date": "2026-12-24", "driver": "580.1", "torch": "2.13.0", "triton": "3.9.0"}
    (tmp_path / "a100.json").write_text(json.dumps({"machine": machine, "not_right": ["x"], "tables": [steps]}))
    row = "| 2026-12-24 | driver 580.1, torch 2.13.0, triton 3.9.0 | 1 | no result | 400 (4x kernels=off, 1.2x spikingjelly) |"
    assert f"| [A100, 80 GiB](../results/contributed/gpu/a100.md) {row}" in made.with_reports(page, tmp_path)


def test_tables_of_choices_are_current(made):
    for page in (ROOT / "docs").glob("choose*.md"):
        text = page.read_text("utf-8")  # a new choice may be missing: the site shows it
        assert {*text.splitlines()} <= {*made.with_choices(text).splitlines()}, "run: python docs/_pages.py"
