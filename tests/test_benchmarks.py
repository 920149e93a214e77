"""Every subject of scripts/benchmark.py runs, at toy size; no test here asserts a time."""

import importlib
import json
import os
import sys
import time
from pathlib import Path

import pytest
import torch
from scripts_of_ours import script

from studies.figures.imp_overhead import draw_reports

ROOT = Path(__file__).parents[1]
TITLES = {  # a part of the title of every table
    "data": ["Frame integration", "Raw recordings to cached frames", "AEDAT 3.1", "Serving", "CIFAR", "Training batches", "Peak memory"],
    "dry_run": ["First epoch"],
    "neuron": ["neuron-steps", "As a library call", "Every neuron", "A batch norm and the layer", "with IMP and without"],
    "startup": ["Commands"],
    "step": [": training", ": evaluation", "memory of a training step", "density of each", "Firing rates"],
}  # fmt: skip


@pytest.fixture
def program():
    """benchmark.py as a module; the environment and the modules are as before afterwards."""
    before = os.environ.copy()
    yield script("benchmark")
    os.environ.clear()
    os.environ.update(before)  # not replaced: compiled code reads the process's own
    for name in [n for n in sys.modules if n == "benchmarks" or n.startswith("benchmarks.")]:
        del sys.modules[name]


@pytest.mark.slow
@pytest.mark.parametrize("subject", TITLES)
def test_every_subject_measures_a_toy_and_writes_its_report(program, subject, tmp_path, capsys):
    torch.set_num_threads(2)
    assert program.main([subject, "quick=true", "rounds=3", "--output", str(tmp_path)]) == 0
    assert torch.get_num_threads() == 1
    report = json.loads((tmp_path / f"{subject}.json").read_text())
    text = (tmp_path / f"{subject}.md").read_text()
    assert text.strip() == capsys.readouterr().out.strip()
    assert {"processor", "cores", "memory", "load", "date", "python", "torch"} <= report["machine"].keys()
    for part in TITLES[subject]:
        table = next(t for t in report["tables"] if part in t["title"])
        assert table["rows"] and table["title"] in text
        for case, row in table["rows"].items():
            assert f"| {case} |" in text and row
    timed = [t["rows"] for t in report["tables"] if "cpu_seconds" in next(iter(t["rows"].values()))]
    for rows in timed:
        assert f"{next(iter(rows))} again" in rows, "the A/A control is missing"
        assert all(row["cpu_seconds"] > 0 and len(row["quartiles"]) == 2 for row in rows.values())
    if subject == "neuron":
        draw_reports([report])


@pytest.mark.slow
@pytest.mark.parametrize("subject", ["neuron", "step", "data"])
def test_what_a_gpu_would_run_runs_on_a_cpu(program, subject):
    """The same cases on the same networks; what only a GPU has, its events and its memory, is left out."""
    from benchmarks._harness import CPU

    of = importlib.import_module(f"benchmarks.{subject}").on_gpu
    report = of(CPU, 2, True, {}) if subject == "neuron" else of(CPU, 2, True)
    if subject == "neuron":
        assert [t.title.rsplit(" ", 1)[-1] for t in report.tables[:2]] == ["float32", "float16"]
    elif subject == "data":
        assert len(report.tables) == 7 and all(row["cpu_seconds"] > 0 for t in report.tables for row in t.rows.values())
    else:
        assert {"ours", "ours, kernels=off", "ReLU twin on T*B images"} < report.tables[0].rows.keys()
    assert not [line for table in report.tables for line in table.wrong]
    assert all(table.rows and table.text() for table in report.tables)


def test_a_process_that_fails_dies_or_hangs_is_told(program):
    from benchmarks._harness import in_own_process

    assert in_own_process(divmod, 7, 2) == (3, 1)
    with pytest.raises(RuntimeError, match="^ZeroDivisionError: "):
        in_own_process(divmod, 1, 0)
    with pytest.raises(RuntimeError, match="^its process ended with exit code 3$"):
        in_own_process(os._exit, 3)
    with pytest.raises(TimeoutError, match="^it took more than 1 s$"):
        in_own_process(time.sleep, 60, limit=1)


def test_subjects_are_found_by_listing_the_folder_and_told_in_their_own_words(program, capsys):
    assert sorted([*TITLES, "gpu"]) == list(program.subjects())
    with pytest.raises(SystemExit, match="^0$"):
        program.main(["--help"])
    said = capsys.readouterr().out
    for subject, text in program.subjects().items():
        assert f"{subject:10} {text.splitlines()[0]}" in said
    assert program.main(["startup", "--help"]) == 0
    assert "base=DIR" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, said",
    [
        (
            ["nueron"],
            "nueron is not a subject; choose: data, dry_run, gpu, neuron, startup, step; did you mean 'neuron'?",
        ),
        (["data", "base=x"], "base=x is not an option of data; it has: rounds=, quick="),
        (["data", "rounds=2"], "rounds must be a whole number, 3 or more"),
        (["data", "quick=yes"], "quick must be true or false"),
        (["data", "quick="], "quick=: quick must be true or false"),
        (["neuron", "device=gpu"], "device=gpu must be cpu, cuda or cuda:N"),
        (["step", "device=cuda:99"], "device=cuda:99 does not exist: torch sees"),
        (["startup", "base=nowhere"], "base=nowhere has no snn_repro"),
        (["gpu", "device=cpu"], "gpu needs a GPU, but torch sees none or device=cpu is not cuda"),
    ],
)
def test_what_cannot_be_measured_is_told_in_one_sentence(program, capsys, arguments, said):
    assert program.main(arguments) == 2
    err = capsys.readouterr().err
    assert said in err and len(err.splitlines()) == 1
