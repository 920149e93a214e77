"""The page as a file: what is in it, what is left out and why, and what happens to input that is missing, damaged or hostile."""

import base64
import gzip
import json
import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import yaml
from fake_runs import fake_anytime, fake_run
from scripts_of_ours import script

from snn_repro.config import load_config, to_dict
from snn_repro.files import hold
from snn_repro.paper.rows import SHARED
from snn_repro.report import render
from snn_repro.report.anytime import front

ROOT = Path(__file__).parents[2]
plotly = pytest.importorskip("plotly")


def content(page: str) -> dict:
    """What is packed in a page."""
    packed = re.search(r'id="data">([^<]*)</script>', page).group(1)
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def report(*paths: Path) -> dict:
    return content(render(paths, networks=0)[0])


def cells(data: dict, name: str) -> dict[str, str]:
    lines = [line for line in data["sections"]["runs"]["data"]["rows"] if data["rows"][line["row"]] == name]
    return {key: text for key, (text, _) in lines[0]["cells"].items()}


HELD = []  # locks of runs that are under way


def under_way(folder: Path, *overrides: str, seed: int = 0, epochs: int = 3, state: str = "running") -> None:
    """A run's folder as it is while it trains."""
    config = to_dict(load_config([*overrides, f"seed={seed}"]))
    line = dict(loss=0.5, train_loss=0.4, train_acc=0.8, lr=0.1, samples_per_s=9.0, firing_rates={"sn1": 0.2})
    steps = [0.5 + 0.1 * t for t in range(config["timesteps"])]
    lines = [line | dict(epoch=e + 1, acc=0.5 + 0.1 * e, acc_step=steps, acc_cum=steps) for e in range(epochs)]
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "status.json").write_text(json.dumps(dict(state=state, error=None)))
    if state == "running":
        HELD.append(hold(folder / ".lock"))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))


def test_a_row_is_a_mean_over_its_seeds_and_a_run_stands_alone(tmp_path):
    energy = dict(energy=dict(synops=1e6, macs=2e5, energy_pj=1.82e6))
    for seed, acc in enumerate((0.90, 0.94)):
        fake_run(tmp_path, "neuron=if_imp", "loss=tet", "name=mine", seed=seed, acc=acc, best=0.96, extra=energy)
    fake_run(tmp_path, "name=without")
    data = report(tmp_path)
    mine = cells(data, "mine")
    assert mine["energy"] == "1.82" and cells(data, "without")["energy"] == ""
    assert mine["acc"] == "92.00 ± 2.83" and mine["first"] == "23.00 ± 0.71" and mine["best"] == "96.00"
    assert (mine["seeds"], mine["initial"], mine["neuron"], mine["loss"], mine["T"]) == ("2", "imp", "if", "tet", "4")
    runs = data["sections"]["runs"]["data"]["runs"]
    assert [(run["seed"], run["cells"]["acc"][0]) for run in runs if run["row"] == 0] == [(0, "90.00"), (1, "94.00")]
    curve = data["sections"]["accuracy_steps"]["charts"][0]["traces"]["0"][0]
    assert curve["x"] == [1, 2, 3, 4] and curve["y"][-1] == 92 and curve["sd"][-1] == pytest.approx(2.8284, abs=1e-4)


def test_single_steps_of_a_network_that_sees_the_future_are_left_out_with_the_reason(tmp_path):
    fake_run(tmp_path, "name=mine")
    fake_run(tmp_path, "neuron=psn", "name=ahead", extra=dict(causal=False))
    under_way(tmp_path / "psn" / "seed0", "neuron=psn", "name=ahead_too")
    page, _ = render([tmp_path], networks=0)
    data = content(page)
    assert {data["rows"][int(i)] for i in data["sections"]["accuracy_steps"]["charts"][0]["traces"]} == {"mine"}
    assert "these networks use future time steps: ahead<" in page  # of `ahead_too` nothing says it yet
    assert cells(data, "ahead_too [not finished]")["first"] == ""
    assert cells(data, "ahead")["first"] == "" != cells(data, "ahead")["acc"]


