"""The table of departures says what the rows' configurations say."""

import re
from pathlib import Path

import pytest
import yaml

from snn_repro.config import to_dict
from snn_repro.paper.rows import compose

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "paper_and_code.md").read_text("utf-8")
LINES = re.findall(r"\| `(\w+)` \| `([\w.]+)` \| `([^`]+)` \| `([^`]+)` \|$", PAGE, re.MULTILINE)


@pytest.fixture(scope="module")
def configurations():
    rows = list(dict.fromkeys(row for row, *_ in LINES))
    return [{k: to_dict(v) for k, v in compose(rows, preset).items()} for preset in ([], ["fidelity=described"])]


def value(configuration: dict, key: str):
    for word in key.split("."):
        configuration = configuration[word]
    return configuration


@pytest.mark.parametrize("row, key, published, described", LINES, ids=lambda word: word)
def test_a_departure_is_as_the_page_says(row, key, published, described, configurations):
    found = [value(each[row], key) for each in configurations]
    assert found == [yaml.safe_load(published), yaml.safe_load(described)]


def test_the_page_has_every_key_of_the_preset():
    preset = yaml.safe_load((ROOT / "conf" / "fidelity" / "described.yaml").read_text("utf-8"))
    keys = {f"{group}.{key}" for group, values in preset.items() if isinstance(values, dict) for key in values}
    exchanged = {key for _, key, published, described in LINES if published != described}
    assert keys - exchanged == {"neuron.v_reset", "neuron.surrogate_width"}  # they go with the reset and the surrogate
    assert exchanged <= keys
