"""result.json: every key documented, written in order, read back with what other versions wrote or left out."""

import copy
import json
from pathlib import Path

import pytest
from fake_runs import fake_run

from snn_repro.errors import UserError
from snn_repro.runs.result import HINTS, KEYS, MAY_LACK, RunResult, read_result, table

ROOT = Path(__file__).parents[2]


def test_the_table_of_keys_is_the_committed_one():
    assert (ROOT / "docs" / "result.md").read_text() == table(), "python -m snn_repro.runs.result > docs/result.md"
    assert set(HINTS) == {*KEYS} - {"folder"} and all(f"| `{key}`" in table() for key in HINTS)


def test_a_run_writes_the_documented_keys_in_their_order(quick, tmp_path):
    from snn_repro.train import run

    result = run(quick("recipe.epochs=1", "energy=true"))
    content = json.loads((tmp_path / "run" / "result.json").read_text())
    assert list(content) == [key for key in HINTS if key not in ("cuda", "right")] == list(result) and result == content
    assert RunResult.of(content) == result and json.dumps(dict(result), indent=2) == json.dumps(content, indent=2)


def test_attributes_and_items_are_the_same(tmp_path):
    result = fake_run(tmp_path)
    assert result.acc_step == result["acc_step"] and result.get("nothing", 7) == 7 and "unknown" not in result
    assert result.energy is None and "energy" not in result and "acc_val" in result
    result.energy = {"total": 1}
    assert result["energy"] == {"total": 1} and list(result)[-1] == "energy" and len(result) == len(dict(result))
    with pytest.raises(KeyError):
        result["nothing"]
    assert copy.deepcopy(result) == result


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
    "key, value, what", [("seconds", "long", "a number"), ("acc_cum", 0.5, "a list"), ("n_val", True, "a whole number")]
)
def test_a_value_of_another_type_is_named(tmp_path, key, value, what):
    fake_run(tmp_path)
    path = next(tmp_path.rglob("result.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(UserError, match=f"result.json has {key}=.*, which is not {what}"):
        read_result(path)