def test_a_run_under_way_joins_its_finished_siblings_and_is_not_counted(tmp_path):
    fake_run(tmp_path, "name=mine", seed=0, acc=0.9)
    under_way(tmp_path / "mine" / "seed1", "name=mine", seed=1)
    under_way(tmp_path / "other" / "seed0", "name=other", "loss=lts", state="interrupted", epochs=2)
    under_way(tmp_path / "fresh" / "seed0", "name=fresh", epochs=0)
    data = report(tmp_path)
    mine, other, fresh = (cells(data, name) for name in ("mine", "other [not finished]", "fresh [not finished]"))
    assert (mine["seeds"], mine["acc"], mine["state"]) == ("1 of 2", "90.00", "done, running")
    HELD.pop().release()  # the process of `fresh` is gone
    assert cells(report(tmp_path), "fresh [not finished]")["state"] == "stopped"
    assert (other["seeds"], other["acc"], other["best"], other["state"]) == ("0 of 1", "60.00", "60.00", "interrupted")
    assert other["epochs"].startswith("2 of ") and fresh["acc"] == fresh["first"] == ""
    charts = {chart["name"]: chart["traces"] for chart in data["sections"]["learning_curves"]["charts"]}
    test = charts["test accuracy, at the readout"]
    assert test["0"][0]["y"] == [50, 60, 70] and "validation accuracy, at the readout" not in charts


def test_seeds_that_are_further_go_on_alone_and_long_curves_are_thinned(tmp_path):
    for seed, epochs in enumerate((4, 2)):
        under_way(tmp_path / f"seed{seed}", "name=mine", seed=seed, epochs=epochs)
    mean, ahead = report(tmp_path)["sections"]["learning_curves"]["charts"][0]["traces"]["0"]
    assert mean["x"] == [1, 2] and mean["sd"] == [0, 0] and (ahead["x"], ahead["seed"]) == ([2, 3, 4], 0)
    under_way(tmp_path / "long", "name=long", epochs=1000)
    (trace,) = report(tmp_path)["sections"]["learning_curves"]["charts"][0]["traces"]["0"]
    assert len(trace["x"]) <= 151 and (trace["x"][0], trace["x"][-1]) == (1, 1000)


def test_the_keys_in_which_rows_differ_and_which_of_them_a_method_may_change(tmp_path):
    fake_run(tmp_path, "name=a", "loss=sdt")
    fake_run(tmp_path, "name=b", "loss=tet", "recipe.lr=0.5", extra=dict(threads=7))
    data = report(tmp_path)["sections"]["runs"]["data"]
    assert data["facts"]["recipe.lr"][1] == "0.5" and data["facts"]["loss.name"] == ["sdt", "tet"]
    assert {"loss.name", "name"} <= set(data["method"]) and "recipe.lr" not in data["method"]
    assert data["facts"]["threads"][1] == "7" and "recipe.epochs" not in data["facts"] and "seed" not in data["facts"]


def test_a_run_names_its_command_commit_and_data(tmp_path):
    fake_run(tmp_path, "name=own", folder="own/seed0", extra=dict(data=dict(files="f" * 64)))
    (tmp_path / "own/seed0/overrides.yaml").write_text("[name=own, 'neuron.imp_init=[0,1]']")
    name = "digits-small-if-lts"
    four = [f"{group}={word}" for group, word in zip(SHARED, name.split("-"), strict=True)]
    fake_run(tmp_path, *four, folder=f"{name}/neuron.imp_init=[0,0],recipe.epochs=6/seed3", seed=3)
    fake_run(tmp_path, "name=other", folder="x/seed0")
    digits, other, own = runs = report(tmp_path)["sections"]["runs"]["data"]["runs"]
    start = "python -m snn_repro.train "
    assert own["command"] == f"{start}name=own 'neuron.imp_init=[0,1]'" and len(own["data"]) == 8 and own["config"]
    assert digits["command"] == f"{start}{' '.join(four)} 'neuron.imp_init=[0,0]' recipe.epochs=6 seed=3"
    assert other["command"] is None and other["data"] is None
    fake_run(tmp_path, "name=a_new_one")
    more = report(tmp_path)["sections"]["runs"]["data"]["runs"]
    assert {run["id"] for run in runs} < {run["id"] for run in more}  # links stay valid


def test_dead_and_saturated_layers_are_marked(tmp_path):
    rates = dict(firing_rates={"sn1": 0.0002, "sn2": 0.3, "sn3": 0.97})
    fake_run(tmp_path, "name=mine", extra=rates)
    fake_run(tmp_path, "name=counts", "neuron=ilif", extra=dict(firing_rates={"sn1": 0.97, "sn2": 3.9}))
    page, _ = render([tmp_path], networks=0)
    traces = content(page)["sections"]["firing_rates"]["charts"][0]["traces"]
    assert traces["1"][0]["mark"] == ["x", None, "triangle-up"] and traces["0"][0]["mark"] == [None, "triangle-up"]
    assert "mine: dead sn1 (0.0002)" in page and "mine: saturated sn3 (0.97)" in page


