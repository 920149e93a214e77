"""result.json: every key documented, written in order, read back with what other versions wrote or left out."""

import copy
import json
import pickle
from pathlib import Path

import fake_runs
import pytest
from fake_runs import fake_run

from snn_repro.errors import UserError
from snn_repro.runs.result import KEYS, MAY_LACK, RunResult, build_result, read_result, selection, table
from snn_repro.train import run

ROOT = Path(__file__).parents[2]


def test_the_table_of_keys_is_the_committed_one():
    assert (ROOT / "docs" / "result.md").read_text() == table(), "python -m snn_repro.runs.result > docs/result.md"
    assert set(KEYS) >= MAY_LACK and all(f"| `{key}`" in table() for key in KEYS)


def test_a_run_writes_the_documented_keys_in_their_order(quick, tmp_path):
    result = run(quick("recipe.epochs=1", "energy=true"))
    content = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (
        list(content) == [key for key in KEYS if key not in ("cuda", "right", "verified")] == list(result)
        and result == content
    )
    assert json.dumps(result, indent=2) == json.dumps(content, indent=2)


def test_the_mean_of_the_last_ten_epochs(tmp_path, monkeypatch):
    def longer(config, data, weights, imp, history, *others):
        history = [{**history[0], "epoch": k + 1, "acc": k / 100} for k in range(12)]
        return build_result(config, data, weights, imp, history, *others)

    monkeypatch.setattr(fake_runs, "build_result", longer)
    assert fake_run(tmp_path)["acc_last10_mean"] == pytest.approx(0.065)


def test_attributes_and_items_are_the_same(tmp_path):
    result = fake_run(tmp_path)
    assert result.acc_step == result["acc_step"] and result.energy is None and "energy" not in result
    result.energy = {"total": 1}
    assert result["energy"] == {"total": 1} and list(result)[-1] == "energy"
    with pytest.raises(AttributeError):
        result.nothing  # noqa: B018
    for copied in (copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
        assert copied == result and isinstance(copied, RunResult)


def test_keys_of_newer_versions_are_kept_and_those_of_older_ones_may_lack(tmp_path):
    fake_run(tmp_path)
    path = next(tmp_path.rglob("result.json"))
    content = json.loads(path.read_text()) | {"of_tomorrow": [1, None]}
    older = {k: v for k, v in content.items() if k not in MAY_LACK}
    path.write_text(json.dumps(older))
    result = read_result(path)
    assert result["of_tomorrow"] == [1, None] and result.folder == str(path.parent) and result.data is None
    assert {k: v for k, v in result.items() if k != "folder"} == older and list(older) == list(result)[:-1]


@pytest.mark.parametrize(
    "key, value, what",
    [
        ("seconds", "long", "seconds='long', which is not a number"),
        ("acc_cum", 0.5, "acc_cum=0.5, which is not a list"),
        ("n_val", True, "n_val=True, which is not a whole number"),
        ("causal", 1, "causal=1, which is not true or false"),
        ("acc_last", 1.5, "an accuracy of 1.5, not in 0..1"),
        ("acc_step", [0.5], r"acc_step=\[0.5\], not one number per time step"),
        ("neuron", {}, "a config without neuron.imp"),
    ],
)
def test_a_value_of_another_kind_is_named(tmp_path, key, value, what):
    fake_run(tmp_path)
    path = next(tmp_path.rglob("result.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(UserError, match=f"result.json has {what}; repeat the run with force=true"):
        read_result(path)


def test_an_epoch_is_selected_where_accuracy_rises_above_all_before():
    lines = [dict(acc=a, val_acc=v) for a, v in ((0.9, 0.2), (0.1, 0.2), (0.3, 0.5), (0.2, 0.4))]
    assert selection(lines) == [0, 2] and selection([{"acc": a} for a in (0.0, 0.1, 0.1)]) == [0, 1]