def test_the_papers_tables_have_our_numbers_and_the_gain(tmp_path):
    for seed in range(3):
        fake_run(tmp_path, "experiment=table1_cifar10_tet", seed=seed, acc=0.93 + 0.01 * seed)
        fake_run(tmp_path, "experiment=table1_cifar10_tet", "debug.max_steps=2", "name=cut", seed=seed, acc=0.1)
    for seed in range(2):
        fake_run(tmp_path, "loss=sdt", "name=base", seed=seed, acc=0.80 + 0.01 * seed)
        fake_run(tmp_path, "loss=tet", "name=mine", "baselines=[base]", seed=seed, acc=0.85 + 0.02 * seed)
    page, _ = render([tmp_path], networks=0)
    assert "Table 1: SDT and TET without IMP (ours in 1 of 14 rows)" in page and "94.00 ± 1.00" in page
    assert "+5.50 (" in page and "10.00 ± 0.00" not in page and "cut short by a debug key: cut" in page


def test_the_anytime_section_has_means_over_seeds(tmp_path):
    fake_run(tmp_path, "name=two", seed=2)
    assert "Anytime: no run has eval/anytime.json; `snn-eval RUN anytime=true` writes it" in render([tmp_path], 0)[0]
    found = {name: [fake_anytime(tmp_path, name, k) for k in seeds] for name, seeds in (("one", [0]), ("two", [0, 1]))}
    fake_anytime(tmp_path, "bad", 0)
    (bad := tmp_path / "bad/seed0/eval/anytime.json").write_text('{"rules": []}')
    data = (packed := content(page := render([tmp_path], networks=0)[0]))["sections"]["anytime"]["data"]
    rows = {packed["rows"][int(i)]: row for i, row in data["rows"].items()}
    assert {name: row["seeds"] for name, row in rows.items()} == {"one": [1, 1], "two": [2, 3]}
    assert "2 of 3 rows have eval/anytime.json" in page and f"{bad} is damaged (KeyError)" in unescape(page)
    for name, runs in found.items():
        for rule, made in zip(data["names"], rows[name]["rules"], strict=True):
            curves = np.array([run[rule] for run in runs])
            sd = curves.std(0, ddof=len(runs) > 1)
            for key, values in zip(("acc", "steps", "operations", "sd"), [*curves.mean(0), sd[0]], strict=True):
                np.testing.assert_allclose(made[key], values, rtol=0, atol=0.501 if key == "operations" else 0.00501)


def test_the_pareto_front_equals_a_brute_force():
    points = [(int(c), int(a), i) for i, (c, a) in enumerate(np.random.default_rng(0).integers(0, 12, (60, 2)))]
    best = {(c, a) for c, a, _ in points if not any((d <= c and b >= a) and (d, b) != (c, a) for d, b, _ in points)}
    assert [(c, a) for c, a, _ in front(points)] == sorted(best)
    assert all(i == min(j for *other, j in points if other == [c, a]) for c, a, i in front(points))


def test_what_a_user_wrote_is_never_html(tmp_path):
    evil = "</script><img src=x onerror=alert(1)>"
    fake_run(tmp_path / "<b>runs", "name=mine", folder="x/seed0", extra=dict(name=evil, changed_on_resume=[evil]))
    fake_run(tmp_path / "<b>runs", "name=two", folder="y/seed0", extra=dict(causal=False))
    page, _ = render([tmp_path / "<b>runs"], networks=0)
    assert "<img" not in page and "<b>runs" not in page and page.count("</script>") == 3
    assert evil in content(page)["rows"]
    assert not re.findall(r'(?:src|href)="(?!#|data:)|url\(|@import', page) and len(page) < 2.5e6  # it loads nothing
    assert "http-equiv" not in page and 'http-equiv="refresh" content="7"' in render([tmp_path / "<b>runs"], 0, 6.5)[0]


def test_checkpoints_give_samples_spikes_and_imp(tmp_path, quick):
    from snn_repro.train import run

    run(quick("neuron=if_imp", "recipe.epochs=1"), str(tmp_path / "run"))
    data = content(render([tmp_path])[0])
    (box,) = data["sections"]["learned_imp"]["charts"][0]["traces"]["0"]
    assert len(box["x"]) == 3 and all(a <= b <= c for a, b, c in zip(box["q1"], box["median"], box["q3"], strict=True))
    samples = data["sections"]["samples"]["data"]
    saved = np.load(tmp_path / "run" / "predictions.npz")
    assert 2 <= len(samples["rows"]["0"]["samples"]) <= 6
    for sample in samples["rows"]["0"]["samples"]:
        i = sample["index"]
        assert sample["label"] == saved["label"][i]
        np.testing.assert_allclose(sample["logits"], saved["logits"][i][:, sample["classes"]], atol=1e-3)
        assert sample["so_far"] == saved["logits"][i].argmax(-1).tolist()  # of LTS: the last step
        picture = samples["frames"][sample["frames"]]
        assert picture["shape"] == [1, 1, 8, 8] and len(base64.b64decode(picture["bytes"])) == 64
        assert [len(layer["neurons"]) for layer in sample["spikes"]] == [24] * 3
        assert {len(neuron) for layer in sample["spikes"] for neuron in layer["neurons"]} == {4}
    said = render([tmp_path], networks=0)[0]
    assert not {"learned_imp", "samples"} & content(said)["sections"].keys()
    assert "Samples over time: no run has a checkpoint here" in said
    (tmp_path / "run/checkpoint_last.pt").write_bytes(b"none")  # is said, and the rest shown
    page, _ = render([tmp_path])
    assert "checkpoint_last.pt" in page and 'id="accuracy_steps"' in page


def test_a_result_that_cannot_be_shown_costs_one_line(tmp_path):
    fake_run(tmp_path, "name=mine")
    fake_run(tmp_path, "name=bad", extra=dict(config=dict(dataset={}, recipe={}, debug={})))
    fake_run(tmp_path, "name=odd", extra=dict(firing_rates={"sn1": "x"}))
    page, found = render([tmp_path], networks=0)
    damaged, odd = found.problems
    assert "bad/seed0 holds a damaged run" in damaged and content(page)["rows"] == ["mine", "odd"]
    assert odd.startswith("Firing rates by layer: this section cannot show the data of a run (TypeError")
    assert odd in unescape(page)


def test_the_script_writes_the_page_and_names_what_is_damaged(tmp_path, capsys):
    runs, output = tmp_path / "runs", tmp_path / "page.html"
    fake_run(runs, "name=mine")
    fake_run(runs, "name=half")
    (runs / "half/seed0/metrics.jsonl").write_text('{"epoch": 1, "acc"')
    under_way(runs / "cut" / "seed0", "name=cut")
    (runs / "cut/seed0/config.yaml").write_text("name: [")
    (runs / "bad").mkdir()
    (runs / "bad/result.json").write_text("{")
    assert script("report").main([str(runs), "--output", str(output), "--networks", "0"]) == 0
    err, page = capsys.readouterr().err, output.read_text()
    assert err.count("\n") == err.count("left out: ") == 3 and "Traceback" not in err
    for said in ("bad/result.json is damaged", "half/seed0/metrics.jsonl is damaged", "cut/seed0 holds a damaged run"):
        assert said in err and said in page
    assert "2 runs in 2 rows" in page and "3 could not be read" in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "runs"]


MENDED = {
    "missing": "missing does not exist; give folders that hold runs",
    "empty": "empty holds no run (no result.json, no config.yaml); train first, or give another folder",
    "bad": "no run under bad can be read: bad/result.json is no result",
    "runs --output no/where.html": "--output no/where.html: the folder no does not exist; make it first",
    "runs --output empty": "--output empty is a folder; give the name of a file in it",
    "runs --networks -1": "--networks -1 must be at least 0",
}


@pytest.mark.parametrize("words, said", MENDED.items())
def test_what_a_user_can_mend_is_one_sentence_and_no_file(tmp_path, capsys, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    fake_run(tmp_path / "runs", "name=mine")
    for name in ("empty", "bad"):
        (tmp_path / name).mkdir()
    (tmp_path / "bad/result.json").write_text("[]")
    assert script("report").main(words.split()) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and not list(tmp_path.glob("*.html"))


def test_watching_waits_for_a_run_writes_again_on_change_and_stops_cleanly(tmp_path, capsys, monkeypatch):
    program, output = script("report"), tmp_path / "page.html"
    runs = tmp_path / "runs"
    pages = []

    def sleep(seconds):
        pages.append(output.read_text() if output.exists() else None)
        if len(pages) == 1:
            runs.mkdir()
        elif len(pages) == 2:
            under_way(runs / "seed0", "name=mine", epochs=1)
        elif len(pages) == 4:
            (runs / "seed0/metrics.jsonl").write_text(2 * (runs / "seed0/metrics.jsonl").read_text())
        elif len(pages) == 5:
            (runs / "seed0/status.json").write_text("{")
        elif len(pages) == 7:
            raise KeyboardInterrupt

    monkeypatch.setattr(program.time, "sleep", sleep)
    assert program.main([str(runs), "--output", str(output), "--watch", "2", "--networks", "0"]) == 0
    out, err = capsys.readouterr()
    assert out.count("page.html: 1 runs in 1 rows") == 2 and out.endswith("stopped\n")
    assert err.count("waiting") == 3 and "does not exist" in err and "holds no run" in err and "can be read: " in err
    assert pages[1] is None and 'content="2"' in pages[2] and pages[2] == pages[3] != pages[4] == pages[6]
